"""Starts the chain in the middle: a fast generator draws a rough sample, noise is added, and only the rest is denoised.

Above a certain noise level rough and real samples look alike, so the steps above it can be replaced by one pass of a
variational autoencoder; the diffusion model, which is not trained again, repairs what the autoencoder got wrong.

Source: Lyu et al. 2022 "Accelerating Diffusion Models via Early Stop of the Diffusion Process" (2205.12524), sampling
as in the official code: diffuse a generated sample to T', then denoise.
Limits: the prior is a small class-conditional VAE trained here; the paper also uses GANs. Its latent is drawn from a
Gaussian fitted to the codes of each class, which is not the standard normal prior that the VAE was trained with.
Cost: training the VAE.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.calibration import Report, descend
from methods.core.denoiser import NULL, Labels
from methods.core.process import Process, angle
from methods.core.recipe import Method, edit
from methods.core.sampling import SampleNoise
from methods.core.start import Start, Starter
from methods.nets.autoencoder import VectorVAE, divergence

DEVIATION = 0.25
"""Standard deviation of the decoder's Gaussian, in units of x_0."""


class RoughStart(Starter):
    """x_t = alpha x_0' + sigma eps with x_0' from the VAE, at the first time of the grid not above the stop."""

    def __init__(self, shape: tuple[int, ...], classes: int, stop: float) -> None:
        super().__init__()
        self.vae, self.stop = VectorVAE(torch.Size(shape).numel(), classes), stop
        k = self.vae.latent
        self.centre: Tensor = nn.Buffer(torch.zeros(classes + 1, k))
        self.spread: Tensor = nn.Buffer(torch.eye(k).repeat(classes + 1, 1, 1))

    def forward(
        self, process: Process, times: Float[Tensor, "n"], shape: tuple[int, ...], labels: Labels, noise: SampleNoise
    ) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "m"]]:
        kept = times[angle(process.lam(times)) <= self.stop + 1e-9]
        left = kept if len(kept) > 1 else times[-2:]
        count("times_cut", len(times) - len(left))
        eps = noise((self.vae.latent,))
        known = torch.full((len(eps),), NULL, device=eps.device) if labels is None else labels
        z = self.centre[known] + (self.spread[known] @ eps[..., None]).squeeze(-1)
        rough = self.vae.decode(z, known).unflatten(1, shape)
        return process.diffuse(rough, noise(shape), left[0]), left

    def fit(
        self, x0: Float[Tensor, "n *s"], labels: Labels, iterations: int, rng: torch.Generator, report: Report
    ) -> int:
        def loss(rows: Tensor) -> Tensor:
            x = x0[rows].flatten(1)
            known = torch.full((len(x),), NULL, device=x.device) if labels is None else labels[rows]
            mean, log_variance = self.vae.posterior(x, known)
            z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=rng, device=rng.device)
            error = F.mse_loss(self.vae.decode(z, known), x, reduction="none").sum(1) / (2 * DEVIATION**2)
            return (error + divergence(mean, log_variance)).mean()

        seen = descend(self.vae, loss, len(x0), iterations, 1e-3, rng, report, "prior of the start")
        known = torch.full((len(x0),), NULL, device=x0.device) if labels is None else labels
        self.place(*self.vae.posterior(x0.flatten(1), known), known)
        return seen

    @torch.no_grad()
    def place(self, mean: Float[Tensor, "n z"], log_variance: Float[Tensor, "n z"], labels: Int[Tensor, "n"]) -> None:
        """Fit a Gaussian to the codes of each class, and one to all of them, which is the last and so that of NULL."""
        for label in [*labels[labels >= 0].unique().tolist(), NULL]:
            mine = labels == label if label >= 0 else torch.ones_like(labels, dtype=torch.bool)
            self.centre[label] = mean[mine].mean(0)
            within = log_variance[mine].exp().mean(0).diag()
            self.spread[label] = torch.linalg.cholesky(mean[mine].T.cov(correction=0) + within)


@dataclass(frozen=True)
class EarlyStop(Start):
    """Walk only the times at or below `stop`, measured as the angle u in [0, 1]."""

    stop: float

    def build(self, shape: tuple[int, ...], classes: int) -> RoughStart:
        return RoughStart(shape, classes, self.stop)


def es_ddpm(stop: float = 0.5) -> Method:
    """Start at noise level `stop` (0 clean, 1 noise) from the samples of a VAE."""
    return edit(start=EarlyStop(stop))
