"""The two kinds of objective of consistency models: distillation of a teacher's flow, and tuning without one."""

import copy
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.objective import Objective
from methods.core.process import Process
from methods.inference.consistency._shared import consistency, ratio


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
