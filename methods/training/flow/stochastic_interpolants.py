"""Trains one velocity between noise and data, and leaves how much noise sampling adds to be chosen afterwards.

The interpolant x_t = alpha x_0 + sigma eps needs no diffusion to define it, and its velocity gives its score too. One
network serves a whole family of reverse processes with the same marginals: the flow, and for every w(t) >= 0 an SDE,
which corrects the errors of the velocity at the price of more steps.

Source: Albergo, Boffi, Vanden-Eijnden 2023 "Stochastic Interpolants" (2303.08797), the one-sided linear interpolant;
velocity loss, reverse SDE with w = sigma by Euler and Maruyama, and a last step without noise as in Ma et al. 2024
"SiT" (2401.08740), eq. 4 and section 2.4 (i); its official code has 2 sigma by default.
Limits: noise at one end, so the latent gamma(t) z of the general interpolant is part of it. The GVP interpolant of SiT
is the process of the baseline, and its velocity `v_prediction` up to a factor. Steps are those of the recipe's grid,
which has none of the fixed last step of 0.04.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, edit
from methods.core.sampling import Denoise, SampleNoise, Solver
from methods.training.flow.flow_matching import FlowVelocity, StraightPath


@dataclass(frozen=True)
class InterpolantSDE(Solver):
    """dx = v dt - (w / 2) score dt + sqrt(w) dW backwards in t, with w = diffusion sigma and score = -eps / sigma."""

    diffusion: float
    order: ClassVar[int] = 0

    def step(
        self, denoise: Denoise, process: Process, x: Float[Tensor, "b *s"], t: Tensor, s: Tensor, past: None,
        noise: SampleNoise,
    ) -> tuple[Float[Tensor, "b *s"], None]:  # fmt: skip
        count("interpolant_steps", len(x))
        kept, moved, fresh = _step(process, self.diffusion, t, s)
        x = combine(kept, x, moved, denoise(x, t))
        return (combine(1.0, x, fresh, noise(tuple(x.shape[1:]))) if s > 0 and fresh > 0 else x), None


@remembered
def _step(process: Process, diffusion: float, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What x, x_0 and fresh noise are multiplied by: x - h (v + diffusion / 2 eps) with v = eps - x_0."""
    h, pull = t - s, 1 + diffusion / 2
    per_eps = h * pull / process.sigma(t)
    return 1 - per_eps, h + per_eps * process.alpha(t), torch.sqrt(diffusion * process.sigma(t) * h)


def stochastic_interpolants(diffusion: float = 1.0) -> Method:
    """Train along the linear interpolant; sample with w = `diffusion` sigma, which is the flow at zero."""
    return edit(process=StraightPath(), parameterization=FlowVelocity(), sampler=InterpolantSDE(diffusion))
