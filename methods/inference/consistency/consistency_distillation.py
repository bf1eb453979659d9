"""Learns to jump from any point of a trajectory to its clean end, so that one evaluation can be a sample.

Two neighbouring points of a teacher's trajectory have the same end. The network's answer at the noisier one is drawn to
that of its own moving average at the cleaner one, which the teacher's solver reaches in a step; as f(x, 0) = x, the
ends are handed up from the clean side, noise level by noise level.

Source: Song, Dhariwal, Chen, Sutskever 2023 "Consistency Models" (2303.01469), algorithms 1 and 2; Heun's step, the
squared l2 metric, weight 1 and the target's decay of 0.95 as the official script for that metric has them.
Limits: squared l2 and not LPIPS, which is the paper's better metric and needs a pretrained network. The boundary is at
noise level 0, not 0.002, and c_skip, c_out are those of the velocity target. A guided teacher needs `lcm`.
Cost: `fraction` of the base training; an update takes two evaluations of the teacher and one of the target network.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.denoiser import Denoiser, Labels, Unguided
from methods.core.process import Process
from methods.core.recipe import Method, edit
from methods.core.sampling import SampleNoise
from methods.inference.consistency._objectives import Distillation, drawn
from methods.inference.consistency._shared import Distil, MultistepConsistency, noise_levels
from methods.inference.ode_solver.edm_heun import Heun
from methods.training.objective.v_prediction import Velocity


class NeighbouringLevels(Distillation):
    """Pairs of neighbours among n noise levels, joined by a step of Heun's method."""

    def __init__(self, n: int, decay: float) -> None:
        super().__init__(decay)
        self.n = n

    def times(self, process: Process, n: int, rng: torch.Generator) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        known, i = noise_levels(process, self.n), drawn(n, self.n - 1, rng)
        return known[i + 1], known[i]

    def solve(
        self,
        teacher: Denoiser,
        x_t: Float[Tensor, "b *s"],
        t: Float[Tensor, "b"],
        s: Float[Tensor, "b"],
        labels: Labels,
    ) -> Float[Tensor, "b *s"]:
        return Heun().step(lambda x, t: teacher(x, t, labels), teacher.process, x_t, t, s, None, SampleNoise([]))[0]


@dataclass(frozen=True)
class ConsistencyDistillation(Distil):
    """A student of the base network on `levels` noise levels."""

    levels: int
    decay: float
    fraction: float

    def objective(self, iterations: int) -> NeighbouringLevels:
        return NeighbouringLevels(self.levels, self.decay)


def consistency_distillation(steps: int = 2, levels: int = 18, decay: float = 0.95, fraction: float = 0.5) -> Method:
    """Distil for `fraction` of the base training on `levels` noise levels; sample in `steps` jumps."""
    return edit(
        needs={"guidance": Unguided},
        parameterization=Velocity(),
        phases=ConsistencyDistillation(levels, decay, fraction),
        sampler=MultistepConsistency(),
        steps=steps,
    )
