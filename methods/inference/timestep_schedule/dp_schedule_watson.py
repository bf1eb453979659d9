"""Finds the few noise levels under which the model, as it was trained, gives the data the highest likelihood bound.

The bound is a sum over steps, and the term of a step depends on its two ends alone: on how well the network estimates
x_0 at one, and on how much of the signal comes back until the other. So one pass at every level prices all steps, and
the cheapest path of any length is found by dynamic programming.

Source: Watson et al. 2021 "Learning to Efficiently Sample from Diffusion Probabilistic Models" (2106.03802), the
decomposed bound and its dynamic programme, read in the form of Bao et al. 2022 (2201.06503), algorithm 1 and official
code. With the posterior variance of DDPM the divergence of a step becomes (SNR_s - SNR_t) / 2 E|x_0 - x_0'|^2.
Limits: the chain is 128 even angles, or twice as many levels as steps. The last term is the density of a Gaussian of
variance sigma_t^2 and not the probability of an 8-bit value, so that it exists for any data. The bound is that of
ancestral sampling; other samplers are given the same times.
Cost: `fraction` of the images of base training, evaluated once.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.calibration import Fitted, Part, Report
from methods.core.denoiser import Denoiser, Labels
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import UniformAngle
from methods.inference._shared import affordable, forward_paths
from methods.inference.timestep_schedule._shared import FittedTimes, cheapest_path

LEVELS = 128


def bound(lam: Float[Tensor, "n"], error: Float[Tensor, "n"]) -> Float[Tensor, "m m"]:
    """Nats per dimension of a step between two of n levels, row to column, and in the last column to the data."""
    snr, variance = torch.exp(2 * lam), torch.sigmoid(-2 * lam)
    cost = torch.zeros(len(lam) + 1, len(lam) + 1, dtype=torch.float64)
    cost[:-1, :-1] = (snr - snr[:, None]) * error[:, None] / 2
    cost[:-1, -1] = (error / variance + torch.log(2 * math.pi * variance)) / 2
    return cost


class LikeliestTimes(FittedTimes):
    """The path of the highest bound."""

    def __init__(self, recipe: Recipe, fraction: float) -> None:
        super().__init__(recipe)
        self.levels = max(LEVELS, 2 * recipe.steps)
        self.paths = affordable(recipe.fit, fraction, self.levels)

    def fit(
        self, recipe: Recipe, denoiser: Denoiser, x0: Float[Tensor, "n *s"], labels: Labels, rng: torch.Generator,
        report: Report,
    ) -> int:  # fmt: skip
        times = UniformAngle()(denoiser.process, self.levels)
        error = torch.zeros(self.levels, dtype=torch.float64)
        for clean, _, estimate in forward_paths(denoiser, x0, labels, times[:-1], self.paths, rng):
            error += (estimate - clean).square().flatten(1).mean(1).cpu() / self.paths
        cost = bound(denoiser.process.lam(times[:-1]), error)
        self.times.copy_(times[cheapest_path(cost, recipe.steps)])
        return self.paths * self.levels


@dataclass(frozen=True)
class HighestBound(Fitted):
    """As many levels as the recipe has steps, chosen by the likelihood bound."""

    fraction: float
    becomes: ClassVar[type[Part]] = LikeliestTimes

    def build(self, recipe: Recipe) -> LikeliestTimes:
        return LikeliestTimes(recipe, self.fraction)


def dp_schedule_watson(fraction: float = 0.1) -> Method:
    """Listen to the network on `fraction` of the images of base training, then choose the recipe's steps."""
    return edit(grid=HighestBound(fraction))
