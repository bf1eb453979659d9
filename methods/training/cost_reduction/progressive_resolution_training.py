"""Trains on small images first and on full-sized ones last, when the network has little left to learn.

What an image shows is mostly settled at a low resolution, where a training step costs a quarter for each halving. The
network is the same throughout: convolutions take any size, and a transformer's few tokens get the positions of those
that are as far apart at full size. Averaging pixels averages noise away too, so that a halved image is given half the
noise, and hides as much as the full-sized one.

Source: Chen et al. 2024 "PixArt-Sigma: Weak-to-Strong Training of Diffusion Transformer for 4K Text-to-Image
Generation" (2403.04692): one stage of training per resolution, positions interpolated as by `pe_interpolation` in the
official code. The noise of a resolution by Hoogeboom et al. 2023 (2301.11093), eq. 4, which is the time shift of Esser
et al. 2024 (2403.03206), eq. 23; PixArt-Sigma has none of it.
Limits: the schedule of resolutions alone. The compression of keys and values of the same paper is another attention for
many tokens, and better captions and autoencoder are other data. Batch, learning rate, optimizer and the average of the
weights go on from size to size. Learned positions, and spaces other than pixels, are refused. Phases that train on do
so at full size.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.codec import Pixels
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.objective import Loss, TimeDensity
from methods.core.process import Process
from methods.core.recipe import Method, Recipe, edit
from methods.nets.adm import ADMConfig
from methods.nets.dit import DiT, DiTConfig
from methods.nets.efficient_unet import EfficientUNetConfig
from methods.nets.routed_dit import RoutedDiTConfig
from methods.nets.unet import UNetConfig
from methods.training.objective._shared import Altered

SIZELESS = (UNetConfig, ADMConfig, EfficientUNetConfig, DiTConfig, RoutedDiTConfig)


@dataclass(frozen=True)
class LessNoise(TimeDensity):
    """The times of `whole`, with lam raised by log `ratio`: a given share of the noise for the same signal."""

    whole: TimeDensity
    ratio: float

    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        return process.time(process.lam(self.whole(process, n, rng)) + math.log(self.ratio))


@contextmanager
def shrunk(net: nn.Module, factor: int) -> Iterator[None]:
    """While it lasts, the network takes images of 1 / factor the side: of its positions, every factor-th is left."""
    transformers = [(part, part.grid, part.position) for part in net.modules() if isinstance(part, DiT)]
    for part, (height, width), position in transformers:
        part.grid = height // factor, width // factor
        part.position = position.unflatten(0, (height, width))[::factor, ::factor].flatten(0, 1)
    try:
        yield
    finally:
        for part, grid, position in transformers:
            part.grid, part.position = grid, position


def untrained(net: nn.Module) -> bool:
    """Whether its last layer is still at zero, where all networks here begin."""
    return not any(parameter.any() for parameter in net.get_submodule("head").parameters())


class SmallFirst(Altered):
    """The denoising loss on images whose side doubles from stage to stage, as a fresh network is trained."""

    def __init__(self, recipe: Recipe, share: float, halvings: int, shift: float) -> None:
        super().__init__(recipe)
        self.small, self.halvings, self.shift = share * recipe.fit.iterations, halvings, shift
        self.whole, self.done = recipe.times, 0

    def factor(self) -> int:
        """How many times smaller than full size the side is now: the small sizes last equally long."""
        stage = math.floor(self.halvings * self.done / self.small) if self.small else self.halvings
        return 2 ** max(0, self.halvings - stage)

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b c h w"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        if not self.done and not untrained(student.net):
            self.small = 0
        factor, self.done = self.factor(), self.done + 1
        assert not any(side % factor for side in x0.shape[2:]), f"{x0.shape[2:]} pixels cannot be divided by {factor}"
        self.times = LessNoise(self.whole, factor**self.shift) if factor > 1 else self.whole
        count("images_shrunk", len(x0) * (factor > 1))
        with shrunk(student.net, factor):
            return super().__call__(student, teacher, F.avg_pool2d(x0, factor), labels, rng)


@dataclass(frozen=True)
class ProgressiveResolution(Loss):
    """The recipe's denoising loss, for `share` of the training on images of half the side or less."""

    share: float
    halvings: int
    shift: float

    def objective(self, recipe: Recipe) -> SmallFirst:
        return SmallFirst(recipe, self.share, self.halvings, self.shift)


def progressive_resolution_training(share: float = 0.6, halvings: int = 1, shift: float = 1.0) -> Method:
    """Spend `share` of the updates on images halved up to `halvings` times, with less noise (`shift` 0: as much)."""
    return edit(needs={"net": SIZELESS, "space": Pixels}, loss=ProgressiveResolution(share, halvings, shift))
