"""Teaches a trained network a preference from pairs of its own samples, without a model of the reward.

Of two samples with the same label one is preferred. The network learns to be better at denoising that one than it was,
and worse at the other, as far as the logistic loss still gains; a frozen copy says what it was.

Source: Wallace et al. 2023 "Diffusion Model Alignment Using Direct Preference Optimization" (2311.12908), eq. 14, with
T omega(lambda) in beta: -log sigmoid(-beta / 2 [(L^w - L^w_ref) - (L^l - L^l_ref)]), L the mean squared error of eps
and the same time and noise for both of a pair, as `train.py` of the official code.
Limits: a script prefers, not people: the sample with more ink. Pairs are drawn from the model itself, once. The moving
average of the weights ships, as of every training here.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.learning import optimise
from methods.core.models import Model
from methods.core.objective import Coupling, Objective, TimeDensity
from methods.core.process import like
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import UniformAngle
from methods.inference._distillation import PAIRED, affordable, teacher_and_student, teacher_pairs
from methods.inference.ode_solver.ddim import DDIM


@dataclass(frozen=True)
class DirectPreference(Objective):
    """The logistic loss on rows that are pairs: what is preferred, and what is not."""

    times: TimeDensity
    coupling: Coupling
    beta: float

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b 2 *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        assert isinstance(teacher, Network)
        t = self.times(student.process, len(x0), rng)
        eps = self.coupling(x0[:, 0], rng)
        gained = torch.zeros_like(t, dtype=x0.dtype)
        for sign, clean in zip((1, -1), x0.unbind(1), strict=True):
            error = noise_error(student, clean, eps, t, labels)
            with torch.no_grad():
                before = noise_error(teacher, clean, eps, t, labels)
            gained = gained + sign * (error - before)
        count("preferences_compared", len(x0))
        return -logsigmoid(-self.beta / 2 * gained)


def noise_error(
    network: Network, x0: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"], t: Float[Tensor, "b"], labels: Labels
) -> Float[Tensor, "b"]:
    """The mean squared error of eps, whatever the network predicts."""
    process, parameterization = network.process, network.parameterization
    prediction = network.predict(process.diffuse(x0, eps, t), t, labels)
    error = (prediction - parameterization.target(process, x0, eps, t)).square().flatten(1).mean(1)
    weight = (torch.exp(process.lam(t)) * parameterization.gain(process, t)).square()
    return like(weight, error) * error


def by_preference(
    images: Float[Tensor, "n c h w"], labels: Int[Tensor, "n"]
) -> tuple[Int[Tensor, "m 2"], Int[Tensor, "m"]]:
    """Rows of pairs with the same label, the one with more ink first, and their labels."""
    order = labels.argsort(stable=True)
    pairs = order[: len(order) // 2 * 2].view(-1, 2)
    pairs = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
    ink = images.flatten(1).mean(1)[pairs]
    return pairs.gather(1, ink.sort(dim=1, descending=True, stable=True).indices), labels[pairs[:, 0]]


@dataclass(frozen=True)
class Prefer(Phase):
    """Draw samples of what base training was shown, pair them, and learn from the pairs."""

    beta: float
    rate: float
    fraction: float
    steps: int
    heeds: ClassVar[tuple[str, ...]] = ()

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        shown, budget = data.shown, PAIRED * self.fraction
        evenly = replace(recipe, grid=UniformAngle())
        drawn, known, drawing = teacher_pairs(evenly, model, shown, DDIM(), self.steps, budget, seed)
        ends = drawn[:, 1]
        rows, labels = by_preference(model.codec.decode(ends, known), known)
        fit, training = affordable(recipe, (1 - PAIRED) * self.fraction, updates=2, evaluations=2)
        fit = replace(fit, learning_rate=self.rate)
        reference, student = teacher_and_student(recipe, model)
        objective = DirectPreference(recipe.times, recipe.coupling, self.beta)
        model.net = optimise(student, reference, objective, ends[rows], labels, fit, seed, report, "preference")
        return drawing + training


def diffusion_dpo(beta: float = 5000.0, rate: float = 1e-5, fraction: float = 0.25, steps: int = 20) -> Method:
    """Learn at `rate` with strength `beta` from pairs drawn in `steps`; all costs `fraction` of base training."""
    return edit(phases=Prefer(beta, rate, fraction, steps))
