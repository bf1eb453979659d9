"""Draws the log SNR of training from a Laplace distribution, peaked where signal and noise are equally strong.

A noise schedule is a density over noise levels. At either end the task is nearly solved or nearly hopeless; between
image and noise it is decided what the image will be, and training spends its updates there.

Source: Hang et al. 2024 "Improved Noise Schedule for Diffusion Training" (2407.03297), the schedule as a density, and
the Laplace schedule lambda = mu - b sgn(0.5 - t) log(1 - 2 |t - 0.5|), read in public notes on the paper.
Limits: training alone; samples are drawn on the recipe's own grid. lambda = 2 lam.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import TimeDensity
from methods.core.process import Process
from methods.core.recipe import Method, edit


@dataclass(frozen=True)
class LaplaceLam(TimeDensity):
    """log SNR ~ Laplace(mean, scale)."""

    mean: float
    scale: float

    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        count("times_drawn", n)
        lam = self.at(torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device))
        return process.time(lam.clamp(min=process.lam_start))

    def at(self, u: Tensor) -> Tensor:
        """lam at the time u in [0, 1] of the schedule, which is one less its quantile."""
        return (self.mean - self.scale * torch.sign(0.5 - u) * torch.log1p(-2 * (u - 0.5).abs())) / 2


def laplace_logsnr_sampling(mean: float = 0.0, scale: float = 0.5) -> Method:
    """Draw log SNR from the Laplace distribution of this mean and scale."""
    return edit(times=LaplaceLam(mean, scale))
