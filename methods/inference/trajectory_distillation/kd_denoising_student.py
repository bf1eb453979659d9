"""Teaches a student to go from noise to the image in one evaluation, by showing it where its teacher ends.

The deterministic sampler is a function of its noise, so pairs (noise, image) are ordinary training data, and a copy of
the teacher regresses one on the other. Near pure noise a clean or velocity prediction is nearly the image itself.

Source: Luhman and Luhman 2021 "Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed"
(2101.02388), eq. 11; the absolute error, the copied weights and the averaged ones as in the official CIFAR-10 code.
Limits: thousands of pairs instead of a million, no early stopping on a test loss. Meant for a network that predicts the
velocity: a noise prediction is multiplied by sigma / alpha before it is an image.
Cost: `fraction` of the base training, a third of it for the pairs.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.objective import Objective
from methods.core.process import like
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import UniformAngle
from methods.core.start import FromNoise
from methods.inference._distillation import grid_of
from methods.inference.ode_solver.ddim import DDIM
from methods.inference.trajectory_distillation._shared import FromPairs


@dataclass(frozen=True)
class EndPoint(Objective):
    """|F_student(x_T) - end point|; the rows of x0 are pairs of noise and end point."""

    first: Float[Tensor, ""]
    """The time at which the student is asked: the first of the grid."""

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        noise, end = x0.unbind(1)
        x_t = like(student.process.sigma(self.first), noise) * noise
        count("pairs_shown", len(x_t))
        return (student(x_t, self.first, labels) - end).abs().flatten(1).mean(1)


class OneStep(FromPairs):
    """A student that is asked at the first time of the grid alone."""

    makes: ClassVar[str] = "one-step student"

    def objective(self, recipe: Recipe) -> Objective:
        return EndPoint(grid_of(recipe, 1)[0])


def kd_denoising_student(teacher_steps: int = 20, fraction: float = 0.5) -> Method:
    """A one-step student of the DDIM sampler in `teacher_steps` steps, for `fraction` of the base training."""
    return edit(
        needs={"guidance": Unguided, "start": FromNoise},
        phases=OneStep(teacher_steps, fraction),
        sampler=DDIM(),
        grid=UniformAngle(),
        steps=1,
    )
