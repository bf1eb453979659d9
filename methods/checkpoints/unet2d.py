"""What of diffusers' UNet2DModel is which part of our U-Net.

Both are one recursion: a level wraps what lies below it. Diffusers writes it as two lists and a stack of skips, so the
layers themselves are taken over and hung up in the order of the recursion, and the same operations run. Caches find
`level.below` and the way down, tokens are in `Attention`, layers are what they were.

Limits: no NCSN++ or K blocks, no learned or Fourier embedding of the time, classes only by their number. Of a network
that predicts a variance too, the variance is left out.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.checkpoints.errors import Unusable
from methods.checkpoints.schedule import Discrete, Timestep
from methods.nets import unet
from methods.nets.unet import Attention, Below, Level, UNet, UNetConfig

BLOCKS = {"DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"}
ONLY: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "class_embed_type": (None,),
    "mid_block_scale_factor": (1,), "mid_block_type": ("UNetMidBlock2D", None),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}  # fmt: skip
"""Settings of which one choice, or two, are known here."""


class PixelAttention(Attention):
    """Self-attention over pixels, made of diffusers' layers."""

    def __init__(self, inner: Any) -> None:
        nn.Module.__init__(self)
        self.heads = inner.heads
        self.norm = nn.Identity() if inner.group_norm is None else inner.group_norm
        self.query, self.key, self.value, self.out = inner.to_q, inner.to_k, inner.to_v, inner.to_out[0]


class Part(nn.Module):
    """A residual block, and the attention after it where there is one."""

    def __init__(self, block: nn.Module, attention: nn.Module | None) -> None:
        super().__init__()
        self.block = block
        self.attention = nn.Identity() if attention is None else PixelAttention(attention)

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        return self.attention(self.block(x, condition))


class SkippingLevel(Level):
    """One resolution. Every block on the way up sees what one on the way down made, the last what came in."""

    def __init__(self, down: nn.ModuleList, below: nn.Module, up: nn.ModuleList) -> None:
        nn.Module.__init__(self)
        self.down, self.below, self.up = down, below, up

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        skips = [x]
        for part in self.down:
            skips.append(part(skips[-1], condition))
        x = self.below(skips[-1], condition)
        for part in self.up:
            x = part(torch.cat([x, skips.pop()], dim=1), condition)
        return x


class Resizing(nn.Module):
    """A layer to half or twice the resolution; where it is a residual block, it is told the condition."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b d y z"]:
        return self.layer(x, condition) if hasattr(self.layer, "time_emb_proj") else self.layer(x)


class Resized(Below):
    """The way to half the resolution and back."""

    def __init__(self, down: nn.Module, level: nn.Module, up: nn.Module) -> None:
        nn.Module.__init__(self)
        self.down, self.level, self.up = Resizing(down), level, Resizing(up)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b d h w"]:
        return self.up(self.level(self.down(x, condition), condition), condition)


class Middle(unet.Middle):
    """The lowest resolution: residual blocks, each with the attention before the next; none at all passes x on."""

    def __init__(self, block: Any) -> None:
        nn.Module.__init__(self)
        pairs = [] if block is None else zip(block.resnets, [*block.attentions, None], strict=True)
        self.parts = nn.ModuleList(Part(resnet, attention) for resnet, attention in pairs)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        for part in self.parts:
            x = part(x, condition)
        return x


def nested(net: Any) -> nn.Module:
    """The lists of a UNet2DModel as levels within levels."""
    downs, ups = [*net.down_blocks], [*net.up_blocks][::-1]
    body: nn.Module = Middle(net.mid_block)
    for depth in reversed(range(len(downs))):
        body = SkippingLevel(parts(downs[depth]), body, parts(ups[depth]))
        if depth:
            body = Resized(downs[depth - 1].downsamplers[0], body, ups[depth].upsamplers[0])
    return body


def parts(block: Any) -> nn.ModuleList:
    """The residual blocks of one of diffusers' blocks with their attentions."""
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return nn.ModuleList(Part(resnet, attention) for resnet, attention in zip(block.resnets, attentions, strict=True))


class TimeAndClass(nn.Module):
    """Noise level and label -> the vector that every residual block is told."""

    def __init__(self, net: Any, process: Discrete) -> None:
        super().__init__()
        self.timestep, self.waves, self.level = Timestep(process), net.time_proj, net.time_embedding
        self.label = net.class_embedding

    def forward(self, u: Float[Tensor, "b"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b e"]:
        told = self.level(self.waves(self.timestep(u)))
        return told if self.label is None else told + self.label(labels)


class CheckpointUNet(UNet):
    """Our U-Net, made of the layers of diffusers'."""

    def __init__(self, net: Any, process: Discrete) -> None:
        nn.Module.__init__(self)
        self.conditioning, self.stem = TimeAndClass(net, process), net.conv_in
        self.level, self.norm, self.head = nested(net), net.conv_norm_out, net.conv_out
        kept = net.config.in_channels
        self.head.weight, self.head.bias = (nn.Parameter(p[:kept]) for p in (self.head.weight, self.head.bias))
        self.head.out_channels = kept


@dataclass(frozen=True)
class UNet2D(UNetConfig):
    """A UNet2DModel: its `config` as JSON, the digest of its `weights`, and the schedule it was trained on.

    The other fields sum the config up.
    """

    config: str = field(kw_only=True)
    weights: str = field(kw_only=True)
    process: Discrete = field(kw_only=True)

    @classmethod
    def of(cls, net: Any, config: str, weights: str, process: Discrete) -> "UNet2D":
        """Raises Unusable for what has no counterpart here."""
        given = net.config
        for name, known in ONLY.items():
            if given[name] not in known:
                raise Unusable(f"A UNet2DModel with {name} = {given[name]!r} has no counterpart here.")
        strange = {*given["down_block_types"], *given["up_block_types"]} - BLOCKS
        if strange:
            raise Unusable(f"A UNet2DModel with {', '.join(sorted(strange))} has no counterpart here.")
        width, *_ = channels = given["block_out_channels"]
        multipliers = tuple(max(1, round(wide / width)) for wide in channels)
        return cls(width, multipliers, given["layers_per_block"], config=config, weights=weights, process=process)

    def build(self, shape: tuple[int, ...], classes: int) -> UNet:
        return self.adapted(UNet2DModel.from_config(json.loads(self.config)))

    def adapted(self, net: Any) -> UNet:
        """The network of a UNet2DModel, whose layers it takes over."""
        return CheckpointUNet(net, self.process)


def classes_of(net: Any) -> int:
    """How many classes the network is told of; 0 for none."""
    return net.config["num_class_embeds"] or 0
