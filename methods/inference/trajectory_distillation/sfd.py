"""Fine-tunes a network at just the few times it will be asked at, along one trajectory of its teacher per batch.

The gradients of a sampler's steps resemble each other, so a training on a handful of times is short. The student walks
its own path and is pulled back to the teacher's point after every step, hence learns to undo what it did wrong before.

Source: Zhou, Chen, Wang, Chen, Lyu 2024 "Simple and Fast Distillation of Diffusion Models" (2409.19681), the algorithm
of its section 3 as in the official code, loss.py and training_loop.py of sfd-main: Euler student, `substeps` teacher
steps to one of its own, absolute error, an update after every step, which starts where the one before arrived.
Limits: no analytic first step (AFS), no conditioning on the step count (SFD-v), no second stage with LPIPS. The teacher
steps by DPM-Solver++(2M) instead of (3M), and the grid goes down to clean data. The learning rate is constant with
weight averaging, where the official code divides it by ten halfway.
Cost: `fraction` of the base training, less than half of it for the updates.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Unguided
from methods.core.learning import Learner, autocast
from methods.core.models import Model
from methods.core.process import like
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import SampleNoise, UniformAngle, transfer
from methods.core.start import FromNoise
from methods.inference._distillation import affordable, drawn_labels, grid_of, teacher_and_student
from methods.inference.ode_solver.ddim import DDIM
from methods.inference.ode_solver.dpm_solver_pp_2m import DPMSolverPP2M


@torch.no_grad()
def waypoints(
    teacher: Denoiser, x: Float[Tensor, "b *s"], times: Float[Tensor, "n"], labels: Labels, substeps: int
) -> list[Float[Tensor, "b *s"]]:
    """Where the teacher is at every `substeps`-th time of its grid, the first left out."""
    solver, noise, past, points = DPMSolverPP2M(), SampleNoise([]), None, []
    for t, s in pairwise(times):
        x, past = solver.step(lambda x, t: teacher(x, t, labels), teacher.process, x, t, s, past, noise)
        points.append(x)
    return points[substeps - 1 :: substeps]


@dataclass(frozen=True)
class AlongTheTrajectory(Phase):
    """Train the student of the recipe's steps on trajectories of the model, `substeps` times as fine."""

    substeps: int
    fraction: float

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        n = recipe.steps
        fit, seen = affordable(recipe, self.fraction, updates=n, evaluations=n * self.substeps)
        teacher, student = teacher_and_student(recipe, model)
        teacher.bounds = model.codec.bounds
        learner = Learner(student.net, fit)
        device = next(student.net.parameters()).device
        rng = torch.Generator(device).manual_seed(seed)
        times = grid_of(recipe, n * self.substeps)
        for i in range(fit.iterations):
            labels = drawn_labels(data, fit.batch, rng)
            noise = torch.randn(fit.batch, *model.shape, generator=rng, device=device)
            x = like(recipe.process.sigma(times[0]), noise) * noise
            loss = 0.0
            targets = waypoints(teacher, x, times, labels, self.substeps)
            for (t, s), target in zip(pairwise(times[:: self.substeps]), targets, strict=True):
                with autocast(fit.precision):
                    moved = transfer(recipe.process, x, student(x, t, labels), t, s)
                error = (moved - target).abs().mean()
                learner.step(error)
                x, loss = moved.detach(), loss + error.item() / n
                count("steps_taught")
            if (i + 1) % 50 == 0 or i + 1 == fit.iterations:
                report(f"{n}-step student", i + 1, fit.iterations, loss)
        model.net = learner.finished()
        return seen


def sfd(steps: int = 2, substeps: int = 4, fraction: float = 0.5) -> Method:
    """A student of `steps` Euler steps, taught by `substeps` steps of the teacher for each of its own."""
    return edit(
        needs={"guidance": Unguided, "start": FromNoise},
        phases=AlongTheTrajectory(substeps, fraction),
        sampler=DDIM(),
        grid=UniformAngle(),
        steps=steps,
    )
