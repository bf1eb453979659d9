"""Runs attention and MLP of a diffusion transformer only every few steps, and forecasts what they return in between.

What a block adds to the tokens moves along a smooth path from step to step. Its differences over the last whole steps
stand for derivatives, and a Taylor series in the number of steps since then says where the path goes; reusing what is
stored, as FORA does, is the series cut off after its first term, and fails when whole steps lie far apart.

Source: Liu et al. 2025 "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers" (2503.06923), the
finite differences and the series as in its official code for DiT (`derivative_approximation`, `taylor_formula`), with
its two whole steps at the start (`first_enhance`).
Limits: backward differences take the place of derivatives, so that only constant and linear features are forecast
without an error, whatever the order; k steps on, a square is off by k times the period. Counts network calls, so a
solver of two evaluations a step halves the period in steps. Needs a sampler that walks the grid in order; a batch of
another size than the last begins anew.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from methods.core.activation import count
from methods.core.denoiser import Remembering
from methods.core.recipe import Method, edit
from methods.core.sampling import Solver
from methods.core.surgery import Stage, Transform, rewrite_type
from methods.inference.feature_caching._blocks import BLOCKS
from methods.nets.dit import Block, DiTConfig


def differences(feature: Tensor, before: Sequence[Tensor], distance: int, order: int) -> list[Tensor]:
    """The feature and its divided differences up to an order, given those of the last whole step, `distance` ago."""
    found = [feature]
    for old in before[:order]:
        found.append((found[-1] - old) / distance)
    return found


def series(terms: Sequence[Tensor], steps: int) -> Tensor:
    """Taylor's series, `steps` after the point that its terms belong to."""
    value = terms[0]
    for i, term in enumerate(terms[1:], 1):
        value = value + term * (steps**i / math.factorial(i))
    return value


class Forecast(Remembering):
    """Calls `inner` at the first `warmup` calls and at every `period`-th after; else forecasts its answer."""

    def __init__(self, inner: nn.Module, period: int, order: int, warmup: int) -> None:
        super().__init__()
        self.inner, self.period, self.order, self.warmup = inner, period, order, warmup
        self.reset()

    def reset(self) -> None:
        self.calls = self.since = 0
        self.terms: list[Tensor] = []

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        if self.terms and len(self.terms[0]) != len(x):
            self.reset()
        self.since += 1
        if self.calls < self.warmup or self.since == self.period:
            self.terms = differences(self.inner(x, *condition), self.terms, self.since, self.order)
            self.since = 0
        else:
            count("calls_forecast")
        self.calls += 1
        return series(self.terms, self.since) if self.since else self.terms[0]


@dataclass(frozen=True)
class TaylorSeer(Transform):
    """Forecasts attention and MLP of every block, before their gates."""

    period: int
    order: int
    warmup: int
    stage: ClassVar[Stage] = Stage.REUSE
    does: ClassVar[str | None] = BLOCKS

    def __call__(self, module: nn.Module) -> nn.Module:
        return rewrite_type(module, Block, self.forecasting)

    def forecasting(self, block: Block) -> Block:
        """The block with its two parts forecast, in place."""
        for name in ("attention", "mlp"):
            setattr(block, name, Forecast(getattr(block, name), self.period, self.order, self.warmup))
        return block


def taylorseer(period: int = 3, order: int = 3, warmup: int = 2) -> Method:
    """Run attention and MLPs at the first `warmup` calls and every `period`-th after; else forecast to an `order`."""
    return edit(transforms=TaylorSeer(period, order, warmup), needs={"net": DiTConfig, "sampler": Solver})
