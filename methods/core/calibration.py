"""Parts with weights of their own that are fitted before, or after, the network: the space and the start.

A part is described by a frozen config in the recipe; `build` makes its module, and the module's `fit` is given what was
decided elsewhere. A part that needs no fitting inherits a `fit` that does nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.denoiser import Labels
from methods.core.process import Process, like
from methods.core.sampling import SampleNoise

Report = Callable[[str, int, int, float], None]
"""(what is being fitted, steps done, steps in all, current loss): progress for whoever wants to show it."""


class Codec(nn.Module, ABC):
    """Images [b, c, h, w] <-> the space the diffusion lives in [b, *s]."""

    bounds: tuple[float, float] | None
    """The range of clean values, to which estimates of x_0 are clipped; None where there is none."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b *s"]: ...

    @abstractmethod
    def decode(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b c h w"]: ...

    def fit(self, images: Float[Tensor, "n c h w"], iterations: int, rng: torch.Generator, report: Report) -> int:
        """Train the codec; returns how many images it saw."""
        return 0


class Space(ABC):
    """Where the diffusion takes place."""

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> Codec: ...


class Identity(Codec):
    """Pixels in [-1, 1], as they are."""

    bounds = (-1.0, 1.0)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return images

    def decode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
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
