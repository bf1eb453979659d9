"""Guides only at the middle noise levels; elsewhere the conditional network runs alone.

At high noise guidance narrows the distribution, at low noise it changes nothing worth its cost; leaving it out at both
ends saves one of two evaluations there.

Source: Kynkaanniemi et al. 2024 "Applying Guidance in a Limited Interval" (2404.07724), eq. 5; sigma is read as the
noise-to-signal ratio sigma / alpha, so that the interval holds for any process.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Guidance, Labels
from methods.core.recipe import Method, edit
from methods.training.guidance.classifier_free_guidance import Guided


class IntervalGuided(Denoiser):
    """Guided where lam lies in the interval, the inner denoiser elsewhere. A batch of mixed times is guided whole."""

    def __init__(self, inner: Denoiser, scale: float, lam_low: float, lam_high: float) -> None:
        self.inner, self.guided, self.process = inner, Guided(inner, scale), inner.process
        self.lam_low, self.lam_high = lam_low, lam_high

    def __call__(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        lam = self.process.lam(t)
        inside = (lam >= self.lam_low) & (lam < self.lam_high)
        if inside.any():
            return self.guided(x_t, t, labels)
        count("guidance_skipped", len(x_t))
        return self.inner(x_t, t, labels)

    def reset(self) -> None:
        self.inner.reset()


@dataclass(frozen=True)
class Interval(Guidance):
    """Guide where sigma_low < sigma / alpha <= sigma_high."""

    scale: float
    sigma_low: float
    sigma_high: float

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return IntervalGuided(denoiser, self.scale, -math.log(self.sigma_high), -math.log(self.sigma_low))


def guidance_interval(
    scale: float = 1.0, dropout: float = 0.1, sigma_low: float = 0.19, sigma_high: float = 1.61
) -> Method:
    """Classifier-free guidance with weight `scale` between two noise-to-signal ratios, none outside."""
    return edit(label_dropout=dropout, guidance=Interval(scale, sigma_low, sigma_high))
