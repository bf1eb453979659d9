"""Skips most steps of the chain by jumping along a non-Markovian process with the marginals DDPM was trained on.

Training never used more than q(x_t | x_0), so any process that shares it may be reversed with the same network; with
eta = 0 the jump is deterministic and exact for a constant x_0, which is what lets it be long. eta = 1 is DDPM's
ancestral sampling.

Source: Song, Meng, Ermon 2021 "Denoising Diffusion Implicit Models" (2010.02502), eq. 12 and 16.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, SampleNoise, Solver, transfer

CHAIN = 1000
"""The steps of the chain that is skipped through (Ho et al. 2020)."""


@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = transfer(x_t, x_0)."""

    order: ClassVar[int] = 1

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: None,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], None]:  # fmt: skip
        count("steps_skipped", skipped(t, s))
        return transfer(process, x, denoise(x, t), t, s), None


def skipped(t: Tensor, s: Tensor) -> int:
    """How many steps of the chain of 1,000 the jump from t to s leaves out."""
    return round(CHAIN * (t - s).item()) - 1


@dataclass(frozen=True)
class StochasticDDIM(Solver):
    """Keeps part of the old noise and draws the rest anew: eta = 1 is the posterior q(x_s | x_t, x_0) of DDPM."""

    eta: float
    order: ClassVar[int] = 0

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: None,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], None]:  # fmt: skip
        count("steps_skipped", skipped(t, s))
        kept, added, fresh = posterior(process, self.eta, t, s)
        x = combine(kept, x, added, denoise(x, t))
        return (x if s == 0 else combine(1.0, x, fresh, noise(tuple(x.shape[1:])))), None


@remembered
def posterior(process: Process, eta: float, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What x, x_0 and fresh noise are multiplied by; the noise that is kept is (x - alpha x_0) / sigma."""
    # Eq. 16 in lam: sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s) = sigma_s sqrt(1 - e^{-2h}), h = lam_s - lam_t.
    fresh = eta * process.sigma(s) * torch.sqrt(-torch.expm1(2 * (process.lam(t) - process.lam(s))))
    kept = torch.sqrt(process.sigma(s) ** 2 - fresh**2) / process.sigma(t)
    return kept, process.alpha(s) - process.alpha(t) * kept, fresh


def ddim(steps: int = 20, eta: float = 0.0) -> Method:
    """Sample in `steps` jumps; eta in [0, 1] is the share of fresh noise."""
    return edit(sampler=StochasticDDIM(eta) if eta > 0 else DDIM(), steps=steps)
