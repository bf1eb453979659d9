"""The denoising loss in parts, for objectives that alter one of them: unaltered, it is `Denoising` bit for bit."""

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.denoiser import NULL, Denoiser, Labels, Network
from methods.core.objective import Objective, TimeDensity
from methods.core.parameterization import Parameterization
from methods.core.process import Process
from methods.core.recipe import Recipe


class Altered(Objective):
    """What is drawn, and in which order, is as in `Denoising`; what an alteration draws comes last.

    So it sees the images, times, noise and dropped labels that the unaltered loss sees.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.times: TimeDensity = recipe.times
        self.weight, self.coupling, self.label_dropout = recipe.weight, recipe.coupling, recipe.label_dropout

    def added(self, eps: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]:
        """The noise that is added to the images, of which eps is asked for."""
        return eps

    def target(
        self, process: Process, x0: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"], x_t: Float[Tensor, "b *s"],
        t: Float[Tensor, "b"], labels: Labels, told: Labels,
    ) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "b *s"]]:  # fmt: skip
        """The clean image and the noise of which the network is to predict its target; `told` are the labels left."""
        return x0, eps

    def predict(
        self, student: Network, x_t: Float[Tensor, "b *s"], t: Float[Tensor, "b"], told: Labels
    ) -> Float[Tensor, "b *s"]:
        """The network's F."""
        return student.predict(x_t, t, told)

    def error(self, difference: Float[Tensor, "b *s"]) -> Float[Tensor, "b"]:
        """What is made of the difference between F and its target."""
        return difference.square().flatten(1).mean(1)

    def weigh(self, process: Process, parameterization: Parameterization, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The weight on the error of F."""
        return self.weight.on_target(process.lam(t), parameterization.gain(process, t))

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        process, parameterization, told = student.process, student.parameterization, labels
        eps = self.coupling(x0, rng)
        t = self.times(process, len(x0), rng)
        if labels is not None and self.label_dropout > 0:
            dropped = torch.rand(len(x0), generator=rng, device=rng.device) < self.label_dropout
            told = torch.where(dropped.to(labels.device), NULL, labels)
        x_t = process.diffuse(x0, self.added(eps, rng), t)
        clean, noise = self.target(process, x0, eps, x_t, t, labels, told)
        target = parameterization.target(process, clean, noise, t)
        error = self.error(self.predict(student, x_t, t, told) - target)
        return self.weigh(process, parameterization, t).to(error) * error
