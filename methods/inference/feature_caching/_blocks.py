"""What caches of a diffusion transformer's blocks share."""

from jaxtyping import Float
from torch import Tensor

BLOCKS = "remember what the blocks of a transformer return"
"""What cannot be done twice: each counts the calls of its network, which the outer one skips."""


def change(old: Float[Tensor, "b *s"], new: Float[Tensor, "b *s"]) -> Float[Tensor, "b"]:
    """mean |new - old| / mean |old|, for every sample."""
    return (new - old).abs().flatten(1).mean(1) / old.abs().flatten(1).mean(1)
