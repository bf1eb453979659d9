"""Halves the number of steps again and again: a student learns to do in one step what its teacher does in two.

Two DDIM steps of the teacher end at a point that some single step would also reach; the clean estimate of that step is
the student's target. Each halving starts from the teacher's weights, so it is a short training.

Source: Salimans and Ho 2022 "Progressive Distillation for Fast Sampling of Diffusion Models" (2202.00512), algorithm 2;
truncated SNR weight max(SNR, 1), section 4. Predicts v, since a noise prediction cannot be distilled to few steps.
Limits: bound to its grid and step count, and to DDIM steps. The learning rate is constant with weight averaging, where
the paper anneals it. A guided teacher needs the distillation of Meng et al. 2023, which this is not.
Cost: `fraction` of the base training at every halving.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.learning import optimise
from methods.core.models import Model, encode, network
from methods.core.objective import Objective, Weight
from methods.core.process import like
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import Grid, UniformAngle, transfer
from methods.inference.ode_solver.ddim import DDIM
from methods.training.objective.v_prediction import Velocity


@dataclass(frozen=True)
class TruncatedSNR(Weight):
    """w = max(SNR, 1)."""

    def __call__(self, lam: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return torch.exp(2 * lam).clamp(min=1)


@dataclass(frozen=True)
class TwoStepsInOne(Objective):
    """|| F - F~ ||^2 weighted on x_0, with F~ the target of the one step that ends where two of the teacher's do."""

    times: Float[Tensor, "n"]
    """The student's grid interleaved with the midpoints, 2 N + 1 decreasing times."""

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        process, parameterization = student.process, student.parameterization
        start = 2 * torch.randint(len(self.times) // 2, (len(x0),), generator=rng, device=rng.device).cpu()
        t, middle, end = self.times[start], self.times[start + 1], self.times[start + 2]
        x_t = process.diffuse(x0, torch.randn(x0.shape, generator=rng, device=rng.device), t)
        with torch.no_grad():
            x_middle = transfer(process, x_t, teacher(x_t, t, labels), t, middle)
            x_end = transfer(process, x_middle, teacher(x_middle, middle, labels), middle, end)
            ratio = process.sigma(end) / process.sigma(t)
            clean = (x_end - like(ratio, x_t) * x_t) / like(process.alpha(end) - ratio * process.alpha(t), x_t)
            eps = (x_t - like(process.alpha(t), x_t) * clean) / like(process.sigma(t), x_t)
            target = parameterization.target(process, clean, eps, t)
        error = (student.predict(x_t, t, labels) - target).square().flatten(1).mean(1)
        return TruncatedSNR().on_target(process.lam(t), parameterization.gain(process, t)).to(error) * error


@dataclass(frozen=True)
class Halving(Phase):
    """From a teacher of `start_steps` steps down to a student of the recipe's."""

    start_steps: int
    fraction: float

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        (x0, labels), seen = encode(model, data), 0
        halvings = (self.start_steps // recipe.steps).bit_length() - 1
        assert isinstance(recipe.grid, Grid), "a grid is fitted after the phases"
        assert halvings > 0 and recipe.steps << halvings == self.start_steps, (
            f"{self.start_steps} steps cannot be halved to {recipe.steps}"
        )
        fit = recipe.fit.scaled(self.fraction)
        for steps in (recipe.steps << i for i in reversed(range(halvings))):
            objective = TwoStepsInOne(recipe.grid(recipe.process, 2 * steps))
            teacher = network(recipe, model)
            teacher.bounds = None  # algorithm 2 clips nothing
            model.net = copy.deepcopy(model.net).requires_grad_(True)
            student = network(recipe, model)
            model.net = optimise(student, teacher, objective, x0, labels, fit, seed, report, f"{steps}-step student")
            seen += fit.iterations * fit.batch
            count("halvings")
        return seen


def progressive_distillation(steps: int = 4, start_steps: int = 64, fraction: float = 0.15) -> Method:
    """Distil to `steps` steps from `start_steps`, each halving trained for `fraction` of the base training."""
    return edit(
        needs={"guidance": Unguided},
        parameterization=Velocity(),
        phases=Halving(start_steps, fraction),
        sampler=DDIM(),
        grid=UniformAngle(),
        steps=steps,
    )
