"""Stores the weights of linear layers as 8-bit integers, and quantizes their inputs on the fly.

Each weight row and each input token gets a scale from its own largest value; the product runs in integers and is scaled
back. No calibration data is needed, and the weights take a quarter of the bytes.

Source: Jacob et al. 2018 "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(1712.05877), eq. 1, symmetric; carried out by torchao's Int8DynamicActivationInt8WeightConfig.
Limits: linear layers only; convolutions stay float32, so a U-Net shrinks little and a transformer much.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

from methods.core.activation import count
from methods.core.errors import NothingMatched
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform


@dataclass(frozen=True)
class Int8Linear(Transform):
    """Quantizes every linear layer of a network."""

    stage: ClassVar[Stage] = Stage.NUMERICS
    ships: ClassVar[bool] = True
    does: ClassVar[str | None] = "quantize the weights"

    def __call__(self, module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module)
        layers = sum(isinstance(part, nn.Linear) for part in module.modules())
        if layers == 0:
            raise NothingMatched(f"{type(module).__name__} holds no linear layer to quantize")
        quantize_(module, Int8DynamicActivationInt8WeightConfig())
        count("modules_quantized", layers)
        return module


def int8_dynamic() -> Method:
    """Quantize linear layers to 8-bit weights and dynamically quantized 8-bit inputs."""
    return edit(transforms=Int8Linear())
