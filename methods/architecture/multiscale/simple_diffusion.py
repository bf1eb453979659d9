"""Trains one network on large pixels by noise as of a small image, a loss at several resolutions, and depth low down.

Averaging neighbours cancels noise, so that a large image hides less under the same noise: the schedule is shifted until
it hides as much as a small one would. The coarse error, which few pixels carry, gets a loss of its own; and blocks are
added where they cost little, at the lowest resolution alone.

Source: Hoogeboom, Heek, Salimans 2023 "simple diffusion: End-to-end diffusion for high resolution images" (2301.11093):
the shifted cosine schedule, the multiscale training loss, the scaling of the lowest resolution of the U-Net.
Limits: no dropout, which has no seed of its own here. The first layers that lower the resolution, its fourth finding,
are `patched_pixel_diffusion` and `wavelet_diffusion`, which it goes with. The U-Net, not the U-ViT of the largest runs.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.denoiser import NULL, Denoiser, Labels, Network
from methods.core.objective import Denoising, Regression
from methods.core.process import Process, angle
from methods.core.recipe import Method, Recipe, edit
from methods.nets.deep_unet import DeepUNetConfig


@dataclass(frozen=True)
class ShiftedCosine(Process):
    """log SNR(t) = -2 log tan(pi t / 2) + 2 log `ratio`: for ratio < 1, more noise at the same time."""

    ratio: float
    lam_start: float = -5.0
    preserves_variance: ClassVar[bool] = True

    def norm(self, t: Tensor) -> Tensor:
        """What makes the squares of alpha and sigma add up to 1."""
        return torch.hypot(self.ratio * torch.cos(t * (math.pi / 2)), torch.sin(t * (math.pi / 2)))

    def alpha(self, t: Tensor) -> Tensor:
        return self.ratio * torch.cos(t * (math.pi / 2)) / self.norm(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2)) / self.norm(t)

    def time(self, lam: Tensor) -> Tensor:
        return angle(lam - math.log(self.ratio))


def multiscale(error: Float[Tensor, "b c h w"], coarsest: int) -> Float[Tensor, "b"]:
    """sum_s (1/s) mean (D_s error)^2 over the sides s = coarsest, 2 coarsest, ... and the image's own, by averages."""
    side = error.shape[2]
    loss = error.square().flatten(1).mean(1) / side
    while side % 2 == 0 and side // 2 >= coarsest:
        error, side = F.avg_pool2d(error, 2), side // 2
        count("coarse_losses", len(error))
        loss = loss + error.square().flatten(1).mean(1) / side
    return loss


@dataclass(frozen=True)
class MultiscaleDenoising(Denoising):
    """The denoising loss, summed over resolutions."""

    coarsest: int = 1

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b c h w"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        process, parameterization = student.process, student.parameterization
        eps = self.coupling(x0, rng)
        t = self.times(process, len(x0), rng)
        if labels is not None and self.label_dropout > 0:
            dropped = torch.rand(len(x0), generator=rng, device=rng.device) < self.label_dropout
            labels = torch.where(dropped.to(labels.device), NULL, labels)
        prediction = student.predict(process.diffuse(x0, eps, t), t, labels)
        loss = multiscale(prediction - parameterization.target(process, x0, eps, t), self.coarsest)
        return self.weight.on_target(process.lam(t), parameterization.gain(process, t)).to(loss) * loss


@dataclass(frozen=True)
class Multiscale(Regression):
    """The denoising loss at all resolutions from `coarsest` pixels a side."""

    coarsest: int

    def objective(self, recipe: Recipe) -> MultiscaleDenoising:
        return MultiscaleDenoising(recipe.times, recipe.weight, recipe.coupling, recipe.label_dropout, self.coarsest)


def simple_diffusion(ratio: float = 0.5, coarsest: int = 4, width: int = 16, deepest: int = 4) -> Method:
    """Noise as of an image `ratio` of the size, losses from `coarsest` pixels, `deepest` blocks at the lowest level."""
    return edit(
        process=ShiftedCosine(ratio), loss=Multiscale(coarsest), net=DeepUNetConfig(width=width, deepest=deepest)
    )
