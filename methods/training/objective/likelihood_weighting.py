"""Trains on the bound of the likelihood, at times that are drawn so that every noise loss counts the same.

Weighted by g(t)^2, what the forward process adds at t, errors of the score add up to a bound on the divergence of the
model from the data. On the noise that is g^2 / sigma^2, which explodes near the data; times drawn in that proportion
leave a constant weight, and a gradient far less noisy.

Source: Song et al. 2021 "Maximum Likelihood Training of Score-Based Diffusion Models" (2101.09258), likelihood
weighting and importance sampling; both losses and the inverse of the cumulated weight as in the official code,
`losses.py` and `sde_lib.py`. Since g^2 / sigma^2 is the fall of the log SNR, 2 |lam'(t)|, times drawn in proportion to
it are even in lam, for any process, and need no search for the inverse.
Limits: times end where sampling starts, beyond which lam has no end here, and begin at `smallest`, where the noise is
that of the paper's first time, sigma = 0.001.
Losses are divided by the mean weight Z, which importance sampling leaves out in the official code too. Variational
dequantization, and the terms of the bound that do not depend on the network, are left out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import Loss, TimeDensity, UniformTimes, UnitOnTarget
from methods.core.parameterization import Parameterization
from methods.core.process import Process
from methods.core.recipe import Method, Recipe, edit
from methods.training.objective._shared import Altered


@dataclass(frozen=True)
class ByLikelihood(TimeDensity):
    """p(t) ~ g^2 / sigma^2 between the smallest time and the start of sampling, or p(t) constant there."""

    smallest: float
    importance: int

    def ends(self, process: Process) -> Float[Tensor, "2"]:
        """The first and the last time."""
        last = process.time(torch.tensor(process.lam_start, dtype=torch.float64))
        return torch.stack([torch.tensor(self.smallest, dtype=torch.float64), last])

    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        count("times_by_likelihood", n)
        place, ends = torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device), self.ends(process)
        low, high = (process.lam(ends) if self.importance else ends).tolist()
        drawn = low + (high - low) * place
        return process.time(drawn) if self.importance else drawn


class Bound(Altered):
    """The mean over the times of -lam'(t) |eps - eps_theta|^2, over the mean of -lam'(t)."""

    def __init__(self, recipe: Recipe, times: ByLikelihood) -> None:
        super().__init__(recipe)
        self.times = self.drawn = times

    def weigh(self, process: Process, parameterization: Parameterization, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        on_noise = (torch.exp(process.lam(t)) * parameterization.gain(process, t)) ** 2
        if self.drawn.importance:
            return on_noise
        ends = self.drawn.ends(process)
        mean = -(process.lam(ends).diff() / ends.diff()).item()
        return -torch.func.jvp(process.lam, (t,), (torch.ones_like(t),))[1] / mean * on_noise


@dataclass(frozen=True)
class Likelihood(Loss):
    """The likelihood bound, at times drawn by their weight or evenly."""

    importance: int
    smallest: float

    def objective(self, recipe: Recipe) -> Bound:
        return Bound(recipe, ByLikelihood(self.smallest, self.importance))


def likelihood_weighting(importance: int = 1, smallest: float = 6.4e-4) -> Method:
    """Train on the likelihood bound, its times from `smallest` on drawn by `importance` (1) or evenly (0)."""
    loss = Likelihood(importance, smallest)
    return edit(needs={"times": UniformTimes, "weight": UnitOnTarget}, loss=loss)
