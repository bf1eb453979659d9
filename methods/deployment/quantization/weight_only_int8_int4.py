"""Stores all weights in eight or four bits and multiplies in floating point, so that only bytes are saved.

Each group of weights has a scale from its own largest number; the floats are made again just before every product.
Inputs stay as they are, so nothing has to be calibrated and little can go wrong.

Source: Dettmers et al. 2023 "QLoRA" (2305.14314), eq. 1 and 2, absmax quantization in blocks; scales as torchao's
Int8WeightOnlyConfig and IntxWeightOnlyConfig choose them, to which the tests hold it.
Limits: plain integers, not the NormalFloat levels of QLoRA, and its scales are not quantized again. torchao itself
covers linear layers only, and its packed 4-bit kernels need a GPU; convolutions follow here, rows cut into groups.
"""

from dataclasses import dataclass

from torch import nn

from methods.core.recipe import Method, edit
from methods.deployment.quantization._layers import Quantization, Quantized, rewrite_layers
from methods.deployment.quantization._weights import nearest, widest


@dataclass(frozen=True)
class WeightOnly(Quantization):
    """Every convolution and linear layer with weights of `bits`, a scale per `group` of them."""

    bits: int
    group: int

    def __call__(self, module: nn.Module) -> nn.Module:
        return rewrite_layers(
            module,
            lambda layer, _: Quantized(layer, nearest(layer.weight, self.bits, self.group, widest), nn.Identity()),
        )


def weight_only_int8_int4(bits: int = 4, group: int = 32) -> Method:
    """Store weights in `bits` bits, with a scale for every `group` of a row."""
    return edit(transforms=WeightOnly(bits, group))
