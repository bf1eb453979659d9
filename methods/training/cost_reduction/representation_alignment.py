"""Pulls what an early block of a transformer makes of a noisy image towards an encoder's features of the clean one.

Denoising alone is slow to teach features that say what an image shows, and a network needs them to denoise. Handing
them to the first blocks leaves the others to the details. The head that leads to the features is dropped afterwards.

Source: Yu et al. 2024 "Representation Alignment for Generation: Training Diffusion Transformers Is Easier Than You
Think" (2410.06940), the loss of section 3; a head of three layers, weight 0.5 and a block at a third of the depth or
before as in the official code.
Limits: the paper's encoder, DINOv2, is pretrained on other images. This one is small and learns by contrast, without
labels, from the batches of the first updates; alignment begins after them. It is not the network in whose features
samples are judged. In a latent space it sees latents. One process only.
Cost: two views of each image through the encoder, forth and back, in the first updates; one image forth in the others.
"""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.errors import NothingMatched
from methods.core.objective import Loss, Objective, Regression
from methods.core.parallel import SharedOut
from methods.core.recipe import Method, Recipe, edit
from methods.core.surgery import Stage, Transform
from methods.nets.dit import DiT, DiTConfig
from methods.training.cost_reduction._encoder import FEATURES, PatchEncoder


class Alignment(nn.Module):
    """What training needs beside a transformer: the encoder, and the head from the tokens to its features."""

    def __init__(self, net: DiT) -> None:
        super().__init__()
        width = net.tokens.out_channels
        self.encoder = PatchEncoder(net.tokens.in_channels, net.patch)
        first, second, third = (nn.Linear(i, o) for i, o in pairwise((width, 2 * width, 2 * width, FEATURES)))
        self.head = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), third)


def misaligned(features: Float[Tensor, "b n d"], projected: Float[Tensor, "b n d"]) -> Float[Tensor, "b"]:
    """-(1/N) sum_n cos(y_n, h_n): -1 where every patch points the way of its features."""
    return -F.cosine_similarity(features, projected, dim=2).mean(1)


class Aligning(Objective):
    """A loss, the encoder's own for the first `learning` calls, and `weight` on the misalignment after them."""

    def __init__(self, task: Objective, weight: float, depth: int, contrast: float, learning: int) -> None:
        self.task, self.weight, self.depth, self.contrast, self.learning = task, weight, depth, contrast, learning
        self.calls = 0

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b c h w"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        assert not isinstance(student, SharedOut), "the features of a batch are not shared out"
        net, alignment = student.net, student.net.get_submodule("alignment")
        assert isinstance(net, DiT) and isinstance(alignment, Alignment)
        tokens: list[Any] = []
        hook = net.blocks[self.depth - 1].register_forward_hook(lambda block, given, out: tokens.append(out))
        loss = self.task(student, teacher, x0, labels, rng)
        hook.remove()
        self.calls += 1
        if self.calls <= self.learning:
            count("images_contrasted", len(x0))
            views = torch.Generator(rng.device).manual_seed(rng.initial_seed() + self.calls)
            return loss + self.contrast * alignment.encoder.contrasted(x0, views)
        with torch.no_grad():
            features = alignment.encoder(x0)
        count("patches_aligned", features.shape[0] * features.shape[1])
        return loss + self.weight * misaligned(features, alignment.head(tokens[0]))


@dataclass(frozen=True)
class Aligned(Loss):
    """The recipe's denoising loss with features aligned, after the encoder's `share` of the updates."""

    weight: float
    depth: int
    contrast: float
    share: float

    def network(self, net: nn.Module) -> nn.Module:
        assert isinstance(net, DiT) and self.depth <= len(net.blocks), f"there is no block {self.depth}"
        net.alignment = Alignment(net)
        return net

    def objective(self, recipe: Recipe) -> Aligning:
        learning = math.ceil(self.share * recipe.fit.iterations)
        return Aligning(Regression().objective(recipe), self.weight, self.depth, self.contrast, learning)


@dataclass(frozen=True)
class WithoutAlignment(Transform):
    """Drops encoder and head: what ships is the plain network."""

    stage: ClassVar[Stage] = Stage.STRUCTURE
    ships: ClassVar[bool] = True

    def __call__(self, module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module)
        hosts = [part for part in module.modules() if "alignment" in dict(part.named_children())]
        if not hosts:
            raise NothingMatched(f"{type(module).__name__} has no alignment to drop")
        for host in hosts:
            del host.alignment
        return module


def representation_alignment(weight: float = 0.5, depth: int = 1, contrast: float = 1.0, share: float = 0.15) -> Method:
    """Align block `depth` with `weight`, after an encoder's `share` of the updates; `contrast` 0 leaves it random."""
    loss = Aligned(weight, depth, contrast, share)
    return edit(needs={"net": DiTConfig}, loss=loss, transforms=WithoutAlignment())
