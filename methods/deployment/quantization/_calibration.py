"""What quantizers are fitted to: what a network is asked, and answers, while it samples."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.data import TrainingSet
from methods.core.denoiser import Network
from methods.core.models import Model
from methods.core.recipe import Recipe
from methods.core.sampling import Grid, SampleNoise, Sampler, UniformAngle
from methods.deployment.quantization._inputs import Rounding
from methods.inference.ode_solver.ddim import DDIM


class Asked(NamedTuple):
    """What a network was asked, row by row, and what it answered."""

    x: Float[Tensor, "n *s"]
    u: Float[Tensor, "n *k"]
    labels: Int[Tensor, "n"]
    answer: Float[Tensor, "n *s"]

    def rows(self, which: Tensor) -> "Asked":
        """Some of the rows."""
        return Asked(*(part[which] for part in self))

    @property
    def level(self) -> Float[Tensor, "n"]:
        """The noise levels."""
        return self.u if self.u.ndim == 1 else self.u[:, 0]


class Listening(Network):
    """A network that keeps what it is asked."""

    def evaluate(self, x: Float[Tensor, "b *s"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Tensor:
        answer = super().evaluate(x, u, labels)
        self.heard = [*getattr(self, "heard", []), Asked(x, u, labels, answer)]
        return answer


@torch.no_grad()
def asked_while_sampling(recipe: Recipe, net: nn.Module, model: Model, data: TrainingSet, seed: int) -> Asked:
    """What a network is asked in two batches of samples, with noise and labels of their own.

    A grid or a sampler that is fitted later is stood in for by even angles and DDIM.
    """
    n, rng = 2 * recipe.fit.batch, torch.Generator().manual_seed(seed)
    device = next(net.parameters()).device
    noise = SampleNoise(torch.randint(2**62, (n,), generator=rng).tolist(), device)
    labels = data.labels[torch.randint(len(data.labels), (n,), generator=rng)].to(device)
    grid = recipe.grid if isinstance(recipe.grid, Grid) else UniformAngle()
    sampler = recipe.sampler if isinstance(recipe.sampler, Sampler) else DDIM()
    listening = Listening(net, recipe.process, recipe.parameterization, model.codec.bounds)
    x, times = model.starter(recipe.process, grid(recipe.process, recipe.steps), model.shape, labels, noise)
    sampler(recipe.guidance(listening), x, times, labels, noise)
    return Asked(*(torch.cat(parts) for parts in zip(*listening.heard, strict=True)))


def near(pool: Asked, levels: Float[Tensor, "n"], rng: torch.Generator) -> Asked:
    """For each noise level a random row among those that are nearest to it."""
    known, counts = pool.level.cpu().unique(return_counts=True)
    nearest_to = (levels[:, None] - known).abs().argmin(1)
    first = counts.cumsum(0) - counts
    within = (torch.rand(len(levels), generator=rng) * counts[nearest_to]).long()
    return pool.rows(pool.level.argsort(stable=True)[(first[nearest_to] + within).to(pool.x.device)])


@torch.no_grad()
def calibrate(network: nn.Module, asked: Asked) -> None:
    """Set the ranges of all inputs to what these rows make of them, from the first layer to the last."""
    parts = [part for part in network.modules() if isinstance(part, Rounding)]
    for part in parts:
        part.fitting = True
    network(asked.x, asked.u, asked.labels)
    for part in parts:
        part.fitting = False
    count("rows_calibrated", len(asked.x))


@torch.no_grad()
def heard_by(network: nn.Module, paths: list[str], asked: Asked) -> dict[str, tuple[tuple[Tensor, ...], Tensor]]:
    """What parts of a network are given and what they answer while it is asked these rows."""
    heard: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda part, given, answer: heard.update({path: (given, answer)})

    hooks = [network.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    network(asked.x, asked.u, asked.labels)
    for hook in hooks:
        hook.remove()
    return heard
