"""How a base network is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Fit:
    """How the base network is trained: Adam, a linear warm-up, an exponential moving average of the weights."""

    iterations: int
    batch: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    ema: float = 0.995
    precision: Precision = "float32"

    def scaled(self, share: float) -> Fit:
        """A shorter training of the same shape: for a phase, or a quick look."""
        return replace(
            self, iterations=max(1, round(share * self.iterations)), warmup=max(1, round(share * self.warmup))
        )
