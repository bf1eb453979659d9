"""Extrapolates the clean estimate from the last two steps: second order for one evaluation a step.

The flow is solved exactly but for the integral of x_0 over lam, where x_0 is taken as linear through the present and
the previous estimate. Predicting x_0 rather than the noise keeps the step stable under large guidance.

Source: Lu et al. 2022 "DPM-Solver++" (2211.01095), algorithm 2 (2M); first order in the first and the last step.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, combine
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, SampleNoise, Solver, transfer

Past = tuple[Tensor, Tensor] | None
"""lam at the previous time, and the estimate made there."""


@dataclass(frozen=True)
class DPMSolverPP2M(Solver):
    """transfer with D = x_0 + h / (2 h_prev) (x_0 - x_0_prev), h the step in lam."""

    order: ClassVar[int] = 2

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: Past,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], Past]:  # fmt: skip
        x0, lam = denoise(x, t), process.lam(t)
        estimate = x0
        if past is not None and s > 0:
            count("multistep_updates", len(x))
            lam_before, x0_before = past
            r = (process.lam(s) - lam) / (2 * (lam - lam_before))
            estimate = combine(1 + r, x0, -r, x0_before)
        return transfer(process, x, estimate, t, s), (lam, x0)


def dpm_solver_pp_2m(steps: int = 10) -> Method:
    """Sample in `steps` steps of one evaluation each."""
    return edit(sampler=DPMSolverPP2M(), steps=steps)
