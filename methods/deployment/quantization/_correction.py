"""What is known of a quantized network's error at every noise level, and how it is taken away."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.core.activation import count
from methods.deployment.quantization._calibration import Asked

BUCKETS = 256
"""Noise levels that are told apart: several times as many as there are steps."""


def bucket(level: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The bucket of a noise level u in [0, 1]."""
    return (level * BUCKETS).long().clamp(0, BUCKETS - 1)


def error_of(truth: Float[Tensor, "n c *s"], answer: Float[Tensor, "n c *s"], correlated: bool, residual: bool
             ) -> tuple[Tensor, Float[Tensor, "c"], Tensor]:  # fmt: skip
    """k, mean and variance of answer = (1 + k) truth + residual: k by regression and at least 0, means by channel.

    What is not asked for is 0.
    """
    error, centred = answer - truth, truth - truth.mean()
    slope = (centred * error).sum() / centred.square().sum()
    slope = slope.clamp(min=0) if correlated else torch.zeros_like(slope)
    rest = (error - slope * truth).movedim(1, -1).flatten(0, -2)
    mean, variance = rest.mean(0), rest.var(0, correction=0).mean()
    return (slope, mean, variance) if residual else (slope, 0 * mean, 0 * variance)


class Correction(nn.Module):
    """(answer - mean) / (1 + k) for the k and the mean of the residual at each row's noise level: a network's hook."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.slope, self.variance, self.mean = (
            nn.Parameter(torch.zeros(*shape, device=device), requires_grad=False)
            for shape in ((BUCKETS,), (BUCKETS,), (BUCKETS, 1))
        )

    def correcting(self, network: nn.Module) -> nn.Module:
        """The network, whose answers are corrected from now on, and which ships the numbers of its correction."""
        network.add_module("correction", self)
        network.register_forward_hook(self)
        return network

    def forward(self, network: nn.Module, given: tuple[Any, ...], answer: Float[Tensor, "b d *s"]) -> Tensor:
        x, u, *_ = given
        place = bucket(u if u.ndim == 1 else u[:, 0])
        slope, mean = self.slope[place], self.mean[place]
        count("rows_corrected", int((slope + mean.abs().sum(1) > 0).sum()))
        said, beside = answer.tensor_split([x.shape[1]], dim=1)
        ones = [1] * (x.ndim - 2)
        said = (said - mean.reshape(len(x), -1, *ones)) / (1 + slope).reshape(-1, 1, *ones)
        return torch.cat([said, beside], dim=1)

    @property
    def left(self) -> Float[Tensor, "k"]:
        """The variance of the error that is left in the corrected answer."""
        return self.variance / (1 + self.slope) ** 2

    @torch.no_grad()
    def measure(self, network: nn.Module, asked: Asked, batch: int, correlated: bool, residual: bool) -> None:
        """Measure a network that is not corrected yet at every noise level; a bucket has the numbers of the nearest."""
        parts = [asked.rows(rows) for rows in torch.arange(len(asked.x), device=asked.x.device).split(batch)]
        answers = torch.cat([network(part.x, part.u, part.labels) for part in parts])
        channels, levels = asked.x.shape[1], asked.level.unique()
        found = [
            error_of(asked.answer[at, :channels], answers[at, :channels], correlated, residual)
            for at in (asked.level == level for level in levels)
        ]
        middles = (torch.arange(BUCKETS, device=levels.device) + 0.5) / BUCKETS
        nearest = (middles[:, None] - levels).abs().argmin(1)
        slope, mean, variance = (torch.stack(part)[nearest] for part in zip(*found, strict=True))
        self.slope.copy_(slope)
        self.variance.copy_(variance)
        self.mean = nn.Parameter(mean, requires_grad=False)
