"""What training is given."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TrainingSet:
    """Clean images in [-1, 1], their labels, and the number of classes.

    `withheld` are classes that base training is not shown: adaptation learns them.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    classes: int
    withheld: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def __getitem__(self, rows: slice | Int[Tensor, "k"]) -> "TrainingSet":
        """Some of the images with their labels."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    @property
    def shown(self) -> "TrainingSet":
        """What base training is shown."""
        return self[(~self.is_new).nonzero()[:, 0]] if self.withheld else self

    @property
    def new(self) -> "TrainingSet":
        """What it is not shown."""
        return self[self.is_new.nonzero()[:, 0]]

    @property
    def is_new(self) -> Bool[Tensor, "n"]:
        return torch.isin(self.labels, torch.tensor(self.withheld, dtype=self.labels.dtype))
