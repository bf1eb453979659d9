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
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, SampleNoise, Solver, transfer

Past = tuple[Tensor, Tensor] | None
"""The previous time and the estimate made there."""


@dataclass(frozen=True)
class DPMSolverPP2M(Solver):
    """transfer with D = x_0 + h / (2 h_prev) (x_0 - x_0_prev), h the step in lam."""

    order: ClassVar[int] = 2

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: Past,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], Past]:  # fmt: skip
        x0 = denoise(x, t)
        estimate = x0
        if past is not None and s > 0:
            count("multistep_updates", len(x))
            before, x0_before = past
            now, then = _extrapolation(process, before, t, s)
            estimate = combine(now, x0, then, x0_before)
        return transfer(process, x, estimate, t, s), (t, x0)


@remembered
def _extrapolation(process: Process, before: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """What this estimate and the previous one are multiplied by: 1 + r and -r, r = h / (2 h_prev)."""
    r = (process.lam(s) - process.lam(t)) / (2 * (process.lam(t) - process.lam(before)))
    return 1 + r, -r


def dpm_solver_pp_2m(steps: int = 10) -> Method:
    """Sample in `steps` steps of one evaluation each."""
    return edit(sampler=DPMSolverPP2M(), steps=steps)
