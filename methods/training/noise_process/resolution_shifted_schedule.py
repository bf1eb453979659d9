"""Shifts the cosine schedule by the logarithm of the resolution, so that images of any size are drowned at one pace.

Averaging s x s pixels keeps the image and divides the variance of its noise by s^2: what is hidden at one resolution
can be read at a higher one. Moving log SNR by 2 log(reference / resolution) gives the averaged image the noise it would
have at the reference.

Source: Hoogeboom et al. 2023 "simple diffusion: End-to-end diffusion for high resolution images" (2301.11093), eq. 4
and 5. The same shift is the input scale b = reference / resolution of Chen 2023 (2301.10972), and on straight paths
the time shift sqrt(m / n) from n to m pixels of Esser et al. 2024 (2403.03206), section 5.3.2, eq. 23.
Limits: one shift, not the interpolation between two (eq. 6); the network and its losses stay the baseline's.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, angle
from methods.core.recipe import Method, edit
from methods.training.noise_process._shared import UniformTime


@dataclass(frozen=True)
class ShiftedCosine(Process):
    """sigma / alpha = k tan(pi t / 2): the cosine process with k = resolution / reference times its noise."""

    k: float
    lam_start: float = -5.0
    preserves_variance: ClassVar[bool] = True

    def alpha(self, t: Tensor) -> Tensor:
        count("levels_shifted", t.numel())
        return torch.cos(self.turned(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self.turned(t))

    def turned(self, t: Tensor) -> Tensor:
        """atan(sigma / alpha)."""
        return torch.atan2(self.k * torch.sin(t * (math.pi / 2)), torch.cos(t * (math.pi / 2)))

    def time(self, lam: Tensor) -> Tensor:
        return angle(lam + math.log(self.k))


def resolution_shifted_schedule(resolution: int = 256, reference: int = 64) -> Method:
    """Shift the cosine schedule from the reference to the images' own number of pixels a side."""
    return edit(process=ShiftedCosine(resolution / reference), grid=UniformTime())
