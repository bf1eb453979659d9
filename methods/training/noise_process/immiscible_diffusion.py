"""Gives every image of the batch the noise nearest to it, so that noise space is not shared by all images.

The noise of a batch is permuted to minimise the total distance between images and noise. The noise stays Gaussian over
the batch, but a point of noise space now belongs to few images, and the denoising target is less of an average.

Source: Li et al. 2024 "Immiscible Diffusion" (2406.12303), algorithm 1; the assignment is scipy's exact solver.
Cost: one assignment of batch x batch per training step.
Limits: the distance is computed in float32, not the float16 of the paper, which only saves time.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import Coupling, Independent
from methods.core.recipe import Method, edit


@dataclass(frozen=True)
class NearestAssignment(Coupling):
    """eps[pi] with pi = argmin sum_i ||x_i - eps_{pi(i)}||."""

    def __call__(self, x0: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]:
        eps = Independent()(x0, rng)
        distance = torch.cdist(x0.flatten(1).float(), eps.flatten(1).float())
        _, assigned = linear_sum_assignment(distance.cpu().numpy())
        count("noises_reassigned", int((assigned != range(len(x0))).sum()))
        return eps[torch.from_numpy(assigned).to(eps.device)]


def immiscible_diffusion() -> Method:
    """Assign noise to images within each training batch."""
    return edit(coupling=NearestAssignment())
