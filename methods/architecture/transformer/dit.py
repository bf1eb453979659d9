"""Replaces the U-Net by a plain transformer on patches, conditioned through adaptive layer norm.

Without the U-Net's pyramid, quality follows compute: more tokens (smaller patches), depth or width. Every block
starts as the identity because the regressor of its scales and gates starts at zero.

Source: Peebles and Xie 2022 "Scalable Diffusion Models with Transformers" (2212.09748), section 3; network in
`methods/nets/dit.py`.
Limits: predicts the target only, no learned variance; on pixels unless combined with `latent_diffusion`.
"""

from methods.core.recipe import Method, edit
from methods.nets.dit import DiTConfig


def dit(patch: int = 2, width: int = 96, depth: int = 4, heads: int = 4) -> Method:
    """A DiT of `depth` blocks with `width` channels and `heads` heads on patches of `patch` pixels."""
    return edit(net=DiTConfig(patch, width, depth, heads))
