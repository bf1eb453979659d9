"""Quantized layers, and networks made of them.

Products are computed in floating point on the rounded numbers, which gives what integer kernels give up to the order of
summation, and none of their speed.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.errors import NothingMatched
from methods.core.surgery import Stage, Transform
from methods.deployment.quantization._inputs import Rounding, rounded
from methods.deployment.quantization._weights import Integers, grouped, limits, nearest, store, ungrouped

Layer = nn.Conv2d | nn.Linear


class Quantization(Transform):
    """A transform that leaves integers where weights were."""

    stage: ClassVar[Stage] = Stage.NUMERICS
    ships: ClassVar[bool] = True
    does: ClassVar[str | None] = "quantize the weights"


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
    return partial(F.conv2d, **place)


def rewrite_layers(network: nn.Module, make: Callable[[Layer, bool], nn.Module]) -> nn.Module:
    """A copy with `make(layer, whether it is the first or last)` for every convolution and linear layer worth it.

    A row of a single number is not, nor one of a channel's own few in a convolution by groups: scales would be as long.
    Raises NothingMatched if there is none.
    """
    network = deepcopy(network)
    layers = {
        path: part
        for path, part in network.named_modules()
        if isinstance(part, Layer) and path and part.weight[0].numel() > 1 and getattr(part, "groups", 1) == 1
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
