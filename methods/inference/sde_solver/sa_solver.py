"""Adams' predictor and corrector for a stochastic process whose noise is chosen: none, DDPM's, or anything between.

All of these processes have the marginals of the diffusion. Over lam each is linear but for x_0, so that with a
polynomial through past estimates in its place a step has a formula, noise included. The estimate made where a step ends
corrects it, with the same noise, before the next begins.

Source: Xue et al. 2023 "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models" (2309.05019), eq. 14
to 18 on x_0 with constant tau in an interval, two estimates rescaled as in appendix D. As in the official code,
`sample_few_steps`: orders three and four, lower ones at both ends, one evaluation a step, and noise where a step ends
at 0.2 <= t <= 0.8 of the linear schedule, written here in sigma / alpha.
Limits: its variant for many steps, which is not rescaled and evaluates twice more at the end, is left out, and so is a
second evaluation after every correction.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import SampleNoise, Sampler

Seen = list[tuple[Tensor, Tensor]]
"""Times and estimates of x_0 made there, the newest first."""


@dataclass(frozen=True)
class SASolver(Sampler):
    """`predictor` and `corrector` are numbers of estimates that a polynomial goes through."""

    predictor: int
    corrector: int
    tau: float
    lowest: float
    highest: float
    """Between these noise-to-signal ratios tau is as given, where a step ends; elsewhere zero."""
    order: ClassVar[int] = 0

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "b *s"],
        times: Float[Tensor, "n"],
        labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:
        denoiser.reset()
        seen, last = [(times[0], denoiser(x, times[0], labels))], len(times) - 1
        for i, (t, s) in enumerate(pairwise(times)):
            ratio = torch.exp(-denoiser.process.lam(s))
            tau = self.tau if self.lowest <= ratio <= self.highest else 0.0
            z = noise(tuple(x.shape[1:])) if tau else None
            left = last - i
            predicted = self.moved(denoiser.process, tau, x, z, t, s, seen[: min(self.predictor, left)])
            if i + 1 == last:
                return predicted
            count("corrections", len(x))
            seen = [(s, denoiser(predicted, s, labels)), *seen[: max(self.predictor, self.corrector) - 1]]
            x = self.moved(denoiser.process, tau, x, z, t, s, seen[: min(self.corrector, left + 1)])
        return x

    def moved(
        self, process: Process, tau: float, x: Float[Tensor, "b *s"], z: Float[Tensor, "b *s"] | None, t: Tensor,
        s: Tensor, seen: Seen,
    ) -> Float[Tensor, "b *s"]:  # fmt: skip
        """x_s = (sigma_s / sigma_t) e^{-tau^2 h} x_t + sum_j b_j x_0^j + sigma_s sqrt(1 - e^{-2 tau^2 h}) z."""
        kept, fresh, *weights = coefficients(self, process, tau, t, s, *(time for time, _ in seen))
        x = torch.stack([kept * x, *(w * x0 for w, (_, x0) in zip(weights, seen, strict=True))]).sum(0)
        return x if z is None else combine(1.0, x, fresh, z)

    def moments(self, h: Tensor, n: int) -> list[Tensor]:
        """The integrals of h e^{h (u - 1)} u^k over u from 0 to 1 for k = 0 ... n - 1, by parts.

        Two estimates are rescaled: h / 2 is what the integral of u comes to for a small h.
        """
        found = [-torch.expm1(-h)]
        for k in range(1, n):
            found.append(h / 2 if n == 2 else 1 - k / h * found[-1])
        return found


@remembered
def coefficients(
    solver: SASolver, process: Process, tau: float, t: Tensor, s: Tensor, *times: Tensor
) -> tuple[Tensor, ...]:
    """What x, fresh noise and the estimates made at `times` are multiplied by, with u = (lam - lam_t) / h."""
    h = process.lam(s) - process.lam(t)
    u = (process.lam(torch.stack(times)) - process.lam(t)) / h
    powers = u ** torch.arange(len(times))[:, None]
    weights = torch.linalg.solve(powers, torch.stack(solver.moments((1 + tau**2) * h, len(times))))
    forgotten = tau**2 * h if tau else torch.zeros_like(h)
    kept = process.sigma(s) / process.sigma(t) * torch.exp(-forgotten)
    fresh = process.sigma(s) * torch.sqrt(-torch.expm1(-2 * forgotten))
    return kept, fresh, *(process.alpha(s) * weights)


def sa_solver(
    steps: int = 10, predictor: int = 3, corrector: int = 4, tau: float = 1.0, sigma_min: float = 0.72,
    sigma_max: float = 25.1,
) -> Method:  # fmt: skip
    """Sample in `steps` steps of one evaluation each, with noise of size `tau` between two noise-to-signal ratios."""
    return edit(sampler=SASolver(predictor, corrector, tau, sigma_min, sigma_max), steps=steps)
