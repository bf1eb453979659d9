"""Solves the linear part of the flow exactly and looks ahead inside the step for the rest: order 1, 2 or 3.

In lam the flow is an integral of e^{-lam} eps(x, lam). Its first terms are known once eps is, and derivatives of eps
come from one or two points inside the step, so a step of order k takes k evaluations and forgets them all.

Source: Lu et al. 2022 "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps"
(2206.00927), algorithms 1 and 2 with their r_1 = 1/2, and 1/3 and 2/3; allocation of evaluations as in the official
code, `get_orders_and_timesteps_for_singlestep_solver`.
Limits: every grid here ends without noise, where lam is infinite, so the last step is always one of order 1. Predicts
the noise, which is unstable under strong guidance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise
from methods.inference.ode_solver._shared import Planned, along, noise_of


def allocation(highest: int, evaluations: int, clean: bool) -> list[int]:
    """DPM-Solver-fast: steps of the highest order, the rest in a smaller one; the last is split if it ends clean."""
    whole, rest = divmod(evaluations, highest)
    orders = [highest] * whole + [rest] * (rest > 0)
    return [*orders[:-1], orders[-1] - 1, 1] if clean and orders[-1] > 1 else orders


class DPMSolver(Planned):
    """A step of order k goes over k steps of the grid, with points of its own inside, evenly spaced in lam."""

    def plan(self, times: Float[Tensor, "n"]) -> Iterator[tuple[Tensor, Tensor, int]]:
        orders = allocation(self.order, len(times) - 1, bool(times[-1] == 0))
        for order, (t, s) in zip(orders, pairwise(times[list(accumulate(orders, initial=0))]), strict=True):
            yield t, s, order

    def advance(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, order: int, past: None
    ) -> tuple[Float[Tensor, "b *s"], None]:
        def noise(x: Tensor, t: Tensor) -> Tensor:
            return noise_of(process, x, denoise(x, t), t)

        eps = noise(x, t)
        if order == 1:
            return along(process, x, eps, t, s), None
        count("inner_evaluations", (order - 1) * len(x))
        first, second = (inside(process, t, s, i / order) for i in (1, 2))
        eps_1 = noise(along(process, x, eps, t, first), first)
        if order == 2:
            return along(process, x, eps_1, t, s), None
        eps_2 = noise(along(process, x, tilted(process, eps, eps_1, t, second, 1 / 2), t, second), second)
        return along(process, x, tilted(process, eps, eps_2, t, s, 2 / 3), t, s), None


def inside(process: Process, t: Tensor, s: Tensor, share: float) -> Tensor:
    """The time a share of the way from t to s in lam."""
    return process.time(torch.lerp(process.lam(t), process.lam(s), share))


def tilted(
    process: Process, eps: Float[Tensor, "b *s"], later: Float[Tensor, "b *s"], t: Tensor, s: Tensor, share: float
) -> Float[Tensor, "b *s"]:
    """The constant noise that moves x as one that is linear in lam: eps at t, `later` a share of the way to s."""
    now, then = _tilt(process, t, s, torch.tensor(share, dtype=torch.float64))
    return combine(now, eps, then, later)


@remembered
def _tilt(process: Process, t: Tensor, s: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """1 - c and c, with c = (1/h - 1/(e^h - 1)) / share."""
    h = process.lam(s) - process.lam(t)
    c = (1 / h - 1 / torch.expm1(h)) / share
    return 1 - c, c


@dataclass(frozen=True)
class DPMSolver1(DPMSolver):
    """DDIM, by another road."""

    order: ClassVar[int] = 1


@dataclass(frozen=True)
class DPMSolver2(DPMSolver):
    """The midpoint rule in lam."""

    order: ClassVar[int] = 2


@dataclass(frozen=True)
class DPMSolver3(DPMSolver):
    """Two points inside, a third and two thirds of the way."""

    order: ClassVar[int] = 3


def dpm_solver(steps: int = 10, order: int = 3) -> Method:
    """Sample with `steps` evaluations, in steps of order `order` as far as they go."""
    return edit(sampler=(DPMSolver1(), DPMSolver2(), DPMSolver3())[order - 1], steps=steps)
