"""What of the weights of a training ships: an average over its updates.

Source: Polyak and Juditsky 1992 "Acceleration of Stochastic Approximation by Averaging"; for diffusion models Ho et al.
2020 (2006.11239), appendix B.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.core.fit import Fit


class Averaging(ABC):
    """The average of one training: a network of its own beside the one that learns."""

    net: nn.Module
    """What would ship now."""

    @abstractmethod
    def update(self) -> None:
        """Take in the weights as they are after one more update."""


class Average(ABC):
    """How weights are averaged in base training."""

    def history(self, net: nn.Module) -> nn.Module:
        """Room for what is left to those who choose an average after the training; it does not ship."""
        return nn.Module()

    @abstractmethod
    def begin(self, net: nn.Module, fit: Fit, history: nn.Module) -> Averaging:
        """Begin to average the weights of a network that is about to learn."""


class ExponentialAveraging(Averaging):
    """m <- d m + (1 - d) w, where d grows to the decay as (1 + i) / (10 + i) with the updates i so far."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net, self.decay, self.done = copy.deepcopy(net), decay, 0
        self.means: list[Tensor] = [*self.net.parameters()]
        self.weights: list[Tensor] = [*net.parameters()]

    def update(self) -> None:
        decay = min(self.decay, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(self.means, self.weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.done += 1


@dataclass(frozen=True)
class Exponential(Average):
    """With the decay that goes with the length of the training, which is the bed's."""

    def begin(self, net: nn.Module, fit: Fit, history: nn.Module) -> ExponentialAveraging:
        return ExponentialAveraging(net, fit.ema)
