"""Trains a U-Net on crops of images, each with the coordinates of its place, and samples whole images as ever.

A crop of half the side costs a quarter of the compute, and what it lacks, where in the image it lies, two channels of
coordinates tell. Whole images, half of the time, teach how distant parts belong together.

Source: Wang et al. 2023 "Patch Diffusion: Faster and More Data-Efficient Training of Diffusion Models" (2304.12526),
section 3 (patch-wise score matching, coordinate conditioning, stochastic patch sizes); coordinates, probabilities, two
crops of half the side and four of a quarter for a whole image, and a loss summed over pixels as in the official code.
Limits: the further crops are of the same images, where the official code takes further images, so that images seen are
what they are for the baseline. Of every twenty steps each size has its share, so that a short training costs per step
what a long one does. Three sizes in every space, and fewer where a quarter of a side is no pixel.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.objective import Loss, Objective, Regression
from methods.core.recipe import Method, Recipe, edit
from methods.nets.placed_unet import PlacedUNetConfig, located
from methods.nets.unet import UNetConfig

DECK = 20
"""Steps among which the sizes are dealt out by their probabilities."""


def cropped(x: Float[Tensor, "b k h w"], parts: int, rng: torch.Generator) -> Float[Tensor, "b k i j"]:
    """A crop of each image, 1 / `parts` of either side, at a place of its own; all places are equally likely."""
    inside = []
    for side in x.shape[2:]:
        first = torch.randint(side - side // parts + 1, (len(x),), generator=rng, device=rng.device).to(x.device)
        inside.append(first[:, None] + torch.arange(side // parts, device=x.device))
    rows, columns = inside
    image = torch.arange(len(x), device=x.device)
    return x[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


class Placed(Network):
    """A network asked about crops: it is given their coordinates, which no input scale touches."""

    def __init__(self, inner: Network, place: Float[Tensor, "b 2 i j"]) -> None:
        super().__init__(inner.net, inner.process, inner.parameterization, inner.bounds)
        self.inner, self.place = inner, place

    def evaluate(self, x: Float[Tensor, "b c i j"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Tensor:
        return self.inner.evaluate(torch.cat([x, self.place.to(x)], dim=1), u, labels)


@dataclass(frozen=True)
class PatchWise(Objective):
    """A loss on crops of one size a step: the whole with probability `full`, else halves and quarters as 3 to 2."""

    whole: Objective
    full: float
    crops: int
    drawn: list[float] = field(default_factory=list, compare=False)
    """Evenly spread numbers in [0, 1), in random order, for the steps to come."""

    def parts(self, rng: torch.Generator) -> int:
        """How many crops of the size to come fit into a side."""
        if not self.drawn:
            begin = torch.rand((), generator=rng, device=rng.device)
            self.drawn.extend(((torch.randperm(DECK, generator=rng, device=rng.device) + begin) / DECK).tolist())
        chance = self.drawn.pop()
        return 4 if chance < 0.4 * (1 - self.full) else 2 if chance < 1 - self.full else 1

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b c h w"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        parts = min(self.parts(rng), *x0.shape[2:])
        copies = self.crops ** (parts.bit_length() - 1)
        cut = cropped(located(x0).repeat_interleave(copies, 0), parts, rng)
        labels = None if labels is None else labels.repeat_interleave(copies)
        count("patches_trained", len(cut) if parts > 1 else 0)
        loss = self.whole(Placed(student, cut[:, -2:]), teacher, cut[:, :-2], labels, rng)
        return loss.reshape(len(x0), copies).mean(1) / parts**2  # a sum over pixels: a crop weighs what it covers


@dataclass(frozen=True)
class Patches(Loss):
    """The recipe's denoising loss on crops."""

    full: float
    crops: int

    def objective(self, recipe: Recipe) -> PatchWise:
        return PatchWise(Regression().objective(recipe), self.full, self.crops)


def patch_diffusion_training(full: float = 0.5, crops: int = 2, width: int = 24, levels: int = 2) -> Method:
    """Train `full` of the steps on whole images, the others on `crops` half as large, or its square of quarters.

    The U-Net has `levels`, each with twice the channels of the one above, the first with `width`.
    """
    plain = UNetConfig(width, tuple(2**i for i in range(levels)))
    return edit(net=PlacedUNetConfig(plain), loss=Patches(full, crops))
