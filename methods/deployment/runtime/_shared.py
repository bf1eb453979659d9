"""What runtimes share: which parts of a network can be handed to something else than PyTorch, part by part, and how."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from methods.core.denoiser import Remembering
from methods.core.errors import NothingMatched
from methods.deployment.distributed_inference._shared import Rerouted

COMPILES = "hand the network to a compiler"
"""What no two of them can do to one network."""


class Handed(nn.Module, ABC):
    """Stands in a network for a part that something else runs.

    The part's parameters are its own, and so count wherever parameters do. While operations are counted, the part runs
    as it was: its multiply-accumulates are those of the plain network, however a runtime arranges them.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.hidden = (part,)
        for name, parameter in part.named_parameters():
            self.register_parameter(name.replace(".", "/"), parameter)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.hidden[0](*inputs) if _get_current_dispatch_mode() is not None else self.run(*inputs)

    @abstractmethod
    def run(self, *inputs: Tensor) -> Tensor:
        """What the part returns for inputs of any number of rows."""

    def get_submodule(self, target: str) -> nn.Module:
        """Paths lead into the part, as they did before."""
        return self.hidden[0].get_submodule(target)


def stateless(part: nn.Module) -> bool:
    """Whether a part depends on its inputs alone: nothing in it remembers, is rerouted, or is listened to."""
    apart = (Remembering, Rerouted)
    return not any(isinstance(m, apart) or m._forward_hooks or m._forward_pre_hooks for m in part.modules())


def hand_over(module: nn.Module, fit: Callable[[nn.Module], bool], give: Callable[[nn.Module], Handed]) -> nn.Module:
    """A copy of a network in which each of the largest parts that are `fit` stands as what `give` makes of it.

    A network under a cache is handed over in pieces: below the cache, and beside it; what is rerouted stays whole.
    Raises NothingMatched.
    """
    module, given = copy.deepcopy(module), []

    def visit(part: nn.Module, inside: bool) -> nn.Module:
        own = type(part).__module__.startswith(("methods.nets.", "methods.checkpoints."))
        if (own or (inside and isinstance(part, nn.Sequential))) and fit(part):
            given.append(give(part))
            return given[-1]
        for name, child in () if isinstance(part, Rerouted) else part.named_children():
            setattr(part, name, visit(child, inside or own))
        return part

    module = visit(module, False)
    if not given:
        raise NothingMatched(f"{type(module).__name__} holds no part of plain layers and plain weights to hand over")
    return module
