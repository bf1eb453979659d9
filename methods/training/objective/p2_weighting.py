"""Takes weight from nearly clean images, where only detail that nobody sees is left to learn.

What an image shows is decided at high and middle noise. Dividing the noise loss by (k + SNR)^gamma spends the network's
capacity there; k bounds the weight where the SNR vanishes.

Source: Choi et al. 2022 "Perception Prioritized Training of Diffusion Models" (2204.00227), abstract; the weight
1 / (k + SNR)^gamma on the noise loss, and k = 1 with gamma 0.5 or 1, as in the official code and its README. On x_0 the
noise loss weighs SNR, so this is SNR / (k + SNR)^gamma. With k = gamma = 1 on a variance-preserving process it is
alpha^2.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import Weight
from methods.core.recipe import Method, edit


@dataclass(frozen=True)
class PerceptionPrioritized(Weight):
    """w = SNR / (k + SNR)^gamma."""

    gamma: float
    k: float

    def __call__(self, lam: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        snr = torch.exp(2 * lam)
        divisor = (self.k + snr) ** self.gamma
        count("weights_lowered", int((divisor > 1).sum()))
        return snr / divisor


def p2_weighting(gamma: float = 1.0, k: float = 1.0) -> Method:
    """Divide the weight of the noise loss by (k + SNR)^gamma."""
    return edit(weight=PerceptionPrioritized(gamma, k))
