"""A DiT of which every block sees a window of the channels only, one that moves with the noise level.

Source: Park et al. 2023 "Denoising Task Routing" (2310.07138), with window and mask as in its official code.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.recipe import NetConfig
from methods.nets.dit import Block, DiT, DiTConfig


def window(u: Float[Tensor, "b"], channels: int, share: float, bend: float) -> Bool[Tensor, "b c"]:
    """Which channels are open at noise levels u: int(share C) of them, from round(u^bend (C - int(share C))) on."""
    width = int(share * channels)
    first = (u.clamp(0, 1) ** bend * (channels - width)).round()[:, None]
    place = torch.arange(channels, device=u.device)
    return (place >= first) & (place < first + width)


class RoutedBlock(Block):
    """A block that is given the open channels alone, and to whose answer the others are added as they were."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "b n c"], condition: Float[Tensor, "b c"], opened: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b n c"]:
        seen = x * opened[:, None]
        return super().forward(seen, condition) + (x - seen)


class RoutedDiT(DiT):
    """(x [b, c, h, w], u [b] or what its conditioning takes, labels [b]) -> prediction of x's shape."""

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "RoutedDiTConfig") -> None:
        super().__init__(shape, classes, DiTConfig(config.patch, config.width, config.depth, config.heads))
        self.share, self.bend = config.share, config.bend
        self.blocks = nn.ModuleList(RoutedBlock(config.width, config.heads) for _ in range(config.depth))

    def through(self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b d"], u: Float[Tensor, "b *k"]
                ) -> Float[Tensor, "b n c"]:  # fmt: skip
        opened = window(u if u.ndim == 1 else u[:, 0], h.shape[2], self.share, self.bend).to(h)
        count("channels_closed", len(self.blocks) * len(h) * (h.shape[2] - int(self.share * h.shape[2])))
        for block in self.blocks:
            h = block(h, condition, opened)
        return h


@dataclass(frozen=True)
class RoutedDiTConfig(NetConfig):
    """As a DiT; each block has `share` of the channels open, and their window moves by u^`bend`."""

    patch: int = 2
    width: int = 96
    depth: int = 4
    heads: int = 4
    share: float = 0.8
    bend: float = 4.0

    def build(self, shape: tuple[int, ...], classes: int) -> RoutedDiT:
        channels, height, width = shape
        return RoutedDiT((channels, height, width), classes, self)
