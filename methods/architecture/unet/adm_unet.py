"""Shapes a U-Net as ablations say: attention at several resolutions, heads of fixed width, blocks that resample.

Each change helps a little at equal training. Resolution is changed inside of residual blocks, which keep a skip around
it; noise level and class scale and shift the norms instead of being added; and every block hands a skip across.

Source: Dhariwal and Nichol 2021 "Diffusion Models Beat GANs on Image Synthesis" (2105.05233), section 3 with tables 1
to 3, and adaptive group normalisation; network in `methods/nets/adm.py`.
Limits: adaptive norms are in the baseline's U-Net already, so that the control of a claim takes them away; it has fewer
parameters then, as in the official code. The network predicts no variance. Heads have 16 channels, for 64 are more than
a level here has.
"""

from methods.core.recipe import Method, edit
from methods.nets.adm import ADMConfig


def adm_unet(
    width: int = 16, levels: int = 2, blocks: int = 2, attended: int = 2, head: int = 16, adaptive: int = 1
) -> Method:
    """Attention at the lowest `attended` of `levels`; without `adaptive` norms (0) the conditioning is added."""
    return edit(net=ADMConfig(width, levels, blocks, attended, head, bool(adaptive)))
