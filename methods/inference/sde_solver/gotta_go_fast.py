"""Lets every sample choose the steps it takes along the stochastic process, by what two ways of taking one disagree on.

Euler and Maruyama's step and the improved one, which looks at both ends, share their noise, so that their difference is
an error of the step and not of chance. Where it is small the next step is longer; where it is large the step is not
taken, and a shorter one is tried.

Source: Jolicoeur-Martineau et al. 2021 "Gotta Go Fast When Generating Data with Score-Based Models" (2105.14080),
algorithm 1, with the norm over a sample, theta = r = 0.9, first step and mixed tolerance of its official code,
`AdaptivePredictor`; final denoising by Tweedie's formula.
Limits: written for any process as the paper's variance-exploding one, in y = x / alpha over lam, so numbers for its
variance-preserving process differ. Of the grid only the first time is used, and the number of steps not at all.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels
from methods.core.process import like
from methods.core.recipe import Method, edit
from methods.core.sampling import SampleNoise, Sampler

ABSOLUTE = 2 / 256
"""Error that is always allowed: one of the 256 levels of an image in [-1, 1]."""
SAFETY, POWER = 0.9, 0.9
FIRST = 0.01
"""The first step, as a share of the way."""


@dataclass(frozen=True)
class AdaptiveSDE(Sampler):
    """Steps of one sample do not depend on its neighbours: each has its own time, step and decision."""

    tolerance: float
    """Relative error of a step."""
    sigma_min: float
    """The noise-to-signal ratio at which the rest of the noise is removed at once."""
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
        process, last = denoiser.process, -math.log(self.sigma_min)
        lam = process.lam(times[0]).repeat(len(x))
        y = x / like(process.alpha(times[0]), x)
        compared, h = y, FIRST * (last - lam)
        while len(rows := (h > 0).nonzero().flatten()):
            z, on = noise(tuple(x.shape[1:])), rows.to(x.device)
            known = None if labels is None else labels[on]
            euler, improved = both(denoiser, y[on], z[on], lam[rows], h[rows], known)
            error = self.error(euler, improved, compared[on])
            count("steps_attempted", len(rows))
            taken = (error <= 1).nonzero().flatten()
            y = y.index_copy(0, on[taken], improved[taken])
            compared = compared.index_copy(0, on[taken], euler[taken])
            error = error.double().cpu()
            lam[rows] += torch.where(error <= 1, h[rows], 0)
            h[rows] = torch.minimum(SAFETY * h[rows] * error**-POWER, last - lam[rows])
        return denoiser(like(process.alpha(end := process.time(lam)), y) * y, end, labels)

    def error(
        self, euler: Float[Tensor, "r *s"], improved: Float[Tensor, "r *s"], before: Float[Tensor, "r *s"]
    ) -> Float[Tensor, "r"]:
        """How far the two steps are apart, in units of what is allowed: root mean square over a sample."""
        allowed = (self.tolerance * torch.maximum(euler.abs(), before.abs())).clamp(min=ABSOLUTE)
        return ((improved - euler) / allowed).square().flatten(1).mean(1).sqrt()


def both(
    denoiser: Denoiser, y: Float[Tensor, "r *s"], z: Float[Tensor, "r *s"], lam: Tensor, h: Tensor, labels: Labels
) -> tuple[Float[Tensor, "r *s"], Float[Tensor, "r *s"]]:
    """Euler and Maruyama's step of size h in lam [r], and the improved one, with the same noise z."""
    process = denoiser.process

    def move(y: Tensor, lam: Tensor) -> Tensor:
        """With rho = e^{-lam} and score (x_0 - y) / rho^2: dy = 2 (x_0 - y) dlam + rho sqrt(2) dw."""
        t = process.time(lam)
        x0 = denoiser(like(process.alpha(t), y) * y, t, labels)
        return like(2 * h, y) * (x0 - y) + like(torch.exp(-lam) * torch.sqrt(2 * h), y) * z

    first = move(y, lam)
    second = move(y + first, lam + h)
    return y + first, y + (first + second) / 2


def gotta_go_fast(tolerance: float = 0.1, sigma_min: float = 0.01) -> Method:
    """Step adaptively down to the ratio `sigma_min`, with a relative error of `tolerance` a step."""
    return edit(sampler=AdaptiveSDE(tolerance, sigma_min))
