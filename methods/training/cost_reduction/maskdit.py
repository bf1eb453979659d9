"""Hides half of the noisy patches from the wide part of a transformer while it trains, and shows them all at the end.

An update then costs little more than half. The encoder denoises the patches it sees; a light decoder has all of them,
and what it gives for the hidden ones is held against their noisy pixels, so that the whole image is still looked at.
Sampling hides nothing, and a short last stretch of training gets the network used to that.

Source: Zheng, Nie, Vahdat, Anandkumar 2023 "Fast Training of Diffusion Models with Masked Transformers" (2306.09305),
figure 1 and the training objective; shares, decoder, normalised patches as in the official code (mask ratio 0.5,
weight 0.1). Network in `methods/nets/masked_dit.py`.
Limits: the network's output itself is held against hidden patches, where the paper has the estimate of x_0: with noise
as the target that one is divided by alpha, which is nearly zero at the start of the chain. The last stretch is part of
the same number of updates, at the same learning rate. Pixels unless combined with `latent_diffusion`. One process only.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.objective import Loss
from methods.core.recipe import Method, Recipe, edit
from methods.nets.masked_dit import MaskDiTConfig
from methods.training.cost_reduction._shared import MaskedDenoising

EPS = 1e-6
"""Added to the variance of a patch."""


def reconstruction(
    prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"], patch: int
) -> Float[Tensor, "b"]:
    """The mean over hidden patches of ||prediction - (x_t - mean) / std||^2, with the mean and std of each patch."""
    answer, pixels = (F.pixel_unshuffle(image, patch).flatten(2) for image in (prediction, x_t))  # [b, c p p, n]
    target = (pixels - pixels.mean(1, keepdim=True)) / (pixels.var(1, keepdim=True) + EPS).sqrt()
    error = (answer - target).square().mean(1)
    hidden = torch.ones_like(error).scatter(1, visible, 0.0)
    count("patches_reconstructed", int(hidden.sum()))
    return (error * hidden).sum(1) / hidden.sum(1)


class DenoiseAndReconstruct(MaskedDenoising):
    """The denoising loss on visible patches, and `weight` times the reconstruction of the hidden ones."""

    def __init__(self, recipe: Recipe, ratio: float, unmasked: float, weight: float) -> None:
        super().__init__(recipe, ratio, unmasked)
        self.reconstruction_weight = weight
        self.beside: Tensor | float = 0.0

    def predict(
        self, student: Network, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], told: Labels
    ) -> Float[Tensor, "b c h w"]:
        prediction = super().predict(student, x_t, t, told)
        self.beside = 0.0
        if self.visible is not None and self.reconstruction_weight:
            self.beside = self.reconstruction_weight * reconstruction(prediction, x_t, self.visible, self.patch)
        return prediction

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b c h w"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        return super().__call__(student, teacher, x0, labels, rng) + self.beside


@dataclass(frozen=True)
class MaskedTraining(Loss):
    """The recipe's denoising loss with `ratio` of the patches hidden and reconstructed, at last with none."""

    ratio: float
    unmasked: float
    weight: float

    def objective(self, recipe: Recipe) -> DenoiseAndReconstruct:
        return DenoiseAndReconstruct(recipe, self.ratio, self.unmasked, self.weight)


def maskdit(
    patch: int = 2, width: int = 96, depth: int = 4, heads: int = 4, decoder: int = 1, narrow: int = 48,
    ratio: float = 0.5, reconstruct: float = 0.1, unmasked: float = 0.1,
) -> Method:  # fmt: skip
    """Hide `ratio` of the patches, and none for the last `unmasked` of training; a decoder of `narrow` channels."""
    return edit(
        net=MaskDiTConfig(patch, width, depth, heads, decoder, narrow),
        loss=MaskedTraining(ratio, unmasked, reconstruct),
    )
