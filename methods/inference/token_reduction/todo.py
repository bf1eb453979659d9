"""Lets every token attend to a coarser grid of tokens: keys and values are those of every second row and column.

Neighbouring tokens of an image are alike, so which of them is looked at hardly matters, and nothing has to be compared
to find out. Queries stay whole, so nothing has to be restored afterwards either.

Source: Smith, Saxena, Saha 2024 "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images"
(2402.13573); what enters the key and value layers is nearest-neighbour downsampled, as `ToDoPatch` of the official code
does.
Limits: transformers, where the paper has the U-Net of Stable Diffusion and reduces at its finest level, by 2 at common
sizes and by 4 at the largest. All steps, as is the official default. Queries attend in groups of as many as there are
keys, which changes no number: what takes over attention may want both to be of one length. If tokens are merged as
well, `tome_sd` merges the queries alone.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.errors import NothingMatched
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform
from methods.nets.dit import DiT, DiTConfig, SelfAttention


def nearest(rows: int, columns: int, factor: int) -> Int[Tensor, "m"]:
    """The tokens of a rows x columns grid that a grid smaller by `factor` takes over, as F.interpolate chooses them."""
    row, column = (torch.arange(kept) * n // kept for n in (rows, columns) for kept in (max(n // factor, 1),))
    return (row[:, None] * columns + column).flatten()


class CoarselyAttending(SelfAttention):
    """A self-attention over tokens of a grid with so many columns, whose keys and values are downsampled."""

    def __init__(self, inner: SelfAttention, columns: int, factor: int) -> None:
        nn.Module.__init__(self)
        self.heads, self.columns, self.factor = inner.heads, columns, factor
        self.query, self.key, self.value, self.out = inner.query, inner.key, inner.value, inner.out

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        kept = nearest(x.shape[1] // self.columns, self.columns, self.factor).to(x.device)
        count("keys_left_out", len(x) * (x.shape[1] - len(kept)))
        coarse = x[:, kept]
        # `forward` passes by what others have hooked to these layers, who expect all tokens there
        parts = self.query(x), self.key.forward(coarse), self.value.forward(coarse)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        groups = q.shape[2] // k.shape[2] if q.shape[2] % k.shape[2] == 0 else 1
        q = q.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)
        k, v = (part.repeat_interleave(groups, 0) if groups > 1 else part for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.unflatten(0, (len(x), groups)).transpose(1, 2).flatten(2, 3).transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class ToDo(Transform):
    """Takes keys and values from a grid that is smaller by `factor` along both sides."""

    factor: int
    stage: ClassVar[Stage] = Stage.REUSE

    def __call__(self, module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module)
        found = [
            (part, name, child, net.grid[1])
            for net in module.modules() if isinstance(net, DiT)
            for part in net.modules()
            for name, child in part.named_children() if isinstance(child, SelfAttention)
        ]  # fmt: skip
        if not found:
            raise NothingMatched(f"{type(module).__name__} holds no self-attention over a grid of tokens")
        for part, name, attention, columns in found:
            setattr(part, name, CoarselyAttending(attention, columns, self.factor))
        return module


def todo(factor: int = 2) -> Method:
    """Attend to one token of every `factor` x `factor`."""
    return edit(transforms=ToDo(factor), needs={"net": DiTConfig})
