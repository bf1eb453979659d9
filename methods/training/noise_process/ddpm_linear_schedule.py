"""Adds noise in a thousand steps whose variance rises linearly, and takes them back at equal distances.

This is the schedule of DDPM. Its betas are small beside the data, so that the reverse steps are nearly Gaussian too,
and they leave next to nothing of the image at the end; small images are drowned long before that.

Source: Ho et al. 2020 "Denoising Diffusion Probabilistic Models" (2006.11239), section 4 (T = 1000, beta from 1e-4 to
0.02) and eq. 4 for alpha. Target and loss (eq. 14) are the baseline's.
Limits: the chain is exact at its thousand times and joined by exponentials between them, where training draws from too.
Samples are drawn by the recipe's sampler; `ddim` with eta = 1 is DDPM's own.
"""

import math
from dataclasses import dataclass, field
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.recipe import Method, edit
from methods.training.noise_process._shared import Schedule, UniformTime, interpolate

CHAIN = 1000
"""T, the steps of the chain."""


@cache
def chain(start: float, end: float, power: float) -> Float[Tensor, "n"]:
    """-log(alpha^2) after 0 to T steps, for betas whose power-th root rises linearly."""
    betas = torch.linspace(start ** (1 / power), end ** (1 / power), CHAIN, dtype=torch.float64) ** power
    return torch.cat([torch.zeros(1, dtype=torch.float64), -torch.log1p(-betas).cumsum(0)])


@dataclass(frozen=True)
class LinearBeta(Schedule):
    """alpha^2 = prod (1 - beta_i) over the first 1000 t steps of the chain."""

    beta_start: float
    beta_end: float
    power: float
    lam_start: float = field(init=False)
    """The end of the chain."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam_start", -math.log(math.expm1(self.table[-1].item())) / 2)

    @property
    def table(self) -> Float[Tensor, "n"]:
        return chain(self.beta_start, self.beta_end, self.power)

    def decay(self, t: Tensor) -> Tensor:
        return interpolate(t, torch.linspace(0, 1, CHAIN + 1, dtype=torch.float64), self.table)

    def time_of(self, decay: Tensor) -> Tensor:
        return interpolate(decay, self.table, torch.linspace(0, 1, CHAIN + 1, dtype=torch.float64))


def ddpm_linear_schedule(beta_start: float = 1e-4, beta_end: float = 0.02, power: float = 1.0) -> Method:
    """Let beta^(1 / power) rise linearly over 1,000 steps: power 1 is DDPM's, power 2 Stable Diffusion's."""
    return edit(process=LinearBeta(beta_start, beta_end, power), grid=UniformTime())
