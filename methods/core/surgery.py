"""Changing a trained network: transforms return a new module and leave the one they were given as it was.

Transforms are applied in the order of their stage, so nobody lists friends and foes pair by pair: first the structure
(pruning, replacing parts), then the numbers (quantization, casts), then reuse (caches), then compilation.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from methods.core.errors import NothingMatched


class Stage(IntEnum):
    """When a transform is applied."""

    STRUCTURE = 0
    NUMERICS = 1
    REUSE = 2
    COMPILE = 3


class Transform(ABC):
    """Module -> new Module."""

    stage: ClassVar[Stage]
    ships: ClassVar[bool] = False
    """True if the transformed weights are what is written to disk (quantized weights are, caches are not)."""
    does: ClassVar[str | None] = None
    """What cannot be done to a network twice, as the words that complete "both ...": two such transforms conflict."""

    @abstractmethod
    def __call__(self, module: nn.Module) -> nn.Module: ...


def in_order(transforms: Iterable[Transform]) -> list[Transform]:
    """By stage; within a stage by name, so that the order they were listed in does not matter."""
    return sorted(transforms, key=lambda t: (t.stage, type(t).__name__))


def transformed(module: nn.Module, transforms: Iterable[Transform]) -> nn.Module:
    """Apply the transforms in their order."""
    for transform in in_order(transforms):
        module = transform(module)
    return module


def rewrite_path(module: nn.Module, path: str, rewrite: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of `module` with a submodule rewritten: the one at the dotted `path` from the outermost part that has it.

    Raises NothingMatched if there is none.
    """
    module = copy.deepcopy(module)
    parent_path, _, name = path.rpartition(".")
    for part in module.modules():
        try:
            parent = part.get_submodule(parent_path)
            child = parent.get_submodule(name)
        except AttributeError:
            continue
        setattr(parent, name, rewrite(child))
        return module
    raise NothingMatched(f"{type(module).__name__} has no part named {path!r}")


M = TypeVar("M", bound=nn.Module)


def rewrite_type(module: nn.Module, kind: type[M], rewrite: Callable[[M], nn.Module]) -> nn.Module:
    """A copy of `module` with every submodule of the given kind rewritten. Raises NothingMatched if there is none."""
    module = copy.deepcopy(module)
    paths = [path for path, part in module.named_modules() if isinstance(part, kind) and path]
    if not paths:
        raise NothingMatched(f"{type(module).__name__} holds no {kind.__name__}")
    for path in paths:
        parent_path, _, name = path.rpartition(".")
        parent = module.get_submodule(parent_path)
        setattr(parent, name, rewrite(getattr(parent, name)))
    return module


def flatten(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module as plain tensors: quantized tensor subclasses are opened into what they hold."""
    flat: dict[str, Tensor] = {}

    def visit(name: str, tensor: Tensor) -> None:
        if hasattr(tensor, "__tensor_flatten__"):
            for inner in tensor.__tensor_flatten__()[0]:  # pyright: ignore[reportAttributeAccessIssue]
                visit(f"{name}:{inner}", getattr(tensor, inner))
        else:
            flat[name] = tensor.detach().contiguous()

    for name, tensor in module.state_dict().items():
        visit(name, tensor)
    return flat


@torch.no_grad()
def unflatten(module: nn.Module, flat: dict[str, Tensor]) -> nn.Module:
    """Copy the plain tensors of `flatten` into a module of the same structure, in place; channel counts may differ.

    A pruned network has the names of the original and smaller tensors: parameters take the stored shapes.
    Raises KeyError if the names differ.
    """
    here = flatten(module)
    if here.keys() != flat.keys():
        raise KeyError(f"stored and expected names differ: {sorted(here.keys() ^ flat.keys())[:3]}")
    for name, tensor in here.items():
        if tensor.shape == flat[name].shape:
            tensor.copy_(flat[name])
        else:
            path, _, leaf = name.rpartition(".")
            resize(module.get_submodule(path), leaf, flat[name])
    return module


def resize(layer: nn.Module, leaf: str, value: Tensor) -> None:
    """Replace a parameter by one of another shape, and let the layer's own record of its channels follow."""
    setattr(layer, leaf, nn.Parameter(value.clone()))
    match layer:
        case nn.Conv2d() if leaf == "weight":
            layer.out_channels, layer.in_channels = value.shape[0], value.shape[1] * layer.groups
        case nn.Linear() if leaf == "weight":
            layer.out_features, layer.in_features = value.shape
        case nn.GroupNorm():
            layer.num_channels = value.shape[0]
