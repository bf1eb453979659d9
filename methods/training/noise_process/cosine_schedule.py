"""Lets the signal fade as a cosine, so that no part of the chain is spent on images that are noise already.

The linear schedule destroys small images early and leaves the last steps nothing to do. The cosine falls nearly
linearly in the middle and hardly changes at its ends; an offset keeps the first noise from being too small to predict.

Source: Nichol and Dhariwal 2021 "Improved Denoising Diffusion Probabilistic Models" (2102.09672), section 3.2, s =
0.008.
Limits: sampling starts at lam = -5 (t = 0.996) as the baseline does, where the paper caps beta at 0.999; the learned
variances and the hybrid loss of the same paper are left out. The baseline is this schedule with s = 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.recipe import Method, edit
from methods.training.noise_process._shared import Schedule, UniformTime


@dataclass(frozen=True)
class OffsetCosine(Schedule):
    """alpha = cos(phi(t)) / cos(phi(0)) with phi(t) = (t + s) / (1 + s) pi / 2."""

    offset: float
    lam_start: float = -5.0

    def phase(self, t: Tensor) -> Tensor:
        return (t + self.offset) / (1 + self.offset) * (math.pi / 2)

    def decay(self, t: Tensor) -> Tensor:
        alpha = torch.cos(self.phase(t)) / torch.cos(self.phase(torch.zeros_like(t)))
        return -2 * torch.log(alpha.clamp(max=1))

    def time_of(self, decay: Tensor) -> Tensor:
        phase = torch.acos(torch.exp(-decay / 2) * torch.cos(self.phase(torch.zeros_like(decay))))
        return (phase / (math.pi / 2) * (1 + self.offset) - self.offset).clamp(min=0)


def cosine_schedule(offset: float = 0.008) -> Method:
    """Use the cosine that begins `offset` of the way in."""
    return edit(process=OffsetCosine(offset), grid=UniformTime())
