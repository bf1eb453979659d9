"""Networks as ONNX graphs, whose number of rows is open. A structure is traced once, and filled with its weights."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from methods.core.activation import count
from methods.core.errors import NothingMatched
from methods.deployment.runtime._shared import Handed, hand_over, stateless

TRACED: dict[str, onnx.ModelProto] = {}
"""Every graph so far, by what it depends on but for the weights."""

ROWS = 2
"""Rows of a traced example: with one alone, tracing would take the number for a constant."""


Run = Callable[[list[np.ndarray]], np.ndarray]
"""Runs a graph on its inputs, in order."""


class AsGraph(Handed):
    """A part that runs as a graph, made ready when it is first asked: once for inputs of each kind."""

    counter: ClassVar[str]
    """What counts how often a graph is run."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.ready: dict[tuple[torch.Size, ...], Run] = {}

    @abstractmethod
    def start(self, graph: bytes) -> Run:
        """Make a graph ready, on as many threads as PyTorch has."""

    def run(self, *inputs: Tensor) -> Tensor:
        kind = tuple(x.shape[1:] for x in inputs)
        if kind not in self.ready:
            self.ready[kind] = self.start(exported(self.hidden[0], inputs))
        y = self.ready[kind]([x.cpu().numpy() for x in inputs])
        count(self.counter)
        return torch.from_numpy(y).to(inputs[0].device)


def hand_over_as_graph(module: nn.Module, give: type[AsGraph]) -> nn.Module:
    """A copy of a network whose plain parts are exported. Raises NothingMatched."""
    if any(type(part).__module__.startswith(f"{__package__}.") for part in module.modules()):
        raise NothingMatched("An exported graph chooses layouts and kernels itself, and would drop those chosen here")
    return hand_over(module, lambda part: stateless(part) and with_plain_weights(part), give)


def with_plain_weights(part: nn.Module) -> bool:
    """Whether all numbers are tensors as an exporter knows them: quantized ones are of classes of their own."""
    return all(type(held) in (Tensor, nn.Parameter) for held in state(part).values())


def state(part: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, with those that are in no file."""
    return dict([*part.named_parameters(), *part.named_buffers()])


def structure(part: nn.Module, inputs: Sequence[Tensor]) -> str:
    """All that a graph depends on beside its weights: kinds and settings of modules, shapes of weights and of rows."""
    simple = bool | int | float | str | tuple | None
    modules = [
        (path, type(m).__qualname__, {k: v for k, v in vars(m).items() if isinstance(v, simple) and k[0] != "_"})
        for path, m in part.named_modules()
    ]
    tensors = [(name, tuple(held.shape), held.dtype) for name, held in state(part).items()]
    return repr((modules, tensors, [(tuple(x.shape[1:]), x.dtype) for x in inputs]))


def exported(part: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    """The graph of a part with its weights, for inputs of the shapes and types of these and any number of rows."""
    key = structure(part, inputs)
    if key not in TRACED:
        TRACED[key] = trace(part, inputs)
    model, weights = onnx.ModelProto(), state(part)
    model.CopyFrom(TRACED[key])
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            values = weights[initializer.name].detach().cpu().numpy()
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    return model.SerializeToString()


def trace(part: nn.Module, inputs: Sequence[Tensor]) -> onnx.ModelProto:
    """The graph, as Dynamo reads it from the code. What the code counts is left out of it."""
    with (
        torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(),
        torch._dynamo.config.patch(ignore_logging_functions={count}),
    ):  # fmt: skip
        warnings.simplefilter("ignore")  # torch's exporter speaks of parts of itself
        example = tuple(torch.zeros(ROWS, *x.shape[1:], dtype=x.dtype, device=x.device) for x in inputs)
        program = torch.export.export(part, example, dynamic_shapes=({0: Dim.AUTO},) * len(example), strict=True)
        found = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    assert found is not None
    held = program.graph_signature
    used = {*held.inputs_to_parameters.values(), *held.inputs_to_buffers.values()}  # of some, training alone makes use
    named = state(part).keys() & {initializer.name for initializer in found.model_proto.graph.initializer}
    assert used <= named, f"the graph has other names for {used - named}"
    return found.model_proto
