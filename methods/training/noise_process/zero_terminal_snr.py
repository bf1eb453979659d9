"""Shifts a schedule so that its last step holds no signal at all, since sampling starts from noise without any.

A chain that ends with some signal left trains the network on noise that still knows the mean of the image; given pure
noise, it takes that noise's mean, zero, for the image's. Where there is no signal, predicting the noise would say
nothing about the image, so the velocity is predicted.

Source: Lin et al. 2023 "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2305.08891), algorithm 1, with
section 3.2 (v-prediction) and 3.3 (the last step is the first of sampling: `trailing` steps).
Limits: rescaled guidance, the fourth fix, is left out, for nothing is guided here. Sampling starts at lam = -20, where
the signal is below the rounding of 32 bits, rather than at minus infinity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.recipe import Method, edit
from methods.training.noise_process._shared import Schedule, UniformTime
from methods.training.noise_process.ddpm_linear_schedule import CHAIN, LinearBeta
from methods.training.objective.v_prediction import Velocity


@dataclass(frozen=True)
class ZeroTerminal(Schedule):
    """alpha less what it ends with, stretched to keep the first step of the chain as it was."""

    base: LinearBeta
    lam_start: float = -20.0

    @property
    def ends(self) -> tuple[float, float]:
        """alpha of the base after the first step of the chain and after the last."""
        first, last = torch.exp(-self.base.table[[1, CHAIN]] / 2).tolist()
        return first, last

    def decay(self, t: Tensor) -> Tensor:
        first, last = self.ends
        alpha = torch.exp(-self.base.decay(t) / 2)
        alpha = torch.where(alpha < first, (alpha - last) * (first / (first - last)), alpha)
        return -2 * torch.log(alpha.clamp(min=0))

    def time_of(self, decay: Tensor) -> Tensor:
        first, last = self.ends
        alpha = torch.exp(-decay / 2)
        alpha = torch.where(alpha < first, alpha * ((first - last) / first) + last, alpha)
        return self.base.time_of(-2 * torch.log(alpha))


def zero_terminal_snr(beta_start: float = 0.00085, beta_end: float = 0.012, power: float = 2.0) -> Method:
    """Rescale the schedule whose beta^(1 / power) rises linearly; the default is Stable Diffusion's."""
    process = ZeroTerminal(LinearBeta(beta_start, beta_end, power))
    return edit(process=process, grid=UniformTime(), needs={"parameterization": Velocity})
