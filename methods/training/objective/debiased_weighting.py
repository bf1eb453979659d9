"""Gives the noise loss the weight that an error of the noise has on the image it leads to, so that high noise counts.

The same error of the predicted noise is 1 / sqrt(SNR) times as large on the estimate of x_0. A constant weight on the
noise therefore leaves the image most wrong where it is decided, at high noise; a weight of the same size corrects that
half way towards the loss on x_0, whose weight, 1 / SNR, would leave nothing for low noise.

Source: Yu et al. 2023 "Unmasking Bias in Diffusion Model Training" (2310.08442), abstract; the weight 1 / sqrt(SNR) on
the noise loss as in the official code, `training_losses`. On x_0 the noise loss weighs SNR, so this is sqrt(SNR).
Limits: the paper's chain ends where the weight is 157. Here times are continuous up to pure noise, where it has no
bound, so it is `largest` from there on.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import Weight
from methods.core.recipe import Method, edit


@dataclass(frozen=True)
class Debiased(Weight):
    """w = SNR min(1 / sqrt(SNR), largest)."""

    largest: float

    def __call__(self, lam: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        on_noise = torch.exp(-lam).clamp(max=self.largest)
        count("weights_raised", int((on_noise > 1).sum()))
        return torch.exp(2 * lam) * on_noise


def debiased_weighting(largest: float = 157.0) -> Method:
    """Weigh the noise loss by 1 / sqrt(SNR), or by `largest` where that is more."""
    return edit(weight=Debiased(largest))
