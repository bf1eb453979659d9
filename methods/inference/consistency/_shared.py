"""What consistency models share: the function, its noise levels, the phase that trains it, and the sampler.

A consistency function f(x_t, t) maps every point of a trajectory to its clean end, so f(x, 0) = x. Here it is the
estimate of x_0 of a velocity network, alpha x_t - sigma v on the cosine process, which is x itself at t = 0 whatever
the network says: the boundary condition needs no other parameterization than the teacher's. Noise levels are the ratio
rho = sigma / alpha, the sigma of the papers, whose x is x_t / alpha.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Labels, Network
from methods.core.learning import optimise
from methods.core.models import Model, encode, network
from methods.core.objective import Objective
from methods.core.process import Process, combine
from methods.core.recipe import Recipe
from methods.core.sampling import Denoise, SampleNoise, Solver

SIGMA_MIN = 0.002
"""The lowest noise level above 0 at which a pair begins. Source: Karras et al. 2022 (2206.00364), table 1."""

RHO = 7
"""The curvature of the grid of noise levels, as there."""


def consistency(network: Network, x_t: Float[Tensor, "b *s"], t: Float[Tensor, "b"], labels: Labels) -> Tensor:
    """f(x_t, t), unclipped."""
    return network.parameterization.clean(network.process, x_t, network.predict(x_t, t, labels), t)


def ratio(process: Process, t: Tensor) -> Tensor:
    """The noise level sigma / alpha at t."""
    return process.sigma(t) / process.alpha(t)


def time(process: Process, rho: Tensor) -> Tensor:
    """The time of a noise level, no later than where sampling starts."""
    return process.time((-torch.log(rho)).clamp(min=process.lam_start))


def noise_levels(process: Process, n: int) -> Float[Tensor, "n"]:
    """n increasing times from SIGMA_MIN to where sampling starts, evenly spaced in the RHO-th root of the noise level.

    Source: Song et al. 2023 (2303.01469), section 2 and the official code.
    """
    highest = torch.exp(torch.tensor(-process.lam_start, dtype=torch.float64))
    root = torch.linspace(SIGMA_MIN ** (1 / RHO), highest.item() ** (1 / RHO), n, dtype=torch.float64)
    return time(process, root**RHO)


class Distil(Phase, ABC):
    """Trains the network on as the student of an objective, its own teacher being the network as it was."""

    fraction: float
    heeds: ClassVar[tuple[str, ...]] = ()
    rate: ClassVar[float] = 1.0
    """Of the base training's learning rate."""

    @abstractmethod
    def objective(self, iterations: int) -> Objective:
        """What a training of so many iterations minimises."""

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        x0, labels = encode(model, data)
        fit = recipe.fit.scaled(self.fraction)
        fit = replace(fit, learning_rate=self.rate * fit.learning_rate)
        teacher = network(recipe, model)
        teacher.bounds = None  # no estimate is clipped before it is a target
        model.net = copy.deepcopy(model.net).requires_grad_(True)
        student, objective = network(recipe, model), self.objective(fit.iterations)
        model.net = optimise(student, teacher, objective, x0, labels, fit, seed, report, "consistency model")
        return fit.iterations * fit.batch


@dataclass(frozen=True)
class MultistepConsistency(Solver):
    """Jump to the clean end, add fresh noise of the next level, and jump again.

    Source: Song et al. 2023 (2303.01469), algorithm 1.
    """

    order: ClassVar[int] = 0

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: None,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], None]:  # fmt: skip
        count("jumps", len(x))
        x0 = denoise(x, t)
        if s == 0:
            return x0, None
        return combine(process.alpha(s), x0, process.sigma(s), noise(tuple(x.shape[1:]))), None
