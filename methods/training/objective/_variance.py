"""The variance of a reverse step between its two bounds, what it costs in bits, and room to say it.

Source: Nichol and Dhariwal 2021 "Improved Denoising Diffusion Probabilistic Models" (2102.09672), section 3.1.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.errors import NothingMatched
from methods.core.process import Process, like
from methods.inference.ode_solver.ddim import CHAIN, posterior
from methods.nets.dit import Head


def log_variance(process: Process, said: Float[Tensor, "b *s"], t: Tensor, s: Tensor) -> Float[Tensor, "b *s"]:
    """log Sigma of the step from t to s < t; what the network says is -1 for beta~, and 1 for beta."""
    v, both = (said + 1) / 2, torch.log(-torch.expm1(2 * (process.lam(t) - process.lam(s))))
    upper, lower = 2 * torch.log(process.sigma(t)) + both, 2 * torch.log(process.sigma(s)) + both
    return like(lower, v) + v * like(upper - lower, v)


def bits(
    process: Process, said: Float[Tensor, "b *s"], x0: Float[Tensor, "b *s"], estimate: Float[Tensor, "b *s"], t: Tensor
) -> Float[Tensor, "b"]:
    """KL(q(x_s | x_t, x_0) || N(mean of the estimate, Sigma)) of a step of the chain, in bits per dimension."""
    s = (t - 1 / CHAIN).clamp(min=1 / CHAIN)
    t = t.clamp(min=2 / CHAIN)  # before it comes the step that adds no noise
    _, added, fresh = posterior(process, 1.0, t, s)
    log_ratio = log_variance(process, said, t, s) - like(2 * torch.log(fresh), said)
    gap = (like(added / fresh, x0) * (x0 - estimate)).square()
    return 0.5 * (log_ratio - 1 + torch.exp(-log_ratio) * (1 + gap)).flatten(1).mean(1) / math.log(2)


def twice_as_wide(head: nn.Module) -> nn.Module:
    """A last layer with as many outputs again, all zero."""
    if isinstance(head, Head):
        head.pixels = twice_as_wide(head.pixels)  # pyright: ignore[reportAttributeAccessIssue]
        return head
    if isinstance(head, nn.Linear):
        wide: nn.Module = nn.Linear(head.in_features, 2 * head.out_features)
    elif isinstance(head, nn.Conv2d):
        size = head.in_channels, 2 * head.out_channels, head.kernel_size, head.stride, head.padding
        wide = nn.Conv2d(*size)  # pyright: ignore[reportArgumentType]
    else:
        raise NothingMatched(f"{type(head).__name__} is no last layer that could say more")
    for weight in wide.parameters():
        nn.init.zeros_(weight)
    return wide
