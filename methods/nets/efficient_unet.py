"""A U-Net that halves the resolution before it computes, and doubles it after, with more blocks the lower it is.

Source: Saharia et al. 2022 "Imagen" (2205.11487), appendix B.1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.recipe import NetConfig
from methods.nets.embedding import Conditioning
from methods.nets.unet import GROUPS, Attention, ResidualBlock


class Doubling(nn.Module):
    """Twice the resolution by copying, then a convolution."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b c y z"]:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Blocks(nn.Module):
    """Residual blocks at one resolution, with attention behind the last if asked."""

    def __init__(self, channels_in: int, channels: int, blocks: int, conditioning: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(channels if i else channels_in, channels, conditioning) for i in range(blocks)
        )
        self.attention = Attention(channels, heads) if heads else nn.Identity()

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        for block in self.blocks:
            x = block(x, condition)
        return self.attention(x)


class Resampled(nn.Module):
    """Blocks and a change of resolution, so that the blocks run at the lower one (`low`), or at the higher one."""

    def __init__(self, channels_in: int, channels: int, blocks: int, conditioning: int, heads: int, *, down: bool,
                 low: bool) -> None:  # fmt: skip
        super().__init__()
        self.low, self.first = low, down == low
        into, out = (channels_in, channels) if self.first else (channels, channels)
        self.resample = nn.Conv2d(into, out, 3, stride=2, padding=1) if down else Doubling(into, out)
        self.work = Blocks(channels if self.first else channels_in, channels, blocks, conditioning, heads)

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c y z"]:
        count("blocks_at_low_resolution", self.low * len(self.work.blocks))
        return self.work(self.resample(x), condition) if self.first else self.resample(self.work(x, condition))


class EfficientUNet(nn.Module):
    """(x [b, c, h, w], u [b] or what its conditioning takes, labels [b]) -> prediction of x's shape."""

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "EfficientUNetConfig") -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(config.levels)]
        conditioning = 4 * config.width
        self.conditioning = Conditioning(conditioning, classes)
        self.stem = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            lowest = level == config.levels - 1
            rest = (width, config.blocks * 2**level, conditioning, config.heads if lowest else 0)
            self.down.append(Resampled(widths[max(level - 1, 0)], *rest, down=True, low=config.low))
            below = widths[min(level + 1, config.levels - 1)]
            self.up.insert(0, Resampled(below + width, *rest, down=False, low=config.low))
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.head = nn.Conv2d(widths[0], shape[0], 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]
                ) -> Float[Tensor, "b d h w"]:  # fmt: skip
        condition = self.conditioning(u, labels)
        h, skips = self.stem(x), []
        for part in self.down:
            h = part(h, condition)
            skips.append(h)
        for part in self.up:
            h = part(torch.cat([h, skips.pop() / math.sqrt(2)], dim=1), condition)
        return self.head(F.silu(self.norm(h)))


@dataclass(frozen=True)
class EfficientUNetConfig(NetConfig):
    """`levels` halvings; each has twice the channels and twice the `blocks` of the one above.

    Blocks run at the `low` side of their halving, or, as in other U-Nets, at the high one.
    """

    width: int = 24
    levels: int = 2
    blocks: int = 1
    heads: int = 4
    low: bool = True

    def build(self, shape: tuple[int, ...], classes: int) -> EfficientUNet:
        channels, height, width = shape
        return EfficientUNet((channels, height, width), classes, self)
