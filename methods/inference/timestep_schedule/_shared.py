"""Grids that are searched for a trained model: what they become, and the cheapest path through levels."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Part
from methods.core.process import Process
from methods.core.recipe import Recipe
from methods.core.sampling import Grid, UniformAngle


class FittedTimes(Grid, Part):
    """The times that were found for the recipe's process and number of steps; even ones until then."""

    times: Float[Tensor, "n"]

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.register_buffer("times", UniformAngle()(recipe.process, recipe.steps))

    def __call__(self, process: Process, steps: int) -> Float[Tensor, "n"]:
        assert steps + 1 == len(self.times), f"fitted for {len(self.times) - 1} steps, asked for {steps}"
        count("times_fitted", steps)
        return self.times.cpu()


def cheapest_path(cost: Float[Tensor, "n n"], steps: int, factor: float = 1.0) -> Int[Tensor, "k"]:
    """The nodes 0 = i_0 < ... < i_steps = n - 1 of least cost[i_0, i_1] + factor (cost[i_1, i_2] + factor (...)).

    Only the entries above the diagonal count. Source: the dynamic programme of Watson et al. 2021 (2106.03802).
    """
    edges = cost.masked_fill(torch.ones_like(cost).tril().bool(), torch.inf)
    rest, choices = edges[:, -1], []
    for _ in range(steps - 1):
        rest, choice = (edges + factor * rest).min(1)
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return torch.tensor([*path, len(cost) - 1])
