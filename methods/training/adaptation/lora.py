"""Teaches a trained network new classes through matrices of low rank beside its frozen weights.

What a network must change to learn something related has few directions. So its weights W stay as they are, and only a
product B A of rank r learns beside each of them; B begins at zero, so that nothing has changed before the first update.
Afterwards B A is added to W, and sampling costs what it did.

Source: Hu et al. 2021 "LoRA: Low-Rank Adaptation of Large Language Models" (2106.09685), section 4.1: h = W x +
(alpha / r) B A x, A Gaussian, B zero; merged as W + (alpha / r) B A. A convolution's weight is the matrix of its output
channels by everything else, as LoCon has it (`docs/Algo-Details.md` of LyCORIS).
Limits: every linear layer and convolution is adapted; the embedding of the labels, norms and biases are not. The moving
average of A and B ships, as of every training here. A layer smaller than the rank has matrices of its own rank.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.core.activation import count
from methods.core.average import Exponential
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.learning import optimise
from methods.core.models import Model, encode, network
from methods.core.recipe import Method, Recipe, edit
from methods.training.cost_reduction.ema_weights import Decaying

ADAPTED = (nn.Linear, nn.Conv2d)


class LowRank(nn.Module):
    """W + (alpha / r) B A, for a weight of any shape seen as a matrix of its first axis by the others."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.scale, rank = alpha / rank, min(rank, rows, columns)
        self.a = nn.Parameter(torch.randn(rank, columns, generator=rng, device=rng.device) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank, device=rng.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a).view_as(weight)


def adapters(net: nn.Module, rank: int, alpha: float, rng: torch.Generator) -> nn.Module:
    """Freeze a network in place and set matrices of low rank beside its weights."""
    net.requires_grad_(False)
    for layer in [part for part in net.modules() if isinstance(part, ADAPTED)]:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha, rng))
    return net


@torch.no_grad()
def merged(adapted: nn.Module, plain: nn.Module) -> nn.Module:
    """The network as it was, with the products added to its weights in place."""
    for name, layer in plain.named_modules():
        if isinstance(layer, ADAPTED):
            beside = adapted.get_submodule(name)
            assert isinstance(beside, ADAPTED)
            layer.weight.copy_(beside.weight)
    return plain


@dataclass(frozen=True)
class Adapt(Phase):
    """Train on what base training was not shown, or on everything where nothing was withheld."""

    rank: int
    alpha: float
    fraction: float
    heeds: ClassVar[tuple[str, ...]] = ()
    first: ClassVar[bool] = True

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        x0, labels = encode(model, data.new if data.withheld else data)
        plain, model.net = copy.deepcopy(model.net), model.net.requires_grad_(True)
        if self.rank:
            adapters(model.net, self.rank, self.alpha, torch.Generator(x0.device).manual_seed(seed))
        count("weights_adapted", sum(weight.numel() for weight in model.net.parameters() if weight.requires_grad))
        fit = recipe.fit.scaled(self.fraction)
        student = network(recipe, model)
        trained = optimise(student, student, recipe.objective, x0, labels, fit, seed, report, "adapted network")
        model.net = merged(trained, plain) if self.rank else trained
        return fit.iterations * fit.batch


def lora(rank: int = 4, alpha: float = 4.0, fraction: float = 0.25) -> Method:
    """Adapt with matrices of `rank` scaled by `alpha` over it (rank 0: train all weights), `fraction` of the budget."""
    return edit(needs={"average": (Exponential, Decaying)}, phases=Adapt(rank, alpha, fraction))
