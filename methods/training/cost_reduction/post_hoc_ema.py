"""Keeps two averages of the weights on the way, from which that of any length is put together after the training.

The best length of an average is known only when the model is sampled, and by then the weights are gone. Averages whose
weight grows as a power of the time keep their shape while training goes on; of snapshots of two of them, a linear
combination comes close to a third, by least squares between the shapes, without training again.

Source: Karras et al. 2023 "Analyzing and Improving the Training Dynamics of Diffusion Models" (2312.02696), sections
3.1 and 3.2 and appendix C: A x = b from inner products of profiles; checked against `training/phema.py` of the official
code.
Limits: `snapshots` at equal distances, one more wherever weights are taken on the way. The rest of the paper, its
networks that keep the magnitude of activations and weights, is another technique.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.average import Average, Averaging
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.errors import NothingMatched
from methods.core.fit import Fit
from methods.core.models import Model
from methods.core.recipe import Method, Recipe, edit
from methods.training.cost_reduction._profiles import TRACKED, Snapshots, coefficients, exponent


class PowerAveraging(Averaging):
    """Two averages at once, theta <- beta theta + (1 - beta) w with beta = (1 - 1 / t)^(gamma + 1)."""

    def __init__(self, net: nn.Module, history: Snapshots, updates: int) -> None:
        self.both = [copy.deepcopy(net) for _ in TRACKED]
        self.means: list[list[Tensor]] = [[*each.parameters()] for each in self.both]
        self.weights: list[Tensor] = [*net.parameters()]
        self.history, self.updates, self.done = history, updates, 0

    @torch.no_grad()
    def update(self) -> None:
        self.done += 1
        for means, length in zip(self.means, TRACKED, strict=True):
            beta = (1 - 1 / self.done) ** (exponent(length) + 1)
            torch._foreach_lerp_(means, self.weights, 1 - beta)  # pyright: ignore[reportPrivateImportUsage]
        count("weights_averaged")
        kept = len(self.history.times) - 1  # the last place is for the moment at which somebody looks
        if self.done * kept // self.updates > (self.done - 1) * kept // self.updates:
            self.keep(self.done * kept // self.updates - 1)

    def keep(self, place: int) -> None:
        """Write both averages down."""
        self.history.times[place] = self.done
        for i, pair in enumerate(zip(*self.means, strict=True)):
            self.history.of(i)[place] = torch.stack(pair)

    @property
    def net(self) -> nn.Module:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The shorter average, with which nobody needs to be content."""
        self.history.times[-1] = 0
        if self.done and self.done not in self.history.times:
            self.keep(len(self.history.times) - 1)
        return self.both[0]


@dataclass(frozen=True)
class Power(Average):
    """Power-function averages of two lengths, of which snapshots are kept."""

    snapshots: int

    def history(self, net: nn.Module) -> Snapshots:
        return Snapshots(net, self.snapshots + 1)

    def begin(self, net: nn.Module, fit: Fit, history: nn.Module) -> PowerAveraging:
        assert isinstance(history, Snapshots)
        return PowerAveraging(net, history, fit.iterations)


@dataclass(frozen=True)
class Reconstruct(Phase):
    """Gives the network the average of a length, for the end of the training."""

    length: float
    first = True
    heeds = ()

    @torch.no_grad()
    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        history = model.history
        if not isinstance(history, Snapshots):
            raise NothingMatched("There are no snapshots to choose an average from: base training kept none")
        there = history.times > 0
        times = np.repeat(history.times[there].cpu().numpy(), len(TRACKED))
        gammas = np.tile([exponent(length) for length in TRACKED], int(there.sum()))
        shares = coefficients(times, gammas, times.max(), exponent(self.length))
        for i, p in enumerate(model.net.parameters()):
            kept = history.of(i)[there].flatten(0, 1).double()
            p.copy_(torch.tensordot(torch.tensor(shares, device=kept.device), kept, dims=1))
        count("averages_put_together")
        return 0


def post_hoc_ema(length: float = 0.15, snapshots: int = 16) -> Method:
    """sigma_rel, the length of the average in parts of the training, chosen after it; snapshots of two on the way."""
    return edit(average=Power(snapshots), phases=Reconstruct(length))
