"""What of diffusers' DiTTransformer2DModel is which part of our diffusion transformer.

Both run patches, blocks with adaptive layer norm, and a head. In diffusers every block embeds timestep and label with
layers of its own, and the head with those of the first block, so the condition here is both numbers, followed by the
first block's vector. Caches and token techniques find `Block`, its attention and its MLP; layers are what they were.

Limits: square images of the size in the config. Of a network that predicts a variance too, as DiT's own checkpoints
do, the variance is left out; what they work on are latents, and stays latents here.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.checkpoints.errors import Unusable
from methods.checkpoints.schedule import Discrete, Timestep
from methods.nets.dit import Block, DiT, DiTConfig, Head, SelfAttention


class TokenAttention(SelfAttention):
    """Self-attention over tokens, made of diffusers' layers."""

    def __init__(self, inner: Any) -> None:
        nn.Module.__init__(self)
        self.heads = inner.heads
        self.query, self.key, self.value, self.out = inner.to_q, inner.to_k, inner.to_v, inner.to_out[0]


class Told(nn.Module):
    """Noise level and label -> timestep, label, and the first block's vector of both, in a row; -1 is no label."""

    def __init__(self, embedding: Any, process: Discrete) -> None:
        super().__init__()
        self.timestep, self.embedding = Timestep(process), embedding

    def forward(self, u: Float[Tensor, "b"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b e"]:
        timestep, labels = self.timestep(u), labels.where(labels >= 0, self.embedding.class_embedder.num_classes)
        vector = self.embedding(timestep, labels, hidden_dtype=timestep.dtype)
        return torch.cat([timestep[:, None], labels[:, None].to(timestep), vector], dim=1)


class EmbeddingBlock(Block):
    """A block that embeds timestep and label itself; the first one is given its vector."""

    def __init__(self, inner: Any, *, first: bool) -> None:
        nn.Module.__init__(self)
        self.norm_attention, self.attention = inner.norm1.norm, TokenAttention(inner.attn1)
        self.norm_mlp, self.mlp, self.modulation = inner.norm3, inner.ff, inner.norm1.linear
        self.embedding = None if first else inner.norm1.emb

    def forward(self, x: Float[Tensor, "b n c"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b n c"]:
        vector = condition[:, 2:]
        if self.embedding is not None:
            timestep, labels = condition[:, 0], condition[:, 1].long()
            vector = self.embedding(timestep, labels, hidden_dtype=condition.dtype)
        return super().forward(x, vector)


class InformedHead(Head):
    """The head; the last layer's rows come in the order of our pixels: a channel with all its pixels, then the next."""

    def __init__(self, net: Any) -> None:
        nn.Module.__init__(self)
        self.norm, self.modulation, self.pixels = net.norm_out, net.proj_out_1, net.proj_out_2
        side, kept = net.config.patch_size, net.config.in_channels
        weight, bias = (
            p.unflatten(0, (side, side, -1))[:, :, :kept].movedim(2, 0).flatten(0, 2)
            for p in (self.pixels.weight, self.pixels.bias)
        )
        self.pixels.weight, self.pixels.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.pixels.out_features = len(weight)

    def forward(self, x: Float[Tensor, "b n c"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b n p"]:
        return super().forward(x, condition[:, 2:])


class CheckpointDiT(DiT):
    """Our diffusion transformer, made of the layers of diffusers'."""

    def __init__(self, net: Any, process: Discrete) -> None:
        nn.Module.__init__(self)
        config = net.config
        side, self.patch = config.sample_size // config.patch_size, config.patch_size
        self.grid = (side, side)
        self.conditioning = Told(net.transformer_blocks[0].norm1.emb, process)
        self.tokens = net.pos_embed.proj
        self.register_buffer("position", net.pos_embed.pos_embed, persistent=False)
        self.blocks = nn.ModuleList(EmbeddingBlock(b, first=i == 0) for i, b in enumerate(net.transformer_blocks))
        self.head = InformedHead(net)


@dataclass(frozen=True)
class DiT2D(DiTConfig):
    """A DiTTransformer2DModel: its `config` as JSON, the digest of its `weights`, and the schedule it was trained on.

    The other fields sum the config up.
    """

    config: str = field(kw_only=True)
    weights: str = field(kw_only=True)
    process: Discrete = field(kw_only=True)

    @classmethod
    def of(cls, net: Any, config: str, weights: str, process: Discrete) -> "DiT2D":
        """Raises Unusable for what has no counterpart here."""
        given = net.config
        if given["upcast_attention"]:
            raise Unusable("A DiTTransformer2DModel with upcast_attention = True has no counterpart here.")
        heads, width = given["num_attention_heads"], given["num_attention_heads"] * given["attention_head_dim"]
        depth = given["num_layers"]
        return cls(given["patch_size"], width, depth, heads, config=config, weights=weights, process=process)

    def build(self, shape: tuple[int, ...], classes: int) -> DiT:
        return self.adapted(DiTTransformer2DModel.from_config(json.loads(self.config)))

    def adapted(self, net: Any) -> DiT:
        """The network of a DiTTransformer2DModel, whose layers it takes over."""
        return CheckpointDiT(net, self.process)


def classes_of(net: Any) -> int:
    """How many classes the network is told of."""
    return net.config["num_embeds_ada_norm"]
