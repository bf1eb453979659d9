"""Compiles the network for the processor with OpenVINO, from its ONNX graph, and runs it in 32 bits.

OpenVINO turns the graph into its own representation, fuses operators, and picks for each the kernel and the layout of
oneDNN that suit the processor. The sampler stays in PyTorch.

Source: OpenVINO documentation, "Precision Control" (execution mode); Cyphers et al. 2018 "Intel
nGraph" (1801.08058), the representation that OpenVINO's grew from.
Limits: 32 bits by decree, where OpenVINO would take 16 on processors that have them: the question here is what the
compiler does, and `bf16_amp` asks the other one. The number of rows stays open, where a static shape is faster. A
network that remembers features is compiled in parts; one with quantized weights of their own class is not. What a
network counts about itself is not counted; its multiply-accumulates are those of the plain network.
Cost: some seconds of tracing for every structure of a network, the first time it is asked, and of compiling its parts.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import openvino as ov
import torch
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.errors import NothingMatched
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform
from methods.deployment.runtime._onnx import exported, hand_over_as_graph
from methods.deployment.runtime._shared import COMPILES, Handed


def request(graph: bytes) -> ov.InferRequest:
    """A compiled graph, ready to be asked, on as many threads as PyTorch has."""
    core = ov.Core()
    settings = {
        "EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }  # fmt: skip
    return core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()


class InOpenVINO(Handed):
    """A part that OpenVINO runs, compiled when it is first asked: once for inputs of each kind."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.requests: dict[Any, ov.InferRequest] = {}

    def run(self, *inputs: Tensor) -> Tensor:
        kind = tuple(x.shape[1:] for x in inputs)
        if kind not in self.requests:
            self.requests[kind] = request(exported(self.hidden[0], inputs))
        try:
            found = self.requests[kind].infer([x.cpu().numpy() for x in inputs], share_outputs=False)
        except RuntimeError as error:
            why = str(error).strip().splitlines()[-1].strip()
            raise NothingMatched(f"openvino cannot run a {type(self.hidden[0]).__name__}: {why}") from error
        count("requests_run")
        return torch.from_numpy(found[0]).to(inputs[0].device)


@dataclass(frozen=True)
class OpenVINO(Transform):
    """Runs every plain part of a network in OpenVINO."""

    stage: ClassVar[Stage] = Stage.COMPILE
    does: ClassVar[str | None] = COMPILES

    def __call__(self, module: nn.Module) -> nn.Module:
        return hand_over_as_graph(module, InOpenVINO)


def openvino() -> Method:
    """Run the network in OpenVINO, in 32 bits."""
    return edit(transforms=OpenVINO(), precision="float32")
