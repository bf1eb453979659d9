"""A convolutional discriminator that is told the noise level and the class.

Source: Xiao, Kreis, Vahdat 2022 (2112.07804), appendix C: residual blocks with a time embedding added inside, leaky
ReLU, the batch's standard deviation before the last convolution.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.nets.embedding import Conditioning


class JudgingBlock(nn.Module):
    """Two convolutions with the conditioning added between them, around a skip; then half the resolution, if asked."""

    def __init__(self, channels: int, conditioning: int, halve: bool) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.shift = nn.Linear(conditioning, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.halve = nn.AvgPool2d(2) if halve else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c i j"]:
        h = self.conv_in(F.leaky_relu(x, 0.2)) + self.shift(condition)[..., None, None]
        return self.halve((x + self.conv_out(F.leaky_relu(h, 0.2))) / math.sqrt(2))


class Discriminator(nn.Module):
    """(x [b, c, h, w], u [b], labels [b]) -> logits [b]; u and labels reach it through `conditioning`."""

    def __init__(self, channels: int, size: int, conditioning: Conditioning, width: int = 48) -> None:
        super().__init__()
        halvings = max(0, int(math.log2(size)) - 2)
        self.conditioning = conditioning
        self.stem = nn.Conv2d(channels, width, 1)
        self.blocks = nn.ModuleList(
            JudgingBlock(width, conditioning.width, halve) for halve in [False] + [True] * halvings
        )
        self.last = nn.Conv2d(width + 1, width, 3, padding=1)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b"], labels: Int[Tensor, "b"]
                ) -> Float[Tensor, "b"]:  # fmt: skip
        condition = F.leaky_relu(self.conditioning(u, labels), 0.2)
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, condition)
        spread = (h.var(0, correction=0) + 1e-8).sqrt().mean().expand(len(h), 1, *h.shape[2:])
        h = F.leaky_relu(self.last(torch.cat([h, spread], dim=1)), 0.2)
        return self.head(h.sum((2, 3))).flatten()
