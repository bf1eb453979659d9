"""Starts each class from noise that resembles it, with its mean image and its variance at every pixel.

Standard noise says nothing of what is asked for, so the network has to build the class's outline out of it. A prior
that follows the condition has less to go: pixels that never vary in a class are there from the start.

Source: Lee et al. 2022 "PriorGrad: Improving Conditional Denoising Diffusion Models with Data-Dependent Adaptive Prior"
(2106.06406), section 3: x_t - mu = alpha (x_0 - mu) + sigma eps with eps ~ N(0, Sigma), and the loss (eps -
eps_theta)^T Sigma^-1 (eps - eps_theta), which is the usual one for (x_0 - mu) / sqrt(Sigma).
Limits: the condition is a class and its statistics are those of the training images; deviations have a floor, as in the
official code. The network sees the normalised image, where the paper's sees x_t - mu. What is drawn is clipped to the
range of pixels at the end, where the official code clips every step.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Report
from methods.core.codec import Codec, Space
from methods.core.denoiser import Labels
from methods.core.recipe import Method, edit


class ByClass(Codec):
    """(x - mean of its class) / its deviation, pixel by pixel. A label of none takes the first class's."""

    bounds = None
    mean: Float[Tensor, "k *p"]
    deviation: Float[Tensor, "k *p"]

    def __init__(self, shape: tuple[int, ...], classes: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(max(1, classes), *shape))
        self.register_buffer("deviation", torch.ones(max(1, classes), *shape))

    def statistics(self, labels: Labels, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation for every image."""
        known = torch.zeros(len(x), dtype=torch.long, device=x.device) if labels is None else labels.clamp(min=0)
        return self.mean[known], self.deviation[known]

    def encode(self, images: Float[Tensor, "b *p"], labels: Labels = None) -> Float[Tensor, "b *p"]:
        mean, deviation = self.statistics(labels, images)
        return (images - mean) / deviation

    def decode(self, x: Float[Tensor, "b *p"], labels: Labels = None) -> Float[Tensor, "b *p"]:
        mean, deviation = self.statistics(labels, x)
        count("started_from_their_class", len(x))
        return (mean + deviation * x).clamp(-1, 1)

    def fit(
        self, images: Float[Tensor, "n *p"], labels: Labels, iterations: int, rng: torch.Generator, report: Report
    ) -> int:
        known = torch.zeros(len(images), dtype=torch.long, device=images.device) if labels is None else labels
        for label in known.unique():
            own = images[known == label]
            self.mean[label] = own.mean(0)
            self.deviation[label] = own.std(0, correction=0).clamp(min=self.floor)
        return len(images)


@dataclass(frozen=True)
class NormalisedByClass(Space):
    """The diffusion takes place on what an image differs by from its class."""

    floor: float

    def build(self, shape: tuple[int, ...], classes: int) -> ByClass:
        return ByClass(shape, classes, self.floor)


def data_dependent_prior(floor: float = 0.1) -> Method:
    """The least deviation of a pixel, for images in [-1, 1]."""
    return edit(space=NormalisedByClass(floor))
