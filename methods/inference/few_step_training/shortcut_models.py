"""Trains a flow together with its own shortcuts: a jump is to end where two jumps of half its length do.

Jumps of length 0 are learnt from data, as in flow matching; those of each double length from the network's own average
at half of it. One network, told the length, so serves any power of two of steps, down to one.

Source: Frans, Hafner, Levine, Abbeel 2025 "One Step Diffusion via Shortcut Models" (2410.12557), the targets as in the
official code: step sizes 1, 1/2, ..., 1/64, starts at multiples of the step, targets from averaged weights, without a
gradient. The average reaches back over the same share of the training, since every doubling waits for it in turn.
Limits: steps are measured from where sampling starts (t = 0.999); other step counts than powers of two ask for jumps
nobody taught. `share` is 1/4, where the official code has 1/8. No guidance in the targets, which are not clipped. The
network is told a length itself, where the official one is told its logarithm; no weight decay.
Cost: none beyond base training, in which the share of self-consistent targets takes two evaluations more.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.objective import Coupling, Loss, Objective, TimeDensity, UnitOnTarget
from methods.core.process import Process, like
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import Grid
from methods.inference.consistency._objectives import Trailing
from methods.inference.few_step_training._shared import AverageVelocity, Jumps, average_velocity
from methods.training.flow.flow_matching import StraightPath

FINEST = 128
"""Steps of the finest grid; its jumps, of which the shortest taught by halves consists, are taken to have length 0."""
MEMORY = 1 / 410
"""How far back the targets' average reaches, as a share of the training. Source: official code, 0.999 in 410,000."""


def start(process: Process) -> float:
    """The time at which sampling starts."""
    return process.time(torch.tensor(process.lam_start, dtype=torch.float64)).item()


@dataclass(frozen=True)
class EvenTimes(Grid):
    """Jumps of equal length."""

    def __call__(self, process: Process, steps: int) -> Float[Tensor, "n"]:
        return start(process) * torch.arange(steps, -1, -1, dtype=torch.float64) / steps


class SelfConsistency(Objective):
    """|| u - target ||^2: eps - x_0 at length 0, and for the share `share` the mean velocity of two half jumps."""

    def __init__(self, times: TimeDensity, coupling: Coupling, share: float, decay: float) -> None:
        self.times, self.coupling, self.share, self.target = times, coupling, share, Trailing(decay)

    def jumps(self, process: Process, n: int, rng: torch.Generator) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """n lengths from all down to 2 / FINEST of the path, and starts at their multiples."""
        sections = 2.0 ** torch.randint(FINEST.bit_length() - 1, (n,), generator=rng, device=rng.device).double()
        place = torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device)
        return start(process) / sections, start(process) * ((place * sections).floor() + 1) / sections

    @torch.no_grad()
    def halves(
        self, network: Network, x_t: Float[Tensor, "b *s"], t: Float[Tensor, "b"], length: Float[Tensor, "b"],
        labels: Labels,
    ) -> Float[Tensor, "b *s"]:  # fmt: skip
        """The velocity of two jumps of half the length."""
        half, shortest = length / 2, 1.5 * start(network.process) / FINEST
        told = torch.where(half > shortest, half, 0.0)
        first = average_velocity(network, x_t, t, t - told, labels)
        x_t, t = x_t - like(half, x_t) * first, t - half
        return (first + average_velocity(network, x_t, t, t - told, labels)) / 2

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        process, n = student.process, round(self.share * len(x0))
        eps = self.coupling(x0, rng)
        length, t = self.jumps(process, n, rng)
        t = torch.cat([t, self.times(process, len(x0) - n, rng)])
        x_t, target = process.diffuse(x0, eps, t), eps - x0
        averaged, known = self.target(student), None if labels is None else labels[:n]
        target = torch.cat([self.halves(averaged, x_t[:n], t[:n], length, known), target[n:]])
        count("targets_bootstrapped", n)
        r = t - torch.cat([length, torch.zeros_like(t[n:])])
        return (average_velocity(student, x_t, t, r, labels) - target).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Shortcuts(Loss):
    """Self-consistency at the recipe's times and coupling."""

    share: float

    def objective(self, recipe: Recipe) -> SelfConsistency:
        decay = 1 - 1 / max(1.0, MEMORY * recipe.fit.iterations)
        return SelfConsistency(recipe.times, recipe.coupling, self.share, decay)


def shortcut_models(steps: int = 4, share: float = 0.25) -> Method:
    """Take the targets of the share `share` of each batch from shortcuts; sample in `steps` jumps, a power of two."""
    return edit(
        needs={"guidance": Unguided, "weight": UnitOnTarget},
        process=StraightPath(),
        parameterization=AverageVelocity(),
        loss=Shortcuts(share),
        grid=EvenTimes(),
        sampler=Jumps(),
        steps=steps,
    )
