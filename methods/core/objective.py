"""What training minimises: which times are drawn, how errors are weighted, which noise meets which image.

Source: the common form of Kingma and Gao 2023 "Understanding Diffusion Objectives" (2303.00848): every published loss
is a weight on the error of x_0 together with a density over noise levels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.denoiser import NULL, Denoiser, Labels, Network
from methods.core.process import Process

if TYPE_CHECKING:
    from methods.core.recipe import Recipe


class Objective(ABC):
    """(student, teacher, x0, labels, rng) -> one loss per sample. The teacher is the student as the phase began."""

    @abstractmethod
    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]: ...


class TimeDensity(ABC):
    """Which noise levels training looks at. It is given the process because densities are written in lam."""

    @abstractmethod
    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        """Draw n times in (0, 1), in float64."""


@dataclass(frozen=True)
class UniformTimes(TimeDensity):
    """t uniform in [low, 1]; low = 1/1000 is the first step of the usual chain of 1,000."""

    low: float = 1e-3

    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        return self.low + (1 - self.low) * torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device)


@dataclass(frozen=True)
class NormalLam(TimeDensity):
    """lam normal: log-normal noise-to-signal ratios (EDM), and logit-normal times of the rectified flow (SD3)."""

    mean: float
    std: float

    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        count("times_drawn", n)
        lam = self.mean + self.std * torch.randn(n, generator=rng, dtype=torch.float64, device=rng.device)
        return process.time(lam.clamp(min=process.lam_start))


class Weight(ABC):
    """w(lam), the weight on the squared error of x_0: written once, it holds for every parameterization."""

    @abstractmethod
    def __call__(self, lam: Float[Tensor, "b"]) -> Float[Tensor, "b"]: ...

    def on_target(self, lam: Float[Tensor, "b"], gain: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The same weight on the squared error of F, where it is well conditioned: an error of F is `gain` on x_0."""
        return self(lam) * gain**2


@dataclass(frozen=True)
class UnitOnTarget(Weight):
    """Weight 1 on whatever the network predicts: the "simple" loss. Source: Ho et al. 2020 (2006.11239), eq. 14."""

    def __call__(self, lam: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        raise AssertionError("its weight on x_0 depends on the parameterization: use on_target")

    def on_target(self, lam: Float[Tensor, "b"], gain: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return torch.ones_like(lam)


class Coupling(ABC):
    """Which noise meets which image of the batch."""

    @abstractmethod
    def __call__(self, x0: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]: ...


@dataclass(frozen=True)
class Independent(Coupling):
    """Fresh standard normal noise for every image."""

    def __call__(self, x0: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]:
        return torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)


@dataclass(frozen=True)
class Denoising(Objective):
    """E_t w ||F - F_theta(x_t, t)||^2, averaged over pixels, with labels dropped at the given rate."""

    times: TimeDensity
    weight: Weight
    coupling: Coupling
    label_dropout: float = 0.0

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        process, parameterization = student.process, student.parameterization
        eps = self.coupling(x0, rng)
        t = self.times(process, len(x0), rng)
        if labels is not None and self.label_dropout > 0:
            dropped = torch.rand(len(x0), generator=rng, device=rng.device) < self.label_dropout
            labels = torch.where(dropped.to(labels.device), NULL, labels)
        prediction = student.predict(process.diffuse(x0, eps, t), t, labels)
        error = (prediction - parameterization.target(process, x0, eps, t)).square().flatten(1).mean(1)
        weight = self.weight.on_target(process.lam(t), parameterization.gain(process, t))
        return weight.to(error) * error


class Loss(ABC):
    """What base training minimises; its objective is made from the other choices of the recipe."""

    def network(self, net: nn.Module) -> nn.Module:
        """The fresh network as this loss needs it: one that is told more than the noise level has more parameters."""
        return net

    @abstractmethod
    def objective(self, recipe: "Recipe") -> Objective: ...


@dataclass(frozen=True)
class Regression(Loss):
    """The denoising loss, with the recipe's times, weight, coupling and label dropout."""

    def objective(self, recipe: "Recipe") -> Denoising:
        return Denoising(recipe.times, recipe.weight, recipe.coupling, recipe.label_dropout)
