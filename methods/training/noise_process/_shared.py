"""Variance-preserving schedules, written in -log(alpha^2), and the grid that steps evenly in a schedule's own time.

A schedule decides twice: training draws its times evenly, so it says which noise levels are learned; and a chain walked
evenly says at which levels a sample is denoised.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process
from methods.core.sampling import Grid


class Schedule(Process):
    """alpha^2 = exp(-decay(t)), sigma^2 = 1 - alpha^2: precise at both ends, however small alpha or sigma is."""

    preserves_variance: ClassVar[bool] = True

    @abstractmethod
    def decay(self, t: Tensor) -> Tensor:
        """-log(alpha^2), rising from 0 at t = 0."""

    @abstractmethod
    def time_of(self, decay: Tensor) -> Tensor:
        """The inverse of `decay`."""

    def alpha(self, t: Tensor) -> Tensor:
        count("levels_scheduled", t.numel())
        return torch.exp(-self.decay(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.expm1(-self.decay(t)).abs())

    def time(self, lam: Tensor) -> Tensor:
        return self.time_of(torch.logaddexp(torch.zeros_like(lam), -2 * lam))  # alpha^2 = sigmoid(2 lam)


@dataclass(frozen=True)
class UniformTime(Grid):
    """Equal steps of the process's own time, from where sampling starts to 0."""

    def __call__(self, process: Process, steps: int) -> Float[Tensor, "n"]:
        first = process.time(torch.tensor(process.lam_start, dtype=torch.float64))
        return first * torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def interpolate(x: Tensor, xs: Float[Tensor, "n"], ys: Float[Tensor, "n"]) -> Tensor:
    """The piecewise linear function through the points (xs, ys), xs rising, at x of any shape."""
    xs, ys, wide = xs.to(x.device), ys.to(x.device), x.double().contiguous()
    right = torch.searchsorted(xs, wide).clamp(1, len(xs) - 1)
    share = (wide - xs[right - 1]) / (xs[right] - xs[right - 1])
    return torch.lerp(ys[right - 1], ys[right], share.clamp(0, 1)).to(x.dtype)
