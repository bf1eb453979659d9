"""How a network is told the noise level and the class."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def sinusoid(u: Float[Tensor, "b *k"], width: int) -> Float[Tensor, "b w"]:
    """Sines and cosines of 1000 u at geometric frequencies; several numbers share the channels out between them.

    Source: Ho et al. 2020 (2006.11239), appendix B.
    """
    u = u.reshape(len(u), -1)
    waves = width // (2 * u.shape[1])
    frequencies = torch.exp(-math.log(10_000) * torch.arange(waves, device=u.device) / waves)
    phase = (1000 * u[..., None] * frequencies).flatten(1)
    return torch.cat([phase.sin(), phase.cos()], dim=1).to(u.dtype)


class Conditioning(nn.Module):
    """Noise level u in [0, 1], and what else is told, and label -> one vector.

    Label -1 (none) has an embedding of its own, the last.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.width = width
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)

    def forward(self, u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b w"]:
        return self.level(sinusoid(u, self.width)) + self.label(labels % self.label.num_embeddings)
