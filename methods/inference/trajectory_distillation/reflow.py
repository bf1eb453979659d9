"""Straightens the paths of a flow: a flow is trained again on the lines between noise and where the first flow took it.

Lines from independent noise to data cross, and where they cross the velocity is a mean, which bends the paths. The
pairs of a deterministic flow do not cross, so the lines between them bend less, and a straight path takes one step.

Source: Liu, Gong, Liu 2023 "Flow Straight and Fast" (2209.03003), algorithm 1 and eq. 1 (the loss on a coupling); the
loss also as in the official code, losses.py of ImageGeneration.
Limits: one reflow (a 2-rectified flow), and no final distillation to one step. The pairs come from Euler steps on a
fixed grid, the paper's from an adaptive solver.
Cost: `fraction` of the base training, a third of it for the pairs.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.learning import optimise
from methods.core.models import Model, TrainingSet
from methods.core.objective import Coupling, Denoising, Objective, Regression
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import UniformAngle
from methods.core.start import FromNoise
from methods.inference._distillation import PAIRED, affordable, teacher_and_student, teacher_pairs
from methods.inference.ode_solver.ddim import DDIM
from methods.training.flow.flow_matching import StraightPath


@dataclass(frozen=True)
class Given(Coupling):
    """The noise that belongs to the images."""

    noise: Float[Tensor, "b *s"]

    def __call__(self, x0: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]:
        return self.noise


@dataclass(frozen=True)
class Rectify(Objective):
    """The recipe's own regression, on the coupling of the flow; the rows of x0 are pairs of noise and end point."""

    regression: Denoising

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        noise, end = x0.unbind(1)
        count("pairs_shown", len(end))
        return replace(self.regression, coupling=Given(noise))(student, teacher, end, labels, rng)


@dataclass(frozen=True)
class Reflow(Phase):
    """Draw pairs from the model in `teacher_steps` steps, then train on the lines between them."""

    teacher_steps: int
    fraction: float

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pairs, labels, drawing = teacher_pairs(
            recipe, model, data, DDIM(), self.teacher_steps, PAIRED * self.fraction, seed
        )
        fit, training = affordable(recipe, (1 - PAIRED) * self.fraction, updates=1)
        teacher, student = teacher_and_student(recipe, model)
        objective = Rectify(Regression().objective(recipe))
        model.net = optimise(student, teacher, objective, pairs, labels, fit, seed, report, "straightened flow")
        return drawing + training


def reflow(steps: int = 2, teacher_steps: int = 20, fraction: float = 0.5) -> Method:
    """Straighten the flow for `fraction` of the base training, and follow it in `steps` steps of Euler."""
    return edit(
        needs={"process": StraightPath, "guidance": Unguided, "start": FromNoise},
        phases=Reflow(teacher_steps, fraction),
        sampler=DDIM(),
        grid=UniformAngle(),
        steps=steps,
    )
