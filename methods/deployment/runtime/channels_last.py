"""Stores images pixel by pixel instead of channel by channel, the order in which convolutions read them.

A convolution multiplies all channels of a pixel and its neighbours. With channels last they lie side by side, so the
kernel reads them as they are and transposes nothing; the numbers stay the same, only their order in memory changes.

Source: PyTorch tutorial "Channels Last Memory Format in PyTorch" (Fedyunin 2020); Li et al. 2016 "Optimizing Memory
Efficiency for Deep Convolutional Neural Networks on GPUs" (1610.03618), on what the order costs.
Limits: convolutional networks only. Attention leaves the order, and the next convolution restores it. Convolutions
whose weights are quantized by a class of their own keep their order.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.errors import NothingMatched
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform
from methods.nets.unet import UNetConfig


class PixelByPixel(nn.Module):
    """A network that is given its input with channels last; outside of it nothing changes its order."""

    def __init__(self, net: nn.Module, reordered: int) -> None:
        super().__init__()
        self.net, self.reordered = net, reordered

    def forward(self, x: Float[Tensor, "b c h w"], *told: Tensor) -> Float[Tensor, "b out h w"]:
        count("convolutions_channels_last", self.reordered)
        return self.net(x.to(memory_format=torch.channels_last), *told).contiguous()


@dataclass(frozen=True)
class ChannelsLast(Transform):
    """Reorders the weights of every convolution, and the input."""

    stage: ClassVar[Stage] = Stage.COMPILE

    def __call__(self, module: nn.Module) -> nn.Module:
        module, reordered = copy.deepcopy(module), 0
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                before = part.weight.stride()
                part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
                reordered += part.weight.stride() != before
        if not reordered:
            raise NothingMatched(f"{type(module).__name__} holds no convolution whose weights have another order")
        return PixelByPixel(module, reordered)


def channels_last() -> Method:
    """Run the network with channels last."""
    return edit(transforms=ChannelsLast(), needs={"net": UNetConfig})
