"""Carrying out a recipe: train, compress, deploy, generate. Only here are device, dtype and autocast decided."""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Codec, Part, Report, Starter
from methods.core.denoiser import Denoiser, Labels, Mixture, Network
from methods.core.objective import Objective
from methods.core.parallel import shared_out
from methods.core.recipe import Calibrated, Fit, Precision, Recipe
from methods.core.sampling import SampleNoise
from methods.core.surgery import flatten, in_order, resize, transformed, unflatten

DTYPES: Mapping[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainingSet:
    """Clean images in [-1, 1], their labels, and the number of classes."""

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])


class Model(nn.Module):
    """Everything with weights: the network, the codec of its space, what starts its chain, and fitted parts by slot."""

    def __init__(
        self, net: nn.Module, codec: Codec, starter: Starter, parts: Mapping[str, Part], shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.net, self.codec, self.starter = net, codec, starter
        self.parts = nn.ModuleDict(parts)
        self.shape = shape
        """The shape of one sample in the space of the diffusion."""


def quiet(what: str, done: int, total: int, loss: float) -> None:
    """Report progress to nobody."""


def device() -> torch.device:
    """The CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(recipe: Recipe, shape: tuple[int, ...], classes: int, seed: int = 0) -> Model:
    """A model with fresh weights for images of a shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = recipe.space.build(shape)
        inner = tuple(codec.encode(torch.zeros(1, *shape)).shape[1:])
        net = recipe.loss.network(recipe.net.build(inner, classes))
        starter = recipe.start.build(inner, classes)
        model = Model(net, codec, starter, build_parts(recipe), inner)
    return model.to(device())


def build_parts(recipe: Recipe) -> dict[str, Part]:
    """The parts of the recipe's fitted choices, not fitted yet."""
    return {slot: choice.build(recipe) for slot, choice in recipe.fitted.items()}


def network(recipe: Recipe, model: Model) -> Network:
    """The model's network as a denoiser, before any transform or guidance."""
    return Network(model.net, recipe.process, recipe.parameterization, model.codec.bounds)


def train(recipe: Recipe, data: TrainingSet, seed: int, report: Report = quiet) -> tuple[Model, int]:
    """Fit the codec, then the network. Returns the model and how many images were seen in all.

    In a process group the network's part of the work is shared out, and every process returns the same model.
    """
    model = build(recipe, data.shape, data.classes, seed)
    images, labels = data.images.to(device()), data.labels.to(device())
    rng = torch.Generator(device()).manual_seed(seed)
    seen = model.codec.fit(images, recipe.fit.iterations, rng, report)
    x0 = encode(model, images)
    student = shared_out(network(recipe, model))
    model.net = optimise(student, student, recipe.objective, x0, labels, recipe.fit, seed, report)
    return model.eval(), seen + recipe.fit.iterations * recipe.fit.batch


def compress(
    recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report = quiet
) -> tuple[Model, int, dict[str, list[int]]]:
    """Everything between training and shipping: fit the start, run the phases, apply what ships, fit grid and sampler.

    Returns the model as it ships, how many images were seen, and the shapes from before the transforms that ship.
    """
    rng = torch.Generator(device()).manual_seed(seed)
    x0, labels = encode(model, data.images.to(device())), data.labels.to(device())
    seen = model.starter.fit(x0, labels, recipe.fit.iterations, rng, report)
    for phase in recipe.phases:
        seen += phase(recipe, model, data, seed, report)
    shapes = shapes_of(model)
    for transform in in_order(t for t in recipe.transforms if t.ships):
        before, model.net = model.net, transform(model.net)
        if isinstance(transform, Calibrated):
            seen += transform.fit(recipe, before, model, data, seed, report)
    model = model.eval().requires_grad_(False)
    if recipe.fitted:
        seen += fit_parts(recipe, deploy(recipe, model), x0, labels, seed, report)
    return model, seen, shapes


@torch.no_grad()
def fit_parts(
    recipe: Recipe, deployed: "Deployed", x0: Float[Tensor, "n *s"], labels: Labels, seed: int, report: Report = quiet
) -> int:
    """Fit a grid and a sampler to the model as it is deployed; returns how many images were seen."""
    seen = 0
    for slot in recipe.fitted:
        rng = torch.Generator(x0.device).manual_seed(seed)
        seen += deployed.model.parts[slot].fit(recipe, deployed.denoiser, x0, labels, rng, report)  # pyright: ignore[reportCallIssue]
    return seen


def optimise(
    student: Network, teacher: Denoiser, objective: Objective, x0: Float[Tensor, "n *s"], labels: Labels,
    fit: Fit, seed: int, report: Report = quiet, what: str = "network",
) -> nn.Module:  # fmt: skip
    """Minimise an objective by Adam and return the exponential moving average of the student's network.

    Order of the data and noise come from two generators, so methods that draw noise differently see the same images.
    """
    order = torch.Generator().manual_seed(seed)
    rng = torch.Generator(x0.device).manual_seed(seed + 1)
    learner = Learner(student.net, fit)
    queue = torch.empty(0, dtype=torch.long)
    for i in range(fit.iterations):
        while len(queue) < fit.batch:
            queue = torch.cat([queue, torch.randperm(len(x0), generator=order)])
        batch, queue = queue[: fit.batch].to(x0.device), queue[fit.batch :]
        with autocast(fit.precision):
            loss = objective(student, teacher, x0[batch], None if labels is None else labels[batch], rng).mean()
        learner.step(loss)
        if (i + 1) % 50 == 0 or i + 1 == fit.iterations:
            report(what, i + 1, fit.iterations, loss.item())
    return learner.finished()


class Learner:
    """A network in training: Adam with a linear warm-up, and beside it the moving average of the weights."""

    def __init__(self, net: nn.Module, fit: Fit) -> None:
        self.net, self.fit, self.done = net.train(), fit, 0
        self.average = copy.deepcopy(net)
        self.means: list[Tensor] = [*self.average.parameters()]
        self.weights: list[Tensor] = [*net.parameters()]
        self.optimizer = torch.optim.Adam(net.parameters(), lr=fit.learning_rate, fused=True)
        self.warmup = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda i: min(1.0, (i + 1) / fit.warmup))

    def step(self, loss: Tensor) -> None:
        """One update along the gradient of a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.warmup.step()
        decay = min(self.fit.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(self.means, self.weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.done += 1

    def finished(self) -> nn.Module:
        """The average, which is what ships."""
        return self.average.eval().requires_grad_(False)


def autocast(precision: Precision) -> torch.autocast | nullcontext[None]:
    """The context in which a network runs at a precision; float32 needs none."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device().type, DTYPES[precision])


