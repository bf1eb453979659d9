"""What networks that are told how far to jump share: two numbers told, the average velocity, and the sampler.

On the straight path the average velocity u(x_t, r, t) = (x_t - x_r) / (t - r) takes a point of a trajectory to another
of its points in one move; at r = t it is the velocity of flow matching.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network, clip
from methods.core.process import like
from methods.core.sampling import SampleNoise, Sampler
from methods.training.flow.flow_matching import FlowVelocity

UNIT = 0.01
"""Of the numbers that the network is told: its fastest wave turns by 10 over the whole path and not by 1,000, since
derivatives by time are learnt from."""


@dataclass(frozen=True)
class AverageVelocity(FlowVelocity):
    """The network is told (noise level, length of the jump); a plain evaluation is a jump of length 0."""

    def told(self, u: Float[Tensor, "b"]) -> Float[Tensor, "b 2"]:
        return UNIT * torch.stack([u, torch.zeros_like(u)], dim=1)


def average_velocity(
    network: Network, x_t: Float[Tensor, "b *s"], t: Float[Tensor, "b"], r: Float[Tensor, "b"], labels: Labels
) -> Float[Tensor, "b *s"]:
    """u(x_t, r, t), which leads from t to r <= t."""
    process, t, r = network.process, t.to(x_t), r.to(x_t)
    scale = network.parameterization.input_scale(process, t)
    x = x_t if scale is None else like(scale, x_t) * x_t
    return network.ask(x, UNIT * torch.stack([process.angle(t), t - r], dim=1), labels)


@dataclass(frozen=True)
class Jumps(Sampler):
    """x_s = x_t - (t - s) u(x_t, s, t) along the grid. Needs the network itself, which alone can be told s."""

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "b *s"],
        times: Float[Tensor, "n"],
        labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:
        assert isinstance(denoiser, Network), "a denoiser around the network cannot be told where a jump ends"
        denoiser.reset()
        for t, s in pairwise(times):
            count("jumps", len(x))
            x = x - (t - s).item() * average_velocity(denoiser, x, t.expand(len(x)), s.expand(len(x)), labels)
        return clip(x, denoiser.bounds)
