"""Spends more of the steps at low noise, where trajectories bend.

The noise-to-signal ratio e^{-lam} is spaced evenly in its rho-th root: rho = 1 is uniform, larger rho shortens the
steps near the data and lengthens those near the noise.

Source: Karras et al. 2022 (2206.00364), eq. 5, with sigma read as the ratio sigma / alpha, so that it fits any process.
Limits: sigma_max is lowered to where the process starts if that lies below.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process
from methods.core.recipe import Method, edit
from methods.core.sampling import Grid


@dataclass(frozen=True)
class KarrasRho(Grid):
    """sigma_i = (sigma_max^{1/rho} + i / (N - 1) (sigma_min^{1/rho} - sigma_max^{1/rho}))^rho, then 0."""

    rho: float
    sigma_min: float
    sigma_max: float

    def __call__(self, process: Process, steps: int) -> Float[Tensor, "n"]:
        highest = min(self.sigma_max, math.exp(-process.lam_start))
        i = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        root = highest ** (1 / self.rho) + i * (self.sigma_min ** (1 / self.rho) - highest ** (1 / self.rho))
        count("times_moved", steps)
        return torch.cat([process.time(-self.rho * torch.log(root)), torch.zeros(1, dtype=torch.float64)])


def karras_rho_schedule(rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Method:
    """Use the rho grid between two noise-to-signal ratios."""
    return edit(grid=KarrasRho(rho, sigma_min, sigma_max))
