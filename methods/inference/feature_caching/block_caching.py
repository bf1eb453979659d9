"""Lets every block of a diffusion transformer run at steps of its own, and adds what it added before at the others.

What a block adds to its input changes smoothly, most of it at noise levels of its own. The changes are measured once,
while images are sampled; then what a block adds is kept until those since it ran add up to more than a threshold.

Source: Wimbauer et al. 2024 "Cache Me if You Can: Accelerating Diffusion Models through Block Caching" (2312.03209),
eqs. 4 to 7; the sum of eq. 7 is read as the change from when a block ran to now.
Limits: blocks of a DiT stand for the paper's spatial transformers in a U-Net. The scale and shift that it trains for
cached blocks are left out, as in its table 1's rows "caching". A schedule is that of a sampler and a grid; where they
are fitted too, DDIM on even angles stands for them. Needs a sampler that walks the grid in order.
Cost: two batches of samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Remembering
from methods.core.models import Model
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import Solver
from methods.core.surgery import Stage, rewrite_type
from methods.deployment.quantization._calibration import asked_while_sampling
from methods.inference.feature_caching._blocks import BLOCKS, change
from methods.nets.dit import Block, DiTConfig

CALLS = 1000
"""What a schedule has room for; a block runs at every call beyond."""


def schedule(changes: Sequence[float], threshold: float) -> Bool[Tensor, "n"]:
    """At which calls a block runs, given its changes from each call to the next: when those since then are too much."""
    whole, drift = [True], 0.0
    for moved in changes[: CALLS - 1]:
        drift += moved
        whole.append(not drift <= threshold)  # what has no number is no reason to wait
        drift = 0.0 if whole[-1] else drift
    return torch.tensor(whole + [True] * (CALLS - len(whole)))


class Watch:
    """A hook of a block: by how much what it adds changes from call to call, as a mean over images."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.changes: list[float] = []

    def __call__(self, block: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        added = answer - given[0]
        if self.last is not None:
            same = len(self.last) == len(added)
            self.changes.append(change(self.last, added).mean().item() if same else math.inf)
        self.last = added


class BlockCached(Remembering):
    """Runs a block at the calls of its schedule, and when the batch has changed; else adds what it added before."""

    whole: Tensor

    def __init__(self, inner: Block) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("whole", torch.ones(CALLS, dtype=torch.bool, device=next(inner.parameters()).device))
        self.reset()

    def reset(self) -> None:
        self.calls = 0
        self.added: Tensor | None = None

    def get_submodule(self, target: str) -> nn.Module:
        """Paths lead into the block, as they did before."""
        return super().get_submodule(target) if target.startswith("inner") else self.inner.get_submodule(target)

    def forward(self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n c"]:
        added, call = self.added, self.calls
        self.calls += 1
        if added is None or len(added) != len(h) or call >= CALLS or self.whole[call]:
            answer = self.inner(h, condition)
            self.added = answer - h
            return answer
        count("blocks_reused")
        return h + added


@dataclass(frozen=True)
class BlockCaching(Calibrated):
    """Puts each block behind a cache of its own, and fits the schedules."""

    threshold: float
    stage: ClassVar[Stage] = Stage.REUSE
    does: ClassVar[str | None] = BLOCKS

    def __call__(self, module: nn.Module) -> nn.Module:
        return rewrite_type(module, Block, BlockCached)  # pyright: ignore[reportArgumentType]

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        """Watch the plain blocks while images are sampled."""
        blocks = [part for part in before.modules() if isinstance(part, Block)]
        caches = [part for part in model.net.modules() if isinstance(part, BlockCached)]
        watches = [Watch() for _ in blocks]
        hooks = [block.register_forward_hook(watch) for block, watch in zip(blocks, watches, strict=True)]
        seen = asked_while_sampling(recipe, before, model, data, seed)
        for cache, watch, hook in zip(caches, watches, hooks, strict=True):
            cache.whole.copy_(schedule(watch.changes, self.threshold))
            hook.remove()
        return len(seen.x)


def block_caching(threshold: float = 0.1) -> Method:
    """Run a block again when what it adds has changed by more than `threshold` in all since it last ran."""
    return edit(transforms=BlockCaching(threshold), needs={"net": DiTConfig, "sampler": Solver})
