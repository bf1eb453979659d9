"""Draws the times of the variational bound by the size of their losses, so that its gradient is less noisy.

The terms of the bound differ by orders of magnitude, so uniform times make for a noisy gradient. Drawing a term in
proportion to the root of its mean squared loss, and dividing by that chance, is the unbiased estimate that varies
least; the last few losses of every time tell what to expect.

Source: Nichol and Dhariwal 2021 "Improved Denoising Diffusion Probabilistic Models" (2102.09672), section 3.3; ten
losses a term, a small uniform share and uniform times until all terms are known, as `LossSecondMomentResampler` of the
official code. The bound in continuous time is that of Kingma et al. 2021 (2107.00630).
Limits: the bound is -lam'(t) |eps - eps_theta|^2, where the variances of the reverse steps, which the paper learns, do
not matter. It ends where sampling starts. `levels` strata of equal width stand for the steps of a chain.
"""

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.objective import Loss, TimeDensity, UniformTimes, UnitOnTarget
from methods.core.parameterization import Parameterization
from methods.core.process import Process
from methods.core.recipe import Method, Recipe, edit
from methods.training.objective._shared import Altered


class BySecondMoment(TimeDensity):
    """Strata with probability p_i ~ sqrt(E L_i^2), uniform within; what was drawn last is kept."""

    level: Int[Tensor, "n"]

    def __init__(self, low: float, levels: int, history: int, uniform: float) -> None:
        self.low, self.uniform = low, uniform
        self.losses = [deque[float](maxlen=history) for _ in range(levels)]

    @property
    def known(self) -> bool:
        """Whether every stratum has its history."""
        return all(len(losses) == losses.maxlen for losses in self.losses)

    @property
    def chances(self) -> Float[Tensor, "k"]:
        """The probability of every stratum."""
        even = torch.full((len(self.losses),), 1 / len(self.losses), dtype=torch.float64)
        if not self.known:
            return even
        size = torch.tensor([list(losses) for losses in self.losses], dtype=torch.float64).square().mean(1).sqrt()
        return (1 - self.uniform) * size / size.sum() + self.uniform * even

    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        count("times_resampled", n if self.known else 0)
        chances = self.chances.to(rng.device)
        self.level = torch.multinomial(chances, n, replacement=True, generator=rng)
        self.factor = 1 / (len(chances) * chances[self.level])
        place = (self.level + torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device)) / len(chances)
        last = process.time(torch.tensor(process.lam_start, dtype=torch.float64)).item()
        return self.low + (last - self.low) * place

    def remember(self, losses: Float[Tensor, "n"]) -> None:
        """Note the losses of the times drawn last."""
        for level, loss in zip(self.level.tolist(), losses.tolist(), strict=True):
            self.losses[level].append(loss)


class Bound(Altered):
    """The variational bound, each term divided by how much more often than uniformly it was drawn."""

    def __init__(self, recipe: Recipe, strata: BySecondMoment) -> None:
        super().__init__(recipe)
        self.times = self.strata = strata

    def weigh(self, process: Process, parameterization: Parameterization, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        slope = torch.func.jvp(process.lam, (t,), (torch.ones_like(t),))[1]
        return -slope * (torch.exp(process.lam(t)) * parameterization.gain(process, t)) ** 2

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        losses = super().__call__(student, teacher, x0, labels, rng)
        self.strata.remember(losses.detach())
        return self.strata.factor.to(losses) * losses


@dataclass(frozen=True)
class LossAware(Loss):
    """The bound over uniform times from the recipe's first one, importance sampled."""

    levels: int
    history: int
    uniform: float

    def objective(self, recipe: Recipe) -> Bound:
        assert isinstance(recipe.times, UniformTimes)
        return Bound(recipe, BySecondMoment(recipe.times.low, self.levels, self.history, self.uniform))


def loss_aware_timestep_sampling(levels: int = 100, history: int = 10, uniform: float = 0.001) -> Method:
    """Train on the bound at `levels` strata of times, drawn by their last `history` losses; a share stays uniform."""
    return edit(needs={"times": UniformTimes, "weight": UnitOnTarget}, loss=LossAware(levels, history, uniform))
