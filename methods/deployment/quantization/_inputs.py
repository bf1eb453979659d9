"""Inputs of layers on the grids of integers."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.deployment.quantization._weights import SHRUNK, SMALLEST
from methods.nets.dit import DiT
from methods.nets.unet import UNet

LOOKED_AT = 2048
"""Numbers of an input, drawn at random, on which they are tried."""


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
