"""Caps the weight of low noise levels, so that nearly clean images do not crowd out the rest of the task.

Denoising at different levels is a set of conflicting tasks. The usual noise loss weighs the error of x_0 by the SNR,
which explodes near the data; min(SNR, gamma) is an approximate Pareto solution.

Source: Hang et al. 2023 "Efficient Diffusion Training via Min-SNR Weighting Strategy" (2303.09556), section 3.4.
Written on x_0 it is one formula for every parameterization (min(SNR, gamma) / SNR for noise, / (SNR + 1) for v).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import Weight
from methods.core.recipe import Method, edit


@dataclass(frozen=True)
class MinSNR(Weight):
    """w = min(SNR, gamma)."""

    gamma: float

    def __call__(self, lam: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        snr = torch.exp(2 * lam)
        count("weights_clamped", int((snr > self.gamma).sum()))
        return snr.clamp(max=self.gamma)


def min_snr_weighting(gamma: float = 5.0) -> Method:
    """Clamp the weight on the squared error of x_0 at gamma."""
    return edit(weight=MinSNR(gamma))
