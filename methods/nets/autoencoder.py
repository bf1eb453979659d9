"""Small autoencoders: a convolutional one that halves the resolution, and a class-conditional one on flat vectors.

Source: Kingma and Welling 2014 (1312.6114), eq. 10 (the reparameterised bound both are trained on).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def divergence(mean: Float[Tensor, "b *s"], log_variance: Float[Tensor, "b *s"]) -> Float[Tensor, "b"]:
    """KL(N(mean, exp(log_variance)) || N(0, I)), summed over dimensions, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


class ConvAutoencoder(nn.Module):
    """[b, c, h, w] <-> [b, k, h/f, w/f], f a power of two."""

    def __init__(self, channels: int, latent_channels: int, factor: int, width: int = 32) -> None:
        super().__init__()
        halvings = factor.bit_length() - 1
        assert 2**halvings == factor, "the factor is a power of two"
        down = [nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 3, stride=2, padding=1)) for _ in range(halvings)]
        up = [
            nn.Sequential(nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(halvings)
        ]
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), *down, nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(), nn.Conv2d(width, 2 * latent_channels, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1), *up, nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1),
        )  # fmt: skip

    def posterior(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b k i j"], Float[Tensor, "b k i j"]]:
        """Mean and log variance of the latent."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, z: Float[Tensor, "b k i j"]) -> Float[Tensor, "b c h w"]:
        return self.decoder(z)


class VectorVAE(nn.Module):
    """A class-conditional variational autoencoder of flat vectors, with a diagonal Gaussian posterior."""

    def __init__(self, size: int, classes: int, latent: int = 16, width: int = 256) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.encoder = nn.Sequential(nn.Linear(size + classes, width), nn.SiLU(), nn.Linear(width, 2 * latent))
        self.decoder = nn.Sequential(
            nn.Linear(latent + classes, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)
        )

    def posterior(
        self, x: Float[Tensor, "b d"], labels: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Mean and log variance of the latent."""
        mean, log_variance = self.encoder(torch.cat([x, self.one_hot(labels)], dim=1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Float[Tensor, "b z"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
        return self.decoder(torch.cat([z, self.one_hot(labels)], dim=1))

    def one_hot(self, labels: Int[Tensor, "b"]) -> Float[Tensor, "b c"]:
        """One-hot labels; no condition is all zeros."""
        known = labels >= 0
        return F.one_hot(labels.clamp(min=0), self.classes).float() * known[:, None]
