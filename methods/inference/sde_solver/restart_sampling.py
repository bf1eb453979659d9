"""Goes back up: adds noise to a nearly finished sample, and follows the flow down again, several times.

A large jump of noise forgets much of the error made above it, which small ones in every step do less well; and between
the jumps the steps are those of the flow, whose own error is small. So the contraction of the stochastic process comes
at the price of the deterministic one.

Source: Xu et al. 2023 "Restart Sampling for Improving Generative Processes" (2306.14878), algorithm 1 with Heun steps
and one interval; times inside of it, and the nearest time of the grid as its lower end, as in the official code,
`restart_sampler`. Ratios sigma / alpha stand for sigma, so that it fits any process.
Limits: a single interval, none of the churn that the official code can add within it, and noise of size one where it
takes 1.003.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import SampleNoise, Sampler
from methods.inference.ode_solver.edm_heun import Heun

RHO = 7.0
"""Of the grid within the interval."""


@dataclass(frozen=True)
class Restart(Sampler):
    """`restarts` times from `lowest` to `highest` and down in `inner` steps; both are noise-to-signal ratios."""

    restarts: int
    inner: int
    lowest: float
    highest: float
    order: ClassVar[int] = 0

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "b *s"],
        times: Float[Tensor, "n"],
        labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:
        process, heun = denoiser.process, Heun()
        ratios = torch.exp(-process.lam(times[:-1]))
        turn = int((ratios - self.lowest).abs().argmin()) + 1
        x = heun(denoiser, x, times[:turn], labels, noise)
        for _ in range(self.restarts if ratios[turn - 1] < self.highest else 0):
            count("restarts", len(x))
            again = self.interval(process, times[turn - 1])
            kept, fresh = _jump(process, again[-1], again[0])
            x = combine(kept, x, fresh, noise(tuple(x.shape[1:])))
            x = heun(denoiser, x, again, labels, noise)
        return heun(denoiser, x, times[turn - 1 :], labels, noise)

    def interval(self, process: Process, end: Tensor) -> Float[Tensor, "n"]:
        """The times from the top of the interval down to `end`, even in the rho-th root of the ratio."""
        top, bottom = (ratio ** (1 / RHO) for ratio in (self.highest, math.exp(-process.lam(end).item())))
        root = torch.linspace(top, bottom, self.inner + 1, dtype=torch.float64)
        return torch.cat([process.time(-RHO * torch.log(root[:-1])), end[None]])


@remembered
def _jump(process: Process, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """From q(x_t | x_0) to q(x_s | x_0) with s > t: what x_t and fresh noise are multiplied by."""
    kept = process.alpha(s) / process.alpha(t)
    return kept, torch.sqrt(process.sigma(s) ** 2 - (kept * process.sigma(t)) ** 2)


def restart_sampling(
    steps: int = 10, restarts: int = 4, inner: int = 2, sigma_min: float = 0.06, sigma_max: float = 0.3
) -> Method:
    """Heun's method in `steps` steps, with `restarts` returns from one noise-to-signal ratio to another."""
    return edit(sampler=Restart(restarts, inner, sigma_min, sigma_max), steps=steps)
