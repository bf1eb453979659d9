"""Moves the noise levels one by one to where a bound on the error of stochastic sampling is lowest.

A solver that holds its estimate of x_0 during a step departs from the true reverse process by the change of that
estimate; Girsanov's theorem turns the change, weighted and summed over all steps, into a bound on the divergence of the
samples from the model's own distribution. It is a sum over steps, measured on noised data, without sampling.

Source: Sabour, Fidler, Kreis 2024 "Align Your Steps" (2404.14507): the bound KLUB of Stochastic-DDIM in sigma / alpha,
1/2 int E|x_0(x_t) - x_0(x_{t_i})|^2 dSNR with x_{t_i} noised on from x_t, and algorithms 1 and 2, read in a
transcription; ten steps first, then each halved twice, and other numbers by log-linear interpolation.
Limits: simplified in three places. Expectations are estimated once, for all pairs of 128 levels on the same forward
paths, and the time integral is their trapezoid rule, where the paper draws new times by importance for every candidate
(algorithm 2); a level may move to any place between its neighbours; the search ends when nothing moves, without early
stopping. Levels as close as the 128 are not halved. The last of the paper's levels, 0.002, is zero here.
Cost: `fraction` of the images of base training, evaluated once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.calibration import Fitted, Part, Report
from methods.core.denoiser import Denoiser, Labels
from methods.core.recipe import Method, Recipe, edit
from methods.inference._shared import affordable, forward_paths
from methods.inference.timestep_schedule._shared import FittedTimes
from methods.inference.timestep_schedule.karras_rho_schedule import KarrasRho

LEVELS, COARSE, HALVINGS = 128, 10, 2


def klub(lam: Float[Tensor, "n"], change: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The bound on a step from row to column: 1/2 int change dSNR from level to level, by the trapezoid rule."""
    gained = torch.exp(2 * lam).diff() * (change[:, 1:] + change[:, :-1]) / 4
    return torch.nn.functional.pad(gained.triu(), (1, 0)).cumsum(1)


def between(cost: Float[Tensor, "n n"], low: int, high: int) -> tuple[int, float]:
    """The level between two at which it is cheapest to stop, and what both steps cost."""
    both = cost[low, low + 1 : high] + cost[low + 1 : high, high]
    return low + 1 + int(both.argmin()), float(both.min())


def align(cost: Float[Tensor, "n n"], levels: Sequence[int]) -> list[int]:
    """Algorithm 1: move inner levels one at a time, as long as the bound falls."""
    levels, moved = [*levels], True
    while moved:
        moved = False
        for i in range(1, len(levels) - 1):
            best, least = between(cost, levels[i - 1], levels[i + 1])
            if least < cost[levels[i - 1], levels[i]] + cost[levels[i], levels[i + 1]]:
                levels[i], moved = best, True
    return levels


def schedule(cost: Float[Tensor, "n n"], steps: int) -> Float[Tensor, "k"]:
    """The levels of so many steps, as places among those of the bound: the coarse ones, halved, interpolated."""
    found = align(cost, torch.linspace(0, len(cost) - 1, COARSE + 1).round().int().tolist())
    for _ in range(HALVINGS):
        if len(found) <= steps and min(high - low for low, high in pairwise(found)) > 1:
            found = [*(p for low, high in pairwise(found) for p in (low, between(cost, low, high)[0])), found[-1]]
    return torch.from_numpy(np.interp(np.linspace(0, len(found) - 1, steps + 1), np.arange(len(found)), found))


class AlignedTimes(FittedTimes):
    """The levels of the lowest bound that the search finds."""

    def __init__(self, recipe: Recipe, fraction: float) -> None:
        super().__init__(recipe)
        self.paths = affordable(recipe.fit, fraction, LEVELS)

    def fit(
        self, recipe: Recipe, denoiser: Denoiser, x0: Float[Tensor, "n *s"], labels: Labels, rng: torch.Generator,
        report: Report,
    ) -> int:  # fmt: skip
        process, change = denoiser.process, torch.zeros(LEVELS, LEVELS, dtype=torch.float64)
        times = KarrasRho(7.0, 0.002, 80.0)(process, LEVELS)[:-1]
        for _, _, estimate in forward_paths(denoiser, x0, labels, times, self.paths, rng):
            flat = estimate.flatten(1).double()
            change += torch.cdist(flat, flat).square().cpu() / self.paths
        lam = process.lam(times)
        places = schedule(klub(lam, change), recipe.steps)[:-1]
        self.times[:-1] = process.time(torch.from_numpy(np.interp(places, np.arange(LEVELS), lam)))
        return self.paths * LEVELS


@dataclass(frozen=True)
class LowestBound(Fitted):
    """As many levels as the recipe has steps, aligned with the model."""

    fraction: float
    becomes: ClassVar[type[Part]] = AlignedTimes

    def build(self, recipe: Recipe) -> AlignedTimes:
        return AlignedTimes(recipe, self.fraction)


def align_your_steps(fraction: float = 0.2) -> Method:
    """Listen to the network on `fraction` of the images of base training, then align the recipe's steps."""
    return edit(grid=LowestBound(fraction))
