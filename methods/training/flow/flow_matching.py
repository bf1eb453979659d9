"""Trains a velocity field along straight lines from noise to data.

The path x_t = (1 - t) x_0 + t eps has the constant velocity eps - x_0; regressing it on single pairs has the gradient
of regressing the marginal field, which transports noise to data. Straighter paths need fewer steps.

Source: Lipman et al. 2023 "Flow Matching for Generative Modeling" (2210.02747), eq. 22 and 23 with sigma_min = 0 and
time reversed, so that t = 0 is clean as everywhere here.
Limits: sampling starts at lam = -7 (t = 0.999) rather than at t = 1, where lam is not finite.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.activation import count
from methods.core.parameterization import Parameterization
from methods.core.process import Process
from methods.core.recipe import Method, edit


@dataclass(frozen=True)
class StraightPath(Process):
    """alpha = 1 - t, sigma = t: lam is minus the logit of t."""

    lam_start: float = -7.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True)
class FlowVelocity(Parameterization):
    """F = dx_t/dt = eps - x_0."""

    def pair(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        count("velocity_calls", t.numel())
        return -torch.ones_like(t), torch.ones_like(t)


def flow_matching() -> Method:
    """Train and sample along straight paths."""
    return edit(process=StraightPath(), parameterization=FlowVelocity())