@torch.no_grad()
def encode(model: Model, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n *s"]:
    """Images in the space of the diffusion."""
    return torch.cat([model.codec.encode(part) for part in images.split(1024)])


class Cast(Network):
    """A network run under autocast; its prediction, and the sampler's state, stay float32."""

    def __init__(self, inner: Network, precision: Precision) -> None:
        super().__init__(inner.net, inner.process, inner.parameterization, inner.bounds)
        self.precision: Precision = precision

    def evaluate(self, x: Float[Tensor, "b *s"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Tensor:
        with autocast(self.precision):
            prediction = super().evaluate(x, u, labels)
        count(f"calls_{self.precision}", prediction.dtype == DTYPES[self.precision])
        return prediction


@dataclass(frozen=True)
class Deployed:
    """A model ready to sample: `network` counts evaluations, `denoiser` is what the sampler is given."""

    model: Model
    network: Network | Mixture
    denoiser: Denoiser


def deploy(recipe: Recipe, model: Model) -> Deployed:
    """Apply what is left to apply (caches, compilation, precision, guidance) to a shipped model."""
    net = transformed(model.net, [t for t in recipe.transforms if not t.ships])
    inner = Network(net.eval(), recipe.process, recipe.parameterization, model.codec.bounds)
    if recipe.precision != "float32":
        inner = Cast(inner, recipe.precision)
    return Deployed(model, inner, recipe.guidance(inner))


def deploy_exact(recipe: Recipe, mixture: Mixture, x0: Float[Tensor, "n d"]) -> Deployed:
    """The exact denoiser of a mixture in place of a network: only what concerns sampling is left of the recipe.

    Grid and sampler are fitted to the denoiser and to samples x0 of the mixture.
    """
    shape = (mixture.means.shape[1],)
    space, start = recipe.space.build(shape), recipe.start.build(shape, 0)
    model = Model(nn.Identity(), space, start, build_parts(recipe), shape)
    probe = copy.copy(mixture)
    fit_parts(recipe, Deployed(model, probe, recipe.guidance(probe)), x0, None, seed=0)
    return Deployed(model, mixture, recipe.guidance(mixture))


@torch.inference_mode()
def generate(
    recipe: Recipe, deployed: Deployed, labels: Int[Tensor, "b"], seeds: Sequence[int]
) -> Float[Tensor, "b *p"]:
    """Decoded samples, one per label and seed."""
    noise = SampleNoise(seeds, device())
    labels = labels.to(device())
    model = deployed.model
    grid, sampler = (model.parts[s] if s in model.parts else getattr(recipe, s) for s in ("grid", "sampler"))
    times = grid(recipe.process, recipe.steps)
    x, times = model.starter(recipe.process, times, model.shape, labels, noise)
    return model.codec.decode(sampler(deployed.denoiser, x, times, labels, noise)).cpu()


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
