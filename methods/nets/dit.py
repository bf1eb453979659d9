"""A class-conditional diffusion transformer: patches as tokens, conditioned through adaptive layer norm ("adaLN-Zero").

Source: Peebles and Xie 2022 (2212.09748), section 3 and figure 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.recipe import NetConfig
from methods.nets.embedding import Conditioning


def positions(height: int, width: int, channels: int) -> Float[Tensor, "n c"]:
    """Fixed 2-D sine-cosine positions: half of the channels for the row, half for the column."""
    frequencies = 10_000 ** -(torch.arange(channels // 4) / (channels // 4))
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phases = [place.flatten()[:, None] * frequencies for place in (row, column)]
    return torch.cat([wave for phase in phases for wave in (phase.sin(), phase.cos())], dim=1)


def modulate(x: Float[Tensor, "b n c"], shift: Float[Tensor, "b c"], scale: Float[Tensor, "b c"]) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        q, k, v = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """h += g1 Attn(mod(LN h)); h += g2 MLP(mod(LN h)); the regressor of (shift, scale, gate) starts at zero.

    The condition has as many channels as the tokens, or `told` of its own.
    """

    def __init__(self, width: int, heads: int, told: int | None = None) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(told or width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Float[Tensor, "b n c"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n c"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm_attention(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm_mlp(x), shift2, scale2))


class Head(nn.Module):
    """Tokens back to patches of pixels, through one last modulated norm; zero at initialisation."""

    def __init__(self, width: int, channels: int, patch: int, told: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(told or width, 2 * width)
        self.pixels = nn.Linear(width, channels * patch**2)
        for layer in (self.modulation, self.pixels):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "b n c"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n p"]:
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=1)
        return self.pixels(modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """(x [b, c, h, w], u [b] or what its conditioning takes, labels [b]) -> prediction of x's shape."""

    position: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "DiTConfig") -> None:
        super().__init__()
        self.grid, self.patch = (shape[1] // config.patch, shape[2] // config.patch), config.patch
        self.conditioning = Conditioning(config.width, classes)
        self.tokens = nn.Conv2d(shape[0], config.width, config.patch, stride=config.patch)
        self.register_buffer("position", positions(*self.grid, config.width), persistent=False)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.head = Head(config.width, shape[0], config.patch)

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]
                ) -> Float[Tensor, "b d h w"]:  # fmt: skip
        condition = self.conditioning(u, labels)
        h = self.tokens(x).flatten(2).transpose(1, 2) + self.position
        count("tokens", h.shape[0] * h.shape[1])
        pixels = self.head(self.through(h, condition, u), condition).transpose(1, 2)  # [b, c p p, n]
        return F.pixel_shuffle(pixels.unflatten(2, self.grid), self.patch)

    def through(self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b d"], u: Float[Tensor, "b *k"]
                ) -> Float[Tensor, "b n c"]:  # fmt: skip
        """The blocks, one after another."""
        for block in self.blocks:
            h = block(h, condition)
        return h


@dataclass(frozen=True)
class DiTConfig(NetConfig):
    """Patches of `patch` x `patch` pixels become tokens of `width` channels; `depth` blocks of `heads` heads."""

    patch: int = 2
    width: int = 96
    depth: int = 4
    heads: int = 4

    def build(self, shape: tuple[int, ...], classes: int) -> DiT:
        channels, height, width = shape
        return DiT((channels, height, width), classes, self)
