"""Attends in tiles: neither the matrix of all pairs of tokens nor its softmax is ever in memory as a whole.

Scores are made for a block of keys at a time. The maximum and the sum of the softmax so far are kept, and what was
added up before is rescaled when they change; so the result is exact, and memory grows with the number of tokens and not
with its square.

Source: Dao et al. 2022 "FlashAttention" (2205.14135), algorithm 1, in the kernels that come with PyTorch's
scaled_dot_product_attention.
Limits: the networks here call that function as they are, and PyTorch takes a kernel in tiles wherever it has one: by
default this technique makes sure of it, and raises where there is none, and it is `kernel=0` that differs.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.core.activation import count
from methods.core.errors import NothingMatched
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform, rewrite_type
from methods.nets.dit import SelfAttention
from methods.nets.unet import Attention

WHOLE = [SDPBackend.MATH]
TILED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


class Attending(nn.Module):
    """A self-attention that may use some kernels only."""

    def __init__(self, attention: nn.Module, kernels: list[SDPBackend], counter: str) -> None:
        super().__init__()
        self.attention, self.kernels, self.counter = attention, kernels, counter

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        with sdpa_kernel(self.kernels):
            attended = self.attention(x)
        count(self.counter)
        return attended


@dataclass(frozen=True)
class AttentionKernel(Transform):
    """Every self-attention by the whole matrix (0) or in tiles (1)."""

    kernel: int
    stage: ClassVar[Stage] = Stage.COMPILE

    def __call__(self, module: nn.Module) -> nn.Module:
        kinds = [kind for kind in (SelfAttention, Attention) if any(isinstance(m, kind) for m in module.modules())]
        if not kinds:
            raise NothingMatched(f"{type(module).__name__} holds no self-attention")
        kernels, counter = ((WHOLE, "whole_attentions"), (TILED, "tiled_attentions"))[self.kernel]
        for kind in kinds:
            module = rewrite_type(module, kind, lambda attention: Attending(attention, kernels, counter))
        return module


def sdpa_flash(kernel: int = 1) -> Method:
    """Attend in tiles (1), or through the whole matrix of all pairs (0), the control."""
    return edit(transforms=AttentionKernel(kernel))
