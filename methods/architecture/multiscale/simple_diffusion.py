"""Trains one network on large pixels by noise as of a small image, a loss at several resolutions, and depth low down.

Averaging neighbours cancels noise, so that a large image hides less under the same noise: the schedule is shifted until
it hides as much as a small one would. The coarse error, which few pixels carry, gets a loss of its own; and blocks are
added where they cost little, at the lowest resolution alone.

Source: Hoogeboom, Heek, Salimans 2023 "simple diffusion: End-to-end diffusion for high resolution images" (2301.11093):
the shifted cosine schedule, the multiscale training loss, the scaling of the lowest resolution of the U-Net.
Steps are even in the time of the shifted schedule, so that sampling walks the levels that training is about.
Limits: no dropout, which has no seed of its own here. The first layers that lower the resolution, its fourth finding,
are `patched_pixel_diffusion` and `wavelet_diffusion`, which it goes with. The U-Net, not the U-ViT of the largest runs,
and it predicts the noise, where the paper prefers the velocity; the loss is on what the network predicts.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.objective import Loss
from methods.core.recipe import Method, Recipe, edit
from methods.nets.deep_unet import DeepUNetConfig
from methods.training.noise_process._shared import UniformTime
from methods.training.noise_process.resolution_shifted_schedule import ShiftedCosine
from methods.training.objective._shared import Altered


def multiscale(error: Float[Tensor, "b c h w"], coarsest: int) -> Float[Tensor, "b"]:
    """sum_s (1/s) mean (D_s error)^2 over the sides s = coarsest, 2 coarsest, ... and the image's own, by averages."""
    side = error.shape[2]
    loss = error.square().flatten(1).mean(1) / side
    while side % 2 == 0 and side // 2 >= coarsest:
        error, side = F.avg_pool2d(error, 2), side // 2
        count("coarse_losses", len(error))
        loss = loss + error.square().flatten(1).mean(1) / side
    return loss


class MultiscaleDenoising(Altered):
    """The denoising loss, summed over resolutions."""

    def __init__(self, recipe: Recipe, coarsest: int) -> None:
        super().__init__(recipe)
        self.coarsest = coarsest

    def error(self, difference: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        return multiscale(difference, self.coarsest)


@dataclass(frozen=True)
class Multiscale(Loss):
    """The denoising loss at all resolutions from `coarsest` pixels a side."""

    coarsest: int

    def objective(self, recipe: Recipe) -> MultiscaleDenoising:
        return MultiscaleDenoising(recipe, self.coarsest)


def simple_diffusion(ratio: float = 0.5, coarsest: int = 4, width: int = 16, deepest: int = 4) -> Method:
    """Noise as of an image `ratio` of the size, losses from `coarsest` pixels, `deepest` blocks at the lowest level."""
    return edit(
        process=ShiftedCosine(1 / ratio), loss=Multiscale(coarsest), net=DeepUNetConfig(width=width, deepest=deepest),
        grid=UniformTime(),
    )  # fmt: skip
