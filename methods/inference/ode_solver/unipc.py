"""Predicts where a step ends, and once the network has been asked there corrects the step: an order more for nothing.

The estimate made at the end of a step is needed for the next one anyway. Read backwards it tells how x_0 really changed
over the step, so the step is taken again with it, before the next, which uses the estimate as it is.

Source: Zhao et al. 2023 "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models"
(2302.04867), algorithms 1 and 2 on x_0 (data prediction) with B(h) = e^h - 1, the variant B_2; warm-up, lower orders
at the end, the weight 1/2 where a single difference is known, and no correction of the last step as in the official
code, `multistep_uni_pc_bh_update`.
Limits: order 3 converges at the third order, not the fourth, because its first two steps are of lower ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, transfer
from methods.inference.ode_solver._shared import Planned

Seen = tuple[Tensor, Tensor]
"""A time and the estimate of x_0 made there."""


class Past(NamedTuple):
    """The last step: where it began, what was known there, the newest first, and its order."""

    x: Tensor
    seen: tuple[Seen, ...]
    order: int


@dataclass(frozen=True)
class UniPC(Planned):
    """Predictor and corrector are one rule: transfer with a weighted mean of estimates."""

    highest: int
    order: ClassVar[int] = 3

    def plan(self, times: Float[Tensor, "n"]) -> Iterator[tuple[Tensor, Tensor, int]]:
        last = len(times) - 1
        for i, (t, s) in enumerate(pairwise(times)):
            yield t, s, min(self.highest, last - i) if times[-1] == 0 else self.highest

    def advance(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, order: int,
        past: Past | None,
    ) -> tuple[Float[Tensor, "b *s"], Past]:  # fmt: skip
        new, known = (t, denoise(x, t)), ()
        if past is not None:
            count("corrections", len(x))
            known = past.seen
            base, *others = known[: past.order]
            x = moved(process, past.x, t, base, [*others, new])
        seen = (new, *known)[: self.highest]
        order = min(order, len(seen))
        return moved(process, x, s, seen[0], seen[1:order]), Past(x, seen, order)


def moved(
    process: Process, x: Float[Tensor, "b *s"], s: Tensor, base: Seen, others: list[Seen] | tuple[Seen, ...]
) -> Float[Tensor, "b *s"]:
    """From the time of `base` to s, with the estimate x_0 + sum_m c_m (x_0^m - x_0) / r_m."""
    t, x0 = base
    estimate = x0
    if others:
        own, *weights = _weights(process, t, s, *(time for time, _ in others))
        estimate = torch.stack([own * x0, *(w * other for w, (_, other) in zip(weights, others, strict=True))]).sum(0)
    return transfer(process, x, estimate, t, s)


@remembered
def _weights(process: Process, t: Tensor, s: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """What the estimates at t and elsewhere are multiplied by: the Vandermonde system of eq. 5 and theorem 3.1."""
    h = process.lam(s) - process.lam(t)
    r = torch.stack([(process.lam(other) - process.lam(t)) / h for other in others])
    powers = torch.arange(len(r))
    c = torch.linalg.solve(r ** powers[:, None], _moments(-h, len(r))) if len(r) > 1 else torch.full_like(r, 0.5)
    return 1 - (c / r).sum(), *(c / r)


def _moments(h: Tensor, n: int) -> Tensor:
    """k! h phi_{k+1}(h) / B(h) for k = 1 ... n, by h phi_{k+1} = phi_k - 1 / k!, phi_1 = (e^h - 1) / h."""
    scaled, moments = torch.expm1(h), []
    for k in range(1, n + 1):
        scaled = scaled / h - 1 / math.factorial(k)
        moments.append(math.factorial(k) * scaled / torch.expm1(h))
    return torch.stack(moments)


def unipc(steps: int = 10, order: int = 2) -> Method:
    """Sample in `steps` steps of one evaluation each, with a predictor of order `order` and its corrector."""
    return edit(sampler=UniPC(order), steps=steps)
