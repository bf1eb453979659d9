"""What consistency models share: the function, its two kinds of objective, the phase that trains it, and the sampler.

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
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Report
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.objective import Objective
from methods.core.process import Process, combine
from methods.core.recipe import Phase, Recipe
from methods.core.run import Model, TrainingSet, encode, network, optimise
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


def drawn(n: int, highest: int, rng: torch.Generator) -> Tensor:
    """n whole numbers below `highest`, on the CPU, where the times are."""
    return torch.randint(highest, (n,), generator=rng, device=rng.device).cpu()


def pseudo_huber(difference: Float[Tensor, "b *s"], c: float) -> Float[Tensor, "b"]:
    """sqrt(|| d ||^2 + c^2) - c. Source: Song and Dhariwal 2024 (2310.14189), section 3.3."""
    return (difference.square().flatten(1).sum(1) + c**2).sqrt() - c


class Trailing:
    """An exponential moving average of a network's weights, made at the first call: the target network of theta^-."""

    def __init__(self, decay: float) -> None:
        self.decay, self.net = decay, nn.Module()

    @torch.no_grad()
    def __call__(self, student: Network) -> Network:
        """The target after the student's last update."""
        ours: list[Tensor] = [*self.net.parameters()]
        theirs: list[Tensor] = [*student.net.parameters()]
        if not ours:
            self.net = copy.deepcopy(student.net).requires_grad_(False)
        else:
            torch._foreach_lerp_(ours, theirs, 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]
        return Network(self.net, student.process, student.parameterization, None)


class Distillation(Objective, ABC):
    """|| f(x_t, t) - f^-(x_s, s) ||^2, with x_s where one step of the teacher's solver from x_t ends.

    Source: Song et al. 2023 (2303.01469), algorithm 2, with lambda = 1 and the squared l2 metric.
    """

    def __init__(self, decay: float) -> None:
        self.target = Trailing(decay)

    @abstractmethod
    def times(self, process: Process, n: int, rng: torch.Generator) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """n pairs of t and s < t."""

    @abstractmethod
    def solve(
        self,
        teacher: Denoiser,
        x_t: Float[Tensor, "b *s"],
        t: Float[Tensor, "b"],
        s: Float[Tensor, "b"],
        labels: Labels,
    ) -> Float[Tensor, "b *s"]:
        """One step of the teacher's flow from t to s."""

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        t, s = self.times(student.process, len(x0), rng)
        x_t = student.process.diffuse(x0, torch.randn(x0.shape, generator=rng, device=rng.device), t)
        with torch.no_grad():
            end = consistency(self.target(student), self.solve(teacher, x_t, t, s, labels), s, labels)
        count("pairs_matched", len(x0))
        return (consistency(student, x_t, t, labels) - end).square().flatten(1).mean(1)


class Tuning(Objective, ABC):
    """|| f(x_t, t) - sg f(x_s, s) || / (rho_t - rho_s), both from one image and one noise: no teacher.

    On average over the images that x_t may come from, x_s is where one Euler step of the flow from x_t ends.
    Source: Song et al. 2023 (2303.01469), theorem 2; norm and weight of Song and Dhariwal 2024 (2310.14189), table 1.
    """

    c: float
    """The smoothing of the norm, in units of sqrt(d) for d values a sample."""

    @abstractmethod
    def times(self, process: Process, n: int, rng: torch.Generator) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """The next n pairs of t and s < t."""

    def noise(self, x0: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]:
        """The noise that meets each image."""
        return torch.randn(x0.shape, generator=rng, device=rng.device)

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        process, eps = student.process, self.noise(x0, rng)
        t, s = self.times(process, len(x0), rng)
        with torch.no_grad():
            end = consistency(student, process.diffuse(x0, eps, s), s, labels)
        count("pairs_matched", len(x0))
        difference = consistency(student, process.diffuse(x0, eps, t), t, labels) - end
        distance = pseudo_huber(difference, self.c * x0[0].numel() ** 0.5)
        return distance / (ratio(process, t) - ratio(process, s)).to(distance)


class Distil(Phase, ABC):
    """Trains the network on as the student of an objective, its own teacher being the network as it was."""

    fraction: float
    rate: ClassVar[float] = 1.0
    """Of the base training's learning rate."""

    @abstractmethod
    def objective(self, iterations: int) -> Objective:
        """What a training of so many iterations minimises."""

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        x0 = encode(model, data.images.to(next(model.net.parameters()).device))
        labels, fit = data.labels.to(x0.device), recipe.fit.scaled(self.fraction)
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
