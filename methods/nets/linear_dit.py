"""A diffusion transformer whose attention is linear in the tokens, with convolutions where its MLPs were.

Source: Xie et al. 2024 "SANA" (2410.10629), its efficient linear transformer: ReLU linear attention (by the reordering
of Katharopoulos et al. 2020, 2006.16236), Mix-FFN, no positional embedding.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.recipe import NetConfig
from methods.nets.dit import Block, Head, positions
from methods.nets.embedding import Conditioning

EPS = 1e-8
EXPANSION = 2.5


def attend(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"]
) -> Float[Tensor, "b h n d"]:
    """sum_j (relu q_i . relu k_j) v_j / sum_j relu q_i . relu k_j, with both sums over j taken once for all i."""
    q, k = F.relu(q), F.relu(k)
    values = k.transpose(2, 3) @ v  # [b, h, d, d]
    total = k.sum(2, keepdim=True).transpose(2, 3)  # [b, h, d, 1]
    return (q @ values) / (q @ total + EPS)


class LinearAttention(nn.Module):
    """Multi-head attention by `attend`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        q, k, v = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        count("tokens_linear", x.shape[0] * x.shape[1])
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class MixFFN(nn.Module):
    """Expand, mix each channel with its neighbours on the grid, gate one half by the other, and contract."""

    def __init__(self, width: int, grid: tuple[int, int], kernel: int) -> None:
        super().__init__()
        self.grid, hidden = grid, int(EXPANSION * width)
        self.expand = nn.Conv2d(width, 2 * hidden, 1)
        self.local = nn.Conv2d(2 * hidden, 2 * hidden, kernel, padding=kernel // 2, groups=2 * hidden)
        self.contract = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        h = x.transpose(1, 2).unflatten(2, self.grid)
        h, gate = self.local(F.silu(self.expand(h))).chunk(2, dim=1)
        return self.contract(h * F.silu(gate)).flatten(2).transpose(1, 2)


class LinearBlock(Block):
    """The block of a DiT with the other attention, and the other feed-forward part."""

    def __init__(self, grid: tuple[int, int], config: "LinearDiTConfig") -> None:
        super().__init__(config.width, config.heads)
        self.add_module("attention", LinearAttention(config.width, config.heads))
        self.add_module("mlp", MixFFN(config.width, grid, config.kernel))


class LinearDiT(nn.Module):
    """(x [b, c, h, w], u [b] or what its conditioning takes, labels [b]) -> prediction of x's shape.

    Convolutions know where a patch lies; without them, a kernel of 1, fixed positions are added as in a DiT.
    """

    position: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "LinearDiTConfig") -> None:
        super().__init__()
        self.grid, self.patch = (shape[1] // config.patch, shape[2] // config.patch), config.patch
        self.conditioning = Conditioning(config.width, classes)
        self.tokens = nn.Conv2d(shape[0], config.width, config.patch, stride=config.patch)
        self.blocks = nn.ModuleList(LinearBlock(self.grid, config) for _ in range(config.depth))
        self.head = Head(config.width, shape[0], config.patch)
        told = positions(*self.grid, config.width) if config.kernel == 1 else torch.zeros(1, config.width)
        self.register_buffer("position", told, persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]
                ) -> Float[Tensor, "b d h w"]:  # fmt: skip
        condition = self.conditioning(u, labels)
        h = self.tokens(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            h = block(h, condition)
        pixels = self.head(h, condition).transpose(1, 2)  # [b, c p p, n]
        return F.pixel_shuffle(pixels.unflatten(2, self.grid), self.patch)


@dataclass(frozen=True)
class LinearDiTConfig(NetConfig):
    """As a DiT; `kernel` is the side of the depthwise convolution in its Mix-FFN."""

    patch: int = 2
    width: int = 64
    depth: int = 6
    heads: int = 2
    kernel: int = 3

    def build(self, shape: tuple[int, ...], classes: int) -> LinearDiT:
        channels, height, width = shape
        return LinearDiT((channels, height, width), classes, self)
