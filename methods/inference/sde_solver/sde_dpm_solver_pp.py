"""Takes the steps of ancestral sampling with an estimate of x_0 extrapolated from the last two: order two in the mean.

Over lam the stochastic process is linear but for x_0, and if that were constant over a step, the step would be DDPM's
posterior, exactly. So everything DPM-Solver++(2M) does for the flow it can do here: x_0 that is linear in lam takes the
place of the constant, and what noise a step must add is known.

Source: Lu et al. 2022 "DPM-Solver++" (2211.01095), SDE-DPM-Solver++(2M), with the same D as algorithm 2; first order in
the first and the last step, and no noise in the last, as in diffusers' `sde-dpmsolver++`.
Limits: versions that predict the noise, the other form of D (heun), and the third order of k-diffusion, which no paper
describes, are left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, SampleNoise, Solver
from methods.inference.ode_solver.ddim import posterior

Past = tuple[Tensor, Tensor] | None
"""The previous time and the estimate made there."""


@dataclass(frozen=True)
class SDEDPMSolverPP2M(Solver):
    """x_s = (sigma_s / sigma_t) e^{-h} x_t + alpha_s (1 - e^{-2h}) D + sigma_s sqrt(1 - e^{-2h}) z."""

    order: ClassVar[int] = 0

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: Past,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], Past]:  # fmt: skip
        x0 = denoise(x, t)
        kept, added, fresh = posterior(process, 1.0, t, s)
        if s == 0:
            return combine(kept, x, added, x0), (t, x0)
        estimate = x0
        if past is not None:
            count("stochastic_multistep_updates", len(x))
            now, then = extrapolation(process, past[0], t, s)
            estimate = combine(now, x0, then, past[1])
        x = combine(kept, x, added, estimate)
        return combine(1.0, x, fresh, noise(tuple(x.shape[1:]))), (t, x0)


@remembered
def extrapolation(process: Process, before: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """What this estimate and the previous one are multiplied by in D: 1 + r and -r, r = h / (2 h_prev)."""
    earlier, now, later = process.lam(torch.stack([before, t, s]))
    r = (later - now) / (2 * (now - earlier))
    return 1 + r, -r


def sde_dpm_solver_pp(steps: int = 10) -> Method:
    """Sample in `steps` steps of one evaluation each."""
    return edit(sampler=SDEDPMSolverPP2M(), steps=steps)
