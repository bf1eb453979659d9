"""Guides only at the middle noise levels; elsewhere the conditional network runs alone.

At high noise guidance narrows the distribution, at low noise it changes nothing worth its cost; leaving it out at both
ends saves one of two evaluations there.

Source: Kynkaanniemi et al. 2024 "Applying Guidance in a Limited Interval" (2404.07724), eq. 5 and 6, whose w is
1 + scale, and table 1 for the interval (EDM2-XXL, best FID); sigma is read as the
noise-to-signal ratio sigma / alpha, so that the interval holds for any process.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import NULL, Denoiser, Guidance, Labels, clip
from methods.core.recipe import Method, edit


class IntervalGuided(Denoiser):
    """Guided where the time of a row lies inside: one batched call, which ends with the guided rows without a label."""

    def __init__(self, inner: Denoiser, interval: "Interval") -> None:
        self.inner, self.interval = inner, interval
        self.process, self.bounds = inner.process, inner.bounds

    def __call__(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        assert labels is not None, "guidance needs labels"
        t = t.expand(len(x_t))
        ratio = torch.exp(-self.process.lam(t))
        inside = (self.interval.sigma_low < ratio) & (ratio <= self.interval.sigma_high)
        count("guidance_skipped", int((~inside).sum()))
        guided = inside.nonzero().flatten().to(x_t.device)
        x, null = torch.cat([x_t, x_t[guided]]), torch.full_like(labels[guided], NULL)
        x0, unconditional = self.inner(x, torch.cat([t, t[inside]]), torch.cat([labels, null])).split(
            [len(x_t), len(guided)]
        )
        return clip(x0.index_add(0, guided, x0[guided] - unconditional, alpha=self.interval.scale), self.bounds)

    def reset(self) -> None:
        self.inner.reset()


@dataclass(frozen=True)
class Interval(Guidance):
    """Guide where sigma_low < sigma / alpha <= sigma_high."""

    scale: float
    sigma_low: float
    sigma_high: float

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return IntervalGuided(denoiser, self)


def guidance_interval(
    scale: float = 1.0, dropout: float = 0.1, sigma_low: float = 0.19, sigma_high: float = 1.61
) -> Method:
    """Classifier-free guidance with weight `scale` between two noise-to-signal ratios, none outside."""
    return edit(label_dropout=dropout, guidance=Interval(scale, sigma_low, sigma_high))
