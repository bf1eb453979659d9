"""Leaves a transformer after fewer of its blocks the noisier the image is, and fine-tunes it to be left there.

Near pure noise the score is simple, and a part of the network says it as well as all of it. How many blocks run is a
fixed, falling function of the noise level; a short fine-tuning with the same exits lets one head read all of them.

Source: Moon et al. 2024 "A Simple Early Exiting Framework for Accelerated Sampling in Diffusion Models" (2408.05927),
adaptive score estimation: the schedule of five stages in `DiT/drop_scheduler.py` of the official code (28 blocks near
the data, 12 of 28 near noise), and its fine-tuning at a tenth of the learning rate with averaged weights.
Limits: the loss is not weighted anew over levels, as in the code that is public, whose command freezes what embeds the
time; here all is tuned. A batch of several levels runs the blocks of the row that needs most, and each row keeps what
its own left. Stages are even in the angle u in which networks are told the noise level; one that is told it in another
unit, as average velocities are, never exits.
Cost: the fine-tuning, `fraction` of the base training.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.learning import optimise
from methods.core.models import Model, encode, network
from methods.core.recipe import Method, NetConfig, Recipe, edit
from methods.nets.dit import DiT, DiTConfig

STAGES = 5
SLOWER = 0.1


def blocks_at(u: Float[Tensor, "b"], depth: int, shortest: float) -> Int[Tensor, "b"]:
    """How many of `depth` blocks run: all of them in the first fifth of levels, `shortest` of them in the last."""
    stage = (u * STAGES).floor().clamp(0, STAGES - 1)
    return (depth * (1 - (1 - shortest) * stage / (STAGES - 1))).round().clamp(min=1).long()


class ExitingDiT(DiT):
    """A DiT that, once its `exits` are open, hands each row to its head after the blocks of its noise level."""

    exits: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, config: "ExitingDiTConfig") -> None:
        super().__init__(shape, classes, DiTConfig(config.patch, config.width, config.depth, config.heads))
        self.shortest = config.shortest
        self.register_buffer("exits", torch.tensor(False))

    def through(self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b d"], u: Float[Tensor, "b *k"]
                ) -> Float[Tensor, "b n c"]:  # fmt: skip
        if not self.exits:
            return super().through(h, condition, u)
        depth = blocks_at(u if u.ndim == 1 else u[:, 0], len(self.blocks), self.shortest)
        for i, block in enumerate(self.blocks):
            inside = depth > i
            if not inside.any():
                count("blocks_left_out", len(h))
            elif inside.all():
                h = block(h, condition)
            else:
                h = torch.where(inside[:, None, None], block(h, condition), h)
        return h


@dataclass(frozen=True)
class ExitingDiTConfig(NetConfig):
    """As a DiT; `shortest` is the share of the blocks that run in the noisiest fifth of levels."""

    patch: int
    width: int
    depth: int
    heads: int
    shortest: float

    def build(self, shape: tuple[int, ...], classes: int) -> ExitingDiT:
        channels, height, width = shape
        return ExitingDiT((channels, height, width), classes, self)


@dataclass(frozen=True)
class OpenExits(Phase):
    """Opens the exits of the trained network, and trains on for `fraction` of the base training."""

    fraction: float
    heeds: ClassVar[tuple[str, ...]] = ()

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        for part in model.net.modules():
            if isinstance(part, ExitingDiT):
                part.exits.fill_(True)
        (x0, labels), fit = encode(model, data), recipe.fit.scaled(self.fraction)
        fit = replace(fit, learning_rate=SLOWER * fit.learning_rate)
        model.net.requires_grad_(True)
        student = network(recipe, model)
        model.net = optimise(student, student, recipe.objective, x0, labels, fit, seed, report, "early exits")
        return fit.iterations * fit.batch


def timestep_early_exit(
    shortest: float = 0.43, fraction: float = 0.2, patch: int = 2, width: int = 64, depth: int = 8, heads: int = 4
) -> Method:
    """Run `shortest` of `depth` blocks at most noise, all at least; fine-tune for `fraction` of the base training."""
    return edit(net=ExitingDiTConfig(patch, width, depth, heads, shortest), phases=OpenExits(fraction))
