"""Denoises in a few large steps, each drawn by a conditional generator that a discriminator has taught.

Over a large step many cleaner images are possible, more than a Gaussian holds. So the generator gets a latent z and
draws a clean image; the known posterior leads on, and the discriminator judges pairs of neighbouring noise levels.

Source: Xiao, Kreis, Vahdat 2022 "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs" (2112.07804);
the pairs, their posterior, softplus losses and the lazy penalty as in the official code, train_ddgan.py.
Limits: both networks are told the label, learn from the same generated batch, and the generator's Adam is the bed's.
Noise levels are even in angle; z is added to the conditioning; the clean image is clipped in sampling, not by tanh.
Cost: trained from scratch; the discriminator's part is in the multiply-accumulates, not in the images.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.objective import Independent, Loss, Objective, UniformTimes, UnitOnTarget
from methods.core.parameterization import Clean
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import SampleNoise, Sampler, UniformAngle
from methods.core.start import FromNoise
from methods.core.surgery import rewrite_path
from methods.inference._distillation import Informed, Telling
from methods.inference.adversarial._shared import Adversary, noisier, posterior
from methods.nets.discriminator import Discriminator
from methods.nets.embedding import Conditioning


class Adversarial(Objective):
    """The generator's loss; each call first updates the discriminator, on the same batch."""

    def __init__(self, times: Float[Tensor, "n"], latent: int, penalty: float, rate: float) -> None:
        self.times, self.latent, self.penalty, self.rate = times, latent, penalty, rate
        self.adversary: Adversary | None = None

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        assert labels is not None, "both networks are told the label"
        self.adversary = adversary = self.adversary or self.begin(student.net, x0, rng)
        process = student.process
        i = torch.randint(len(self.times) - 1, (len(x0),), generator=rng, device=rng.device).cpu()
        t, s = self.times[i], self.times[i + 1]
        one, two, three = (torch.randn(x0.shape, generator=rng, device=rng.device) for _ in range(3))
        x_s = process.diffuse(x0, one, s)
        x_t = noisier(process, x_s, two, s, t)
        z = torch.randn(len(x0), self.latent, generator=rng, device=rng.device)
        made = posterior(process, x_t, Telling(student, z).predict(x_t, t, labels), three, t, s)
        u = process.angle(t).to(x0)
        adversary.teach(x_s, made, x_t, u, labels)
        return F.softplus(-adversary.logits(made, x_t, u, labels))

    def begin(self, net: nn.Module, x0: Float[Tensor, "b c h w"], rng: torch.Generator) -> Adversary:
        """A fresh discriminator, told level and class by a copy of the generator's fresh conditioning."""
        conditioning = copy.deepcopy(net.get_submodule("conditioning.inner"))
        assert isinstance(conditioning, Conditioning)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=rng, device=rng.device)))
            judge = Discriminator(2 * x0.shape[1], x0.shape[2], conditioning).to(x0)
        return Adversary(judge, self.rate, self.penalty)


@dataclass(frozen=True)
class LargeSteps(Loss):
    """The adversarial loss of so many steps, for a network that is told `latent` numbers beside the noise level."""

    steps: int
    latent: int
    penalty: float

    def network(self, net: nn.Module) -> nn.Module:
        def informed(inner: nn.Module) -> nn.Module:
            assert isinstance(inner, Conditioning)
            layers = nn.Linear(self.latent, inner.width), nn.LeakyReLU(0.2), nn.Linear(inner.width, inner.width)
            return Informed(
                inner, nn.Sequential(nn.RMSNorm(self.latent, elementwise_affine=False), *layers), self.latent
            )

        return rewrite_path(net, "conditioning", informed)

    def objective(self, recipe: Recipe) -> Adversarial:
        times = UniformAngle()(recipe.process, self.steps)
        return Adversarial(times, self.latent, self.penalty, recipe.fit.learning_rate)


@dataclass(frozen=True)
class DrawnSteps(Sampler):
    """x_s from the posterior at a clean image that the generator draws with a fresh latent."""

    latent: int
    order: ClassVar[int] = 0

    def __call__(
        self, denoiser: Denoiser, x: Float[Tensor, "b *s"], times: Float[Tensor, "n"], labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:  # fmt: skip
        assert isinstance(denoiser, Network), "the latent is told to the network itself"
        denoiser.reset()
        for t, s in pairwise(times):
            x0 = Telling(denoiser, noise((self.latent,)))(x, t, labels)
            x = posterior(denoiser.process, x, x0, noise(tuple(x.shape[1:])), t, s)
        return x


def ddgan(steps: int = 4, latent: int = 16, penalty: float = 0.02) -> Method:
    """Train and sample in `steps` steps with a latent of `latent` numbers; `penalty` is the weight of R1."""
    return edit(
        needs={"guidance": Unguided, "start": FromNoise, "times": UniformTimes, "weight": UnitOnTarget,
               "coupling": Independent},
        parameterization=Clean(),
        loss=LargeSteps(steps, latent, penalty),
        sampler=DrawnSteps(latent), grid=UniformAngle(), steps=steps,
    )  # fmt: skip
