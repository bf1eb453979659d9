"""Replaces the softmax of a diffusion transformer's attention by ReLUs, so that its cost is linear in the tokens.

Without the softmax the product of all queries with all keys need not be formed: keys and values are summed up first,
into one small matrix that every query reads. What is lost, sharp attention to neighbours, a 3x3 depthwise convolution
in the feed-forward part gives back, and it knows places so well that no positions have to be told.

Source: Xie et al. 2024 "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers"
(2410.10629), the equation of ReLU linear attention, and Mix-FFN; biases, activations, expansion as in `LiteLA` and
`GLUMBConv` of its official code. Network in `methods/nets/linear_dit.py`.
Limits: the transformer alone. The autoencoder with 32 times fewer positions a side, the language model that reads
prompts, and the flow solver are other parts of that system; a class is told through adaptive layer norm, as in its
variant `SanaMSAdaLN`, but zero at the start as in a DiT, and there is no cross-attention. Without local mixing it is
told positions, for nothing else would know them. A choice among kernels of softmax attention is refused.
"""

from methods.core.recipe import Method, edit
from methods.nets.linear_dit import LinearDiTConfig


def linear_attention_dit(patch: int = 2, width: int = 64, depth: int = 6, heads: int = 2, local: int = 1) -> Method:
    """A linear DiT on patches of `patch` pixels; without `local` mixing (0) feed-forward parts see one token each."""
    return edit(net=LinearDiTConfig(patch, width, depth, heads, 3 if local else 1))
