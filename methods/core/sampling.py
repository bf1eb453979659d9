"""From noise to samples: grids of times, solvers that step along them, and the exact move they share.

A `Sampler` is the wide door, for methods that see the whole trajectory. A `Solver` is the narrow one, for nine papers
in ten: one step, one shared loop, and what must be remembered is returned, never stored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.denoiser import Denoiser, Labels
from methods.core.process import Process, angle, combine, lam_of_angle, remembered

Denoise = Callable[[Tensor, Tensor], Tensor]


class SampleNoise:
    """Standard normal noise with a seed per sample: a sample does not depend on its neighbours in the batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def __call__(self, shape: tuple[int, ...]) -> Float[Tensor, "b *s"]:
        """The next draw of every sample, [b, *shape] in float32."""
        draw = torch.empty(len(self.generators), *shape)
        for sample, generator in zip(draw, self.generators, strict=True):
            sample.normal_(generator=generator)
        return draw.to(self.device)


def transfer(process: Process, x: Float[Tensor, "b *s"], x0: Float[Tensor, "b *s"], t: Tensor, s: Tensor
             ) -> Float[Tensor, "b *s"]:  # fmt: skip
    """The exact move from time t to s if E[x_0 | x_t] were constant: keep the noise, change its size.

    Source: Song et al. 2021 (2010.02502), eq. 12 with sigma = 0, for any process.
    """
    kept, added = _transfer(process, t, s)
    return combine(kept, x, added, x0)


@remembered
def _transfer(process: Process, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """What x and x_0 are multiplied by in `transfer`."""
    ratio = process.sigma(s) / process.sigma(t)
    return ratio, process.alpha(s) - process.alpha(t) * ratio


class Grid(ABC):
    """(process, steps) -> steps + 1 decreasing times, the last one 0."""

    @abstractmethod
    def __call__(self, process: Process, steps: int) -> Float[Tensor, "n"]: ...


@dataclass(frozen=True)
class UniformAngle(Grid):
    """Equal steps of the angle u = 2/pi atan(sigma/alpha): equal times of the cosine process, sound for any other."""

    def __call__(self, process: Process, steps: int) -> Float[Tensor, "n"]:
        first = angle(torch.tensor(process.lam_start, dtype=torch.float64))
        u = first * torch.arange(steps, 0, -1, dtype=torch.float64) / steps
        return torch.cat([process.time(lam_of_angle(u)), torch.zeros(1, dtype=torch.float64)])


class Sampler(ABC):
    """(denoiser, x at times[0], times, labels, noise) -> x at times[-1]."""

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "b *s"],
        times: Float[Tensor, "n"],
        labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]: ...


class Solver(Sampler):
    """A sampler that walks the grid once, a step at a time."""

    order: ClassVar[int]
    """Order of convergence of the end point in the step size; 0 for a stochastic solver, whose end point is random."""

    @abstractmethod
    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: Any,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], Any]:  # fmt: skip
        """Move x from time t to s < t; `past` is what the previous step returned, None at first."""

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "b *s"],
        times: Float[Tensor, "n"],
        labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:
        denoiser.reset()
        past = None
        for t, s in pairwise(times):
            x, past = self.step(lambda x, t: denoiser(x, t, labels), denoiser.process, x, t, s, past, noise)
        return x
