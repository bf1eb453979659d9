"""Parts with numbers of their own, fitted before the network (the space) or after (the start, a grid, a sampler).

A part is described by a frozen config in the recipe; `build` makes its module, and the module's `fit` is given what was
decided elsewhere. A part that needs no fitting inherits a `fit` that does nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.core.denoiser import Denoiser, Labels
from methods.core.process import Process, like
from methods.core.sampling import SampleNoise

if TYPE_CHECKING:
    from methods.core.recipe import Recipe

Report = Callable[[str, int, int, float], None]
"""(what is being fitted, steps done, steps in all, current loss): progress for whoever wants to show it."""


BATCH = 128
"""Samples of a step of `descend`."""


def descend(
    module: nn.Module, loss: Callable[[Int[Tensor, "b"]], Tensor], n: int, iterations: int, rate: float,
    rng: torch.Generator, report: Report, what: str,
) -> int:  # fmt: skip
    """Minimise `loss(rows)` over random rows of n samples by Adam with a cosine decay; returns how many were seen."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for i in range(iterations):
        value = loss(torch.randint(n, (BATCH,), generator=rng, device=rng.device))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        schedule.step()
        if (i + 1) % 50 == 0 or i + 1 == iterations:
            report(what, i + 1, iterations, value.item())
    module.requires_grad_(False)
    return iterations * BATCH


class Codec(nn.Module, ABC):
    """Images [b, c, h, w], or points of the plane, <-> the space the diffusion lives in [b, *s]."""

    bounds: tuple[float, float] | None
    """The range of clean values, to which estimates of x_0 are clipped; None where there is none."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "b *p"]) -> Float[Tensor, "b *s"]: ...

    @abstractmethod
    def decode(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *p"]: ...

    def fit(self, images: Float[Tensor, "n *p"], iterations: int, rng: torch.Generator, report: Report) -> int:
        """Train the codec; returns how many images it saw."""
        return 0


class Space(ABC):
    """Where the diffusion takes place."""

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> Codec: ...


class Identity(Codec):
    """Pixels in [-1, 1], as they are."""

    bounds = (-1.0, 1.0)

    def encode(self, images: Float[Tensor, "b *p"]) -> Float[Tensor, "b *p"]:
        return images

    def decode(self, x: Float[Tensor, "b *p"]) -> Float[Tensor, "b *p"]:
        return x


@dataclass(frozen=True)
class Pixels(Space):
    """The diffusion takes place on pixels."""

    def build(self, shape: tuple[int, ...]) -> Identity:
        return Identity()


class Starter(nn.Module, ABC):
    """Makes x at the first time, and says which times are left to walk."""

    @abstractmethod
    def forward(
        self, process: Process, times: Float[Tensor, "n"], shape: tuple[int, ...], labels: Labels, noise: SampleNoise
    ) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "m"]]: ...

    def fit(
        self, x0: Float[Tensor, "n *s"], labels: Labels, iterations: int, rng: torch.Generator, report: Report
    ) -> int:
        """Train the starter on clean samples of the diffusion's space; returns how many it saw."""
        return 0


class Start(ABC):
    """How the chain begins."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> Starter: ...


class PureNoise(Starter):
    """x = sigma(t) eps at the first time of the grid."""

    def forward(
        self, process: Process, times: Float[Tensor, "n"], shape: tuple[int, ...], labels: Labels, noise: SampleNoise
    ) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "m"]]:
        eps = noise(shape)
        return like(process.sigma(times[0]), eps) * eps, times


@dataclass(frozen=True)
class FromNoise(Start):
    """The whole chain, from pure noise."""

    def build(self, shape: tuple[int, ...], classes: int) -> PureNoise:
        return PureNoise()


class Part(nn.Module, ABC):
    """What a `Fitted` choice becomes for one model; its numbers are buffers, and ship with the weights."""

    @abstractmethod
    def fit(
        self, recipe: "Recipe", denoiser: Denoiser, x0: Float[Tensor, "n *s"], labels: Labels, rng: torch.Generator,
        report: Report,
    ) -> int:  # fmt: skip
        """Fit to the denoiser as it is deployed and to clean samples; returns how many images were seen."""


class Fitted(ABC):
    """A grid or a sampler that is fitted to the finished model: the recipe holds the choice, the model its part.

    The part is itself a `Grid` or a `Sampler`, and takes the place of the choice when samples are drawn.
    """

    becomes: ClassVar[type[Part]]
    """The class of the part, by which other techniques find what they need in its slot."""

    @abstractmethod
    def build(self, recipe: "Recipe") -> Part: ...
