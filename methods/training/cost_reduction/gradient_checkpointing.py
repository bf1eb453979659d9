"""Keeps only what enters each segment of blocks while training, and computes the rest once more when it is needed.

The backward pass needs what every layer computed, which for deep networks is most of the memory. Of n blocks in
segments of sqrt(n), the borders of all segments and the inside of one are sqrt(n) each at any time; the price is a
second forward pass through the blocks. Every number stays what it was.

Source: Chen, Xu, Zhang, Guestrin 2016 "Training Deep Nets with Sublinear Memory Cost" (1604.06174): segments of
sqrt(n), one extra forward pass; by `torch.utils.checkpoint`.
Limits: in the loss alone, so what is sampled from, pruned or quantized is the plain network; other losses conflict.
Where blocks do not follow one another directly, as skips leave in between, each is a segment; what lies outside of
blocks is kept. Neither in-place operations nor the recursion to O(log n).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from methods.core.activation import count
from methods.core.denoiser import Labels, Network
from methods.core.errors import NothingMatched
from methods.core.objective import Loss
from methods.core.recipe import Method, Recipe, edit
from methods.nets.dit import Block, DiT
from methods.nets.linear_dit import LinearDiT
from methods.nets.unet import Attention, Level, ResidualBlock
from methods.training.objective._shared import Altered

BLOCKS = (Block, ResidualBlock, Attention)
CHAINS = {DiT.through: ("blocks",), LinearDiT.forward: ("blocks",), Level.forward: ("down", "up")}
"""Lists of blocks that these run one after another, each on the answer of the one before."""


def segments(net: nn.Module, size: int) -> list[list[nn.Module]]:
    """The blocks of a network in segments of `size`, or of sqrt(n) of the n blocks of a chain if that is 0."""
    found: list[list[nn.Module]] = []
    for part in net.modules():
        for name in CHAINS.get(getattr(type(part), "through", type(part).forward), ()):
            chain = list(part.get_submodule(name).children())
            length = size or round(math.sqrt(len(chain)))
            found += [chain[i : i + length] for i in range(0, len(chain), length)]
    chained = {block for segment in found for block in segment}
    return found + [[part] for part in net.modules() if isinstance(part, BLOCKS) and part not in chained]


def saving_inputs(segment: list[nn.Module]) -> Callable[..., Tensor]:
    """A forward pass through a segment that keeps its inputs alone."""
    passes = [block.forward for block in segment]

    def forward(x: Tensor, *told: Tensor) -> Tensor:
        context, again = copy_context(), False  # on other devices the backward pass has a thread of its own

        def run(x: Tensor, *told: Tensor) -> Tensor:
            nonlocal again
            if again:
                context.run(count, "blocks_recomputed", len(passes))
            again = True
            for each in passes:
                x = each(x, *told)
            return x

        return checkpoint(run, x, *told, use_reentrant=False)  # pyright: ignore[reportReturnType]

    return forward


def handed_on(x: Tensor, *told: Tensor) -> Tensor:
    """The forward pass of a block that the first of its segment has run already."""
    return x


@contextmanager
def recomputed(net: nn.Module, size: int) -> Iterator[None]:
    """While it lasts, the network's segments keep their inputs alone. Raises NothingMatched if it has no blocks."""
    cut = segments(net, size)
    if not cut:
        raise NothingMatched(f"{type(net).__name__} holds no blocks to compute again")
    passes = {block: handed_on for segment in cut for block in segment}
    passes |= {segment[0]: saving_inputs(segment) for segment in cut}
    for block, forward in passes.items():
        block.forward = forward
    try:
        yield
    finally:
        for block in passes:
            del block.forward


class Recomputing(Altered):
    """The denoising loss, unaltered, with the network's blocks computed again on the way back."""

    def __init__(self, recipe: Recipe, size: int) -> None:
        super().__init__(recipe)
        self.size = size

    def predict(
        self, student: Network, x_t: Float[Tensor, "b *s"], t: Float[Tensor, "b"], told: Labels
    ) -> Float[Tensor, "b *s"]:
        with recomputed(student.net, self.size):
            return super().predict(student, x_t, t, told)


@dataclass(frozen=True)
class GradientCheckpointing(Loss):
    """The recipe's denoising loss in less memory."""

    size: int

    def objective(self, recipe: Recipe) -> Recomputing:
        return Recomputing(recipe, self.size)


def gradient_checkpointing(segment: int = 0) -> Method:
    """Keep what enters every `segment` blocks; 0 takes the square root of their number."""
    return edit(loss=GradientCheckpointing(segment))
