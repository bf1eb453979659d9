"""What a network predicts: F = a x_0 + b eps for a pair (a, b) that may depend on the time.

With x_t = alpha x_0 + sigma eps it follows that x_0 = (b x_t - sigma F) / (alpha b - sigma a): one line serves every
target, and a new target is a class with one two-line method.

Source: the identity is the linear system behind Salimans and Ho 2022 (2202.00512), section 4.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.process import Process, combine, like, remembered


class Parameterization(ABC):
    """The pair (a, b), and the scale at which the network sees its input."""

    @abstractmethod
    def pair(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) at time t, each of t's shape."""

    def input_scale(self, process: Process, t: Tensor) -> Tensor | None:
        """What x_t is multiplied by before the network sees it: unit variance for noise and unit-variance data.

        None where that is 1.
        """
        if process.preserves_variance:
            return None
        return torch.rsqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)

    def told(self, u: Float[Tensor, "b"]) -> Float[Tensor, "b *k"]:
        """What the network is told when it is asked for F at the noise level u: u itself, and more if it needs more."""
        return u

    def target(self, process: Process, x0: Tensor, eps: Tensor, t: Tensor) -> Float[Tensor, "b *s"]:
        """F = a x_0 + b eps."""
        a, b = self.pair(process, t)
        return like(a, x0) * x0 + like(b, eps) * eps

    def clean(self, process: Process, x_t: Tensor, prediction: Tensor, t: Tensor) -> Float[Tensor, "b *s"]:
        """The estimate of x_0 that a prediction F stands for."""
        seen, predicted = _estimate(self, process, t)
        return combine(seen, x_t, predicted, prediction)

    def gain(self, process: Process, t: Tensor) -> Tensor:
        """|d x_0 / d F|: an error of F is this many times larger, or smaller, on x_0."""
        a, b = self.pair(process, t)
        sigma = process.sigma(t)
        return (sigma / (process.alpha(t) * b - sigma * a)).abs()


@remembered
def _estimate(parameterization: Parameterization, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """What x_t and F are multiplied by in the estimate of x_0."""
    a, b = parameterization.pair(process, t)
    sigma = process.sigma(t)
    scale = process.alpha(t) * b - sigma * a
    return b / scale, -sigma / scale


@dataclass(frozen=True)
class Noise(Parameterization):
    """F = eps. Source: Ho et al. 2020 (2006.11239), section 3.2."""

    def pair(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class Clean(Parameterization):
    """F = x_0."""

    def pair(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)
