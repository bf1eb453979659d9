"""Puts classifier-free guidance into the weights: a student told the guidance weight gives the guided estimate at once.

Guidance evaluates a network with and without its condition at every step. The combination is a function of the image,
the noise level and the weight w, so one network can learn it for a whole range of w, and each step costs half.

Source: Meng et al. 2023 "On Distillation of Guided Diffusion Models" (2210.03142), section 3.1: the loss of stage one,
w uniform up to `highest`, its Fourier embedding beside that of the noise level, a student that starts as its teacher.
Limits: stage one alone; stage two, the progressive distillation of this student to few steps, is left out. The loss has
the recipe's weight on the network's own target, where the paper weighs x_0. Only the guided estimate is clipped.
Cost: a teacher trained with dropped labels, and `fraction` of the base training.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.calibration import Calibrated, Report
from methods.core.control import Uncontrolled
from methods.core.data import TrainingSet
from methods.core.denoiser import NULL, Denoiser, Guidance, Labels, Network
from methods.core.learning import optimise
from methods.core.models import Model, encode, network
from methods.core.objective import Objective, Regression, TimeDensity, Weight
from methods.core.recipe import Method, Recipe, edit
from methods.core.surgery import Stage, rewrite_path
from methods.inference._distillation import Informed, Telling, affordable
from methods.nets.embedding import Conditioning, sinusoid


class WeightEmbedding(nn.Module):
    """Guidance weights [b, 1] -> vectors, by Fourier features of w as a share of the highest; zero to begin with."""

    def __init__(self, width: int, highest: float) -> None:
        super().__init__()
        self.width, self.highest = width, highest
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, w: Float[Tensor, "b 1"]) -> Float[Tensor, "b w"]:
        return self.linear(sinusoid(w.flatten() / self.highest, self.width))


@dataclass(frozen=True)
class MatchGuided(Objective):
    """|| F(x_t, c, w) - F_w ||^2 with F_w = F(x_t, c) + w (F(x_t, c) - F(x_t)): linear, so the same on F as on x_0."""

    times: TimeDensity
    weight: Weight
    highest: float

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        assert isinstance(teacher, Network) and labels is not None, "guidance needs labels"
        process = student.process
        t = self.times(process, len(x0), rng)
        x_t = process.diffuse(x0, torch.randn(x0.shape, generator=rng, device=rng.device), t)
        w = self.highest * torch.rand(len(x0), 1, generator=rng, device=rng.device)
        both = torch.cat([labels, torch.full_like(labels, NULL)])
        with torch.no_grad():
            given, null = teacher.predict(torch.cat([x_t, x_t]), t.repeat(2), both).chunk(2)
        target = given + w.reshape(-1, *[1] * (x0.ndim - 1)) * (given - null)
        error = (Telling(student, w).predict(x_t, t, labels) - target).square().flatten(1).mean(1)
        return self.weight.on_target(process.lam(t), student.parameterization.gain(process, t)).to(error) * error


@dataclass(frozen=True)
class LearnGuidance(Calibrated):
    """A network that is told w in [0, highest], trained for `fraction` of the base training."""

    highest: float
    fraction: float
    stage: ClassVar[Stage] = Stage.STRUCTURE

    def __call__(self, module: nn.Module) -> nn.Module:
        def informed(inner: nn.Module) -> nn.Module:
            assert isinstance(inner, Conditioning)
            weight = WeightEmbedding(inner.width, self.highest).to(next(inner.parameters()).device)
            return Informed(inner, weight, 1)

        return rewrite_path(module, "conditioning", informed)

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        fit, seen = affordable(recipe, self.fraction, updates=1, evaluations=2)
        model.net.requires_grad_(True)
        student = network(recipe, model)
        teacher = Network(before, recipe.process, recipe.parameterization, None)
        x0, labels = encode(model, data)
        objective = MatchGuided(recipe.times, recipe.weight, self.highest)
        model.net = optimise(student, teacher, objective, x0, labels, fit, seed, report, "guided student")
        return seen


@dataclass(frozen=True)
class Distilled(Guidance):
    """The network is told w = scale, and is guided already."""

    scale: float

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        assert isinstance(denoiser, Network), "the weight is told to the network itself"
        return Telling(denoiser, torch.tensor([[self.scale]]))


def guided_distillation(
    scale: float = 1.0, dropout: float = 0.1, highest: float = 4.0, fraction: float = 0.5
) -> Method:
    """Distil guidance up to weight `highest` for `fraction` of the base training, and sample with weight `scale`."""
    return edit(
        needs={"loss": Regression, "control": Uncontrolled},
        label_dropout=dropout,
        guidance=Distilled(scale),
        transforms=LearnGuidance(highest, fraction),
    )
