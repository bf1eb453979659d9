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
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform
from methods.deployment.runtime._onnx import exported, hand_over_as_graph
from methods.deployment.runtime._shared import COMPILES, Handed


def session(graph: bytes) -> ort.InferenceSession:
    """A session on as many threads as PyTorch has."""
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class InONNXRuntime(Handed):
    """A part that runs in a session, made when it is first asked: one for inputs of each kind."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.sessions: dict[Any, ort.InferenceSession] = {}

    def run(self, *inputs: Tensor) -> Tensor:
        kind = tuple(x.shape[1:] for x in inputs)
        if kind not in self.sessions:
            self.sessions[kind] = session(exported(self.hidden[0], inputs))
        names = (put.name for put in self.sessions[kind].get_inputs())
        (y,) = self.sessions[kind].run(None, {n: x.cpu().numpy() for n, x in zip(names, inputs, strict=True)})
        count("sessions_run")
        return torch.from_numpy(y).to(inputs[0].device)


@dataclass(frozen=True)
class ONNXRuntime(Transform):
    """Runs every plain part of a network in ONNX Runtime."""

    stage: ClassVar[Stage] = Stage.COMPILE
    does: ClassVar[str | None] = COMPILES

    def __call__(self, module: nn.Module) -> nn.Module:
        return hand_over_as_graph(module, InONNXRuntime)


def onnxruntime() -> Method:
    """Run the network in ONNX Runtime, in 32 bits."""
    return edit(transforms=ONNXRuntime(), precision="float32")
