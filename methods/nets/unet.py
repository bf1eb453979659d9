"""A class-conditional U-Net, written as the recursion it is: a level wraps what lies below it.

Source: Ronneberger et al. 2015 (1505.04597); residual blocks, attention and conditioning as in Dhariwal and Nichol 2021
(2105.05233), section 3 (adaptive group normalisation).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.recipe import NetConfig
from methods.nets.embedding import Conditioning

GROUPS = 8


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a scale and shift from the conditioning; zero at initialisation but for the skip."""

    def __init__(self, channels_in: int, channels: int, conditioning: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(GROUPS, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.scale_shift = nn.Linear(conditioning, 2 * channels)
        self.norm_out = nn.GroupNorm(GROUPS, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.scale_shift(F.silu(condition))[..., None, None].chunk(2, dim=1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over pixels, added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            part(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])


class Level(nn.Module):
    """One resolution: blocks on the way down, what lies below, blocks on the way up that see both.

    `skip` is the short way across.
    """

    def __init__(self, channels_in: int, channels: int, below: nn.Module, below_channels: int, blocks: int,
                 conditioning: int) -> None:  # fmt: skip
        super().__init__()
        widths = [channels_in] + [channels] * blocks
        self.down = nn.ModuleList(ResidualBlock(i, o, conditioning) for i, o in pairwise(widths))
        self.below = below
        self.skip: nn.Module = nn.Identity()
        widths = [channels + below_channels] + [channels] * blocks
        self.up = nn.ModuleList(ResidualBlock(i, o, conditioning) for i, o in pairwise(widths))

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        for block in self.down:
            x = block(x, condition)
        x = torch.cat([self.skip(x), self.below(x, condition)], dim=1)
        for block in self.up:
            x = block(x, condition)
        return x


class Below(nn.Module):
    """The way to half the resolution and back."""

    def __init__(self, channels: int, level: nn.Module, level_channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.level = level
        self.up = nn.Conv2d(level_channels, level_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        h = self.level(self.down(x), condition)
        return self.up(F.interpolate(h, size=x.shape[2:], mode="nearest"))


class Middle(nn.Module):
    """The lowest resolution: attention between two residual blocks."""

    def __init__(self, channels: int, heads: int, conditioning: int) -> None:
        super().__init__()
        self.first = ResidualBlock(channels, channels, conditioning)
        self.attention = Attention(channels, heads)
        self.second = ResidualBlock(channels, channels, conditioning)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        return self.second(self.attention(self.first(x, condition)), condition)


class UNet(nn.Module):
    """(x [b, c, h, w], u [b] or what its conditioning takes, labels [b]) -> prediction of x's shape."""

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "UNetConfig") -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        conditioning = 4 * config.width
        self.conditioning = Conditioning(conditioning, classes)
        self.stem = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        body: nn.Module = Middle(widths[-1], config.heads, conditioning)
        below = widths[-1]
        for depth in reversed(range(len(widths))):
            channels_in, channels = widths[max(depth - 1, 0)], widths[depth]
            body = Level(channels_in, channels, body, below, config.blocks, conditioning)
            if depth:
                body, below = Below(channels_in, body, channels), channels
        self.level = body
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.head = nn.Conv2d(widths[0], shape[0], 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]
                ) -> Float[Tensor, "b d h w"]:  # fmt: skip
        condition = self.conditioning(u, labels)
        return self.head(F.silu(self.norm(self.level(self.stem(x), condition))))


@dataclass(frozen=True)
class UNetConfig(NetConfig):
    """Channels are width x multiplier, a level per multiplier, each at half the resolution of the one above."""

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    heads: int = 4

    def build(self, shape: tuple[int, ...], classes: int) -> UNet:
        channels, height, width = shape
        return UNet((channels, height, width), classes, self)
