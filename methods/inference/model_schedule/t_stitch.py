"""Lets a small network take the first, noisiest steps, and the large one the rest.

Networks that were taught the same data agree at high noise, where only the coarse image is settled; so an early step of
the small one leads to nearly the same place for a fraction of the cost. The share of early steps is the only choice.

Source: Pan et al. 2024 "T-Stitch" (2402.14167), as in the official code for DiT: small and large network on the same
grid of steps, switched once.
Limits: the switch is a noise level, that of the chosen share of the baseline's grid; on other grids the small network
takes a different share of the steps. The small network is trained from scratch, as the large one was.
Cost: the small network's training, `fraction` of the base training's updates, each several times cheaper.
"""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.errors import NothingMatched
from methods.core.learning import optimise
from methods.core.models import Model, encode, network
from methods.core.objective import Regression
from methods.core.recipe import Method, Recipe, edit
from methods.core.surgery import Stage
from methods.nets.dit import DiT, DiTConfig, SelfAttention
from methods.nets.embedding import Conditioning
from methods.nets.unet import GROUPS, Level, UNet, UNetConfig


def smaller(net: nn.Module, seed: int) -> nn.Module:
    """A fresh network of the same family, about ten times cheaper where its sizes allow it.

    A DiT of half the width and depth; a U-Net of as many levels, all of half the width of the outermost.
    """
    match net:
        case DiT():
            attention, width = net.get_submodule("blocks.0.attention"), net.tokens.out_channels
            assert isinstance(attention, SelfAttention)
            heads = attention.heads
            unit = math.lcm(4, heads)  # positions want a multiple of four
            config = DiTConfig(net.patch, max(unit, width // 2 // unit * unit), max(1, len(net.blocks) // 2), heads)
            shape = net.tokens.in_channels, net.patch * net.grid[0], net.patch * net.grid[1]
        case UNet():
            levels = sum(isinstance(part, Level) for part in net.modules())
            config = UNetConfig(max(GROUPS, net.stem.out_channels // 2 // GROUPS * GROUPS), (1,) * levels)
            shape = net.stem.in_channels, 1, 1
        case _:
            raise NothingMatched(f"There is no smaller network of the kind of a {type(net).__name__}")
    if not isinstance(net.conditioning, Conditioning):
        raise NothingMatched("There is no smaller network of one that is told more than a noise level and a class")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(shape, net.conditioning.label.num_embeddings - 1).to(next(net.parameters()).device)


class Stitched(nn.Module):
    """Answers with the small network above a noise level, and with the large one at and below it."""

    def __init__(self, large: nn.Module, small: nn.Module, switch: float) -> None:
        super().__init__()
        self.large, self.small, self.switch = large, small, switch

    def forward(self, x: Float[Tensor, "b *s"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Tensor:
        early = (u if u.ndim == 1 else u[:, 0]) > self.switch
        count("small_calls", int(early.sum()))
        if early.all():
            return self.small(x, u, labels)
        out = self.large(x[~early], u[~early], labels[~early])
        if early.any():
            merged = out.new_empty(x.shape)
            merged[~early], merged[early] = out, self.small(x[early], u[early], labels[early])
            return merged
        return out


@dataclass(frozen=True)
class TStitch(Calibrated):
    """Puts a small network beside the large one, and trains it."""

    share: float
    fraction: float
    stage: ClassVar[Stage] = Stage.STRUCTURE
    does: ClassVar[str | None] = "put a network beside the trained one"

    def __call__(self, module: nn.Module) -> nn.Module:
        return Stitched(copy.deepcopy(module), smaller(module, 0), 1 - self.share)

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        """Train the small network as the large one was."""
        net, fit = model.net, recipe.fit.scaled(self.fraction)
        assert isinstance(net, Stitched)
        x0, labels = encode(model, data)
        student = network(recipe, model)
        student.net = smaller(net.large, seed)
        net.small = optimise(student, student, recipe.objective, x0, labels, fit, seed, report, "small network")
        return fit.iterations * fit.batch


def t_stitch(share: float = 0.4, fraction: float = 1.0) -> Method:
    """Leave the first `share` of the steps to a small network, trained for `fraction` of the base training."""
    return edit(transforms=TStitch(share, fraction), needs={"net": (UNetConfig, DiTConfig), "loss": Regression})
