"""A vision transformer for which noise level, class and patches are all tokens, with long skips across its middle.

Source: Bao et al. 2022 "All are Worth Words" (2209.12152), section 3 and figure 1; sizes of initial weights as in its
official code, whose standard deviation of 0.02 for linear layers belongs to 512 channels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.recipe import NetConfig
from methods.nets.dit import Block, SelfAttention
from methods.nets.embedding import Conditioning, sinusoid

EXTRAS = 2
"""Tokens that are no patches: noise level and class."""
STD, CHANNELS = 0.02, 512


class SideBySide(Conditioning):
    """Noise level and label in one vector, each in a half of its own, where other networks add them."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        self.width, self.each = 2 * width, width

    def forward(self, u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b w"]:
        return torch.cat([self.level(sinusoid(u, self.each)), self.label(labels % self.label.num_embeddings)], dim=1)


class PlainBlock(Block):
    """h += Attn(LN h); h += MLP(LN h): a transformer block that is told nothing beside its tokens."""

    def __init__(self, width: int, heads: int) -> None:
        nn.Module.__init__(self)
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class UViT(nn.Module):
    """(x [b, c, h, w], u [b] or what its conditioning takes, labels [b]) -> prediction of x's shape."""

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "UViTConfig") -> None:
        super().__init__()
        width = config.width
        self.grid, self.patch = (shape[1] // config.patch, shape[2] // config.patch), config.patch
        self.conditioning = SideBySide(width, classes)
        self.tokens = nn.Conv2d(shape[0], width, config.patch, stride=config.patch)
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1] + EXTRAS, width))
        self.shallow, self.middle, self.deep = (
            nn.ModuleList(PlainBlock(width, config.heads) for _ in range(n)) for n in (config.pairs, 1, config.pairs)
        )
        self.joins = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(config.pairs if config.skips else 0))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, shape[0] * config.patch**2)
        self.smooth = nn.Conv2d(shape[0], shape[0], 3, padding=1)
        self.initialise(STD * (CHANNELS / width) ** 0.5)

    def initialise(self, std: float) -> None:
        """Truncated normals for positions and linear layers, whose biases are zero."""
        nn.init.trunc_normal_(self.position, std=STD)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=std)
                nn.init.zeros_(part.bias)

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]
                ) -> Float[Tensor, "b d h w"]:  # fmt: skip
        told = self.conditioning(u, labels).unflatten(1, (EXTRAS, -1))
        h = torch.cat([self.tokens(x).flatten(2).transpose(1, 2), told], dim=1) + self.position
        count("tokens_told", told.shape[0] * told.shape[1])
        kept: list[Tensor] = []
        for block in self.shallow:
            h = block(h)
            kept.append(h)
        h = self.middle[0](h)
        for i, block in enumerate(self.deep):
            h = block(self.joins[i](torch.cat([h, kept.pop()], dim=2)) if self.joins else h)
        pixels = self.pixels(self.norm(h))[:, :-EXTRAS].transpose(1, 2)  # [b, c p p, n]
        return self.smooth(F.pixel_shuffle(pixels.unflatten(2, self.grid), self.patch))


@dataclass(frozen=True)
class UViTConfig(NetConfig):
    """`pairs` blocks before the middle one and as many after it, joined across it if there are `skips`."""

    patch: int = 2
    width: int = 64
    pairs: int = 3
    heads: int = 4
    skips: bool = True

    def build(self, shape: tuple[int, ...], classes: int) -> UViT:
        channels, height, width = shape
        return UViT((channels, height, width), classes, self)
