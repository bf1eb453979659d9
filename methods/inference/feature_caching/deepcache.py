"""Runs the deep part of the U-Net only every few steps, and reuses what it returned in between.

What lies below a level changes slowly along a trajectory, and holds most of the parameters; the shallow part, which
sees the current x_t, still runs at every step and is joined with the remembered features.

Source: Ma, Fang, Wang 2024 "DeepCache" (2312.00858), section 3.3, with the uniform interval of its official code.
Limits: counts network calls, so a solver of two evaluations a step halves the period in steps. Needs a sampler that
walks the grid in order.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from methods.core.recipe import Method, edit
from methods.core.sampling import Solver
from methods.core.surgery import Stage, Transform, rewrite_path
from methods.inference.feature_caching._shared import Cached
from methods.nets.unet import UNetConfig


@dataclass(frozen=True)
class DeepCache(Transform):
    """Caches what lies `depth` levels below the top."""

    period: int
    depth: int
    stage: ClassVar[Stage] = Stage.REUSE

    def __call__(self, module: nn.Module) -> nn.Module:
        return rewrite_path(module, ".".join(["level.below"] * self.depth), lambda inner: Cached(inner, self.period))


def deepcache(period: int = 3, depth: int = 1) -> Method:
    """Run what lies `depth` levels deep at every `period`-th network call."""
    return edit(transforms=DeepCache(period, depth), needs={"net": UNetConfig, "sampler": Solver})
