"""Takes whole blocks out of a trained U-Net, and teaches the rest to think and answer as the whole did.

Stages pass on nearly the same features however many blocks they have, so some can go. What is left starts from the
teacher's weights and is shown, beside the task, what every stage of the teacher sends on: a better guide than noise.

Source: Kim et al. 2024 "BK-SDM" (2305.15798): blocks as in BK-SDM-Small (the second residual block of every stage, and
the middle stage), L_task + L_out + L_feat with unit weights over the ends of all stages, as in the official code.
Limits: where a stage has one block each way, as here, only the middle stage can go, and all attention with it. BK-SDM-
Tiny also drops the innermost stage, which must be as wide as the one above. Later phases train removed parts in vain.
Cost: `fraction` of the base training, with an evaluation of the teacher at every update.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.learning import optimise
from methods.core.models import Model, encode, network
from methods.core.objective import Objective
from methods.core.recipe import Method, Recipe, edit
from methods.core.surgery import Stage, Transform, rewrite_type
from methods.nets.unet import Level, Middle, ResidualBlock, UNetConfig


class Through(nn.Module):
    """What is left of a removed block."""

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        return x


def without_blocks(net: nn.Module) -> nn.Module:
    """A copy of a U-Net without its middle stage, and without the second block of every stage that has one."""
    net = rewrite_type(net, Middle, lambda middle: Through())
    for level in (part for part in net.modules() if isinstance(part, Level)):
        for blocks in (level.down, level.up):
            if len(blocks) > 1:
                blocks[1] = Through()
    return net


@dataclass(frozen=True)
class BlockRemoval(Transform):
    """Ships a U-Net without the blocks that can go."""

    stage: ClassVar[Stage] = Stage.STRUCTURE
    ships: ClassVar[bool] = True

    def __call__(self, module: nn.Module) -> nn.Module:
        module, whole = without_blocks(module), module
        kept, before = (sum(isinstance(part, ResidualBlock) for part in net.modules()) for net in (module, whole))
        count("blocks_removed", before - kept)
        return module


@contextmanager
def listening(net: nn.Module) -> Iterator[list[tuple[tuple[Tensor, ...], Tensor]]]:
    """Inputs and output, in the order in which they run, of every stage of a U-Net, down and up, and of the whole."""
    heard: list[tuple[tuple[Tensor, ...], Tensor]] = []
    stages = [stage for level in net.modules() if isinstance(level, Level) for stage in (level.down[-1], level)]

    def hear(part: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        heard.append((given, answer))

    hooks = [part.register_forward_hook(hear) for part in (*stages, net)]
    yield heard
    for hook in hooks:
        hook.remove()


@dataclass(frozen=True)
class BlockDistillation(Objective):
    """The task's loss + `weight` times the squared errors of the student's answer and stages against the teacher's."""

    task: Objective
    weight: float

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        assert isinstance(teacher, Network)
        with listening(student.net) as answers:
            loss = self.task(student, teacher, x0, labels, rng)
        with torch.no_grad(), listening(teacher.net) as truths:
            teacher.net(*answers[-1][0])
        errors = [F.mse_loss(a, b) for (_, a), (_, b) in zip(answers[-len(truths) :], truths, strict=True)]
        return loss + self.weight * torch.stack(errors).sum()


@dataclass(frozen=True)
class Distil(Phase):
    """Trains what block removal will leave, against the whole, and writes it back; removal itself comes after."""

    weight: float
    fraction: float
    heeds: ClassVar[tuple[str, ...]] = ()

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        (x0, labels), fit = encode(model, data), recipe.fit.scaled(self.fraction)
        teacher, student = network(recipe, model), network(recipe, model)
        student.net = without_blocks(model.net).requires_grad_(True)
        objective = BlockDistillation(recipe.objective, self.weight)
        small = optimise(student, teacher, objective, x0, labels, fit, seed, report, "compact network")
        model.net.load_state_dict(small.state_dict(), strict=False)
        return fit.iterations * fit.batch


def bk_sdm(weight: float = 1.0, fraction: float = 0.3) -> Method:
    """Remove blocks; distil for `fraction` of the base training, with `weight` on the teacher's answer and features."""
    return edit(phases=Distil(weight, fraction), transforms=BlockRemoval(), needs={"net": UNetConfig})
