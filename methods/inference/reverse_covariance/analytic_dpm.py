"""Gives every reverse step the variance that is best for it, which the trained network knows already.

The best Gaussian step from x_t to x_s has to add, to the noise that the forward process leaves there, what is not known
about x_0: the mean variance of x_0 given x_t, which is sigma^2 / alpha^2 (1 - E|eps|^2 / d), whatever the data. A few
samples measure it once at every level. Fixed variances leave it out, which costs the more the longer the steps are.

Source: Bao et al. 2022 "Analytic-DPM" (2201.06503), eq. 8 and 9 for a chain with skipped steps as in section 4, bounds
of theorem 2, clipping of the noise before the last step as in appendix F.2; compared with the official code.
Limits: what the chain itself leaves before the last step is never clipped: the official grid ends where that is less
than the bound, an even grid of few steps where it is not. E|eps|^2 is taken from the noise that the clipped estimate of
x_0 stands for, at 128 even angles, and the variance of x_0 is interpolated between them. Steps are those of the
recipe's grid; the optimal trajectory is `dp_schedule_watson`.
Cost: `fraction` of the images of base training, evaluated once.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Fitted, Part, Report
from methods.core.denoiser import Denoiser, Labels
from methods.core.process import Process, angle, combine, like, remembered
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import Denoise, SampleNoise, Solver, UniformAngle
from methods.inference._shared import affordable, forward_paths

LEVELS = 128
GREY = 2 / 255 * math.sqrt(math.pi / 2)
"""The deviation of Gaussian noise that moves a pixel by one of 255 grey levels on average."""


class OptimalVariance(Solver, Part):
    """x_s = mean(x_t, x_0) + sqrt(lambda^2 + c^2 Var[x_0 | x_t]) z, where c is the factor of x_0 in the mean.

    The noise of a step is drawn at the beginning of the next one: only there it is known whether that is the last.
    """

    order: ClassVar[int] = 0
    spread: Float[Tensor, "k"]
    """Var[x_0 | x_t] per dimension, from u = 0 to the first level of sampling."""

    def __init__(self, eta: float, largest: float, paths: int) -> None:
        super().__init__()
        self.eta, self.largest, self.paths = eta, largest, paths
        self.register_buffer("spread", torch.zeros(LEVELS + 1, dtype=torch.float64))

    def fit(
        self, recipe: Recipe, denoiser: Denoiser, x0: Float[Tensor, "n *s"], labels: Labels, rng: torch.Generator,
        report: Report,
    ) -> int:  # fmt: skip
        process = denoiser.process
        times = UniformAngle()(process, LEVELS)[:-1]
        alpha, sigma = process.alpha(times), process.sigma(times)
        energy = torch.zeros(LEVELS, dtype=torch.float64)
        for _, x_t, estimate in forward_paths(denoiser, x0, labels, times, self.paths, rng):
            eps = (x_t - like(alpha, x_t) * estimate) / like(sigma, x_t)
            energy += eps.square().flatten(1).mean(1).cpu()
        low, high = denoiser.bounds or (-math.inf, math.inf)
        spread = (sigma / alpha) ** 2 * (1 - energy / self.paths)
        self.spread[1:] = spread.clamp(0, ((high - low) / 2) ** 2).flip(0)
        return self.paths * LEVELS

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor,
        past: tuple[float, float] | None, noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], tuple[float, float]]:  # fmt: skip
        if past is not None:
            own, best = past
            x = combine(1.0, x, min(best, max(own, self.largest)) if s == 0 else best, noise(tuple(x.shape[1:])))
        kept, added, variance = _step(process, self.eta, t, s)
        missing = added**2 * self.spread_at(process, t)
        count("variances_corrected", missing > 0)
        return combine(kept, x, added, denoise(x, t)), (math.sqrt(variance), math.sqrt(variance + missing))

    def spread_at(self, process: Process, t: Tensor) -> float:
        """Var[x_0 | x_t], linear in the angle."""
        first = angle(torch.tensor(process.lam_start, dtype=torch.float64))
        place = min(LEVELS * (process.angle(t) / first).item(), LEVELS)
        below = min(int(place), LEVELS - 1)
        low, high = self.spread[below : below + 2].tolist()
        return low + (place - below) * (high - low)


@remembered
def _step(process: Process, eta: float, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What x and x_0 are multiplied by in the mean of q(x_s | x_t, x_0), and its variance lambda^2."""
    variance = eta**2 * process.sigma(s) ** 2 * -torch.expm1(2 * (process.lam(t) - process.lam(s)))
    kept = torch.sqrt(process.sigma(s) ** 2 - variance) / process.sigma(t)
    return kept, process.alpha(s) - process.alpha(t) * kept, variance


@dataclass(frozen=True)
class Analytic(Fitted):
    """The optimal variance of the process with eta = 0 (DDIM) to 1 (DDPM)."""

    eta: float
    grey_levels: float
    fraction: float
    becomes: ClassVar[type[Part]] = OptimalVariance

    def build(self, recipe: Recipe) -> OptimalVariance:
        return OptimalVariance(self.eta, self.grey_levels * GREY, affordable(recipe.fit, self.fraction, LEVELS))


def analytic_dpm(steps: int = 10, eta: float = 0.0, grey_levels: float = 1.0, fraction: float = 0.1) -> Method:
    """Sample in `steps` steps; the noise before the last one moves a pixel by at most `grey_levels` of 255."""
    return edit(sampler=Analytic(eta, grey_levels, fraction), steps=steps)
