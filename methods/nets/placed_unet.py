"""A U-Net that is told where in the image every pixel lies, so that it can be asked about a part of one.

Source: Wang et al. 2023 (2304.12526), section 3 (coordinate conditioning); coordinates as in the official code.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.recipe import NetConfig
from methods.nets.unet import UNet, UNetConfig


def located(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
    """Whole images with two further channels: column and row, from -1 at the first pixel to 1 at the last."""
    rows, columns = (torch.linspace(-1, 1, side, dtype=x.dtype, device=x.device) for side in x.shape[2:])
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.cat([x, torch.stack([column, row]).expand(len(x), -1, -1, -1)], dim=1)


class PlacedUNet(UNet):
    """A U-Net whose first convolution is over pixels and their coordinates: those of a whole image, unless given."""

    def __init__(self, shape: tuple[int, int, int], classes: int, config: UNetConfig) -> None:
        super().__init__(shape, classes, config)
        self.channels = shape[0]
        self.stem = nn.Conv2d(shape[0] + 2, self.stem.out_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b k h w"], u: Float[Tensor, "b *j"], labels: Int[Tensor, "b"]
                ) -> Float[Tensor, "b d h w"]:  # fmt: skip
        x = located(x) if x.shape[1] == self.channels else x
        return self.head(F.silu(self.norm(self.level(self.stem(x), self.conditioning(u, labels)))))


@dataclass(frozen=True)
class PlacedUNetConfig(NetConfig):
    """The U-Net `plain`, told coordinates. No U-Net to those who would cut it into bands, each taken for a whole."""

    plain: UNetConfig

    def build(self, shape: tuple[int, ...], classes: int) -> PlacedUNet:
        channels, height, width = shape
        return PlacedUNet((channels, height, width), classes, self.plain)
