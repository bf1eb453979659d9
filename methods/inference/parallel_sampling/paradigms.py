"""Evaluates a whole window of steps at once and repeats until they agree: more evaluations, fewer rounds of waiting.

The trajectory is the fixed point of x_j = x_0 + sum_{i<j} drift(x_i); Picard iteration from a guess converges to it,
and every round is one batched call. The window slides past the states that have stopped changing.

Source: Shih et al. 2023 "Parallel Sampling of Diffusion Models" (2305.16317), algorithm 1; drift of a DDIM step.
Limits: deterministic steps only. Each sample has a window of its own, so that a batch does not wait in its result, only
in its time, for its slowest member. Faster only where a batched call costs less than the calls it replaces.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels
from methods.core.process import Process
from methods.core.recipe import Method, edit
from methods.core.sampling import SampleNoise, Sampler, transfer


def step_variance(process: Process, t: Tensor, s: Tensor) -> Tensor:
    """Variance of q(x_s | x_t, x_0), the scale on which the error of a state is judged.

    The official code takes the step that leaves the state, this one the step that arrives: the last step to leave one
    ends without noise, and would ask its state to be exact.
    """
    return process.sigma(s) ** 2 * -torch.expm1(2 * (process.lam(t) - process.lam(s)))


@dataclass(frozen=True)
class ParaDiGMS(Sampler):
    """A state is final once its mean squared change is at most tolerance^2 times the variance of its step."""

    window: int
    tolerance: float

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "b *s"],
        times: Float[Tensor, "n"],
        labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:
        denoiser.reset()
        last = len(times) - 1
        path = x[:, None].repeat(1, last + 1, *[1] * (x.ndim - 1))
        first = torch.zeros(len(x), dtype=torch.long)
        while len(rows := (first < last).nonzero().flatten()):
            count("parallel_rounds")
            known = None if labels is None else labels[rows.to(labels.device)]
            first[rows] += self.round(denoiser, path, rows, first[rows], times, known)
            first.clamp_(max=last)
        return path[:, -1]

    def round(
        self, denoiser: Denoiser, path: Float[Tensor, "b n *s"], rows: Int[Tensor, "r"], first: Int[Tensor, "r"],
        times: Float[Tensor, "n"], labels: Int[Tensor, "r"] | None,
    ) -> Int[Tensor, "r"]:  # fmt: skip
        """One Picard iteration over the windows of `rows`, written into `path`; returns how far each window moves."""
        process, last = denoiser.process, len(times) - 1
        width = min(self.window, last)
        index = first[:, None] + torch.arange(width)
        inside = index < last  # a window may reach beyond the end: nothing is evaluated there
        index = index.clamp(max=last - 1)
        t, s = times[index], times[index + 1]
        here = path[rows[:, None], index][inside]
        repeated = None if labels is None else labels[:, None].expand(-1, width)[inside]
        moved = transfer(process, here, denoiser(here, t[inside], repeated), t[inside], s[inside])
        drift = torch.zeros_like(path[rows[:, None], index])
        drift[inside] = moved - here
        new = path[rows, first][:, None] + drift.cumsum(1)
        error = (new - path[rows[:, None], index + 1]).square().flatten(2).mean(2).cpu()
        path[rows] = torch.where(
            self._beyond(first, len(times), path.ndim).to(path.device), new[:, -1:], path[rows]
        )  # states not visited yet start from the end of the window
        path[rows[:, None], index + 1] = new
        unsettled = (error > self.tolerance**2 * step_variance(process, t, s)) & inside
        reach = torch.where(unsettled.any(1), unsettled.int().argmax(1) + 1, width)
        return reach.clamp(min=1)

    @staticmethod
    def _beyond(first: Int[Tensor, "r"], n: int, dimensions: int) -> Tensor:
        mask = torch.arange(n) > first[:, None]
        return mask.reshape(*mask.shape, *[1] * (dimensions - 2))


def paradigms(window: int = 16, tolerance: float = 0.1) -> Method:
    """Sample the recipe's grid with Picard iteration on a sliding window of `window` steps."""
    return edit(sampler=ParaDiGMS(window, tolerance))
