"""What solvers of this family share: moves written on the noise, and steps whose order a plan says."""

from abc import abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from methods.core.denoiser import Denoiser, Labels
from methods.core.process import Process, combine, remembered
from methods.core.sampling import Denoise, SampleNoise, Solver


def noise_of(process: Process, x: Float[Tensor, "b *s"], x0: Float[Tensor, "b *s"], t: Tensor) -> Float[Tensor, "b *s"]:
    """The noise in x_t that an estimate of x_0 leaves: eps = (x - alpha x_0) / sigma."""
    seen, taken = _noise(process, t)
    return combine(seen, x, taken, x0)


@remembered
def _noise(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    return 1 / process.sigma(t), -process.alpha(t) / process.sigma(t)


def along(process: Process, x: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"], t: Tensor, s: Tensor
          ) -> Float[Tensor, "b *s"]:  # fmt: skip
    """The exact move from time t to s if the noise were constant: `transfer`, told eps in place of x_0.

    Source: Lu et al. 2022 (2206.00927), eq. 3.7, whose sigma_s (e^h - 1) is alpha_s sigma_t / alpha_t - sigma_s.
    """
    kept, added = _along(process, t, s)
    return combine(kept, x, added, eps)


@remembered
def _along(process: Process, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    ratio = process.alpha(s) / process.alpha(t)
    return ratio, process.sigma(s) - process.sigma(t) * ratio


class Planned(Solver):
    """A solver whose order falls towards the end of the grid, so that it has to see the grid before it sets out."""

    @abstractmethod
    def plan(self, times: Float[Tensor, "n"]) -> Iterable[tuple[Tensor, Tensor, int]]:
        """The steps to take: from t, to s, and of which order."""

    @abstractmethod
    def advance(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, order: int, past: Any
    ) -> tuple[Float[Tensor, "b *s"], Any]:
        """A `step` of an order."""

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: Any,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], Any]:  # fmt: skip
        return self.advance(denoise, process, x, t, s, 1 if s == 0 else self.order, past)

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
        for t, s, order in self.plan(times):
            x, past = self.advance(partial(denoiser, labels=labels), denoiser.process, x, t, s, order, past)
        return x
