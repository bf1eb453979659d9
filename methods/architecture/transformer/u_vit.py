"""Makes noise level, class and patches tokens of one plain transformer, and joins shallow to deep blocks by long skips.

A transformer needs no other way in for a condition than its sequence. Predicting noise is a task for every pixel, and
the long skips hand the deep blocks the low-level features that it needs; down- and up-sampling are not needed for that.

Source: Bao et al. 2022 "All are Worth Words: A ViT Backbone for Diffusion Models" (2209.12152), section 3: the skip by
concatenation and a linear layer, learned positions, a 3x3 convolution last; network in `methods/nets/uvit.py`.
Limits: the noise level passes through two layers before it is a token, an option of the official code that none of its
settings uses; queries, keys and values have biases, which theirs have not. Weights begin larger, as the root of the
width is smaller than there. Extra tokens come after the patches and not before them, which learned positions make no
difference of. On pixels unless combined with `latent_diffusion`.
"""

from methods.core.recipe import Method, edit
from methods.nets.uvit import UViTConfig


def u_vit(patch: int = 2, width: int = 64, pairs: int = 3, heads: int = 4, skips: int = 1) -> Method:
    """A U-ViT of 2 `pairs` + 1 blocks on patches of `patch` pixels; without `skips` (0) blocks follow one another."""
    return edit(net=UViTConfig(patch, width, pairs, heads, bool(skips)))
