"""Exports the network as an ONNX graph, and lets ONNX Runtime rewrite it and run it.

A graph that is known as a whole can be rewritten as one: constants are folded, neighbouring operators fused, layouts
chosen for the processor, and Python no longer stands between two operators. The sampler stays in PyTorch.

Source: ONNX Runtime documentation, "Graph Optimizations in ONNX Runtime" (levels basic, extended and layout, all of
which are on); Chen et al. 2018 "TVM" (1802.04799), section 3, for what rewriting a graph means.
Limits: 32 bits, on the processor, whatever device the rest is on. A network that remembers features is exported in
parts, below and beside its cache; one with quantized weights of their own class is not exported. What a network counts
about itself (tokens) is not counted while its graph runs; its multiply-accumulates are those of the plain network.
Cost: some seconds of tracing for every structure of a network, the first time it is asked.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import onnxruntime as ort
import torch
from torch import nn

from methods.core.control import Uncontrolled
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform
from methods.deployment.runtime._onnx import AsGraph, Run, hand_over_as_graph
from methods.deployment.runtime._shared import COMPILES


class InONNXRuntime(AsGraph):
    """A part that runs in a session."""

    counter: ClassVar[str] = "sessions_run"

    def start(self, graph: bytes) -> Run:
        options: Any = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 3
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        names = [put.name for put in session.get_inputs()]
        return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class ONNXRuntime(Transform):
    """Runs every plain part of a network in ONNX Runtime."""

    stage: ClassVar[Stage] = Stage.COMPILE
    does: ClassVar[str | None] = COMPILES

    def __call__(self, module: nn.Module) -> nn.Module:
        return hand_over_as_graph(module, InONNXRuntime)


def onnxruntime() -> Method:
    """Run the network in ONNX Runtime, in 32 bits."""
    return edit(transforms=ONNXRuntime(), precision="float32", needs={"control": Uncontrolled})
