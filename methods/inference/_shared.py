"""What is learned from a finished denoiser by listening to it along the forward process, at all noise levels."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.core.denoiser import Denoiser, Labels
from methods.core.fit import Fit
from methods.core.process import like


def affordable(fit: Fit, fraction: float, each: int) -> int:
    """How many times `each` images can be evaluated for a fraction of the images of base training; at least once."""
    return max(1, round(fraction * fit.iterations * fit.batch / each))


def forward_paths(
    denoiser: Denoiser, x0: Float[Tensor, "n *s"], labels: Labels, times: Float[Tensor, "k"], paths: int,
    rng: torch.Generator,
) -> Iterator[tuple[Float[Tensor, "*s"], Float[Tensor, "k *s"], Float[Tensor, "k *s"]]]:  # fmt: skip
    """Carry one clean sample after the other through falling times: x_0, its x_t and the estimates of x_0 from them.

    x_t / alpha is a random walk that begins at x_0 and has variance e^{-2 lam}: neighbouring levels share their noise.
    """
    process = denoiser.process
    variance = torch.exp(-2 * process.lam(times))
    step = (variance - F.pad(variance[1:], (0, 1))).sqrt()
    for row in torch.randint(len(x0), (paths,), generator=rng, device=rng.device):
        z = torch.randn((len(times), *x0.shape[1:]), generator=rng, device=rng.device).to(x0)
        walk = (like(step, z) * z).flip(0).cumsum(0).flip(0)
        x_t = like(process.alpha(times), z) * (x0[row] + walk)
        denoiser.reset()
        yield x0[row], x_t, denoiser(x_t, times, None if labels is None else labels[row].expand(len(times)))
