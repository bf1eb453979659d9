"""What says, beside a label, which image is wanted."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NULL = -1
"""The label that says "no condition"."""


class Control(ABC):
    """Images -> maps of what the network is told of them, at the same height and width."""

    @abstractmethod
    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]: ...


@dataclass(frozen=True)
class Uncontrolled(Control):
    """The label says all."""

    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        raise AssertionError("nobody asks for a map")


@dataclass(frozen=True, eq=False)
class Prompts:
    """Labels with their control maps. What is denoised carries the number of its prompt where labels are carried."""

    labels: Int[Tensor, "n"]
    maps: Float[Tensor, "n k h w"]

    def __call__(self, numbers: Int[Tensor, "b"]) -> tuple[Int[Tensor, "b"], Float[Tensor, "b k h w"]]:
        """The labels and maps of some prompts: no label and an empty map where the number is NULL."""
        absent = numbers == NULL
        labels, maps = self.labels[numbers], self.maps[numbers]
        return torch.where(absent, NULL, labels), maps * ~absent[:, None, None, None]
