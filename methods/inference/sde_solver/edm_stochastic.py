"""Raises the noise a little before every step, and takes a second-order step of the flow from there.

Fresh noise lets a sample forget part of the errors it has gathered, as in the stochastic process, but here it is added
exactly and not within a step, so that the step itself can be one of the flow, with its higher order. Noise is added at
middle levels alone, where it helps most.

Source: Karras et al. 2022 "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364), algorithm
2; S_churn, S_tmin, S_tmax and S_noise of table 5, CIFAR-10 with a variance-preserving network.
Limits: ratios sigma / alpha stand for sigma, so that it fits any process. The paper searches the four numbers for each
network.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import SampleNoise, Sampler, Solver
from methods.inference.ode_solver.edm_heun import Heun


@dataclass(frozen=True)
class Churn(Sampler):
    """From sigma to (1 + gamma) sigma and down to the next level, gamma = min(churn / steps, sqrt(2) - 1)."""

    churn: float
    lowest: float
    highest: float
    """Between these noise-to-signal ratios noise is added, where a step begins."""
    excess: float
    """The paper's S_noise: the noise that is added is this many times too large."""
    down: Solver = field(default_factory=Heun)
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
        process, denoise = denoiser.process, partial(denoiser, labels=labels)
        gamma = min(self.churn / (len(times) - 1), math.sqrt(2) - 1)
        for t, s in pairwise(times):
            if gamma > 0 and self.lowest <= torch.exp(-process.lam(t)) <= self.highest:
                count("noise_raised", len(x))
                higher = process.time(process.lam(t) - math.log1p(gamma))
                kept, fresh = raised(process, t, higher)
                x, t = combine(kept, x, self.excess * fresh, noise(tuple(x.shape[1:]))), higher
            x, _ = self.down.step(denoise, process, x, t, s, None, noise)
        return x


@remembered
def raised(process: Process, t: Tensor, higher: Tensor) -> tuple[Tensor, Tensor]:
    """From q(x_t | x_0) to that at a time of more noise: what x_t and fresh noise are multiplied by."""
    kept = process.alpha(higher) / process.alpha(t)
    return kept, torch.sqrt((process.sigma(higher) ** 2 - (kept * process.sigma(t)) ** 2).clamp(min=0))


def edm_stochastic(
    steps: int = 32, churn: float = 30.0, sigma_min: float = 0.01, sigma_max: float = 1.0, excess: float = 1.007
) -> Method:
    """Sample in `steps` steps, which cost 2 steps - 1 evaluations, and churn between two noise-to-signal ratios."""
    return edit(sampler=Churn(churn, sigma_min, sigma_max, excess), steps=steps)
