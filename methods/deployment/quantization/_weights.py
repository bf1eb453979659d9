"""Weights as integers with a scale per group of a row: what a quantized model ships."""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.utils import TorchAOBaseTensor

SHRUNK = torch.linspace(1, 0.25, 16)
"""Shares of the widest range that are tried for the least square error."""

SMALLEST = 1e-8


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
