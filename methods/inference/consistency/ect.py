"""Tunes a diffusion model into a consistency model by letting the two points of a pair move together.

A diffusion model already is the consistency model whose second point lies at noise level 0: f(x_t, t) is drawn to x_0
itself. Raising the second level r towards t step by step, with one image and one noise for both points, turns the one
into the other; no trajectory is solved and no teacher kept.

Source: Geng, Pokle, Luo, Lin, Kolter 2025 "Consistency Models Made Easy" (2406.14548), the mapping r(t), the norm and
the weight 1 / (t - r) as in the official code; it doubles eight times in its run of 200,000 iterations.
Limits: levels are the ratio sigma / alpha of the cosine process, where the paper tunes EDM's network, and none lies
above that at which sampling starts. Adam, at a tenth of the base training's rate (the official 1e-4 is a tenth of
EDM's), where the paper has RAdam; no dropout to share between the two points.
Cost: `fraction` of the base training; an update evaluates the network twice.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Unguided
from methods.core.process import Process
from methods.core.recipe import Method, edit
from methods.inference.consistency._objectives import Tuning
from methods.inference.consistency._shared import Distil, MultistepConsistency, ratio, time
from methods.training.objective.v_prediction import Velocity

MEAN, STD = -1.1, 2.0
"""Of the logarithm of the noise level t. Source: official code, as in 2310.14189, table 1."""


def mapping(t: Tensor, stage: int) -> Tensor:
    """r = t (1 - n(t) / 2^stage), at least 0, with n(t) = 1 + 8 sigmoid(-t)."""
    return (t * (1 - (1 + 8 * torch.sigmoid(-t)) / 2**stage)).clamp(min=0)


class EasyTuning(Tuning):
    """Levels t log-normal, r(t) nearer to t with every stage; `iterations` make `stages` of them."""

    c = 1e-8  # the plain norm, with a gradient where it is zero

    def __init__(self, iterations: int, stages: int) -> None:
        self.iterations, self.stages, self.done = iterations, stages, 0

    def times(self, process: Process, n: int, rng: torch.Generator) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        stage = 1 + self.done * self.stages // self.iterations
        self.done += 1
        drawn = torch.randn(n, generator=rng, dtype=torch.float64, device=rng.device)
        t = time(process, torch.exp(MEAN + STD * drawn))
        r = mapping(ratio(process, t), stage)
        count("levels_above_zero", int((r > 0).sum()))
        return t, time(process, r)


@dataclass(frozen=True)
class EasyConsistencyTuning(Distil):
    """The base network trained on, without a teacher."""

    stages: int
    fraction: float
    rate: ClassVar[float] = 0.1  # the norm's gradient does not shrink with the error, so steps have to

    def objective(self, iterations: int) -> EasyTuning:
        return EasyTuning(iterations, self.stages)


def ect(steps: int = 2, stages: int = 8, fraction: float = 0.5) -> Method:
    """Tune for `fraction` of the base training, halving the gap `stages` times; sample in `steps` jumps."""
    return edit(
        needs={"guidance": Unguided},
        parameterization=Velocity(),
        phases=EasyConsistencyTuning(stages, fraction),
        sampler=MultistepConsistency(),
        steps=steps,
    )
