"""Straightens a flow in one round, with the times, the loss and the pairs that let one round be enough.

The first rectified flow, straight lines at uniform times, is `flow_matching` here to the letter, a plain second one
`reflow`. Paths that are nearly straight leave nothing to average in the middle; hard are the ends, where an image is
guessed from noise alone or noise from an image. So times are drawn there, and few hopeless pairs do not rule the loss.

Source: Liu, Gong, Liu 2023 "Flow Straight and Fast" (2209.03003) for the flow and its straightening; Lee, Lin, Fanti
2024 "Improving the Training of Rectified Flows" (2405.20320): density as in `t_dist.py` and pseudo-Huber loss as in
`train.py` of the official code; pairs that begin at real images, inverted.
Limits: no LPIPS, which needs a network trained on photographs. The start is the first flow, not a diffusion model. The
official code cannot train on real images. Cost: `fraction` of the base training, a third of it for the pairs.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.learning import optimise
from methods.core.models import Model, encode
from methods.core.objective import TimeDensity
from methods.core.process import Process
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import UniformAngle
from methods.core.start import FromNoise
from methods.inference._distillation import PAIRED, affordable, cost, grid_of, teacher_and_student, teacher_pairs
from methods.inference.consistency._objectives import pseudo_huber
from methods.inference.ode_solver.ddim import DDIM
from methods.inference.trajectory_distillation._shared import FromPairs
from methods.inference.trajectory_distillation.reflow import Given
from methods.training.flow.flow_matching import FlowVelocity, StraightPath
from methods.training.objective._shared import Altered

MARGIN = 1e-5


@dataclass(frozen=True)
class UShaped(TimeDensity):
    """p(t) proportional to cosh(a (t - 1/2)), by the inverse of its distribution function; uniform for a = 0."""

    a: float

    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        u = torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device)
        t = 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a if self.a else u
        return MARGIN + (1 - 2 * MARGIN) * t


class StraightPairs(Altered):
    """The velocity regression on rows that are pairs of noise and end point."""

    def __init__(self, recipe: Recipe, a: float, huber: float) -> None:
        super().__init__(recipe)
        self.times, self.huber = UShaped(a), huber

    def error(self, difference: Float[Tensor, "b *s"]) -> Float[Tensor, "b"]:
        n = difference[0].numel()
        return pseudo_huber(difference, self.huber * n) / n

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        noise, end = x0.unbind(1)
        self.coupling = Given(noise)
        count("pairs_straightened", len(end))
        return super().__call__(student, teacher, end, labels, rng)


@torch.no_grad()
def inverted(flow: Network, x: Float[Tensor, "n *s"], labels: Labels, times: Float[Tensor, "m"]) -> Tensor:
    """The noise to which Euler's steps along a flow's rising times, from 0, take clean samples x."""
    for t, s in pairwise(times):
        x = x + (s - t).to(x) * flow.predict(x, t, labels)
    count("images_inverted", len(x))
    return x / flow.process.sigma(times[-1]).to(x)


@dataclass(frozen=True)
class Straighten(FromPairs):
    """A copy of the first flow learns the lines of its pairs, a share `real` of which begins at real images."""

    a: float
    huber: float
    real: float
    makes: ClassVar[str] = "straightened flow"

    def objective(self, recipe: Recipe) -> StraightPairs:
        return StraightPairs(recipe, self.a, self.huber)

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        steps, budget = self.teacher_steps, PAIRED * self.fraction * (1 - self.real)
        pairs, labels, drawing = teacher_pairs(recipe, model, data, DDIM(), steps, budget, seed)
        fit, training = affordable(recipe, (1 - PAIRED) * self.fraction, updates=1)
        teacher, student = teacher_and_student(recipe, model)
        if n := round(len(pairs) * self.real / (1 - self.real)):
            rows = torch.randint(len(data.labels), (n,), generator=torch.Generator().manual_seed(seed))
            x0, known = encode(model, data[rows])
            noise = inverted(teacher, x0, known, grid_of(recipe, steps).flip(0))
            pairs, labels = torch.cat([pairs, torch.stack([noise, x0], dim=1)]), torch.cat([labels, known])
        model.net = optimise(student, teacher, self.objective(recipe), pairs, labels, fit, seed, report, self.makes)
        return drawing + round(n * cost(0, steps)) + training


def rectified_flow(
    steps: int = 1, ends: float = 4.0, huber: float = 0.00054, real: float = 0.0, teacher_steps: int = 20,
    fraction: float = 0.5,
) -> Method:  # fmt: skip
    """Straighten with times at the `ends` (the paper's a; 0: uniform), and follow the flow in `steps` of Euler."""
    return edit(
        needs={"process": StraightPath, "parameterization": FlowVelocity, "guidance": Unguided, "start": FromNoise},
        phases=Straighten(teacher_steps, fraction, ends, huber, real), sampler=DDIM(), grid=UniformAngle(), steps=steps,
    )  # fmt: skip
