"""The forward process x_t = alpha(t) x_0 + sigma(t) eps, with t = 0 clean and t = 1 noise.

Everything that depends on the noise level is written in lam(t) = log(alpha / sigma), half the log signal-to-noise
ratio (SNR = exp(2 lam)), so it survives a change of process.

Source: Kingma et al. 2021 "Variational Diffusion Models" (2107.00630), section 3; lam follows Lu et al. 2022
(2206.00927).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count_all, tallied_apart

Coefficient = Tensor | float
"""A number for all samples (a float, or a tensor []) or for each of them ([b])."""


class Process(ABC):
    """How a clean sample turns into noise. Times are dimensionless, of any shape, best in float64."""

    lam_start: float
    """Where sampling starts: the signal left there is below what a sample can show, but not zero."""
    preserves_variance: ClassVar[bool] = False
    """Whether alpha^2 + sigma^2 = 1."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def time(self, lam: Tensor) -> Tensor:
        """The inverse of `lam`."""

    def lam(self, t: Tensor) -> Tensor:
        """Half the log SNR: +inf at t = 0."""
        return torch.log(self.alpha(t) / self.sigma(t))

    def angle(self, t: Tensor) -> Tensor:
        """The noise level as the angle in [0, 1] that networks are told: `angle(lam(t))`."""
        return torch.atan2(self.sigma(t), self.alpha(t)) * (2 / math.pi)

    def diffuse(self, x0: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"], t: Tensor) -> Float[Tensor, "b *s"]:
        """Draw x_t from q(x_t | x_0) with the given noise; t is [] or [b]."""
        return like(self.alpha(t), x0) * x0 + like(self.sigma(t), eps) * eps


def like(coefficient: Coefficient, x: Tensor) -> Coefficient:
    """A coefficient per sample ([b]) or for all, in the dtype of x and shaped to multiply it."""
    if not isinstance(coefficient, Tensor):
        return coefficient
    coefficient = coefficient.to(x)
    return coefficient.reshape(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient


def combine(
    a: Coefficient, x: Float[Tensor, "b *s"], b: Coefficient, y: Float[Tensor, "b *s"]
) -> Float[Tensor, "b *s"]:
    """a x + b y with coefficients per sample ([b]) or for all, in two passes over memory, or one where a is 1."""
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return torch.add(x if a == 1 else x * a, y, alpha=b)
    return like(a, x) * x + like(b, y) * y


def remembered(function: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Remember the coefficients that `function(*owners, *times)` gives at single times, as floats.

    A solver asks for the same few in every batch, and a dozen operations on single numbers take longer than a step.
    What was counted while they were computed is counted again each time. Times of shape [b] give tensors of that
    shape, computed each time.
    """

    @lru_cache(maxsize=1 << 14)
    def known(owners: tuple[Any, ...], times: tuple[float, ...]) -> tuple[tuple[float | None, ...], Mapping[str, int]]:
        with tallied_apart() as counted:
            found = function(*owners, *(torch.tensor(t, dtype=torch.float64) for t in times))
        return tuple(None if c is None else c.item() for c in found), counted

    def coefficients(*arguments: Any) -> tuple[Any, ...]:
        times = [argument for argument in arguments if isinstance(argument, Tensor)]
        if any(t.ndim for t in times):
            return function(*arguments)
        found, counted = known(arguments[: -len(times)], tuple(t.item() for t in times))
        count_all(counted)
        return found

    return coefficients


def angle(lam: Tensor) -> Tensor:
    """The noise level as a number in [0, 1]: u = 2/pi atan(exp(-lam)), the time of the cosine process.

    Every network is told the noise level in this coordinate, whatever process it is trained under.
    Source: Salimans and Ho 2022 (2202.00512), official code, `inv_cos` embedding of the log SNR.
    """
    return torch.atan(torch.exp(-lam)) * (2 / math.pi)


def lam_of_angle(u: Tensor) -> Tensor:
    """The inverse of `angle`."""
    return -torch.log(torch.tan(u * (math.pi / 2)))


@dataclass(frozen=True)
class Cosine(Process):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the cosine schedule without its offset.

    Source: Nichol and Dhariwal 2021 (2102.09672), eq. 17 with s = 0.
    """

    lam_start: float = -5.0
    preserves_variance: ClassVar[bool] = True

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def time(self, lam: Tensor) -> Tensor:
        return angle(lam)

    def angle(self, t: Tensor) -> Tensor:
        return t
