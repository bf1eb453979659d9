"""What the distillations share: one budget, one way to make a teacher's pairs, one way to tell a network more.

The budget is counted in images. An update on an image counts as one; an evaluation on an image counts as a third, for
it lacks the backward pass, which takes twice as long as the forward one. So a technique that asks its teacher often has
fewer updates, and all cost the same share of the base training.
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.data import TrainingSet
from methods.core.denoiser import Labels, Network
from methods.core.fit import Fit
from methods.core.models import Model, network
from methods.core.process import like
from methods.core.recipe import Recipe
from methods.core.sampling import Grid, SampleNoise, Solver

PAIRED = 1 / 3
"""The share of a budget that makes pairs, where a technique learns from pairs."""
TOGETHER = 256
"""Samples that the teacher draws at a time."""


def cost(updates: int, evaluations: int) -> float:
    """Images that so many updates and evaluations on single images count as."""
    return updates + evaluations / 3


def affordable(recipe: Recipe, fraction: float, updates: int, evaluations: int = 0) -> tuple[Fit, int]:
    """The training whose every iteration takes this much per image of its batch, and the images it counts as in all."""
    fit = recipe.fit.scaled(fraction / cost(updates, evaluations))
    return fit, round(fit.iterations * fit.batch * cost(updates, evaluations))


def teacher_and_student(recipe: Recipe, model: Model) -> tuple[Network, Network]:
    """The model's network as it was, frozen, and a copy to be trained, which is the model's from now on; unclipped."""
    teacher = network(recipe, model)
    model.net = copy.deepcopy(model.net).requires_grad_(True)
    student = network(recipe, model)
    teacher.bounds = student.bounds = None
    return teacher, student


def grid_of(recipe: Recipe, steps: int) -> Float[Tensor, "n"]:
    """The recipe's grid in another number of steps."""
    assert isinstance(recipe.grid, Grid), "a grid is fitted after the phases"
    return recipe.grid(recipe.process, steps)


@torch.no_grad()
def teacher_pairs(
    recipe: Recipe, model: Model, data: TrainingSet, solver: Solver, steps: int, fraction: float, seed: int
) -> tuple[Float[Tensor, "n 2 *s"], Int[Tensor, "n"], int]:
    """Pairs of standard normal noise and the end point that the model takes it to, their labels, the images it counts.

    As many as `fraction` of the base training pays for, at least a batch; labels are drawn as they are in the data.
    """
    device = next(model.net.parameters()).device
    rng = torch.Generator(device).manual_seed(seed)
    n = max(recipe.fit.batch, int(fraction * recipe.fit.iterations * recipe.fit.batch / cost(0, steps)))
    labels = drawn_labels(data, n, rng)
    noise = torch.randn(n, *model.shape, generator=rng, device=device)
    times = grid_of(recipe, steps)
    begun = like(recipe.process.sigma(times[0]), noise) * noise
    ends = [
        solver(network(recipe, model), x, times, known, SampleNoise([]))
        for x, known in zip(begun.split(TOGETHER), labels.split(TOGETHER), strict=True)
    ]
    count("teacher_pairs", n)
    return torch.stack([noise, torch.cat(ends)], dim=1), labels, round(n * cost(0, steps))


def drawn_labels(data: TrainingSet, n: int, rng: torch.Generator) -> Int[Tensor, "n"]:
    """Labels as often as they are in the data."""
    labels = data.labels.to(rng.device)
    return labels[torch.randint(len(labels), (n,), generator=rng, device=rng.device)]


class Informed(nn.Module):
    """A conditioning that is told k numbers more than the noise level; told the noise level alone, it takes zeros."""

    def __init__(self, inner: nn.Module, embedding: nn.Module, k: int) -> None:
        super().__init__()
        self.inner, self.embedding, self.k = inner, embedding, k

    def forward(self, u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b w"]:
        level, more = (u, u.new_zeros(len(u), self.k)) if u.ndim == 1 else u.split([1, self.k], dim=1)
        return self.inner(level.flatten(), labels) + self.embedding(more)


class Telling(Network):
    """A network that is told `more` beside the noise level, the same at every call: a row a sample, or one for all."""

    def __init__(self, inner: Network, more: Float[Tensor, "n k"]) -> None:
        super().__init__(inner.net, inner.process, inner.parameterization, inner.bounds)
        self.inner, self.more = inner, more

    def ask(self, x: Float[Tensor, "b *s"], u: Float[Tensor, "b *k"], labels: Labels) -> Float[Tensor, "b *s"]:
        count("rows_told", len(x))
        return self.inner.ask(x, torch.cat([u.reshape(len(x), -1), self.more.to(x).expand(len(x), -1)], dim=1), labels)
