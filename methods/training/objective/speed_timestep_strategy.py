"""Draws few times where nothing changes any more, and weighs those at which the process changes fastest.

Late in the forward process every step looks like the one before it: losses there are small, and many. They are drawn k
times less often than the others, which are weighed by how fast their variance grows.

Source: Wang et al. 2024 "A Closer Look at Time Steps is Worthy of Triple Speed-Up for Diffusion Model Training"
(2405.17403), asymmetric sampling and change-aware weighting; probabilities, the rescaled gradient of the variance and
weight 1 past tau as in the official code, `Speed_IDDPM`.
Limits: on the cosine process, where the gradient of the variance sin^2(pi t / 2) is known; the paper mostly uses the
linear schedule, on which the part past tau is nearly pure noise. Without the mirrored half of each batch that the
official code draws.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import TimeDensity, UniformTimes, Weight
from methods.core.process import Cosine, Process, angle
from methods.core.recipe import Method, edit


@dataclass(frozen=True)
class Asymmetric(TimeDensity):
    """Density k / (1 + tau (k - 1)) up to tau, 1 / (1 + tau (k - 1)) past it."""

    k: float
    tau: float

    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        place = torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device) * (1 + self.tau * (self.k - 1))
        early = place / self.k
        t = torch.where(early < self.tau, early, self.tau + place - self.k * self.tau)
        count("times_moved", n if self.k != 1 else 0)
        low = UniformTimes().low
        return low + (1 - low) * t


@dataclass(frozen=True)
class ChangeAware(Weight):
    """On the error of the noise: d sigma^2 / dt, rescaled to [1 - largest, largest], up to tau; 1 past it."""

    largest: float
    tau: float

    def __call__(self, lam: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        t = angle(lam)
        change = torch.sin(torch.pi * t)  # over its largest value; its smallest, at both ends, is 0
        weight = (1 - self.largest) + (2 * self.largest - 1) * change
        count("weights_by_change", int((t < self.tau).sum()))
        return torch.exp(2 * lam) * torch.where(t < self.tau, weight, 1.0)


def speed_timestep_strategy(k: float = 5.0, tau: float = 0.7, largest: float = 0.6) -> Method:
    """Draw times past tau k times less often; weights up to tau lie in [1 - largest, largest]."""
    return edit(needs={"process": Cosine}, times=Asymmetric(k, tau), weight=ChangeAware(largest, tau))
