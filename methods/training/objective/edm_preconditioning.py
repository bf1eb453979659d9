"""Scales input, output and skip so that the network sees, and predicts, unit variance at every noise level.

D(x; sigma) = c_skip x + c_out F(c_in x): at low noise the network predicts the noise, at high noise the image, and
errors of F are never amplified. Training spends its time at the middle levels, ln sigma ~ N(mean, std^2).

Source: Karras et al. 2022 (2206.00364), table 1 and eq. 7; the loss weight 1 / c_out^2 on D is weight 1 on F (eq. 8).
Limits: sigma_data is that of the pixels, also where the diffusion takes place elsewhere. The network is told the
noise level as the angle all networks here are told, not as c_noise = ln(sigma) / 4.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import NormalLam
from methods.core.parameterization import Parameterization
from methods.core.process import Process
from methods.core.recipe import Method, edit

SIGMA_MAX = 80.0


@dataclass(frozen=True)
class VarianceExploding(Process):
    """alpha = 1, sigma = sigma_max t: noise is added and nothing is scaled down."""

    lam_start: float = -math.log(SIGMA_MAX)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return SIGMA_MAX * t

    def time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam) / SIGMA_MAX


@dataclass(frozen=True)
class Preconditioned(Parameterization):
    """F = ((1 - c_skip alpha) x_0 - c_skip sigma eps) / c_out, with the c of table 1 at signal alpha sigma_data."""

    sigma_data: float

    def pair(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        count("preconditioned_calls", t.numel())
        alpha, sigma, scale = process.alpha(t), process.sigma(t), self.input_scale(process, t)
        skip = alpha * self.sigma_data**2 * scale**2
        out = sigma * self.sigma_data * scale
        return (1 - skip * alpha) / out, -skip * sigma / out

    def input_scale(self, process: Process, t: Tensor) -> Tensor:
        return torch.rsqrt((process.alpha(t) * self.sigma_data) ** 2 + process.sigma(t) ** 2)


def edm_preconditioning(mean: float = -1.2, std: float = 1.2, sigma_data: float = 0.5) -> Method:
    """Train the EDM way: ln sigma ~ N(mean, std^2), data of standard deviation sigma_data."""
    return edit(process=VarianceExploding(), parameterization=Preconditioned(sigma_data), times=NormalLam(-mean, std))
