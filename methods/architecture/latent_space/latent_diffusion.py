"""Diffuses the latents of a frozen autoencoder instead of pixels: fewer positions in training and in sampling.

The autoencoder drops detail nobody sees; the diffusion, which is run many times, only models what is left. Latents are
scaled to unit variance, so that the noise schedule means the same as on pixels.

Source: Rombach et al. 2022 "High-Resolution Image Synthesis with Latent Diffusion Models" (2112.10752), section 3.1 and
3.2; the light KL penalty is the "KL-reg" variant, the rescaling appendix G.
Limits: the autoencoder is trained on squared error and KL alone, without the perceptual and adversarial losses.
Cost: training the autoencoder, for as many iterations as the diffusion, on batches of 128.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.calibration import Report, descend
from methods.core.codec import Codec, Space
from methods.core.denoiser import Labels
from methods.core.recipe import Method, edit
from methods.nets.autoencoder import ConvAutoencoder, divergence


class LatentCodec(Codec):
    """z = (mean of the posterior - shift) scale, with shift and scale set so that z has mean 0 and variance 1."""

    bounds = None
    shift: Tensor
    scale: Tensor

    def __init__(self, autoencoder: ConvAutoencoder, kl: float) -> None:
        super().__init__()
        self.autoencoder, self.kl = autoencoder, kl
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def encode(self, images: Float[Tensor, "b c h w"], labels: Labels = None) -> Float[Tensor, "b k i j"]:
        count("latents_encoded", len(images))
        return (self.autoencoder.posterior(images)[0] - self.shift) * self.scale

    def decode(self, x: Float[Tensor, "b k i j"], labels: Labels = None) -> Float[Tensor, "b c h w"]:
        return self.autoencoder.decode(x / self.scale + self.shift)

    def fit(
        self, images: Float[Tensor, "n c h w"], labels: Labels, iterations: int, rng: torch.Generator, report: Report
    ) -> int:
        def loss(rows: Tensor) -> Tensor:
            x = images[rows]
            mean, log_variance = self.autoencoder.posterior(x)
            noise = torch.randn(mean.shape, generator=rng, device=rng.device)
            decoded = self.autoencoder.decode(mean + (0.5 * log_variance).exp() * noise)
            return F.mse_loss(decoded, x) + self.kl * divergence(mean, log_variance).mean()

        seen = descend(self.autoencoder, loss, len(images), iterations, 2e-3, rng, report, "autoencoder")
        latents = self.autoencoder.posterior(images)[0]
        self.shift.copy_(latents.mean())
        self.scale.copy_(1 / latents.std())
        return seen


@dataclass(frozen=True)
class Latents(Space):
    """The diffusion takes place on `channels` maps of 1/factor of the resolution."""

    factor: int
    channels: int
    kl: float

    def build(self, shape: tuple[int, ...], classes: int) -> LatentCodec:
        return LatentCodec(ConvAutoencoder(shape[0], self.channels, self.factor), self.kl)


def latent_diffusion(factor: int = 2, channels: int = 2, kl: float = 1e-4) -> Method:
    """Diffuse `channels` latent maps at 1/factor of the resolution; `kl` is the weight of the KL penalty."""
    return edit(space=Latents(factor, channels, kl))
