"""Trains one network with and without its condition, and extrapolates from the one estimate past the other.

The difference of the two is the gradient of an implicit classifier, so no classifier is needed; the price is a second
evaluation at every step.

Source: Ho and Salimans 2022 "Classifier-Free Diffusion Guidance" (2207.12598), algorithms 1 and 2, eq. 6. The rule is
linear, so it reads the same on x_0 as on eps.
Limits: both estimates of x_0 are clipped to the range of the data before they are combined, and the result again.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import NULL, Denoiser, Guidance, Labels, clip
from methods.core.recipe import Method, edit


class Guided(Denoiser):
    """(1 + w) x_0(x_t, c) - w x_0(x_t), both from one batched call; clipped estimates are extrapolated unclipped."""

    def __init__(self, inner: Denoiser, scale: float) -> None:
        self.inner, self.scale = inner, scale
        self.process, self.bounds = inner.process, inner.bounds

    def __call__(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        assert labels is not None, "guidance needs labels"
        count("guided_rows", len(x_t))
        t = t.repeat(2) if t.ndim else t
        both = torch.cat([labels, torch.full_like(labels, NULL)])
        conditional, unconditional = self.inner(torch.cat([x_t, x_t]), t, both).chunk(2)
        return clip(conditional + self.scale * (conditional - unconditional), self.bounds)

    def reset(self) -> None:
        self.inner.reset()


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Guide every step with weight w = scale."""

    scale: float

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return Guided(denoiser, self.scale)


def classifier_free_guidance(scale: float = 1.0, dropout: float = 0.1) -> Method:
    """Drop labels at rate `dropout` in training, guide with weight `scale` in sampling."""
    return edit(label_dropout=dropout, guidance=ClassifierFree(scale))
