"""Runs the blocks of a U-Net after the resolution is halved and before it is doubled, and puts most of them low down.

A convolution costs by the position, and parameters cost by the number: at low resolution many parameters are cheap in
time and memory. Turning the order of resampling and convolving around saves most of the work at the high ones.

Source: Saharia et al. 2022 "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding"
(2205.11487), appendix B.1: more blocks at the lower resolutions, skips scaled by 1/sqrt(2), the reversed order; F.2: 2,
4, 8, 8 blocks from the highest resolution down, attention at the lowest. Network in `methods/nets/efficient_unet.py`.
Limits: the design alone. The paper's network is a super-resolution stage that is told a text by cross-attention; this
one is told a class, as every network here is, by a scale and shift in each block. Which skips are scaled, and whether
they are added, the text leaves open; here it is those across, and they are concatenated.
"""

from methods.core.recipe import Method, edit
from methods.nets.efficient_unet import EfficientUNetConfig


def efficient_unet(width: int = 24, levels: int = 2, blocks: int = 1, low: int = 1) -> Method:
    """`levels` halvings from `width` channels, `blocks` at the first; not at the `low` side (0) is the usual order."""
    return edit(net=EfficientUNetConfig(width, levels, blocks, low=bool(low)))
