"""Integrates the noise along the flow as a polynomial in time through the last few predictions.

Over the noise-to-signal ratio rho = sigma / alpha the flow reads d(x / alpha) / d rho = eps, and its linear part is
gone. What is left, eps along the trajectory, changes slowly with the process' own time, so a polynomial through past
predictions is carried ahead and integrated against rho exactly. Degree zero is DDIM.

Source: Zhang and Chen 2023 "Fast Sampling of Diffusion Models with Exponential Integrator" (2204.13902), tAB-DEIS, its
multistep update with coefficients C_ij; lower degrees in the first steps, as in the official code, `get_ab_eps_coef`.
Limits: second order whatever the degree, because the first step is DDIM's. The variants with polynomials in rho and
with Runge-Kutta steps, and the grids tuned for each network, are left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, SampleNoise, Solver
from methods.inference.ode_solver._shared import noise_of

NODES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(64))
"""Gauss and Legendre's rule on [-1, 1]; rho has a pole just above the first time of most grids."""

Past = tuple[tuple[Tensor, Tensor], ...] | None
"""Times and the noise predicted there, the newest first."""


@dataclass(frozen=True)
class TABDEIS(Solver):
    """x_s = alpha_s / alpha_t x_t + sum_j C_j eps_j."""

    degree: int
    """Of the polynomial; the paper's r."""
    order: ClassVar[int] = 2

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: Past,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], Past]:  # fmt: skip
        seen = ((t, noise_of(process, x, denoise(x, t), t)), *(past or ()))
        count("multistep_updates", len(x) * (len(seen) > 1))
        kept, *weights = coefficients(process, s, *(time for time, _ in seen))
        moved = torch.stack([kept * x, *(w * eps for w, (_, eps) in zip(weights, seen, strict=True))]).sum(0)
        return moved, seen[: self.degree]


@remembered
def coefficients(process: Process, s: Tensor, *times: Tensor) -> tuple[Tensor, ...]:
    """What x and the noise predicted at `times`, the newest first, are multiplied by in the move from there to s.

    Weights w_j that integrate every power of u = (tau - t) / (s - t) over rho: sum_j w_j u_j^k = int u^k d rho, which
    by parts is rho_s - int_0^1 k u^{k-1} rho du, for k > 0, so that no derivative of the process is needed.
    """
    t, k = times[0], torch.arange(len(times))[:, None]
    u, inner = (torch.stack(times) - t) / (s - t), (NODES + 1) / 2
    within = k * inner ** (k - 1) * _ratio(process, t + inner * (s - t))
    moments = _ratio(process, s) - (k[:, 0] == 0) * _ratio(process, t) - (within * WEIGHTS / 2).sum(1)
    weights = torch.linalg.solve(u**k, moments)
    return process.alpha(s) / process.alpha(t), *(process.alpha(s) * weights)


def _ratio(process: Process, t: Tensor) -> Tensor:
    return process.sigma(t) / process.alpha(t)


def deis(steps: int = 10, order: int = 3) -> Method:
    """Sample in `steps` steps of one evaluation each, with polynomials of degree `order`."""
    return edit(sampler=TABDEIS(order), steps=steps)
