"""What quantizers share: integers with their scales, inputs that are rounded, and layers made of both.

What ships is integers and scales. Products are computed in floating point on the rounded numbers, which gives what
integer kernels give up to the order of summation, and none of their speed.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.utils import TorchAOBaseTensor

from methods.core.activation import count
from methods.core.errors import NothingMatched
from methods.core.surgery import Stage, Transform
from methods.nets.dit import DiT
from methods.nets.unet import UNet

Layer = nn.Conv2d | nn.Linear
SHRUNK = torch.linspace(1, 0.25, 16)
"""Shares of the widest range that are tried for the least square error."""
LOOKED_AT = 2048
"""Numbers of an input, drawn at random, on which they are tried."""
SMALLEST = 1e-8


class Quantization(Transform):
    """A transform that leaves integers where weights were."""

    stage: ClassVar[Stage] = Stage.NUMERICS
    ships: ClassVar[bool] = True
    does: ClassVar[str | None] = "quantize the weights"


# Weights --------------------------------------------------------------------------------------------------------------


class Integers(TorchAOBaseTensor):
    """Weights as signed integers, two to a byte up to 4 bits, with a scale per group of a row: [o, g]."""

    tensor_data_names: ClassVar[list[str]] = ["packed", "scale"]
    tensor_attribute_names: ClassVar[list[str]] = ["bits", "stands_for"]

    def __new__(cls, packed: Tensor, scale: Tensor, bits: int, stands_for: torch.Size) -> "Integers":
        return torch.Tensor._make_wrapper_subclass(cls, stands_for, dtype=scale.dtype, device=packed.device)  # pyright: ignore

    def __init__(self, packed: Tensor, scale: Tensor, bits: int, stands_for: torch.Size) -> None:
        self.packed, self.scale, self.bits, self.stands_for = packed, scale, bits, stands_for

    def dequantize(self) -> Tensor:
        """The floating-point numbers they stand for."""
        q = self.packed
        if self.bits <= 4:
            q = torch.stack([q & 15, q >> 4], dim=-1).flatten(1).to(torch.int8) - 8
        return ungrouped(q.unflatten(1, (self.scale.shape[1], -1)), self.scale, self.stands_for)


def limits(bits: int) -> tuple[int, int]:
    """The least and the largest signed integer."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def grouped(weight: Float[Tensor, "o *i"], group: int | None = None) -> Float[Tensor, "o g n"]:
    """The rows of a weight in groups of an even size, at most `group`, filled up with zeros."""
    rows = weight.flatten(1)
    size = min(group or rows.shape[1], rows.shape[1])
    size += size % 2
    return F.pad(rows, (0, -rows.shape[1] % size)).unflatten(1, (-1, size))


def ungrouped(q: Tensor, scale: Float[Tensor, "o g"], shape: torch.Size) -> Float[Tensor, "o *i"]:
    """The weight of a shape that integers [o, g, n] with scales stand for."""
    return (q * scale[..., None]).flatten(1)[:, : shape[1:].numel()].reshape(shape)


def widest(parts: Float[Tensor, "o g n"], bits: int) -> Float[Tensor, "o g"]:
    """The scales at which the largest number of each group is the largest that can be stored."""
    return (parts.abs().amax(-1) / (2 ** (bits - 1) - 0.5)).clamp(min=SMALLEST)


def best_scale(parts: Float[Tensor, "o g n"], bits: int) -> Float[Tensor, "o g"]:
    """The scales of the least square error; larger numbers are cut off."""
    tried = SHRUNK.to(parts)[:, None, None] * widest(parts, bits)
    steps = tried[..., None]
    errors = ((parts / steps).round().clamp(*limits(bits)) * steps - parts).square().sum(-1)
    return tried.gather(0, errors.argmin(0, keepdim=True))[0]


