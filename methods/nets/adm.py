"""The U-Net that ablations on ImageNet arrived at: more attention, blocks that resample, conditioning in the norms.

Source: Dhariwal and Nichol 2021 (2105.05233), section 3 and table 1; skips as in the official code, from every block.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.recipe import NetConfig
from methods.nets.embedding import Conditioning
from methods.nets.unet import GROUPS, Attention, ResidualBlock


class ResamplingBlock(ResidualBlock):
    """A residual block that may halve (`scale` 0.5) or double (2) the resolution of its input and of its skip.

    Without `adaptive` norms the conditioning is added between the convolutions.
    """

    def __init__(self, channels_in: int, channels: int, conditioning: int, adaptive: bool, scale: float = 1.0) -> None:
        super().__init__(channels_in, channels, conditioning)
        self.adaptive, self.scale = adaptive, scale
        if not adaptive:
            self.scale_shift = nn.Linear(conditioning, channels)

    def resampled(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c y z"]:
        if self.scale == 1:
            return x
        count("resampled_in_a_block")
        return F.avg_pool2d(x, 2) if self.scale < 1 else F.interpolate(x, scale_factor=self.scale, mode="nearest")

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c y z"]:
        h = self.conv_in(self.resampled(F.silu(self.norm_in(x))))
        told = self.scale_shift(F.silu(condition))[..., None, None]
        if self.adaptive:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h + told)
        return self.skip(self.resampled(x)) + self.conv_out(F.silu(h))


class Stage(nn.Module):
    """Residual blocks, which are told the condition, and attentions, one after another."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.told = nn.ModuleList(parts), tuple(isinstance(part, ResidualBlock) for part in parts)

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c y z"]:
        for part, told in zip(self.parts, self.told, strict=True):
            x = part(x, condition) if told else part(x)
        return x


class ADM(nn.Module):
    """(x [b, c, h, w], u [b] or what its conditioning takes, labels [b]) -> prediction of x's shape."""

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "ADMConfig") -> None:
        super().__init__()
        conditioning, lowest = 4 * config.width, config.levels - 1

        def block(i: int, o: int, scale: float = 1.0) -> ResidualBlock:
            return ResamplingBlock(i, o, conditioning, config.adaptive, scale)

        def stage(i: int, o: int, level: int) -> list[nn.Module]:
            attends = lowest - level < config.attended
            return [block(i, o), *([Attention(o, max(1, o // config.head))] if attends else [])]

        self.conditioning = Conditioning(conditioning, classes)
        self.stem = nn.Conv2d(shape[0], config.width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now, kept = config.width, [config.width]
        for level in range(config.levels):
            for _ in range(config.blocks):
                width = config.width * 2**level
                self.down.append(Stage(*stage(now, width, level)))
                now = width
                kept.append(now)
            if level < lowest:
                self.down.append(Stage(block(now, now, 0.5)))
                kept.append(now)
        self.middle = Stage(block(now, now), Attention(now, max(1, now // config.head)), block(now, now))
        for level in reversed(range(config.levels)):
            for i in range(config.blocks + 1):
                width = config.width * 2**level
                last = [block(width, width, 2.0)] if level and i == config.blocks else []
                self.up.append(Stage(*stage(now + kept.pop(), width, level), *last))
                now = width
        self.norm = nn.GroupNorm(GROUPS, now)
        self.head = nn.Conv2d(now, shape[0], 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]
                ) -> Float[Tensor, "b d h w"]:  # fmt: skip
        condition, h = self.conditioning(u, labels), self.stem(x)
        kept = [h]
        for stage in self.down:
            h = stage(h, condition)
            kept.append(h)
        h = self.middle(h, condition)
        for stage in self.up:
            h = stage(torch.cat([h, kept.pop()], dim=1), condition)
        return self.head(F.silu(self.norm(h)))


@dataclass(frozen=True)
class ADMConfig(NetConfig):
    """Each level has twice the channels of the one above; the lowest `attended` have attention, in heads of `head`."""

    width: int = 16
    levels: int = 2
    blocks: int = 2
    attended: int = 2
    head: int = 16
    adaptive: bool = True

    def build(self, shape: tuple[int, ...], classes: int) -> ADM:
        channels, height, width = shape
        return ADM((channels, height, width), classes, self)
