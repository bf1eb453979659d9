"""Trains the average velocity between two times of a trajectory, so that one evaluation leads from noise to data.

Differentiating (t - r) u = integral of v by t gives u = v - (t - r) du/dt: the average velocity is the regression of a
target that needs no integral, only the derivative of the network along the trajectory, which one forward pass gives.

Source: Geng, Deng, Bai, Kolter, He 2025 "Mean Flows for One-step Generative Modeling" (2505.13447), the identity, the
distribution of (r, t), the told (t, t - r) and the adaptive weight with p = 1 and c = 0.01, as in the official code for
ImageNet; that for CIFAR-10 has other times, more pairs apart and p = 0.75.
Limits: without guidance in the target, which the paper's best numbers have. One process only: no forward-mode
derivative passes through the gathering of rows of several.
Cost: none beyond base training, each update of which differentiates forwards and backwards.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.objective import Coupling, Loss, NormalLam, Objective, TimeDensity, UnitOnTarget
from methods.core.process import Process, like
from methods.core.recipe import Method, Recipe, edit
from methods.inference.few_step_training._shared import AverageVelocity, Jumps, average_velocity
from methods.training.flow.flow_matching import StraightPath

C = 0.01
"""Keeps the adaptive weight finite."""


def both_sides(
    network: Network, x_t: Float[Tensor, "b *s"], t: Float[Tensor, "b"], r: Float[Tensor, "b"],
    velocity: Float[Tensor, "b *s"], labels: Labels,
) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "b *s"]]:  # fmt: skip
    """u, and v - (t - r) du/dt without a gradient, du/dt being taken along (v, 0, 1) in (x_t, r, t)."""

    def u(x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return average_velocity(network, x_t, t, r, labels)

    t, r = t.to(x_t), r.to(x_t)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
        average, slope, *_ = torch.func.jvp(u, (x_t, t, r), (velocity, torch.ones_like(t), torch.zeros_like(r)))
    return average, (velocity - like(t - r, x_t) * slope).detach()


@dataclass(frozen=True)
class MeanFlowIdentity(Objective):
    """|| u - sg(v - (t - r) du/dt) ||^2 / sg(|| . ||^2 + C), with r < t for the share `apart`, r = t for the rest."""

    times: TimeDensity
    coupling: Coupling
    apart: float

    def pairs(self, process: Process, n: int, rng: torch.Generator) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """The later and the earlier of two draws."""
        one, other = self.times(process, n, rng), self.times(process, n, rng)
        apart = torch.arange(n, device=one.device) < round(self.apart * n)
        count("pairs_apart", int(apart.sum()))
        t = torch.maximum(one, other)
        return t, torch.where(apart, torch.minimum(one, other), t)

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        eps = self.coupling(x0, rng)
        t, r = self.pairs(student.process, len(x0), rng)
        u, target = both_sides(student, student.process.diffuse(x0, eps, t), t, r, eps - x0, labels)
        error = (u - target).square().flatten(1).sum(1)
        return error / (error.detach() + C)


@dataclass(frozen=True)
class MeanFlow(Loss):
    """The identity at the recipe's times and coupling."""

    apart: float

    def objective(self, recipe: Recipe) -> MeanFlowIdentity:
        return MeanFlowIdentity(recipe.times, recipe.coupling, self.apart)


def meanflow(steps: int = 1, mean: float = -0.4, std: float = 1.0, apart: float = 0.25) -> Method:
    """Draw logit(t), logit(r) ~ N(mean, std^2), different for the share `apart`; sample in `steps` jumps."""
    return edit(
        needs={"guidance": Unguided, "weight": UnitOnTarget},
        process=StraightPath(),
        parameterization=AverageVelocity(),
        times=NormalLam(-mean, std),
        loss=MeanFlow(apart),
        sampler=Jumps(),
        steps=steps,
    )
