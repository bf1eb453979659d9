"""Diffuses the four Haar sub-bands of an image instead of its pixels: a quarter of the positions, nothing lost.

One level of the wavelet transform separates a half-size average from the details across, along and diagonal. A network
on the stacked bands is several times cheaper, and has what matters most, the average, in channels of its own.

Source: Phung, Dao, Tran 2022 "Wavelet Diffusion Models are fast and scalable Image Generators" (2211.16152), its
wavelet-based diffusion scheme: bands of an orthonormal Haar transform, halved to lie in [-1, 1], as the official code.
Limits: the scheme alone, for any objective and network. The paper's adversarial training in few steps is `ddgan`, which
it goes with; wavelets inside of the generator and the extra L1 term are left out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.codec import Codec, Space
from methods.core.denoiser import Labels
from methods.core.recipe import Method, edit

BANDS = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))
"""Signs of the pixels of a 2x2 cell, by rows: their average, and what changes across, along and diagonally."""


class Haar(Codec):
    """[b, c, h, w] <-> [b, 4 c, h/2, w/2]: the bands of an orthonormal transform, halved; channels of a band together.

    The 4x4 matrix of signs is its own inverse up to a factor of 4, which both ways share.
    """

    bounds = (-1.0, 1.0)
    signs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("signs", torch.tensor(BANDS, dtype=torch.float32), persistent=False)

    def encode(self, images: Float[Tensor, "b c h w"], labels: Labels = None) -> Float[Tensor, "b k i j"]:
        count("images_transformed", len(images))
        cells = F.pixel_unshuffle(images, 2).unflatten(1, (-1, 4))  # [b, c, 4, i, j]
        return torch.einsum("sp,bcpij->bscij", self.signs.to(images) / 4, cells).flatten(1, 2)

    def decode(self, x: Float[Tensor, "b k i j"], labels: Labels = None) -> Float[Tensor, "b c h w"]:
        cells = torch.einsum("sp,bscij->bcpij", self.signs.to(x), x.unflatten(1, (4, -1)))
        return F.pixel_shuffle(cells.flatten(1, 2), 2)


@dataclass(frozen=True)
class Wavelets(Space):
    """The diffusion takes place on the sub-bands of one level of the Haar transform."""

    def build(self, shape: tuple[int, ...], classes: int) -> Haar:
        return Haar()


def wavelet_diffusion() -> Method:
    """Diffuse Haar sub-bands."""
    return edit(space=Wavelets())
