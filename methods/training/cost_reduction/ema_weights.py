"""Samples with a moving average of the weights, and not with those of the last update.

Late in training the weights jump about a good solution, further the larger the learning rate. Their average lies nearer
to it, as if the learning rate had been lowered, at the price of one copy of the weights.

Source: Song and Ermon 2020 "Improved Techniques for Training Score-Based Generative Models" (2006.09011), technique 5:
theta' <- m theta' + (1 - m) theta; the warm-up min(m, (1 + i) / (10 + i)) is that of the usual implementations.
Limits: m is for trainings as short as those here; the paper's 0.999 is for hundreds of thousands of updates. The
baseline averages too, as every diffusion model does, so that what it is worth shows against m = 0, no average at all.
"""

from dataclasses import dataclass

from torch import nn

from methods.core.activation import count
from methods.core.average import Average, ExponentialAveraging
from methods.core.fit import Fit
from methods.core.recipe import Method, edit


class Counted(ExponentialAveraging):
    """An exponential average that counts how often weights were taken in."""

    def update(self) -> None:
        super().update()
        count("weights_averaged")


@dataclass(frozen=True)
class Decaying(Average):
    """With a decay of its own; 0 leaves the weights as they are."""

    decay: float

    def begin(self, net: nn.Module, fit: Fit, history: nn.Module) -> ExponentialAveraging:
        return Counted(net, self.decay) if self.decay else ExponentialAveraging(net, 0.0)


def ema_weights(decay: float = 0.99) -> Method:
    """m, the share of the average that stays with each update; 0 for none."""
    return edit(average=Decaying(decay))
