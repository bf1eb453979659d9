"""Gaussian mixtures in the plane: the bed on which the truth is known exactly.

Source: made up here; eight Gaussians on a circle are the customary test of mode coverage
(Metz et al. 2016, arXiv:1611.02163, Section 3.1). No licence: there are no data.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Density sum_k weights_k N(x; means_k, stds_k^2 I)."""

    weights: Float[Tensor, "k"]
    means: Float[Tensor, "k 2"]
    stds: Float[Tensor, "k"]
    name: str = "mixture"

    def sample(self, n: int, generator: Generator) -> Float[Tensor, "n 2"]:
        """n independent draws; `generator` lives on the CPU."""
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, 2, dtype=self.means.dtype, generator=generator)
        return self.means[mode] + self.stds[mode, None] * noise

    def log_prob(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, "n"]:
        """Natural logarithm of the density at each row of x."""
        z2 = ((x[:, None] - self.means) / self.stds[:, None]).square().sum(-1)
        log_component = -0.5 * z2 - 2 * self.stds.log() - math.log(2 * math.pi)
        return torch.logsumexp(self.weights.log() + log_component, dim=1)


def ring(modes: int = 8, radius: float = 1.0, std: float = 0.05) -> Mixture:
    """Equal Gaussians evenly spaced on a circle about the origin."""
    angle = torch.arange(modes) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return Mixture(torch.full((modes,), 1 / modes), means, torch.full((modes,), std))
