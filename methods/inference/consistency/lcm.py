"""Distils a guided model into a few jumps: guidance is part of the trajectory, and pairs lie many steps apart.

Guidance only changes the flow, so its scale can be distilled with it, and the student needs one evaluation where the
guided teacher needs two. Points one step of a thousand apart hardly differ, so that training on them crawls; points k
steps apart, joined by one DDIM step, do, and the training is short.

Source: Luo et al. 2023 "Latent Consistency Models" (2310.04378), algorithm 1, with the guided DDIM step, k = 20 of
1,000 steps, the squared l2 loss and the target's decay of 0.95 as are the defaults of the official script.
Limits: the base training's learning rate; one guidance scale, where the paper draws scales and tells the network; on
pixels unless combined with `latent_diffusion`; c_skip, c_out are those of the velocity target. Guided estimates are not
clipped.
Cost: `fraction` of the base training; an update takes three evaluations besides the student's own.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Unguided
from methods.core.process import Process
from methods.core.recipe import Method, edit
from methods.core.sampling import UniformAngle, transfer
from methods.inference.consistency._objectives import Distillation, drawn
from methods.inference.consistency._shared import Distil, MultistepConsistency
from methods.inference.ode_solver.ddim import CHAIN
from methods.training.guidance.classifier_free_guidance import Guided
from methods.training.objective.v_prediction import Velocity


class SkippedSteps(Distillation):
    """Pairs `skip` steps of the chain apart, joined by a step of guided DDIM."""

    def __init__(self, skip: int, scale: float, decay: float) -> None:
        super().__init__(decay)
        self.skip, self.scale = skip, scale

    def times(self, process: Process, n: int, rng: torch.Generator) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        chain, i = UniformAngle()(process, CHAIN), drawn(n, CHAIN - self.skip + 1, rng)
        count("steps_skipped_over", n * (self.skip - 1))
        return chain[i], chain[i + self.skip]

    def solve(
        self,
        teacher: Denoiser,
        x_t: Float[Tensor, "b *s"],
        t: Float[Tensor, "b"],
        s: Float[Tensor, "b"],
        labels: Labels,
    ) -> Float[Tensor, "b *s"]:
        return transfer(teacher.process, x_t, Guided(teacher, self.scale)(x_t, t, labels), t, s)


@dataclass(frozen=True)
class LatentConsistency(Distil):
    """A student of the base network under guidance."""

    skip: int
    scale: float
    decay: float
    fraction: float

    def objective(self, iterations: int) -> SkippedSteps:
        return SkippedSteps(self.skip, self.scale, self.decay)


def lcm(
    steps: int = 4, scale: float = 1.0, dropout: float = 0.1, skip: int = 20, decay: float = 0.95, fraction: float = 0.5
) -> Method:
    """Distil guidance of weight `scale` over `skip` of 1,000 steps at a time; sample in `steps` jumps."""
    return edit(
        needs={"guidance": Unguided},
        parameterization=Velocity(),
        label_dropout=dropout,
        phases=LatentConsistency(skip, scale, decay, fraction),
        sampler=MultistepConsistency(),
        steps=steps,
    )
