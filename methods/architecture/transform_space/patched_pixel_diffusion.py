"""Moves blocks of pixels into channels before the network and back after it: fewer positions, the same parameters.

The highest resolution of a U-Net costs most and does little at most noise levels, where the best prediction is smooth.
Space-to-depth is a rotation, so Gaussian noise stays Gaussian, and diffusing the packed image is the same process.

Source: Luhman and Luhman 2022 "Improving Diffusion Model Efficiency Through Patching" (2207.04316), section 3.
Limits: the network keeps its number of levels, where the paper drops the finest; its first and last layer widen.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.codec import Codec, Space
from methods.core.denoiser import Labels
from methods.core.recipe import Method, edit


class SpaceToDepth(Codec):
    """[b, c, h, w] <-> [b, c p^2, h/p, w/p]."""

    bounds = (-1.0, 1.0)

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def encode(self, images: Float[Tensor, "b c h w"], labels: Labels = None) -> Float[Tensor, "b k i j"]:
        count("pixels_packed", images.numel())
        return F.pixel_unshuffle(images, self.patch)

    def decode(self, x: Float[Tensor, "b k i j"], labels: Labels = None) -> Float[Tensor, "b c h w"]:
        return F.pixel_shuffle(x, self.patch)


@dataclass(frozen=True)
class Patches(Space):
    """The diffusion takes place on patches of patch x patch pixels."""

    patch: int

    def build(self, shape: tuple[int, ...], classes: int) -> SpaceToDepth:
        return SpaceToDepth(self.patch)


def patched_pixel_diffusion(patch: int = 2) -> Method:
    """Diffuse space-to-depth images with patches of `patch` pixels."""
    return edit(space=Patches(patch))
