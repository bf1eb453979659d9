"""How good samples in the plane are, where the mixture they should come from is known."""

import math

import numpy as np
import ot
import torch
from jaxtyping import Float
from torch import Tensor

from methods.data import Mixture
from methods.measure.quality import Discrepancy, mmd2

EXACT_TRANSPORT_LIMIT = 2_000
PROJECTIONS = 128
INSIDE_STDS = 4.0  # a 2-D Gaussian has 3e-4 of its mass further out
COVERED_SHARE = 0.1


def wasserstein2(a: Float[Tensor, "n 2"], b: Float[Tensor, "m 2"]) -> float:
    """Wasserstein-2 distance by exact optimal transport. Raises ValueError over 2,000 points a side."""
    if max(len(a), len(b)) > EXACT_TRANSPORT_LIMIT:
        raise ValueError(f"Exact transport takes at most {EXACT_TRANSPORT_LIMIT} points a side.")
    cost = torch.cdist(a.double(), b.double()).square().numpy()
    return math.sqrt(np.asarray(ot.emd2(ot.unif(len(a)), ot.unif(len(b)), cost, numItermax=2_000_000)))


def sliced_wasserstein2(a: Float[Tensor, "n 2"], b: Float[Tensor, "m 2"]) -> float:
    """Root mean square of the Wasserstein-2 distances along 128 fixed directions."""
    points = a.double().numpy(), b.double().numpy()
    return np.asarray(ot.sliced_wasserstein_distance(*points, n_projections=PROJECTIONS, seed=0)).item()


def median_distance(reference: Float[Tensor, "n 2"]) -> float:
    """Median distance between two points of the reference: the bandwidth of `mmd`."""
    return float(np.median(torch.pdist(reference.double()).numpy()))


def mmd(a: Float[Tensor, "n 2"], b: Float[Tensor, "m 2"], bandwidth: float) -> Discrepancy:
    """Unbiased squared MMD, kernel exp(-|x - y|^2 / (2 bandwidth^2)); the reference fixes the bandwidth."""
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, y).square() / (2 * bandwidth**2))

    return mmd2(kernel(a, a), kernel(b, b), kernel(a, b))


def mode_coverage(samples: Float[Tensor, "n 2"], mixture: Mixture) -> float:
    """Share of modes that hold, within 4 standard deviations, a tenth of the samples due to them."""
    held = _inside(samples, mixture).double().mean(0)
    return (held >= COVERED_SHARE * mixture.weights).double().mean().item()


def off_manifold(samples: Float[Tensor, "n 2"], mixture: Mixture) -> float:
    """Share of samples further than 4 standard deviations from every mode."""
    return 1 - _inside(samples, mixture).any(1).double().mean().item()


def _inside(samples: Float[Tensor, "n 2"], mixture: Mixture) -> Tensor:
    return torch.cdist(samples, mixture.means.to(samples)) <= INSIDE_STDS * mixture.stds.to(samples)
