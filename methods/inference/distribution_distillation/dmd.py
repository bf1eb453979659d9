"""Trains a one-step generator so that noised samples of it have the score that noised data have.

The gradient of the divergence between generated and real images, both noised, is the difference of two scores. The
teacher knows the real one; a second diffusion model, trained all along on what the generator makes, knows the other.
That alone would forget modes, so a few pairs of the teacher's noise and end point are regressed as well.

Source: Yin et al. 2024 "One-step Diffusion with Distribution Matching Distillation" (2311.18828), eq. 7 and 8;
scores written as estimates of x_0 and the weight 1 / mean |x - x_0(real)| as in the official code, edm_guidance.py.
Limits: the pairs are regressed by the squared error, since LPIPS needs a network trained on photographs; so the paper's
weight of 0.25 means something else here. No guidance. The learning rate is ours; no gradient is clipped.
Cost: `fraction` of the base training, a third of it for the pairs; an iteration updates two networks on three batches.
"""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.learning import Learner, autocast
from methods.core.models import Model
from methods.core.objective import Regression
from methods.core.process import like
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import UniformAngle
from methods.core.start import FromNoise
from methods.inference._distillation import (
    PAIRED,
    affordable,
    drawn_labels,
    grid_of,
    teacher_and_student,
    teacher_pairs,
)
from methods.inference.ode_solver.ddim import DDIM

RATE = 0.2
"""The learning rate of both networks beside the base training's."""
LOW, HIGH = 0.02, 0.98
"""Between which times the two scores are compared."""


@torch.no_grad()
def correction(
    real: Denoiser, fake: Denoiser, x: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
) -> Float[Tensor, "b *s"]:
    """The gradient of the divergence at generated samples x: sigma^2 / alpha (s_fake - s_real), weighed by sample."""
    t = LOW + (HIGH - LOW) * torch.rand(len(x), generator=rng, dtype=torch.float64, device=rng.device)
    x_t = real.process.diffuse(x, torch.randn(x.shape, generator=rng, device=rng.device), t)
    truth, own = real(x_t, t, labels), fake(x_t, t, labels)
    return (own - truth) / like((x - truth).abs().flatten(1).mean(1).clamp(min=1e-6), x)


@dataclass(frozen=True)
class MatchDistribution(Phase):
    """Update generator and fake score in turn; a batch of pairs is regressed beside every batch of fresh noise."""

    regression: float
    teacher_steps: int
    fraction: float
    heeds: ClassVar[tuple[str, ...]] = ("grid",)

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pairs, known, drawing = teacher_pairs(
            recipe, model, data, DDIM(), self.teacher_steps, PAIRED * self.fraction, seed
        )
        fit, training = affordable(recipe, (1 - PAIRED) * self.fraction, updates=3, evaluations=2)
        fit = replace(fit, learning_rate=RATE * fit.learning_rate)
        real, student = teacher_and_student(recipe, model)
        fake = Network(copy.deepcopy(student.net), recipe.process, recipe.parameterization, None)
        generator, critic = Learner(student.net, fit), Learner(fake.net, fit)
        denoising = Regression().objective(recipe)
        rng = torch.Generator(pairs.device).manual_seed(seed + 1)
        first = grid_of(recipe, 1)[0]
        sigma = float(recipe.process.sigma(first))
        for i in range(fit.iterations):
            rows = torch.randint(len(pairs), (fit.batch,), generator=rng, device=rng.device)
            noise, end = pairs[rows].unbind(1)
            fresh = torch.randn(noise.shape, generator=rng, device=rng.device)
            labels = drawn_labels(data, fit.batch, rng)
            with autocast(fit.precision):
                x, copied = student(sigma * torch.cat([fresh, noise]), first, torch.cat([labels, known[rows]])).chunk(2)
                wanted = x.detach() - correction(real, fake, x.detach(), labels, rng)
                loss = 0.5 * (x - wanted).square().mean() + self.regression * (copied - end).square().mean()
            generator.step(loss)
            with autocast(fit.precision):
                own = denoising(fake, fake, x.detach(), labels, rng).mean()
            critic.step(own)
            count("scores_compared", fit.batch)
            if (i + 1) % 50 == 0 or i + 1 == fit.iterations:
                report("generator", i + 1, fit.iterations, loss.item())
        model.net = generator.finished()
        return drawing + training


def dmd(regression: float = 1.0, teacher_steps: int = 20, fraction: float = 0.5) -> Method:
    """A one-step generator that matches the teacher's distribution; `regression` weighs the teacher's pairs."""
    return edit(
        needs={"guidance": Unguided, "start": FromNoise},
        phases=MatchDistribution(regression, teacher_steps, fraction),
        sampler=DDIM(),
        grid=UniformAngle(),
        steps=1,
    )
