"""Lets the signal fade as a sigmoid, and makes images fainter by one factor to fit the schedule to their size.

Neighbouring pixels of a large image tell the same thing, so the same noise hides less of it. Scaling the image by b
while the schedule stays lowers the signal-to-noise ratio by b^2 at every time: one number to tune in place of a curve.
Here x_t is divided by b, so that the chain ends with the image itself; the network, whose input is normalized, sees the
same.

Source: Chen 2023 "On the Importance of Noise Scheduling for Diffusion Models" (2301.10972), algorithm 1 (`sigmoid`,
from -3 to 3) and section 2.2 (input scaling, with the input of the network brought back to unit variance).
Limits: the input is divided by the deviation that images of unit variance would give it, not by each image's own. Steps
are those of the recipe's grid: the paper leaves the schedule of sampling free, and finds the cosine to serve.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process
from methods.core.recipe import Method, edit

START, END = -3.0, 3.0
"""The stretch of the sigmoid that is used."""


@dataclass(frozen=True)
class ScaledSigmoid(Process):
    """alpha = sqrt(gamma), sigma = sqrt(1 - gamma) / b, gamma falling from 1 to 0 as the sigmoid rises."""

    tau: float
    scale: float
    lam_start: float = -5.0

    @property
    def ends(self) -> tuple[float, float]:
        """The sigmoid where it begins and where it ends."""
        low, high = torch.sigmoid(torch.tensor([START, END], dtype=torch.float64) / self.tau).tolist()
        return low, high

    def risen(self, t: Tensor) -> Tensor:
        return torch.sigmoid((t * (END - START) + START) / self.tau)

    def alpha(self, t: Tensor) -> Tensor:
        count("levels_scheduled", t.numel())
        low, high = self.ends
        return torch.sqrt(((high - self.risen(t)) / (high - low)).clamp(min=0))

    def sigma(self, t: Tensor) -> Tensor:
        low, high = self.ends
        return torch.sqrt(((self.risen(t) - low) / (high - low)).clamp(min=0)) / self.scale

    def time(self, lam: Tensor) -> Tensor:
        low, high = self.ends
        noise = torch.sigmoid(-2 * (lam - math.log(self.scale)))  # 1 - gamma
        return (self.tau * torch.logit(low + (high - low) * noise) - START) / (END - START)


def sigmoid_schedule_input_scaling(tau: float = 1.0, scale: float = 0.5) -> Method:
    """Use the sigmoid of temperature `tau` on images multiplied by `scale`."""
    return edit(process=ScaledSigmoid(tau, scale))
