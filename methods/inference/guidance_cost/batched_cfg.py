"""Asks the network for both predictions of classifier-free guidance in one call: half as many rounds of waiting.

Guidance needs the network with the label and without it, at the same x_t. Neither waits for the other, so both go into
one batch of twice the size, which a processor with idle units finishes sooner than two calls.

Source: Ho and Salimans 2022 "Classifier-Free Diffusion Guidance" (2207.12598), eq. 6 and algorithm 2; the paper counts
two passes and says nothing of batching, which is how its implementations, diffusers among them, do it.
Limits: guidance is batched everywhere here, so with two branches a call this is `classifier_free_guidance` itself; what
this adds is its opponent, the two calls one after the other. The same evaluations either way: only time is saved.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.denoiser import NULL, Denoiser, Guidance, Labels, clip
from methods.core.recipe import Method, edit
from methods.training.guidance.classifier_free_guidance import ClassifierFree


class GuidedInTurn(Denoiser):
    """(1 + w) x_0(x_t, c) - w x_0(x_t) from two calls."""

    def __init__(self, inner: Denoiser, scale: float) -> None:
        self.inner, self.scale = inner, scale
        self.process, self.bounds = inner.process, inner.bounds

    def __call__(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        assert labels is not None, "guidance needs labels"
        conditional = self.inner(x_t, t, labels)
        unconditional = self.inner(x_t, t, torch.full_like(labels, NULL))
        return clip(conditional + self.scale * (conditional - unconditional), self.bounds)

    def reset(self) -> None:
        self.inner.reset()


@dataclass(frozen=True)
class InTurn(Guidance):
    """Classifier-free guidance with weight w = scale, a call for each branch."""

    scale: float

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return GuidedInTurn(denoiser, self.scale)


def batched_cfg(scale: float = 1.0, dropout: float = 0.1, branches: int = 2) -> Method:
    """Classifier-free guidance with weight `scale`, evaluating one or both `branches` in a call."""
    return edit(label_dropout=dropout, guidance=ClassifierFree(scale) if branches == 2 else InTurn(scale))
