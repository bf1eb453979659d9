"""Places the steps of a multistep solver where errors of its estimates harm the end point least, without a network.

The end point is a weighted sum of all estimates of x_0 on the way, and the weights are integrals that follow from the
levels alone. With a bound on the error of an estimate at each level, which the noise schedule gives, the error of the
end point has a bound that depends on the levels alone: it is minimized before anything is trained or sampled.

Source: Xue et al. 2024 "Accelerating Diffusion Sampling with Optimized Time Steps" (2402.17376); as in the official
code, `step_optim.py`: errors sigma / alpha for pixels (sigma^2 / alpha for latents), orders 1, 2, ... at the start and
..., 2, 1 at the end, weights added up over steps before their sizes are taken but in the first ones and in steps of
order 1, even levels of lam to begin with, and its two ends for variance preserving processes.
Limits: the last level is followed by the step to zero noise that all grids here have. It counts as one of the recipe's
steps and has the order 1, so that the steps before it end in 3, 2 and the bound is of these. Levels stay a tenth of an
even step off. The minimum is a local one, of the logarithm of the bound with rounded corners, found by sequential least
squares: the trust region method of the official code does not converge here beyond five steps. Nor is there one minimum
to be found of the bound that adds up the first steps too, as the official code does beyond seven; here they never are.
Cost: under a second for ten steps, no evaluation.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process
from methods.core.recipe import Method, edit
from methods.core.sampling import Grid

NEAREST = 0.1
ROUNDED = 0.01
"""Corners of the bound, of which some lie at its minimum, are rounded off: a search ends anywhere beside one."""
PLACES, SHARES = (np.polynomial.legendre.leggauss(12)[i] / 2 for i in range(2))


def weights(lam: Float[np.ndarray, "n"], steps: np.ndarray, order: int) -> Float[np.ndarray, "m k"]:
    """Of the estimates that steps of an order use, the newest first: the integral of e^lam times Lagrange's basis."""
    nodes, length = lam[steps[:, None] - np.arange(order)], np.diff(lam)[steps, None]
    at = lam[steps, None] + length * (PLACES + 0.5)
    apart = nodes[:, :, None] - nodes[:, None, :] + np.eye(order)
    near = (at[:, None, None] - nodes[:, None, :, None]) / apart[..., None]  # [steps, basis, node, place]
    near[:, np.eye(order, dtype=bool)] = 1
    return (length[:, None] * near.prod(2) * np.exp(at)[:, None]) @ SHARES


def orders_of(steps: int, highest: int, then: int) -> Int[np.ndarray, "n"]:
    """The orders of so many steps, `then` others after them: low where few estimates are known yet, and at the end."""
    done = np.arange(steps)
    return np.minimum(highest, np.minimum(done + 1, steps + then - done))


def bound(lam: Float[np.ndarray, "n"], order: int, power: float, then: int = 0, rounded: float = 0.0) -> float:
    """On the error of the end point, over the error of the estimates: sum_j |w_j| sigma_j^power / alpha_j.

    With sqrt(w^2 + rounded^2) in place of |w|, which has a corner where estimates cancel.
    """
    steps, orders = np.arange(len(lam) - 1), orders_of(len(lam) - 1, order, then)
    error = (1 + np.exp(2 * lam)) ** (-power / 2) * np.sqrt(1 + np.exp(-2 * lam))
    alone, together = 0.0, np.zeros(len(lam))
    for k in range(1, order + 1):
        chosen = steps[orders == k]
        used = chosen[:, None] - np.arange(k)
        terms, apart = weights(lam, chosen, k) * error[used], (chosen < order) | (k == 1)
        alone += np.linalg.norm(terms[apart], axis=1).sum()
        np.add.at(together, used[~apart], terms[~apart])
    return alone + np.hypot(together, rounded).sum()


@cache
def optimized(first: float, last: float, steps: int, order: int, power: float, then: int = 0) -> tuple[float, ...]:
    """Levels of lam from first to last between which so many steps have the lowest bound, if `then` others follow."""
    even = np.linspace(first, last, steps + 1)
    if steps < 2:
        return tuple(even.tolist())

    def whole(inner: np.ndarray) -> np.ndarray:
        return np.concatenate([even[:1], inner, even[-1:]])

    gaps = np.diff(np.eye(steps + 1), axis=0)
    least = NEAREST * (last - first) / steps - gaps[:, 0] * first - gaps[:, -1] * last
    with np.errstate(over="ignore", invalid="ignore"):  # it also tries levels far away, before it is held back
        found = minimize(
            lambda inner: math.log(bound(whole(inner), order, power, then, ROUNDED)), even[1:-1], method="SLSQP",
            constraints=LinearConstraint(gaps[:, 1:-1], least, np.inf),  # pyright: ignore[reportArgumentType]
            options={"maxiter": 1000, "ftol": 1e-10},
        )  # fmt: skip
    return tuple(whole(found.x).tolist())


@dataclass(frozen=True)
class OptimizedTimes(Grid):
    """For a multistep solver of an order, between two noise-to-signal ratios; then 0."""

    order: int
    power: float
    sigma_min: float
    sigma_max: float

    def __call__(self, process: Process, steps: int) -> Float[Tensor, "n"]:
        first = max(-math.log(self.sigma_max), process.lam_start)
        last = -math.log(self.sigma_min)
        lam = optimized(first, last, steps - 1, self.order, self.power, then=1) if steps > 1 else (first,)
        count("times_optimized", max(steps - 2, 0))
        return torch.cat([process.time(torch.tensor(lam, dtype=torch.float64)), torch.zeros(1, dtype=torch.float64)])


def dm_nonuniform(
    order: int = 3, power: float = 1.0, sigma_min: float = 0.0105, sigma_max: float = 152.0
) -> Method:  # fmt: skip
    """Optimise the recipe's steps for a solver of order `order`, between two noise-to-signal ratios."""
    return edit(grid=OptimizedTimes(order, power, sigma_min, sigma_max))
