"""How a chain begins: from pure noise, or from what a starter makes, which is fitted after the network."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.calibration import Report
from methods.core.denoiser import Labels
from methods.core.process import Process, like
from methods.core.sampling import SampleNoise


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
