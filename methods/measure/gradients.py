"""Where the noise of training comes from: the variance of a step's gradient, by noise level.

A weight on the loss and a density over noise levels scale the same expected gradient, so that the two cannot be told
apart by it: looking twice as often is weighing twice. What differs is the variance, for rare samples of great weight
are noisier than frequent ones of little. Shares over noise levels do not depend on the scale of the loss, which Adam
takes out.

Source: the common form of Kingma and Gao 2023 "Understanding Diffusion Objectives" (2303.00848), a weight and a
density. That the density then moves nothing but the variance is what Kingma et al. 2021 "Variational Diffusion Models"
(2107.00630), abstract, choose it by. The estimate is the usual one of a covariance's trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.denoiser import Labels, Network
from methods.core.objective import Objective

EDGES = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
"""Bounds of the noise levels in lam = log(alpha / sigma); what lies beyond them belongs to the first and the last."""
LEARNING = 200
"""Batches in which an objective may learn where to look: enough for ten losses in each of a hundred strata."""


@dataclass(frozen=True)
class Profile:
    """Shares of the noise levels, from much noise to little, each adding up to one.

    `samples` are drawn there, `loss` is what they add to it, `variance` the trace of the covariance of their part of a
    step's gradient.
    """

    samples: list[float]
    loss: list[float]
    variance: list[float]


class Listening(Network):
    """A network that notes the noise level, in lam, of what it is asked with gradients."""

    heard: Float[Tensor, "b"]

    def predict(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        if torch.is_grad_enabled():
            self.heard = self.process.lam(t).expand(len(x_t))
        return super().predict(x_t, t, labels)


def by_noise_level(
    objective: Objective, network: Network, x0: Float[Tensor, "n *s"], labels: Labels,
    batch: int, steps: int, seed: int, edges: Sequence[float] = EDGES,
) -> Profile:  # fmt: skip
    """Take the gradient of `steps` batches apart by noise level, at the weights as they are.

    `LEARNING` batches come before, for objectives that learn where to look; the network learns nothing from them. Every
    batch is drawn anew from all samples. Raises ValueError for fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f"A variance takes two steps at least, not {steps}.")
    student = Listening(network.net, network.process, network.parameterization, network.bounds)
    weights = [*student.net.requires_grad_(True).parameters()]
    rng = torch.Generator(x0.device).manual_seed(seed)
    bounds = torch.tensor(edges, dtype=torch.float64, device=x0.device)
    levels = len(edges) + 1
    samples, lost = torch.zeros(levels), torch.zeros(levels)
    total, squares = torch.zeros(levels, sum(p.numel() for p in weights)), torch.zeros(levels)

    def losses() -> Float[Tensor, "b"]:
        rows = torch.randint(len(x0), (batch,), generator=rng, device=x0.device)
        return objective(student, student, x0[rows], None if labels is None else labels[rows], rng)

    with torch.enable_grad():
        for _ in range(LEARNING):
            losses().mean().backward()
        student.net.zero_grad()
        for _ in range(steps):
            loss = losses()
            level = torch.bucketize(student.heard.double(), bounds)
            for b in level.unique().tolist():
                part = loss[level == b].sum() / batch
                found = torch.autograd.grad(part, weights, retain_graph=True, materialize_grads=True)
                gradient = torch.cat([g.flatten() for g in found]).cpu()
                total[b] += gradient
                squares[b] += gradient.square().sum()
                lost[b] += part.item()
            samples += torch.bincount(level, minlength=levels).cpu()
    student.net.requires_grad_(False)
    variance = (squares - total.square().sum(1) / steps).clamp(min=0) / (steps - 1)
    return Profile(*(shares(each) for each in (samples, lost, variance)))


def shares(parts: Float[Tensor, "k"]) -> list[float]:
    """Parts of their sum."""
    return (parts.double() / parts.double().sum()).tolist()
