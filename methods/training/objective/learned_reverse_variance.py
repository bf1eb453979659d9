"""Learns how much noise each reverse step should add, so that few steps are enough for a stochastic chain.

The variance of a reverse step lies between that of the posterior if the image were known, and that of the forward step.
They agree for short steps, so that a long chain needs no choice; for long steps they do not. A second output of the
network says for each pixel where between them, learned from the variational bound, which leaves the mean alone.

Source: Nichol and Dhariwal 2021 "Improved Denoising Diffusion Probabilistic Models" (2102.09672), section 3.1: Sigma =
exp(v log beta + (1 - v) log beta~), L_hybrid = L_simple + 0.001 L_vlb with the mean held fixed in L_vlb; compared with
`gaussian_diffusion.py` of the official code.
Limits: the bound is that of a chain of 1,000 steps at the times that training draws, without its last step, whose
likelihood of grey levels no sampler uses. Guidance changes the mean that the variance was learned for, and conflicts.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.objective import Loss
from methods.core.process import Process, combine
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import SampleNoise, Sampler
from methods.core.surgery import rewrite_path
from methods.inference.ode_solver.ddim import CHAIN, posterior
from methods.nets.adm import ADMConfig
from methods.nets.dit import DiTConfig
from methods.nets.efficient_unet import EfficientUNetConfig
from methods.nets.linear_dit import LinearDiTConfig
from methods.nets.unet import UNetConfig
from methods.training.objective._shared import Altered
from methods.training.objective._variance import bits, log_variance, twice_as_wide

HEADED = (UNetConfig, ADMConfig, EfficientUNetConfig, DiTConfig, LinearDiTConfig)
"""Networks that end in a layer of its own for the prediction."""


class Hybrid(Altered):
    """The denoising loss, and `share` of the bound, whose gradient does not pass through the predicted mean."""

    def __init__(self, recipe: Recipe, share: float) -> None:
        super().__init__(recipe)
        self.share = share

    def target(
        self, process: Process, x0: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"], x_t: Float[Tensor, "b *s"],
        t: Float[Tensor, "b"], labels: Labels, told: Labels,
    ) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "b *s"]]:  # fmt: skip
        self.clean = x0
        return x0, eps

    def predict(
        self, student: Network, x_t: Float[Tensor, "b *s"], t: Float[Tensor, "b"], told: Labels
    ) -> Float[Tensor, "b *s"]:
        prediction = student.predict(x_t, t, told)
        assert student.beside is not None, "the network says nothing beside its prediction"
        x0 = student.parameterization.clean(student.process, x_t, prediction.detach(), t)
        self.bound = bits(student.process, student.beside, self.clean, x0, t)
        count("variances_learned", len(x_t))
        return prediction

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        return super().__call__(student, teacher, x0, labels, rng) + self.share * CHAIN * self.bound


@dataclass(frozen=True)
class LearnedVariance(Loss):
    """L_hybrid, of a network whose last layer says a variance as well."""

    share: float

    def network(self, net: nn.Module) -> nn.Module:
        return rewrite_path(net, "head", twice_as_wide)

    def objective(self, recipe: Recipe) -> Hybrid:
        return Hybrid(recipe, self.share)


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Steps of the chain's posterior at the estimate of x_0, with the variance that the network says."""

    order: ClassVar[int] = 0

    def __call__(
        self, denoiser: Denoiser, x: Float[Tensor, "b *s"], times: Float[Tensor, "n"], labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:  # fmt: skip
        assert isinstance(denoiser, Network)
        denoiser.reset()
        for t, s in pairwise(times):
            kept, added, _ = posterior(denoiser.process, 1.0, t, s)
            estimate, said = denoiser(x, t, labels), denoiser.beside
            x = combine(kept, x, added, estimate)
            if s > 0 and said is not None:
                count("variances_used", len(x))
                x = x + torch.exp(0.5 * log_variance(denoiser.process, said, t, s)) * noise(tuple(x.shape[1:]))
        return x


def learned_reverse_variance(share: float = 0.001, steps: int = 25) -> Method:
    """lambda, the share of the bound in the loss; sampled in `steps` ancestral steps."""
    needs = {"net": HEADED, "guidance": Unguided}
    return edit(needs=needs, loss=LearnedVariance(share), sampler=Ancestral(), steps=steps)
