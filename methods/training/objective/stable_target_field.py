"""Asks for the mean of all images that a noisy image may come from, and not for the one it was made of.

At middle noise levels many images could have led to x_t, and a single one is a noisy target for their mean. Averaged
over a reference batch by how likely each of it leads to x_t, the target varies less, for a bias that vanishes as the
reference grows.

Source: Xu, Tong, Jaakkola 2023 "Stable Target Field for Reduced Variance Score Estimation in Diffusion Models"
(2302.00670), the self-normalised weights of the objective, as `stf_targets` in the official code.
Limits: the reference is made of the present batch and of those before it, not drawn at each update. An image with a
label is averaged with images of its class alone, since the network is told the class; the paper has no labels.
Cost: one product of batch x reference per training step.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import NULL, Labels
from methods.core.objective import Independent, Loss
from methods.core.process import Process, like
from methods.core.recipe import Method, Recipe, edit
from methods.training.objective._shared import Altered


def posterior(
    process: Process, x_t: Float[Tensor, "b d"], t: Float[Tensor, "b"], reference: Float[Tensor, "n d"]
) -> Float[Tensor, "b n"]:
    """log p(y_i | x_t) up to a constant: that of N(x_t; alpha y_i, sigma^2) without what depends on x_t alone."""
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    return (alpha * (x_t @ reference.T) - alpha**2 / 2 * reference.square().sum(1)) / sigma**2


class StableTarget(Altered):
    """The denoising loss with sum_i w_i y_i for x_0, w the softmax of log p(y_i | x_t) over the last n images."""

    def __init__(self, recipe: Recipe, n: int) -> None:
        super().__init__(recipe)
        self.n = n
        self.images = self.labels = torch.empty(0)

    def remember(self, x0: Float[Tensor, "b *s"], labels: Labels) -> None:
        """Put a batch before what is remembered, and forget what is more than n images ago."""
        labels = torch.full((len(x0),), NULL, device=x0.device) if labels is None else labels
        first = not len(self.images)
        self.images = (x0 if first else torch.cat([x0, self.images]))[: self.n]
        self.labels = (labels if first else torch.cat([labels, self.labels]))[: self.n]

    @torch.no_grad()
    def target(
        self, process: Process, x0: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"], x_t: Float[Tensor, "b *s"],
        t: Float[Tensor, "b"], labels: Labels, told: Labels,
    ) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "b *s"]]:  # fmt: skip
        self.remember(x0, labels)
        reference = self.images.flatten(1).double()
        chance = posterior(process, x_t.flatten(1).double(), t, reference)
        if told is not None:
            known = told[:, None]
            chance = chance.masked_fill((known != NULL) & (known != self.labels), -torch.inf)
        weights = chance.softmax(1)
        count("targets_averaged", int((weights.max(1).values < 0.99).sum()))
        clean = (weights @ reference).reshape(x0.shape)
        noise = (x_t - like(process.alpha(t), clean) * clean) / like(process.sigma(t), clean)
        return clean.to(x0), noise.to(x0)


@dataclass(frozen=True)
class StableTargetField(Loss):
    """The recipe's denoising loss with targets averaged over a reference of n images."""

    n: int

    def objective(self, recipe: Recipe) -> StableTarget:
        return StableTarget(recipe, self.n)


def stable_target_field(reference: int = 1024) -> Method:
    """Average targets over the last `reference` images, the present batch among them."""
    return edit(needs={"coupling": Independent}, loss=StableTargetField(reference))
