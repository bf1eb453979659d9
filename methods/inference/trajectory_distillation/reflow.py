"""Straightens the paths of a flow: a flow is trained again on the lines between noise and where the first flow took it.

Lines from independent noise to data cross, and where they cross the velocity is a mean, which bends the paths. The
pairs of a deterministic flow do not cross, so the lines between them bend less, and a straight path takes one step.

Source: Liu, Gong, Liu 2023 "Flow Straight and Fast" (2209.03003), algorithm 1 and eq. 1 (the loss on a coupling); the
loss also as in the official code, losses.py of ImageGeneration.
Limits: one reflow (a 2-rectified flow), and no final distillation to one step. The pairs come from Euler steps on a
fixed grid, the paper's from an adaptive solver.
Cost: `fraction` of the base training, a third of it for the pairs.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.objective import Coupling, Denoising, Objective, Regression
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import UniformAngle
from methods.core.start import FromNoise
from methods.inference.ode_solver.ddim import DDIM
from methods.inference.trajectory_distillation._shared import FromPairs
from methods.training.flow.flow_matching import StraightPath


@dataclass(frozen=True)
class Given(Coupling):
    """The noise that belongs to the images."""

    noise: Float[Tensor, "b *s"]

    def __call__(self, x0: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]:
        return self.noise


@dataclass(frozen=True)
class Rectify(Objective):
    """The recipe's own regression, on the coupling of the flow; the rows of x0 are pairs of noise and end point."""

    regression: Denoising

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        noise, end = x0.unbind(1)
        count("pairs_shown", len(end))
        return replace(self.regression, coupling=Given(noise))(student, teacher, end, labels, rng)


class Reflow(FromPairs):
    """A flow that is trained on the lines between the noise and the end points of the flow before it."""

    makes: ClassVar[str] = "straightened flow"

    def objective(self, recipe: Recipe) -> Objective:
        return Rectify(Regression().objective(recipe))


def reflow(steps: int = 2, teacher_steps: int = 20, fraction: float = 0.5) -> Method:
    """Straighten the flow for `fraction` of the base training, and follow it in `steps` steps of Euler."""
    return edit(
        needs={"process": StraightPath, "guidance": Unguided, "start": FromNoise},
        phases=Reflow(teacher_steps, fraction),
        sampler=DDIM(),
        grid=UniformAngle(),
        steps=steps,
    )
