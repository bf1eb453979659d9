"""Trains on inputs that are a little noisier than the network is told, as its own samples will be.

In training the network sees real images with exact noise, in sampling its own slightly wrong results, and the errors
add up over the chain. Noise on top of the noise, which is not asked for, stands for those errors.

Source: Ning et al. 2023 "Input Perturbation Reduces Exposure Bias in Diffusion Models" (2301.11706), training with
perturbed input: x_t is made with eps + gamma xi and the target stays eps, as in `training_losses` of the official code.
Limits: one gamma for all noise levels. With a target other than the noise, the same eps and x_0 make up that target.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import Loss
from methods.core.recipe import Method, Recipe, edit
from methods.training.objective._shared import Altered


class Perturbed(Altered):
    """The denoising loss at x_t = alpha x_0 + sigma (eps + gamma xi)."""

    def __init__(self, recipe: Recipe, gamma: float) -> None:
        super().__init__(recipe)
        self.gamma = gamma

    def added(self, eps: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]:
        count("inputs_perturbed", len(eps))
        return eps + self.gamma * torch.randn(eps.shape, generator=rng, device=rng.device).to(eps)


@dataclass(frozen=True)
class InputPerturbation(Loss):
    """The recipe's denoising loss at perturbed inputs."""

    gamma: float

    def objective(self, recipe: Recipe) -> Perturbed:
        return Perturbed(recipe, self.gamma)


def input_perturbation(gamma: float = 0.1) -> Method:
    """Add noise of deviation gamma to the noise of the inputs, and not to that of the target."""
    return edit(loss=InputPerturbation(gamma))
