"""Compiles the network for the processor with OpenVINO, from its ONNX graph, and runs it in 32 bits.

OpenVINO turns the graph into its own representation, fuses operators, and picks for each the kernel and the layout,
oneDNN's among others, that suit the processor. The sampler stays in PyTorch.

Source: OpenVINO documentation, "Precision Control" (execution mode); Cyphers et al. 2018 "Intel
nGraph" (1801.08058), the representation that OpenVINO's grew from.
Limits: 32 bits by decree, where OpenVINO would take 16 on processors that have them: the question here is what the
compiler does, and `bf16_amp` asks the other one. The number of rows stays open, where a static shape is faster. A
network that remembers features is compiled in parts; one with quantized weights of their own class is not. What a
network counts about itself is not counted; its multiply-accumulates are those of the plain network.
Cost: some seconds of tracing for every structure of a network, the first time it is asked, and of compiling its parts.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import ClassVar

import openvino as ov
import torch
from torch import nn

from methods.core.control import Uncontrolled
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform
from methods.deployment.runtime._onnx import AsGraph, Run, hand_over_as_graph
from methods.deployment.runtime._shared import COMPILES


class InOpenVINO(AsGraph):
    """A part that OpenVINO compiles and runs."""

    counter: ClassVar[str] = "requests_run"

    def start(self, graph: bytes) -> Run:
        settings = {
            "EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }  # fmt: skip
        with NamedTemporaryFile(suffix=".onnx") as file:  # graphs given as bytes lose a node here and there
            Path(file.name).write_bytes(graph)
            request = ov.compile_model(file.name, "CPU", settings).create_infer_request()
        return lambda inputs: request.infer(inputs, share_outputs=False)[0]


@dataclass(frozen=True)
class OpenVINO(Transform):
    """Runs every plain part of a network in OpenVINO."""

    stage: ClassVar[Stage] = Stage.COMPILE
    does: ClassVar[str | None] = COMPILES

    def __call__(self, module: nn.Module) -> nn.Module:
        return hand_over_as_graph(module, InOpenVINO)


def openvino() -> Method:
    """Run the network in OpenVINO, in 32 bits."""
    return edit(transforms=OpenVINO(), precision="float32", needs={"control": Uncontrolled})
