"""Trains a consistency model from data alone: two noisy versions of one image are to have the same clean end.

Their ends differ for a single image, but on average over the images that x_t may come from, the cleaner version is
where the flow leads. The grid of noise levels begins coarse, where the signal is strong, and doubles until the bias is
small.

Source: Song and Dhariwal 2024 "Improved Techniques for Training Consistency Models" (2310.14189), table 1: no moving
average in the target, pseudo-Huber norm, log-normal discretised levels, doubling curriculum, weight 1 / gap of levels.
Limits: levels are the ratio sigma / alpha of the cosine process, up to where sampling starts, and c_skip, c_out those
of the velocity target; the boundary is at level 0. No dropout, no deeper network. The base training's Adam, at a rate
that is high for a norm whose gradient does not shrink with the error.
Cost: none beyond base training, each update of which evaluates the network twice.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Unguided
from methods.core.objective import Coupling, Loss, UniformTimes, UnitOnTarget
from methods.core.process import Process
from methods.core.recipe import Method, Recipe, edit
from methods.inference.consistency._objectives import Tuning
from methods.inference.consistency._shared import MultistepConsistency, noise_levels, ratio
from methods.training.objective.v_prediction import Velocity

MEAN, STD = -1.1, 2.0
"""Of the logarithm of the noise level."""


def curriculum(k: int, iterations: int, first: int, last: int) -> int:
    """N(k): how many levels iteration k has; `first` intervals double in equal shares of training up to `last`."""
    each = max(1, math.floor(iterations / (math.log2(last // first) + 1)))
    return min(first * 2 ** (k // each), last) + 1


def shares(rho: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
    """The mass that a log-normal level has between each level and the next, up to a factor."""
    return torch.erf((torch.log(rho) - MEAN) / (math.sqrt(2) * STD)).diff()


class ConsistencyTraining(Tuning):
    """Neighbouring levels, drawn by `shares`; counts its calls, which are the iterations of one training."""

    c = 0.00054

    def __init__(self, iterations: int, first: int, last: int, coupling: Coupling) -> None:
        self.iterations, self.first, self.last, self.coupling, self.done = iterations, first, last, coupling, 0

    def noise(self, x0: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]:
        return self.coupling(x0, rng)

    def times(self, process: Process, n: int, rng: torch.Generator) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        known = noise_levels(process, curriculum(self.done, self.iterations, self.first, self.last))
        self.done += 1
        mass = shares(ratio(process, known)).to(rng.device)
        i = torch.multinomial(mass, n, replacement=True, generator=rng).cpu()
        count("levels_drawn", n)
        return known[i + 1], known[i]


@dataclass(frozen=True)
class ImprovedConsistencyTraining(Loss):
    """From `first` to `last` intervals between the noise levels, over the whole of base training."""

    first: int
    last: int

    def objective(self, recipe: Recipe) -> ConsistencyTraining:
        return ConsistencyTraining(recipe.fit.iterations, self.first, self.last, recipe.coupling)


def consistency_training_ict(steps: int = 2, first: int = 10, last: int = 1280) -> Method:
    """Train on `first` intervals that double up to `last`; sample in `steps` jumps."""
    return edit(
        needs={"guidance": Unguided, "times": UniformTimes, "weight": UnitOnTarget},
        parameterization=Velocity(),
        loss=ImprovedConsistencyTraining(first, last),
        sampler=MultistepConsistency(),
        steps=steps,
    )
