"""Places steps where the trajectories of a model bend, which is at the same noise levels for all of them.

In x / alpha over sigma / alpha a trajectory is a nearly straight line with one turn. A few of them, followed in small
steps, tell how much farther than the trajectory itself every possible Euler step would land from the line between its
ends; the cheapest chain of such steps, found by dynamic programming, is the grid.

Source: Chen et al. 2024 "On the Trajectory Regularity of ODE-based Diffusion Sampling" (2405.11326), read in its
official code: the cost `dev` on a teacher's grid of rho = 7, and V[j, k] = min_i c(j, i) + factor V[i, k - 1].
Limits: the teacher is DPM-Solver++(2M), one of those that the official code offers, instead of iPNDM; its last step
goes to zero noise instead of stopping at 0.002, and it takes 64 steps, or twice as many as the grid has.
Cost: `fraction` of the images of base training, evaluated once.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.calibration import Fitted, Part, Report
from methods.core.denoiser import Denoiser, Labels
from methods.core.process import like
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import SampleNoise
from methods.inference._shared import affordable
from methods.inference.ode_solver.dpm_solver_pp_2m import DPMSolverPP2M
from methods.inference.timestep_schedule._shared import FittedTimes, cheapest_path
from methods.inference.timestep_schedule.karras_rho_schedule import KarrasRho

FINE = 64


def follow(
    denoiser: Denoiser, x: Float[Tensor, "b *s"], times: Float[Tensor, "n"], labels: Labels
) -> tuple[Float[Tensor, "n b d"], Float[Tensor, "m b d"]]:
    """The states x / alpha at all times, and the estimates of x_0 at all but the last."""
    process, solver, past, estimates = denoiser.process, DPMSolverPP2M(), None, []
    denoiser.reset()

    def asked(x: Tensor, t: Tensor) -> Tensor:
        estimates.append(denoiser(x, t, labels))
        return estimates[-1]

    states = [x]
    for t, s in pairwise(times):
        x, past = solver.step(asked, process, x, t, s, past, SampleNoise([]))
        states.append(x)
    path = torch.stack(states).flatten(2)
    return path / like(process.alpha(times), path), torch.stack(estimates).flatten(2)


def deviations(
    path: Float[Tensor, "n b d"], estimates: Float[Tensor, "m b d"], ratio: Float[Tensor, "n"]
) -> Float[Tensor, "n n"]:
    """How much farther from the chord the Euler step from row to column ends than the state there, on average."""
    chord = torch.nn.functional.normalize(path[-1] - path[0], dim=-1)

    def off(y: Float[Tensor, "k b d"]) -> Float[Tensor, "k b"]:
        y = y - path[0]
        return (y - (y * chord).sum(-1, keepdim=True) * chord).norm(dim=-1)

    cost, own = torch.zeros(len(path), len(path), dtype=torch.float64), off(path)
    for i, (start, x0) in enumerate(zip(path[:-1], estimates, strict=True)):
        ends = x0 + like(ratio[i + 1 :] / ratio[i], path) * (start - x0)
        cost[i, i + 1 :] = (off(ends) - own[i + 1 :]).mean(1).cpu()
    return cost


class StraightestTimes(FittedTimes):
    """The cheapest chain of Euler steps."""

    def __init__(self, recipe: Recipe, factor: float, fraction: float) -> None:
        super().__init__(recipe)
        self.factor, self.fine = factor, max(2 * recipe.steps, min(FINE, recipe.fit.iterations))
        self.warm_up = affordable(recipe.fit, fraction, self.fine)

    def fit(
        self, recipe: Recipe, denoiser: Denoiser, x0: Float[Tensor, "n *s"], labels: Labels, rng: torch.Generator,
        report: Report,
    ) -> int:  # fmt: skip
        process, times = denoiser.process, KarrasRho(7.0, 0.002, 80.0)(denoiser.process, self.fine)
        cost = torch.zeros(self.fine + 1, self.fine + 1, dtype=torch.float64)
        for rows in torch.randint(len(x0), (self.warm_up,), generator=rng, device=rng.device).split(recipe.fit.batch):
            noise = torch.randn((len(rows), *x0.shape[1:]), generator=rng, device=rng.device).to(x0)
            known = None if labels is None else labels[rows]
            path, estimates = follow(denoiser, like(process.sigma(times[0]), noise) * noise, times, known)
            cost += deviations(path, estimates, torch.exp(-process.lam(times))) * len(rows) / self.warm_up
        self.times.copy_(times[cheapest_path(cost, recipe.steps, self.factor)])
        return self.warm_up * self.fine


@dataclass(frozen=True)
class TrajectoryShape(Fitted):
    """As many levels as the recipe has steps, chosen by the shape of trajectories."""

    factor: float
    fraction: float
    becomes: ClassVar[type[Part]] = StraightestTimes

    def build(self, recipe: Recipe) -> StraightestTimes:
        return StraightestTimes(recipe, self.factor, self.fraction)


def gits(factor: float = 1.15, fraction: float = 0.2) -> Method:
    """Weigh every step `factor` times as much as the one before; follow trajectories for `fraction` of training."""
    return edit(grid=TrajectoryShape(factor, fraction))
