"""Predicts the velocity alpha eps - sigma x_0, which stays well conditioned from pure noise to clean data.

A noise prediction says nothing about x_0 when alpha vanishes, a clean prediction nothing about the noise when sigma
does; the velocity turns from one into the other, so few long steps, and distillation, stay stable.

Source: Salimans and Ho 2022 (2202.00512), section 4 and appendix D. The loss is 1 on v, which is SNR + 1 on x_0.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.core.activation import count
from methods.core.parameterization import Parameterization
from methods.core.process import Process
from methods.core.recipe import Method, edit


@dataclass(frozen=True)
class Velocity(Parameterization):
    """F = v = alpha eps - sigma x_0."""

    def pair(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        count("velocity_calls", t.numel())
        return -process.sigma(t), process.alpha(t)


def v_prediction() -> Method:
    """Train the network to predict v."""
    return edit(parameterization=Velocity())
