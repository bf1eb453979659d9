"""Classifier-free guidance with one evaluation of the unconditional network for a whole trajectory, or with none.

The estimate of x_0 that it gives when a row begins, or the image that a row was made from, stands for all later ones:
what is recomputed is only the residual noise n that leads from it to the x_t of now.

Source: Kodaira et al. 2023 "StreamDiffusion" (2312.12491), eps = delta n + g (eps_c - delta n).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import NULL, Denoiser, Guidance, Labels, clip
from methods.core.process import like


class ResidualGuided(Denoiser):
    """Guided away from an estimate that every row keeps from when it began; rows are in the order in which they did.

    A row begins at the highest time asked for since the reset, or where nothing is remembered; the others are the last
    ones that are.
    """

    def __init__(self, inner: Denoiser, scale: float, delta: float) -> None:
        self.inner, self.scale, self.delta = inner, scale, delta
        self.process, self.bounds = inner.process, inner.bounds
        self.reset()

    def reset(self) -> None:
        self.inner.reset()
        self.first, self.negative = -torch.inf, torch.empty(0)
        self.origins: list[Float[Tensor, "*s"]] = []
        """Images from which rows that are about to begin were made; without any, one evaluation finds a negative."""

    def __call__(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        assert labels is not None, "guidance needs labels"
        t = t.expand(len(x_t))
        self.first = max(self.first, t.max().item())
        begun = min(int((t < self.first).sum()), len(self.negative))
        kept, fresh = self.negative[len(self.negative) - begun :], slice(begun, None)
        count("negatives_reused", begun)
        if self.origins:
            new, self.origins = torch.stack(self.origins), []
            conditional = self.inner(x_t, t, labels)
        else:
            null = torch.full_like(labels[fresh], NULL)
            asked = torch.cat([x_t, x_t[fresh]]), torch.cat([t, t[fresh]]), torch.cat([labels, null])
            conditional, new = self.inner(*asked).split([len(x_t), len(null)])
        self.negative = torch.cat([kept, new]) if begun else new
        alpha, sigma = like(self.process.alpha(t), x_t), like(self.process.sigma(t), x_t)
        residual, noise = ((x_t - alpha * x0) / sigma for x0 in (self.negative, conditional))
        guided = self.delta * residual + (1 + self.scale) * (noise - self.delta * residual)
        return clip((x_t - sigma * guided) / alpha, self.bounds)


@dataclass(frozen=True)
class Residual(Guidance):
    """Residual classifier-free guidance; `delta` moderates the negative."""

    scale: float
    delta: float

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return ResidualGuided(denoiser, self.scale, self.delta)
