"""Runs attention and MLP of a diffusion transformer only every few steps, and adds what they returned in between.

What a block adds to the tokens changes slowly from step to step. On the steps between, each stored output is added
again, through the gate of the current noise level, so that only the small regressors of the gates are left to run.

Source: Selvaraju et al. 2024 "FORA" (2407.01425), with the static interval of its official code
(`boost_infer_static` of its DiT blocks).
Limits: counts network calls from the first one on, where the official code aligns full steps with the last one; so a
solver of two evaluations a step halves the period in steps. Needs a sampler that walks the grid in order. Norms, shifts
and scales still run before a stored output is returned; they change nothing, and are next to free.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from methods.core.recipe import Method, edit
from methods.core.sampling import Solver
from methods.core.surgery import Stage, Transform, rewrite_type
from methods.inference.feature_caching._blocks import BLOCKS
from methods.inference.feature_caching._shared import Cached
from methods.nets.dit import Block, DiTConfig


@dataclass(frozen=True)
class FORA(Transform):
    """Caches attention and MLP of every block, before their gates."""

    period: int
    stage: ClassVar[Stage] = Stage.REUSE
    does: ClassVar[str | None] = BLOCKS

    def __call__(self, module: nn.Module) -> nn.Module:
        return rewrite_type(module, Block, self.reusing)

    def reusing(self, block: Block) -> Block:
        """The block with its two parts cached, in place."""
        for name in ("attention", "mlp"):
            setattr(block, name, Cached(getattr(block, name), self.period))
        return block


def fora(period: int = 3) -> Method:
    """Run attention and MLPs at every `period`-th network call."""
    return edit(transforms=FORA(period), needs={"net": DiTConfig, "sampler": Solver})
