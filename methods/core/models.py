"""Everything with weights as one module: how it is built, written and read. Only here is the device decided."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from methods.core.calibration import Part
from methods.core.codec import Codec
from methods.core.data import TrainingSet
from methods.core.denoiser import Network
from methods.core.recipe import Recipe
from methods.core.start import Starter
from methods.core.surgery import flatten, resize, transformed, unflatten


class Model(nn.Module):
    """Everything with weights: the network, the codec of its space, what starts its chain, and fitted parts by slot."""

    def __init__(
        self, net: nn.Module, codec: Codec, starter: Starter, parts: Mapping[str, Part], shape: tuple[int, ...],
        history: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.codec, self.starter = net, codec, starter
        self.history = history or nn.Module()
        """What base training left beside the network; it does not ship."""
        self.parts = nn.ModuleDict(parts)
        self.shape = shape
        """The shape of one sample in the space of the diffusion."""


def device() -> torch.device:
    """The CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(recipe: Recipe, shape: tuple[int, ...], classes: int, seed: int = 0) -> Model:
    """A model with fresh weights for images of a shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = recipe.space.build(shape, classes)
        inner = tuple(codec.encode(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long)).shape[1:])
        net = recipe.loss.network(recipe.net.build(inner, classes))
        starter = recipe.start.build(inner, classes)
        model = Model(net, codec, starter, build_parts(recipe), inner, recipe.average.history(net))
    return model.to(device())


def build_parts(recipe: Recipe) -> dict[str, Part]:
    """The parts of the recipe's fitted choices, not fitted yet."""
    return {slot: choice.build(recipe) for slot, choice in recipe.fitted.items()}


def network(recipe: Recipe, model: Model) -> Network:
    """The model's network as a denoiser, before any transform or guidance."""
    return Network(model.net, recipe.process, recipe.parameterization, model.codec.bounds)


@torch.no_grad()
def encode(model: Model, data: TrainingSet) -> tuple[Float[Tensor, "n *s"], Int[Tensor, "n"]]:
    """Images in the space of the diffusion, and their labels, on the device."""
    images, labels = data.images.to(device()), data.labels.to(device())
    parts = zip(images.split(1024), labels.split(1024), strict=True)
    return torch.cat([model.codec.encode(part, known) for part, known in parts]), labels


def save(model: Model, path: Path, note: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None = None) -> None:
    """Write a model as safetensors, atomically, with a note beside the weights: equal models and notes are equal bytes.

    `shapes` are those from before the transforms that ship, which may hide them.
    """
    shapes = shapes if shapes is not None else shapes_of(model)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu() for name, tensor in flatten(model).items()}
    save_file(tensors, temporary, {"note": json.dumps({**note, "shapes": shapes}, sort_keys=True)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def shapes_of(model: Model) -> dict[str, list[int]]:
    """The shape of every tensor of a model, by name."""
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def read_note(path: Path) -> dict[str, Any]:
    """What was written beside the weights. Raises safetensors' error if the file is damaged."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {})["note"])


def load(recipe: Recipe, path: Path, shape: tuple[int, ...], classes: int, *, shipped: bool) -> Model:
    """Read a model that `save` wrote; `shipped` says whether the shipping transforms were applied before."""
    model = build(recipe, shape, classes)
    if shipped:
        model.history = nn.Module()
    with safe_open(path, "pt", device=str(device())) as file:
        shapes = json.loads((file.metadata() or {})["note"])["shapes"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    for name, tensor in model.state_dict().items():
        if list(tensor.shape) != shapes[name]:
            place, _, leaf = name.rpartition(".")
            resize(model.get_submodule(place), leaf, torch.zeros(shapes[name], device=tensor.device))
    if shipped:
        model.net = transformed(model.net, [t for t in recipe.transforms if t.ships])
    unflatten(model, tensors)
    return model.eval().requires_grad_(False)
