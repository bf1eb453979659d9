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

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.learning import optimise
from methods.core.models import Model, TrainingSet
from methods.core.objective import Objective
from methods.core.process import like
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import UniformAngle
from methods.core.start import FromNoise
from methods.inference._distillation import PAIRED, affordable, grid_of, teacher_and_student, teacher_pairs
from methods.inference.ode_solver.ddim import DDIM


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


@dataclass(frozen=True)
class OneStep(Phase):
    """Draw pairs from the model in `teacher_steps` steps, then train on them."""

    teacher_steps: int
    fraction: float

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pairs, labels, drawing = teacher_pairs(
            recipe, model, data, DDIM(), self.teacher_steps, PAIRED * self.fraction, seed
        )
        fit, training = affordable(recipe, (1 - PAIRED) * self.fraction, updates=1)
        teacher, student = teacher_and_student(recipe, model)
        objective = EndPoint(grid_of(recipe, 1)[0])
        model.net = optimise(student, teacher, objective, pairs, labels, fit, seed, report, "one-step student")
        return drawing + training


def kd_denoising_student(teacher_steps: int = 20, fraction: float = 0.5) -> Method:
    """A one-step student of the DDIM sampler in `teacher_steps` steps, for `fraction` of the base training."""
    return edit(
        needs={"guidance": Unguided, "start": FromNoise},
        phases=OneStep(teacher_steps, fraction),
        sampler=DDIM(),
        grid=UniformAngle(),
        steps=1,
    )
