"""What adversarial techniques share: steps between noise levels, and a discriminator in training.

Source: Xiao, Kreis, Vahdat 2022 (2112.07804) and its official code: softplus losses, Adam with beta_1 = 0.5, and the
penalty R1 on the slope at real data at every `LAZY`-th update.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.process import Process, combine, like

LAZY = 15


def forward_step(process: Process, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(r, v) of q(x_t | x_s) = N(r x_s, v), s < t."""
    r = process.alpha(t) / process.alpha(s)
    return r, process.sigma(t) ** 2 - (r * process.sigma(s)) ** 2


def noisier(
    process: Process, x_s: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"], s: Tensor, t: Tensor
) -> Float[Tensor, "b *s"]:
    """Draw x_t from q(x_t | x_s) with the given noise."""
    r, v = forward_step(process, s, t)
    return combine(r, x_s, v.sqrt(), eps)


def posterior(process: Process, x_t: Tensor, x0: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Float[Tensor, "b *s"]:
    """Draw x_s from q(x_s | x_t, x_0) with the given noise: Bayes' rule for two Gaussians."""
    r, v = forward_step(process, s, t)
    kept, variance = r * process.sigma(s) ** 2 / process.sigma(t) ** 2, v * (process.sigma(s) / process.sigma(t)) ** 2
    added = process.alpha(s) * v / process.sigma(t) ** 2
    return combine(kept, x_t, added, x0) + like(variance.sqrt(), eps) * eps


class Adversary:
    """A discriminator in training, (sample and context, u, labels) -> logits, and its optimizer."""

    def __init__(self, judge: nn.Module, rate: float, penalty: float) -> None:
        self.judge, self.penalty, self.updates = judge, penalty, 0
        self.optimizer = torch.optim.Adam(judge.parameters(), lr=rate, betas=(0.5, 0.9), fused=True)

    def logits(
        self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b d h w"], u: Float[Tensor, "b"],
        labels: Int[Tensor, "b"],
    ) -> Float[Tensor, "b"]:  # fmt: skip
        return self.judge(torch.cat([x, context], dim=1), u, labels)

    def teach(
        self, real: Float[Tensor, "b c h w"], made: Float[Tensor, "b c h w"], context: Float[Tensor, "b d h w"],
        u: Float[Tensor, "b"], labels: Int[Tensor, "b"],
    ) -> None:  # fmt: skip
        """One update: logits of real samples up, of made ones down."""
        lazy = self.updates % LAZY == 0
        real = real.detach().requires_grad_(lazy)
        logits = self.logits(real, context, u, labels)
        loss = F.softplus(-logits).mean() + F.softplus(self.logits(made.detach(), context, u, labels)).mean()
        if lazy:
            (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            loss = loss + self.penalty / 2 * slope.square().flatten(1).sum(1).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        count("discriminator_updates")
