"""Skips rear blocks of a diffusion transformer at high noise and front ones at low, and adds what they changed before.

A transformer has no skips that would carry the new image around a cached feature. So the cache holds by how much a run
of blocks moved its input at the last whole step, and this deviation is added to the input of now. Front blocks work on
outlines, which sampling draws first, rear ones on details: so the rear is skipped early, and the front late.

Source: Chen et al. 2024 "Delta-DiT: A Training-Free Acceleration Method Tailored for Diffusion Transformers"
(2406.01125), section 4: Delta-Cache, and its stage-adaptive use with the boundary b.
Limits: no official code is known. The boundary is a noise level, which on an even grid is the paper's share b / T of
the steps; it moves no cost. Period and share are chosen here to save what the paper saves, 1.6. Counts network calls,
so a solver of two evaluations a step halves the period in steps. Needs a sampler that walks the grid in order; a batch
of another size than the last begins anew.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.denoiser import Remembering
from methods.core.errors import NothingMatched
from methods.core.recipe import Method, edit
from methods.core.sampling import Solver
from methods.core.surgery import Stage, Transform
from methods.inference.feature_caching._blocks import BLOCKS
from methods.nets.dit import DiT, DiTConfig


class DeltaCached(Remembering):
    """All blocks as one: at every `period`-th call all run, else all but `skipped` of them at one of the two ends."""

    def __init__(self, inner: nn.ModuleList, period: int, skipped: int, boundary: float) -> None:
        super().__init__()
        self.inner, self.period, self.skipped, self.boundary = inner, period, skipped, boundary
        self.reset()

    def reset(self) -> None:
        self.calls = 0
        self.front = self.rear = torch.empty(0)

    def look(self, net: nn.Module, asked: tuple[Any, ...]) -> None:
        """Note, before the network runs, which of its rows lie above the boundary."""
        self.early = (asked[1] if asked[1].ndim == 1 else asked[1][:, 0]) > self.boundary

    def forward(self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n c"]:
        if len(self.front) != len(h):
            self.calls = 0
        blocks, whole = list(self.inner), self.calls % self.period == 0
        self.calls += 1
        if whole:
            states = [h]
            for block in blocks:
                states.append(block(states[-1], condition))
            self.front = states[self.skipped] - states[0]
            self.rear = states[-1] - states[len(blocks) - self.skipped]
            return states[-1]
        count("blocks_skipped", self.skipped)
        if not self.early.any():
            return through(blocks[self.skipped :], h + self.front, condition)
        answer = through(blocks[: len(blocks) - self.skipped], h, condition) + self.rear
        if self.early.all():
            return answer
        late = through(blocks[self.skipped :], h + self.front, condition)
        return torch.where(self.early[:, None, None], answer, late)


def through(blocks: Iterable[nn.Module], h: Float[Tensor, "b n c"], condition: Float[Tensor, "b d"]) -> Tensor:
    """Some blocks, one after another."""
    for block in blocks:
        h = block(h, condition)
    return h


@dataclass(frozen=True)
class DeltaDiT(Transform):
    """Puts all blocks behind one cache, which skips a `share` of them."""

    period: int
    share: float
    boundary: float
    stage: ClassVar[Stage] = Stage.REUSE
    does: ClassVar[str | None] = BLOCKS

    def __call__(self, module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module)
        nets = [part for part in module.modules() if isinstance(part, DiT)]
        if not nets:
            raise NothingMatched(f"{type(module).__name__} holds no DiT")
        for net in nets:
            cache = DeltaCached(net.blocks, self.period, round(self.share * len(net.blocks)), self.boundary)
            net.blocks = nn.ModuleList([cache])
            net.register_forward_pre_hook(cache.look)
        return module


def delta_dit(period: int = 2, share: float = 0.75, boundary: float = 0.6) -> Method:
    """Skip a `share` of the blocks at all but every `period`-th call: rear ones while the noise is above `boundary`."""
    return edit(transforms=DeltaDiT(period, share, boundary), needs={"net": DiTConfig, "sampler": Solver})
