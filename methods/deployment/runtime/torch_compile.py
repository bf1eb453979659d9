"""Reads the network's code into graphs, and compiles each: operators are fused, and Python is left out in between.

Norms, activations and additions between two products are limited by memory; fused, they read and write it once. The
sampler stays as it is, and so does whatever remembers features: the parts of a network beside a cache are compiled.

Source: Ansel et al. 2024 "PyTorch 2" (ASPLOS 2024), sections 3 to 5; Reed et al. 2022
"torch.fx" (2112.08429), the representation of the graphs.
Limits: the number of rows stays open, so that code is compiled two or three times (for one row, for few, for many) and
not for every batch; other shapes are fixed. Quantized weights are compiled where PyTorch's own library makes them. A
transformer's graph is broken in two where the network counts its tokens.
Cost: minutes of compiling, the first time the network is asked, spent while sampling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform
from methods.deployment.runtime._shared import COMPILES, Handed, hand_over, stateless

BACKEND = "inductor"
"""What compiles the graphs."""


def counted(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """The compiled graph, which counts how often it is run."""
    compiled: Any = torch._dynamo.lookup_backend(BACKEND)(graph, inputs)  # pyright: ignore[reportArgumentType]

    def run(*tensors: Any) -> Any:
        count("graphs_run")
        return compiled(*tensors)

    return run


class Compiled(Handed):
    """A part that is compiled when it is first asked."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.graphs = torch.compile(part.forward, backend=counted)

    def run(self, *inputs: Tensor) -> Tensor:
        for x in inputs:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        return self.graphs(*inputs)


def compilable(part: nn.Module) -> bool:
    """Whether a part has no state but weights, which are of classes that the compiler knows."""
    held = [*part.parameters(), *part.buffers()]
    return stateless(part) and all(type(tensor).__module__.partition(".")[0] in ("torch", "torchao") for tensor in held)


@dataclass(frozen=True)
class TorchCompile(Transform):
    """Compiles every part of a network that has no state."""

    stage: ClassVar[Stage] = Stage.COMPILE
    does: ClassVar[str | None] = COMPILES

    def __call__(self, module: nn.Module) -> nn.Module:
        return hand_over(module, compilable, Compiled)


def torch_compile() -> Method:
    """Compile the network."""
    return edit(transforms=TorchCompile())
