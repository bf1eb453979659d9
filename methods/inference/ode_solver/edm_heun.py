"""Corrects every Euler step with the slope at its end: second order for two evaluations a step.

In the coordinate rho = sigma / alpha the flow is d(x/alpha)/drho = (x/alpha - x_0) / rho, nearly straight, so averaging
the slopes at both ends (the trapezoid rule) removes most of the error of a long step. The last step, to rho = 0, is
Euler's: its slope is not defined at the end.

Source: Karras et al. 2022 "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364), algorithm
1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, SampleNoise, Solver, transfer


@dataclass(frozen=True)
class Heun(Solver):
    """The mean of both slopes, written on x_0: transfer with x_0 + rho_t / (2 rho_s) (x_0' - x_0)."""

    order: ClassVar[int] = 2

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: None,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], None]:  # fmt: skip
        x0 = denoise(x, t)
        euler = transfer(process, x, x0, t, s)
        if not s.any():
            return euler, None
        count("corrections", len(x))
        first, second = _mean_slope(process, t, s)
        return transfer(process, x, combine(first, x0, second, denoise(euler, s)), t, s), None


@remembered
def _mean_slope(process: Process, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """What the estimates at both ends are multiplied by: 1 - r and r, r = rho_t / (2 rho_s)."""
    half_ratio = torch.exp(process.lam(s) - process.lam(t)) / 2
    return 1 - half_ratio, half_ratio


def edm_heun(steps: int = 10) -> Method:
    """Sample in `steps` steps, which cost 2 steps - 1 evaluations."""
    return edit(sampler=Heun(), steps=steps)
