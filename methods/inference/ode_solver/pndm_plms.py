"""Averages the last four noise predictions, and moves along the result as DDIM does: nearly one evaluation a step.

DDIM's move is exact for constant noise, and keeps x_t where the network was trained to see it. A classical multistep
rule is unaware of that; put inside the move, in place of the noise, it gains accuracy without leaving.

Source: Liu et al. 2022 "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2202.09778), the transfer of eq.
11 with the linear multistep rule of eq. 12; first step by the pseudo improved Euler rule of S-PNDM, the second and
third by Adams and Bashforth's shorter rules, as latent diffusion's PLMS sampler has it.
Limits: the Runge-Kutta warm-up of F-PNDM, nine evaluations more, is left out. Weights are those of even steps, whatever
the grid; second order.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, SampleNoise, Solver
from methods.inference.ode_solver._shared import along, noise_of

ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of Adams and Bashforth's rules of order one to four, the newest prediction first."""

Past = tuple[Tensor, ...] | None
"""The noise predictions of up to three steps, the newest first."""


@dataclass(frozen=True)
class PLMS(Solver):
    """x_s = phi(x_t, sum_i w_i eps_i, t, s)."""

    order: ClassVar[int] = 2

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: Past,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], Past]:  # fmt: skip
        eps = noise_of(process, x, denoise(x, t), t)
        if past is None:
            return along(process, x, self._mean(denoise, process, x, eps, t, s), t, s), (eps,)
        count("multistep_updates", len(x))
        known = (eps, *past)
        mixed = torch.stack([w * e for w, e in zip(ADAMS[len(past)], known, strict=True)]).sum(0)
        return along(process, x, mixed, t, s), known[:3]

    def _mean(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"], t: Tensor,
        s: Tensor,
    ) -> Float[Tensor, "b *s"]:  # fmt: skip
        """Of the noise at both ends of the first step; where it ends clean, there is none to look at."""
        if s == 0:
            return eps
        euler = along(process, x, eps, t, s)
        return (eps + noise_of(process, euler, denoise(euler, s), s)) / 2


def pndm_plms(steps: int = 10) -> Method:
    """Sample in `steps` steps, which cost steps + 1 evaluations."""
    return edit(sampler=PLMS(), steps=steps)