def store(q: Float[Tensor, "o g n"], scale: Float[Tensor, "o g"], bits: int, shape: torch.Size) -> Integers:
    """Integers of a shape, given by groups, as a parameter that nothing trains."""
    packed = q.clamp(*limits(bits)).to(torch.int8).flatten(1)
    if bits <= 4:
        low, high = (packed + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
        packed = low | high << 4
    return nn.Parameter(Integers(packed, scale, bits, shape), requires_grad=False)  # pyright: ignore[reportReturnType]


def nearest(weight: Tensor, bits: int, group: int | None = None, scaled: Callable[..., Tensor] = best_scale
            ) -> Integers:  # fmt: skip
    """Each number rounded to the nearest integer."""
    parts = grouped(weight.detach(), group)
    scale = scaled(parts, bits)
    return store((parts / scale[..., None]).round(), scale, bits, weight.shape)


# Inputs ---------------------------------------------------------------------------------------------------------------


def rounded(x: Tensor) -> Tensor:
    """Rounding whose gradient is that of the identity (the straight-through estimator)."""
    return x + (x.round() - x).detach()


class Clock:
    """A hook of a network that notes the noise level of every row, for its parts to look at."""

    level: Tensor

    def __call__(self, network: nn.Module, asked: tuple[Any, ...]) -> None:
        self.level = asked[1] if asked[1].ndim == 1 else asked[1][:, 0]

    def listening(self, network: nn.Module) -> nn.Module:
        """The network, with this hook on it and on those inside of it, which may be asked about some rows alone."""
        for part in network.modules():
            if part is network or isinstance(part, UNet | DiT):
                part.register_forward_pre_hook(self)
        return network


class Rounding(nn.Module):
    """Inputs as unsigned integers of some bits: q = round(x / step) + zero, with numbers of its own per noise level.

    While it is `fitting`, an input sets the range to that of the least square error: of its bucket of noise levels, or
    of all buckets if its rows belong to several.
    """

    step: Tensor
    zero: Tensor

    def __init__(self, bits: int, buckets: int = 1, clock: Clock | None = None) -> None:
        super().__init__()
        self.levels, self.buckets, self.clock, self.fitting = 2**bits - 1, buckets, clock, False
        self.register_buffer("step", torch.ones(buckets))
        self.register_buffer("zero", torch.zeros(buckets))

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        bucket = torch.zeros(1, dtype=torch.long, device=x.device)
        if self.clock is not None:
            bucket = (self.clock.level * self.buckets).long().clamp(0, self.buckets - 1)
        if self.fitting:
            one = bool((bucket == bucket[0]).all())
            self.step[bucket if one else slice(None)], self.zero[bucket if one else slice(None)] = self.range_of(x)
        step, zero = (part[bucket].reshape(-1, *[1] * (x.ndim - 1)) for part in (self.step, self.zero))
        return self.at(x, step, zero)

    def at(self, x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
        """x on the grid of a step and a zero point."""
        return ((rounded(x / step) + zero).clamp(0, self.levels) - zero) * step

    def range_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The step and the zero point of the least square error among ranges that are shrunk alike."""
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
        step = (SHRUNK.to(x)[:, None] * (high - low) / self.levels).clamp(min=SMALLEST)
        zero = (-low / (high - low).clamp(min=SMALLEST) * self.levels).round()
        looked_at = torch.randint(x.numel(), (LOOKED_AT,), generator=torch.Generator().manual_seed(0))
        seen = x.flatten()[looked_at.to(x.device)]
        return step[(self.at(seen, step, zero) - seen).square().sum(1).argmin(), 0], zero


def channels_last(x: Tensor) -> Tensor:
    """Images with their channels behind, and tokens as they are."""
    return x.movedim(1, -1) if x.ndim == 4 else x


class GroupRounding(nn.Module):
    """Groups of channels as signed integers, each with the scale of its own largest number."""

    def __init__(self, bits: int, group: int) -> None:
        super().__init__()
        self.largest, self.group = 2 ** (bits - 1) - 1, group

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        last = channels_last(x)
        size = min(self.group, last.shape[-1])
        parts = F.pad(last, (0, -last.shape[-1] % size)).unflatten(-1, (-1, size))
        scale = (parts.abs().amax(-1, keepdim=True) / self.largest).clamp(min=SMALLEST)
        last = (rounded(parts / scale) * scale).flatten(-2)[..., : last.shape[-1]]
        return last.movedim(-1, 1) if x.ndim == 4 else last


class Quantized(nn.Module):
    """A convolution or linear layer with integer weights, and inputs that are rounded first."""

    weight: Integers

    def __init__(self, layer: Layer, weight: Integers, rounding: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.rounding = weight, layer.bias, rounding
        self.multiply = multiplication(layer)

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *t"]:
        return self.multiply(self.rounding(x), self.weight.dequantize(), self.bias)


class Trainable(nn.Module):
    """A quantized layer in training: floating-point weights that are rounded at every call, with the layer's scales."""

    def __init__(self, layer: Quantized, weight: Tensor) -> None:
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(weight.detach().clone())
        self.scale, self.bits = layer.weight.scale, layer.weight.bits

    def current(self) -> Float[Tensor, "o *i"]:
        """The weights before they are rounded."""
        return self.weight

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *t"]:
        q = rounded(grouped(self.current()) / self.scale[..., None]).clamp(*limits(self.bits))
        return self.layer.multiply(self.layer.rounding(x), ungrouped(q, self.scale, self.weight.shape), self.layer.bias)

    @torch.no_grad()
    def settle(self) -> Quantized:
        """The layer with the weights as they are now, in integers."""
        before = self.layer.weight.dequantize()
        q = (grouped(self.current()) / self.scale[..., None]).round()
        self.layer.weight = store(q, self.scale, self.bits, self.weight.shape)
        count("weights_moved", int((self.layer.weight.dequantize() != before).sum()))
        return self.layer


def multiplication(layer: Layer) -> Callable[..., Tensor]:
    """(x, weight, bias) -> what the layer does with them."""
    if isinstance(layer, nn.Linear):
        return F.linear
    place = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return partial(F.conv2d, groups=layer.groups, **place)


# Networks -------------------------------------------------------------------------------------------------------------


def rewrite_layers(network: nn.Module, make: Callable[[Layer, bool], nn.Module]) -> nn.Module:
    """A copy with `make(layer, whether it is the first or last)` for every convolution and linear layer worth it.

    A row of a single number is not: its scale would be as long. Raises NothingMatched if there is none.
    """
    network = deepcopy(network)
    layers = {
        path: part
        for path, part in network.named_modules()
        if isinstance(part, Layer) and path and part.weight[0].numel() > 1
    }
    if not layers:
        raise NothingMatched(f"{type(network).__name__} holds no layer to quantize")
    first = next((path for path, layer in layers.items() if isinstance(layer, nn.Conv2d)), next(iter(layers)))
    for path, layer in layers.items():
        put(network, path, make(layer, path in (first, next(reversed(layers)))))
    count("layers_quantized", len(layers))
    return network


def put(network: nn.Module, path: str, part: nn.Module) -> None:
    """Replace a part, in place."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, part)


def simulated(network: nn.Module, weight_bits: int, input_bits: int, rounding: Callable[[int], nn.Module] = Rounding
              ) -> nn.Module:  # fmt: skip
    """Every layer with weights and inputs of so many bits; the first and the last keep eight, as papers agree."""

    def make(layer: Layer, outer: bool) -> Quantized:
        low = 8 if outer else 2
        return Quantized(layer, nearest(layer.weight, max(low, weight_bits)), rounding(max(low, input_bits)))

    return rewrite_layers(network, make)
