"""Where a diffusion takes place: pixels, or a space that a codec fits before the network is trained."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.calibration import Report
from methods.core.denoiser import Labels


class Codec(nn.Module, ABC):
    """Images [b, c, h, w], or points of the plane, <-> the space the diffusion lives in [b, *s].

    The space of an image may depend on its label, which is known of every image and never dropped here.
    """

    bounds: tuple[float, float] | None
    """The range of clean values, to which estimates of x_0 are clipped; None where there is none."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "b *p"], labels: Labels = None) -> Float[Tensor, "b *s"]: ...

    @abstractmethod
    def decode(self, x: Float[Tensor, "b *s"], labels: Labels = None) -> Float[Tensor, "b *p"]: ...

    def fit(
        self, images: Float[Tensor, "n *p"], labels: Labels, iterations: int, rng: torch.Generator, report: Report
    ) -> int:
        """Train the codec; returns how many images it saw."""
        return 0


class Space(ABC):
    """Where the diffusion takes place."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> Codec: ...


class Identity(Codec):
    """Pixels in [-1, 1], as they are."""

    bounds = (-1.0, 1.0)

    def encode(self, images: Float[Tensor, "b *p"], labels: Labels = None) -> Float[Tensor, "b *p"]:
        return images

    def decode(self, x: Float[Tensor, "b *p"], labels: Labels = None) -> Float[Tensor, "b *p"]:
        return x


@dataclass(frozen=True)
class Pixels(Space):
    """The diffusion takes place on pixels."""

    def build(self, shape: tuple[int, ...], classes: int) -> Identity:
        return Identity()
