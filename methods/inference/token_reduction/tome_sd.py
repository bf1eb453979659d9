"""Merges the tokens that resemble each other most before attention, and copies the result back to all of them after.

Neighbouring tokens of an image are redundant, and attention costs the square of their number. One random token of each
2x2 cell is a destination; every other one finds the destination most like itself, and the closest pairs are averaged.

Source: Bolya and Hoffman 2023 "Token Merging for Fast Stable Diffusion" (2303.17604): random destinations in 2x2 cells,
self-attention only; `bipartite_soft_matching_random2d` of the official code, to which the tests hold it.
Limits: square grids of tokens. Every self-attention is merged, since these networks have one resolution with attention.
Destinations are drawn at every call from a seed of the call, so that a sample does not depend on its neighbours; the
official code has one stream for all calls, and does not draw for batches of odd size.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.denoiser import Remembering
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform
from methods.inference.token_reduction._shared import PROJECTIONS, rewrite_attention

CELL = 2


def destinations(side: int, choice: Int[Tensor, "i j"]) -> Int[Tensor, "m"]:
    """Where, in a side x side grid, the chosen token (0 to 3, by rows) of each 2x2 cell stands."""
    i, j = torch.meshgrid(*map(torch.arange, choice.shape), indexing="ij")
    return ((CELL * i + choice // CELL) * side + CELL * j + choice % CELL).flatten()


def match(x: Float[Tensor, "b n c"], dst: Int[Tensor, "m"], r: int) -> Int[Tensor, "b n"]:
    """The place of every token in a sequence of n - r: r others share theirs with the destination most like them."""
    src = torch.ones(x.shape[1], dtype=torch.bool, device=x.device).index_fill(0, dst, False).nonzero()[:, 0]
    unit = F.normalize(x, dim=-1)
    likeness, partner = (unit[:, src] @ unit[:, dst].transpose(1, 2)).max(dim=-1)
    rank = likeness.argsort(dim=-1, descending=True).argsort(dim=-1)
    alone = len(src) - r
    places = rank.new_empty(x.shape[:2])
    places[:, src] = torch.where(rank < r, alone + partner, rank - r)
    places[:, dst] = alone + torch.arange(len(dst), device=x.device)
    return places


class Matching(Remembering):
    """How tokens are merged inside one attention, found from what its host is given, anew at every call."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.reset()

    def reset(self) -> None:
        self.calls = 0

    def look(self, host: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Find the places of the host's tokens, which may be pixels."""
        x = inputs[0] if inputs[0].ndim == 3 else inputs[0].flatten(2).transpose(1, 2)
        n, side = x.shape[1], math.isqrt(x.shape[1])
        rng = torch.Generator().manual_seed(self.calls)
        choice = torch.randint(CELL**2, (side // CELL, side // CELL), generator=rng)
        r = min(int(n * self.ratio), n - choice.numel())
        self.places = (
            match(x, destinations(side, choice).to(x.device), r) if r else torch.arange(n, device=x.device)[None]
        )
        self.length, self.calls = n - r, self.calls + 1
        count("tokens_merged", len(x) * r)

    def merge(self, layer: nn.Module, inputs: tuple[Float[Tensor, "b n c"], ...]) -> Float[Tensor, "b m c"]:
        """The mean of the tokens of each place, for a layer that is about to be given them all."""
        (x,) = inputs
        merged = x.new_zeros(len(x), self.length, x.shape[2])
        return merged.scatter_reduce(1, self.places[..., None].expand_as(x), x, "mean", include_self=False)

    def unmerge(
        self, layer: nn.Module, inputs: tuple[Tensor, ...], y: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        """To every token what its place holds, after a layer."""
        return y.gather(1, self.places[..., None].expand(len(y), -1, y.shape[2]))


@dataclass(frozen=True)
class ToMe(Transform):
    """Merges `ratio` of the tokens of every self-attention."""

    ratio: float
    stage: ClassVar[Stage] = Stage.REUSE

    def __call__(self, module: nn.Module) -> nn.Module:
        return rewrite_attention(module, self.merging)

    def merging(self, host: nn.Module, attention: nn.Module) -> None:
        """Let tokens enter an attention merged, and leave it restored."""
        host.matching = matching = Matching(self.ratio)
        host.register_forward_pre_hook(matching.look)
        for name in PROJECTIONS:
            attention.get_submodule(name).register_forward_pre_hook(matching.merge)
        attention.get_submodule("out").register_forward_hook(matching.unmerge)


def tome_sd(ratio: float = 0.5) -> Method:
    """Merge `ratio` of the tokens before every self-attention."""
    return edit(transforms=ToMe(ratio))
