"""A small convolutional classifier whose penultimate layer is the feature space of the image metrics.

Source: plain convolutions with ReLU; global average pooling of Lin et al. 2013, arXiv:1312.4400, Section 3.2.
Limits: no normalisation layer, on purpose: one would hide a change of contrast from the metrics.
"""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class Classifier(nn.Module):
    """A stem, one stride-2 convolution for each halving down to 4x4, a last convolution, a linear head.

    Images are [b, channels, size, size] in [-1, 1], `size` a power of two from 8.
    """

    def __init__(self, channels: int, size: int, classes: int, dimensions: int = 64):
        super().__init__()
        self.shape = (channels, size, size)
        self.classes = classes
        self.dimensions = dimensions
        halvings = int(math.log2(size)) - 2
        widths = [dimensions // 2] + [dimensions] * halvings
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.last = nn.Conv2d(dimensions, dimensions, 3, padding=1)
        self.head = nn.Linear(dimensions, classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Average over positions of the last ReLU: non-negative, `dimensions` of them."""
        x = self.stem(x).relu()
        for convolution in self.down:
            x = convolution(x).relu()
        return self.last(x).relu().mean((2, 3))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        return self.head(self.features(x))
