"""Hides three quarters of the patches while a transformer trains, but only after all of them have met in a light mixer.

A patch that is hidden at once is lost, and what is left of the image says too little to denoise by. A few narrow blocks
that see all patches first tell every one about the others; then most can be hidden from the wide backbone, which is
where the cost is, and the loss needs no more than the visible ones. The last stretch of training hides nothing.

Source: Sehwag et al. 2024 "Stretching Each Dollar: Diffusion Training from Scratch on a Micro-Budget" (2407.15811),
deferred masking and figure 3; joints of the mixer, mask and loss as in the official code. Network in
`methods/nets/masked_dit.py`.
Limits: the masking alone. Widths that grow with depth, experts in every other block, captions, synthetic images and the
second resolution are other parts of that system. The last stretch is part of the same number of updates, at the same
learning rate. Pixels unless combined with `latent_diffusion`. One process only.
"""

from dataclasses import dataclass

from methods.core.objective import Loss
from methods.core.recipe import Method, Recipe, edit
from methods.nets.masked_dit import DeferredDiTConfig
from methods.training.cost_reduction._shared import MaskedDenoising


@dataclass(frozen=True)
class VisiblePatches(Loss):
    """The recipe's denoising loss on what is left visible of each image, at last on all of it."""

    ratio: float
    unmasked: float

    def objective(self, recipe: Recipe) -> MaskedDenoising:
        return MaskedDenoising(recipe, self.ratio, self.unmasked)


def deferred_masking(
    patch: int = 2, width: int = 96, depth: int = 4, heads: int = 4, mixer: int = 2, narrow: int = 48,
    ratio: float = 0.75, unmasked: float = 0.1,
) -> Method:  # fmt: skip
    """Hide `ratio` of the patches after `mixer` blocks of `narrow` channels, none for the last `unmasked` of training.

    Without a mixer (0) this is plain masking.
    """
    return edit(net=DeferredDiTConfig(patch, width, depth, heads, mixer, narrow), loss=VisiblePatches(ratio, unmasked))
