"""Learns which noise levels training looks at, by the variance of its own loss.

In continuous time the variational bound is the same for every schedule with the same ends: a schedule only decides how
often a noise level is drawn, and the draw is divided out again. So the schedule is free to make the estimate of the
bound as steady as it can: a small monotone network is trained by the gradient of the squared loss, which falls out of
the pass backwards that trains the denoiser.

Source: Kingma et al. 2021 "Variational Diffusion Models" (2107.00630), section 5.1 (the bound's invariance), section
5.3 (its variance), appendix H (the monotone network) and appendix I (evenly spaced times, ends by eq. 59, the gradient
of the squared loss); the bound, the times and the network compared with `model_vdm.py` of the official code.
Limits: the ends, which the paper learns for the likelihood of grey levels, are those between which sampling happens.
The Fourier features of the input, which serve that likelihood as well, are left out, and so are most of the 1,024
sigmoids of the code.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.objective import Loss, TimeDensity, UniformTimes, UnitOnTarget
from methods.core.parameterization import Parameterization
from methods.core.process import Process
from methods.core.recipe import Method, Recipe, edit
from methods.training.objective._shared import Altered


class Monotone(nn.Module):
    """A rising function of [0, 1] onto itself: the identity, and a layer of sigmoids with positive weights."""

    def __init__(self, features: int, rng: torch.Generator) -> None:
        super().__init__()
        self.rise, self.slope, self.place = (
            nn.Parameter(scale * torch.randn(features, generator=rng, dtype=torch.float64, device=rng.device))
            for scale in (0.01, 0.01, 0.0)
        )

    def forward(self, u: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        first, last = self.raw(torch.zeros_like(u)), self.raw(torch.ones_like(u))
        return (self.raw(u) - first) / (last - first)

    def raw(self, u: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The same function, before its ends are where they belong."""
        bent = torch.tanh((self.slope.abs() * (2 * u[:, None] - 1) + self.place) / 2)
        return u + (self.rise.abs() * bent).mean(1)


class Learned(TimeDensity):
    """lam falls from one end to the other as a monotone network says, at evenly spaced u; one draw is kept."""

    slope: Float[Tensor, "n"]
    """-d lam / d u of the last draw, the inverse of the density of lam."""
    loss: Float[Tensor, "n"]
    """What came of the last draw."""

    def __init__(self, low: float, features: int, rate: float) -> None:
        self.low, self.features, self.rate = low, features, rate
        self.schedule: Monotone | None = None

    def begin(self, rng: torch.Generator) -> Monotone:
        """A schedule that is nearly straight in lam, and its Adam."""
        generator = torch.Generator(rng.device).manual_seed(rng.initial_seed())
        self.schedule = Monotone(self.features, generator)
        self.optimizer = torch.optim.Adam(self.schedule.parameters(), lr=self.rate)
        return self.schedule

    def __call__(self, process: Process, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        schedule = self.schedule or self.begin(rng)
        if any(weight.grad is not None for weight in schedule.parameters()) and self.rate:
            self.optimizer.step()
            count("schedule_updates")
        self.optimizer.zero_grad()
        even = torch.arange(n, dtype=torch.float64, device=rng.device) / n
        u = (torch.rand((), generator=rng, dtype=torch.float64, device=rng.device) + even) % 1
        first = process.lam(torch.tensor(self.low, dtype=torch.float64)).item()
        share, rise = torch.func.jvp(schedule, (u,), (torch.ones_like(u),))[:2]
        lam, self.slope = first - (first - process.lam_start) * share, (first - process.lam_start) * rise
        for drawn in (lam, self.slope):
            if drawn.requires_grad:
                drawn.register_hook(lambda grad: 2 * self.loss.to(grad) * grad)
        return process.time(lam)


class Steadied(Altered):
    """The bound at the times that the schedule draws, which learns from its square."""

    def __init__(self, recipe: Recipe, drawn: Learned) -> None:
        super().__init__(recipe)
        self.times = self.drawn = drawn

    def weigh(self, process: Process, parameterization: Parameterization, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return self.drawn.slope * (torch.exp(process.lam(t)) * parameterization.gain(process, t)) ** 2

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        losses = super().__call__(student, teacher, x0, labels, rng)
        self.drawn.loss = losses.detach()
        return losses


@dataclass(frozen=True)
class Variational(Loss):
    """The bound in continuous time, from the recipe's first time to where sampling starts."""

    features: int
    rate: float

    def objective(self, recipe: Recipe) -> Steadied:
        assert isinstance(recipe.times, UniformTimes)
        return Steadied(recipe, Learned(recipe.times.low, self.features, self.rate))


def learned_schedule_vdm(features: int = 128, rate: float = 0.01) -> Method:
    """A schedule of `features` sigmoids, learning at `rate`; at rate 0 it stays straight in lam."""
    return edit(needs={"times": UniformTimes, "weight": UnitOnTarget}, loss=Variational(features, rate))
