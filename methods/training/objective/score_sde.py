"""Adds noise by a stochastic differential equation and reverses it, correcting each step by Langevin dynamics.

In continuous time, score matching over noise levels and the reverse process are one theory: with the score, the reverse
of any such equation is known. The score also says which way density rises at a fixed level, so a step of the reverse
equation, the predictor, can be followed by steps that pull its result back to that level's distribution.

Source: Song et al. 2021 "Score-Based Generative Modeling through Stochastic Differential Equations" (2011.13456), eq. 7
(loss), eq. 9 and appendix C (variance exploding), algorithms 2 and 4 (reverse diffusion with Langevin corrector).
Limits: the variance-exploding equation; the variance-preserving one is the limit of `ddpm_linear_schedule`, the sub-VP
one and likelihoods are left out. The network sees scaled input and is told the angle, not log sigma. A corrector's step
is set by each sample's own norms, not by their mean over the batch, and comes before the predictor's, as in the code;
estimates of x_0 behind the score are clipped. The variance begins at zero, so that a twentieth of the times have less
noise than the paper's least.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, like
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, SampleNoise, Solver
from methods.training.noise_process._shared import UniformTime

SIGMA_MIN = 0.01


@dataclass(frozen=True)
class GeometricVE(Process):
    """alpha = 1, sigma^2 = s(t)^2 - s(0)^2 with s(t) = sigma_min (sigma_max / sigma_min)^t."""

    sigma_max: float
    lam_start: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam_start", -math.log(self.sigma_max**2 - SIGMA_MIN**2) / 2)

    @property
    def growth(self) -> float:
        """log(s(1)^2 / s(0)^2)."""
        return 2 * math.log(self.sigma_max / SIGMA_MIN)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return SIGMA_MIN * torch.sqrt(torch.expm1(self.growth * t))

    def time(self, lam: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-2 * lam) / SIGMA_MIN**2) / self.growth


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Langevin steps at the level t, then a step of the reverse equation to s, in y = x / alpha and rho = e^-lam."""

    corrections: int
    snr: float
    order: ClassVar[int] = 0

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: None,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], None]:  # fmt: skip
        alpha, shape = process.alpha(t).item(), tuple(x.shape[1:])
        before, after = torch.exp(-2 * process.lam(torch.stack([t, s]))).tolist()  # rho^2, 0 at s = 0
        y = x / alpha
        for _ in range(self.corrections):
            y = self.correct(y, (denoise(alpha * y, t) - y) / before, noise(shape))
        count("corrections_made", self.corrections * len(x))
        y = y + (1 - after / before) * (denoise(alpha * y, t) - y)
        if s > 0:
            y = y + math.sqrt(before - after) * noise(shape)
        return process.alpha(s).item() * y, None

    def correct(
        self, y: Float[Tensor, "b *s"], score: Float[Tensor, "b *s"], z: Float[Tensor, "b *s"]
    ) -> Float[Tensor, "b *s"]:
        """A Langevin step whose noise is to its drift as 1 to snr."""
        step = 2 * (self.snr * z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)) ** 2
        return y + like(step, y) * score + like(torch.sqrt(2 * step), y) * z


def score_sde(sigma_max: float = 50.0, corrections: int = 1, snr: float = 0.16) -> Method:
    """Diffuse up to `sigma_max`; sample with this many corrections a step, at this ratio of drift to noise."""
    return edit(process=GeometricVE(sigma_max), grid=UniformTime(), sampler=PredictorCorrector(corrections, snr))
