"""A small encoder of patches that learns without labels: to tell two views of one image from the views of all others.

Source: Chen et al. 2020 "A Simple Framework for Contrastive Learning of Visual Representations" (2002.05709), eq. 1
and section 2.1: the loss of normalised temperature-scaled cross-entropy, on a projection that is not used afterwards.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 64
TEMPERATURE = 0.2
TURN, ZOOM, SHIFT, NOISE = 0.25, 0.15, 0.15, 0.1
"""Of a view: the largest angle in radians, change of scale, move in half sides; standard deviation of the noise."""


def view(x: Float[Tensor, "b c h w"], rng: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Every image turned, zoomed, moved and made noisy at random, as little as leaves a digit what it is."""
    turn, zoom, *move = (2 * torch.rand(len(x), 4, generator=rng, device=rng.device).to(x) - 1).unbind(1)
    scale, angle = 1 + ZOOM * zoom, TURN * turn
    down, across = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([down, -across, SHIFT * move[0], across, down, SHIFT * move[1]], dim=1)
    moved = F.grid_sample(
        x, F.affine_grid(rows.reshape(-1, 2, 3), list(x.shape), align_corners=False),
        padding_mode="border", align_corners=False,
    )  # fmt: skip
    return moved + NOISE * torch.randn(x.shape, generator=rng, device=rng.device).to(x)


def contrast(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
    """-log of the softmax, over all other views, of the cosine with the other view of the same image; its mean."""
    views = F.normalize(torch.cat([first, second]), dim=1)
    alike = (views @ views.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    other = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(alike, other, reduction="none").reshape(2, -1).mean(0)


class PatchEncoder(nn.Module):
    """Features of every patch of clean images, row by row, each with zero mean and unit variance."""

    def __init__(self, channels: int, patch: int, width: int = FEATURES) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(channels, width, 3, padding=1)
        self.patches = nn.Conv2d(width, width, patch, stride=patch)
        self.around, self.last = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.compared = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        h = F.silu(self.patches(F.silu(self.pixels(x))))
        return self.norm(self.last(F.silu(self.around(h))).flatten(2).transpose(1, 2))

    def contrasted(self, x: Float[Tensor, "b c h w"], rng: torch.Generator) -> Float[Tensor, "b"]:
        """The loss by which it learns, of the mean features of two views of each image."""
        first, second = (self.compared(self(view(x, rng)).mean(1)) for _ in range(2))
        return contrast(first, second)
