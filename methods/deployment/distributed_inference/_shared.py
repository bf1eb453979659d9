"""Networks on parts: images are cut into bands of rows, and layers that mix rows or tokens ask for what they lack.

Between those layers a part is as good as the whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from methods.deployment.distributed_inference._parts import Parts


class InBands(nn.Module):
    """A network of which each process evaluates its own bands of rows; every process is given the whole answer."""

    def __init__(self, net: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.net, self.parts = net, parts

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Tensor:
        answer = self.net(self.parts.cut(x, 2), u, labels)
        bands = self.parts.gather(self.parts.split(answer, 2))[0]
        return torch.cat(list(bands), dim=2)


class Instead(TorchFunctionMode):
    """While it is entered, calls of some functions of torch go to others; a layer keeps its own parts and hooks."""

    def __init__(self, replaced: Mapping[Callable[..., Tensor], Callable[..., Tensor]]) -> None:
        super().__init__()
        self.replaced = replaced

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.replaced.get(func, func)(*args, **(kwargs or {}))


class Rerouted(nn.Module, ABC):
    """A layer that is run with other functions than torch's. Only PyTorch can run it: a graph of it would lose them."""

    def __init__(self, inner: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.inner, self.parts = inner, parts

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *o"]:
        with Instead(self.instead()):
            return self.inner(x)

    @abstractmethod
    def instead(self) -> Mapping[Callable[..., Tensor], Callable[..., Tensor]]:
        """What is called, by the function of torch that it takes the place of."""
