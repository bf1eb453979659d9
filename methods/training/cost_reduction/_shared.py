"""The denoising loss on the patches that are visible, with the others hidden from a transformer while it trains.

Source: Zheng et al. 2023 (2306.09305) and Sehwag et al. 2024 (2407.15811), whose official code draws the same mask and
takes the same mean; both train on whole images at the end.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.denoiser import Labels, Network
from methods.core.parallel import SharedOut
from methods.core.recipe import Recipe
from methods.nets.masked_dit import MaskedConfig, MaskedTransformer
from methods.training.objective._shared import Altered


def draw_visible(n: int, tokens: int, ratio: float, rng: torch.Generator) -> Int[Tensor, "n k"]:
    """Which of the tokens stay visible, int((1 - ratio) tokens) of them, drawn for every sample on its own."""
    order = torch.rand(n, tokens, generator=rng, device=rng.device).argsort(1)
    return order[:, : max(1, int(tokens * (1 - ratio)))]


def of_patches(error: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n"]:
    """The mean of every patch."""
    return F.avg_pool2d(error.mean(1, keepdim=True), patch).flatten(1)


class MaskedDenoising(Altered):
    """The denoising loss with `ratio` of the patches hidden, and for the last `unmasked` of training with none."""

    def __init__(self, recipe: Recipe, ratio: float, unmasked: float) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.net, MaskedConfig), "patches are hidden from a transformer that can do without"
        self.patch, self.ratio = recipe.net.patch, ratio
        self.to_mask = recipe.fit.iterations - round(unmasked * recipe.fit.iterations) if ratio else 0
        """Batches that are still to be masked."""
        self.visible: Tensor | None = None

    def added(self, eps: Float[Tensor, "b c h w"], rng: torch.Generator) -> Float[Tensor, "b c h w"]:
        self.visible = None
        if self.to_mask > 0:
            self.to_mask -= 1
            tokens = (eps.shape[2] // self.patch) * (eps.shape[3] // self.patch)
            self.visible = draw_visible(len(eps), tokens, self.ratio, rng)
            count("tokens_masked", len(eps) * tokens - self.visible.numel())
        return eps

    def predict(
        self, student: Network, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], told: Labels
    ) -> Float[Tensor, "b c h w"]:
        assert isinstance(student.net, MaskedTransformer)
        assert not isinstance(student, SharedOut), "a mask is not shared out"
        with student.net.showing(self.visible):
            return super().predict(student, x_t, t, told)

    def error(self, difference: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        if self.visible is None:
            return super().error(difference)
        return of_patches(difference.square(), self.patch).gather(1, self.visible).mean(1)
