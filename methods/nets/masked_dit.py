"""Diffusion transformers that can be asked with some of their tokens hidden, which then cost next to nothing.

Source: Zheng et al. 2023 "Fast Training of Diffusion Models with Masked Transformers" (2306.09305), figure 1, for the
encoder that sees visible tokens and the decoder that sees all; Sehwag et al. 2024 "Stretching Each Dollar"
(2407.15811), figure 3, for the patch mixer that sees all tokens before they are hidden. Joints between widths and
initial values as in the official code of each.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.recipe import NetConfig
from methods.nets.dit import Block, Head, positions
from methods.nets.embedding import Conditioning

STD = 0.02
"""Of the initial mask token."""


def taken(h: Float[Tensor, "b n c"], visible: Int[Tensor, "b k"]) -> Float[Tensor, "b k c"]:
    """The tokens at the visible places of each sample."""
    return h.gather(1, visible[..., None].expand(-1, -1, h.shape[2]))


def put_back(h: Float[Tensor, "b k c"], visible: Int[Tensor, "b k"], n: int, hidden: Float[Tensor, "c"]) -> Tensor:
    """n tokens: those given at their places, and one and the same at all others."""
    everywhere = hidden.to(h).expand(len(h), n, -1)
    return everywhere.scatter(1, visible[..., None].expand_as(h), h)


class MaskedTransformer(nn.Module):
    """(x [b, c, h, w], u [b] or what its conditioning takes, labels [b]) -> prediction of x's shape."""

    position: Tensor
    visible: Int[Tensor, "b k"] | None

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "MaskedConfig") -> None:
        super().__init__()
        self.grid, self.patch = (shape[1] // config.patch, shape[2] // config.patch), config.patch
        self.conditioning = Conditioning(config.width, classes)
        self.tokens = nn.Conv2d(shape[0], config.width, config.patch, stride=config.patch)
        self.register_buffer("position", positions(*self.grid, config.width), persistent=False)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.visible = None

    @contextmanager
    def showing(self, visible: Int[Tensor, "b k"] | None) -> Iterator[None]:
        """Within, the network is asked with only these tokens of each sample visible; None stands for all."""
        self.visible = visible
        try:
            yield
        finally:
            self.visible = None

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]
                ) -> Float[Tensor, "b d h w"]:  # fmt: skip
        condition = self.conditioning(u, labels)
        h = self.tokens(x).flatten(2).transpose(1, 2) + self.position
        pixels = self.answer(h, condition, self.visible).transpose(1, 2)  # [b, c p p, n]
        return F.pixel_shuffle(pixels.unflatten(2, self.grid), self.patch)

    @abstractmethod
    def answer(
        self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b c"], visible: Int[Tensor, "b k"] | None
    ) -> Float[Tensor, "b n p"]:
        """What is predicted of the pixels of every patch."""


class MaskDiT(MaskedTransformer):
    """A wide encoder of the visible tokens, and a narrow decoder of all, which has a learned token for the others."""

    decoder_position: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "MaskDiTConfig") -> None:
        super().__init__(shape, classes, config)
        self.bridge = Head(config.width, config.narrow, 1)
        self.mask_token = nn.Parameter(STD * torch.randn(config.narrow))
        self.register_buffer("decoder_position", positions(*self.grid, config.narrow), persistent=False)
        self.decoder = nn.ModuleList(Block(config.narrow, config.heads, config.width) for _ in range(config.decoder))
        self.head = Head(config.narrow, shape[0], config.patch, config.width)

    def answer(
        self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b c"], visible: Int[Tensor, "b k"] | None
    ) -> Float[Tensor, "b n p"]:
        n = h.shape[1]
        if visible is not None:
            h = taken(h, visible)
        for block in self.blocks:
            h = block(h, condition)
        h = self.bridge(h, condition)
        if visible is not None:
            h = put_back(h, visible, n, self.mask_token)
        h = h + self.decoder_position
        for block in self.decoder:
            h = block(h, condition)
        return self.head(h, condition)


class DeferredDiT(MaskedTransformer):
    """A narrow mixer of all tokens, and after it a wide backbone of the visible ones; elsewhere the answer is zero."""

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "DeferredDiTConfig") -> None:
        super().__init__(shape, classes, config)
        self.enter, self.leave = (
            nn.Sequential(nn.LayerNorm(a), nn.Linear(a, b)) if config.mixer and a != b else nn.Identity()
            for a, b in ((config.width, config.narrow), (config.narrow, config.width))
        )
        self.mixer = nn.ModuleList(Block(config.narrow, config.heads, config.width) for _ in range(config.mixer))
        self.head = Head(config.width, shape[0], config.patch)

    def answer(
        self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b c"], visible: Int[Tensor, "b k"] | None
    ) -> Float[Tensor, "b n p"]:
        n, h = h.shape[1], self.enter(h)
        for block in self.mixer:
            h = block(h, condition)
        h = self.leave(h if visible is None else taken(h, visible))
        for block in self.blocks:
            h = block(h, condition)
        pixels = self.head(h, condition)
        return pixels if visible is None else put_back(pixels, visible, n, pixels.new_zeros(pixels.shape[2]))


@dataclass(frozen=True)
class MaskedConfig(NetConfig):
    """Patches of `patch` x `patch` pixels become tokens of `width` channels; `depth` blocks of `heads` heads."""

    patch: int = 2
    width: int = 96
    depth: int = 4
    heads: int = 4


@dataclass(frozen=True)
class MaskDiTConfig(MaskedConfig):
    """After them `decoder` blocks of `narrow` channels."""

    decoder: int = 1
    narrow: int = 48

    def build(self, shape: tuple[int, ...], classes: int) -> MaskDiT:
        channels, height, width = shape
        return MaskDiT((channels, height, width), classes, self)


@dataclass(frozen=True)
class DeferredDiTConfig(MaskedConfig):
    """Before them `mixer` blocks of `narrow` channels; with none, tokens are hidden before they have met."""

    mixer: int = 2
    narrow: int = 48

    def build(self, shape: tuple[int, ...], classes: int) -> DeferredDiT:
        channels, height, width = shape
        return DeferredDiT((channels, height, width), classes, self)
