"""Shows the network its own last estimate of the clean image, which sampling otherwise throws away at every step.

In training half of a batch is first evaluated without an estimate, and is then shown what came out, as a constant; the
other half is shown zeros, as the first step of sampling will be. Sampling needs no further evaluations.

Source: Chen, Zhang, Hinton 2023 "Analog Bits: Generating Discrete Data using Diffusion Models with Self-Conditioning"
(2208.04202), section 2 (self-conditioning); half of the batch rather than each sample by chance, clipped estimates and
no momentum, as in the official code.
Limits: a convolution of the estimate is added to that of the image, which is one convolution of both. Samplers that
evaluate several times a step show the latest estimate, and those that ask for many times at once one of another time
or, where numbers of rows differ, zeros. Takes the place of guidance. One process only.
Cost: an evaluation without gradient of `share` of every training batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Guidance, Labels, Network, Remembering
from methods.core.objective import Loss
from methods.core.parallel import SharedOut
from methods.core.recipe import Method, Recipe, edit
from methods.core.surgery import rewrite_path
from methods.training.objective._shared import Altered


class WithEstimate(Remembering):
    """A network's first convolution, and one of the estimate that is given beside the image: of zeros if none is."""

    def __init__(self, image: nn.Module) -> None:
        super().__init__()
        assert isinstance(image, nn.Conv2d)
        self.in_channels, self.out_channels, self.image = image.in_channels, image.out_channels, image
        size = image.in_channels, image.out_channels, image.kernel_size, image.stride, image.padding
        self.estimate = nn.Conv2d(*size, bias=False)  # pyright: ignore[reportArgumentType]
        self.given: Tensor | None = None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        given = torch.zeros_like(x)
        if self.given is not None and self.given.shape == x.shape:
            count("estimates_shown", len(x))
            given = self.given.to(x)
        return self.image(x) + self.estimate(given)

    def reset(self) -> None:
        self.given = None


def memories(net: nn.Module) -> Iterator[WithEstimate]:
    """Where a network takes an estimate."""
    return (module for module in net.modules() if isinstance(module, WithEstimate))


class OwnEstimate(Altered):
    """The denoising loss, where the first `share` of the batch is shown the network's own estimates."""

    def __init__(self, recipe: Recipe, share: float) -> None:
        super().__init__(recipe)
        self.share = share

    def predict(
        self, student: Network, x_t: Float[Tensor, "b *s"], t: Float[Tensor, "b"], told: Labels
    ) -> Float[Tensor, "b *s"]:
        assert not isinstance(student, SharedOut), "an estimate is not shared out"
        student.reset()
        n, given = round(self.share * len(x_t)), torch.zeros_like(x_t)
        with torch.no_grad():
            given[:n] = student(x_t[:n], t[:n], None if told is None else told[:n])
        for memory in memories(student.net):
            memory.given = given
        prediction = student.predict(x_t, t, told)
        student.reset()
        return prediction


@dataclass(frozen=True)
class SelfConditioning(Loss):
    """The recipe's denoising loss with estimates shown."""

    share: float

    def network(self, net: nn.Module) -> nn.Module:
        return rewrite_path(net, "tokens" if hasattr(net, "tokens") else "stem", WithEstimate)

    def objective(self, recipe: Recipe) -> OwnEstimate:
        return OwnEstimate(recipe, self.share)


class Showing(Denoiser):
    """Shows the network below the estimate it gave last."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process, self.bounds = inner, inner.process, inner.bounds

    def __call__(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        x0 = self.inner(x_t, t, labels)
        for memory in memories(self.inner.net) if isinstance(self.inner, Network) else ():
            memory.given = x0
        return x0

    def reset(self) -> None:
        self.inner.reset()


@dataclass(frozen=True)
class LastEstimate(Guidance):
    """The conditional denoiser, shown its last estimate."""

    def __call__(self, denoiser: Denoiser) -> Showing:
        return Showing(denoiser)


def self_conditioning(share: float = 0.5) -> Method:
    """Train `share` of each batch with estimates shown, and sample with them."""
    return edit(loss=SelfConditioning(share), guidance=LastEstimate())
