"""Carrying out a recipe: train, compress, deploy, generate."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.core.calibration import Calibrated, Report
from methods.core.control import Prompts, Uncontrolled
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Mixture, Network
from methods.core.learning import Cast, optimise, quiet
from methods.core.models import Model, build, build_parts, device, encode, network, shapes_of
from methods.core.parallel import shared_out
from methods.core.recipe import Recipe
from methods.core.sampling import SampleNoise
from methods.core.surgery import in_order, transformed

Keep = Callable[[Model, int], None]
"""Given the model as it would ship now, and how many images were seen."""


def train(
    recipe: Recipe, data: TrainingSet, seed: int, report: Report = quiet, keep: Mapping[float, Keep] | None = None
) -> tuple[Model, int]:
    """Fit the codec, then the network. Returns the model and how many images were seen in all.

    Whoever wants to see the model on the way says in `keep` after which share of the updates.
    In a process group the network's part of the work is shared out, and every process returns the same model.
    """
    model, data = build(recipe, data.shape, data.classes, seed), data.shown
    images, known = data.images.to(device()), data.labels.to(device())
    rng = torch.Generator(device()).manual_seed(seed)
    seen = model.codec.fit(images, known, recipe.fit.iterations, rng, report)
    x0, labels = encode(model, data)
    student = shared_out(network(recipe, model))
    fit = recipe.fit

    def shown(sees: Sequence[Keep], updates: int) -> Callable[[nn.Module], None]:
        def show(net: nn.Module) -> None:
            kept = Model(net, model.codec, model.starter, build_parts(recipe), model.shape, model.history)
            for see in sees:
                see(kept, seen + updates * fit.batch)

        return show

    averaging = recipe.average.begin(student.net, fit, model.history)
    due: dict[int, list[Keep]] = {}
    for share, see in (keep or {}).items():
        due.setdefault(max(1, round(share * fit.iterations)), []).append(see)
    on_the_way = {updates: shown(sees, updates) for updates, sees in due.items()}
    model.net = optimise(
        student, student, recipe.objective, x0, labels, fit, seed, report, keep=on_the_way, averaging=averaging
    )
    return model.eval(), seen + fit.iterations * fit.batch


def compress(
    recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report = quiet
) -> tuple[Model, int, dict[str, list[int]]]:
    """Everything between training and shipping: fit the start, run the phases, apply what ships, fit grid and sampler.

    Returns the model as it ships, how many images were seen, and the shapes from before the transforms that ship.
    """
    rng = torch.Generator(device()).manual_seed(seed)
    x0, labels = encode(model, data)
    seen = model.starter.fit(x0, labels, recipe.fit.iterations, rng, report)
    for phase in recipe.phases:
        seen += phase(recipe, model, data, seed, report)
    model.history = nn.Module()
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
    space, start = recipe.space.build(shape, 0), recipe.start.build(shape, 0)
    model = Model(nn.Identity(), space, start, build_parts(recipe), shape)
    probe = copy.copy(mixture)
    fit_parts(recipe, Deployed(model, probe, recipe.guidance(probe)), x0, None, seed=0)
    return Deployed(model, mixture, recipe.guidance(mixture))


@torch.inference_mode()
def generate(
    recipe: Recipe, deployed: Deployed, labels: Int[Tensor, "b"], seeds: Sequence[int],
    wanted: Float[Tensor, "b *p"] | None = None,
) -> Float[Tensor, "b *p"]:  # fmt: skip
    """Decoded samples, one per label and seed; where the recipe has a control, like the images that are wanted."""
    noise = SampleNoise(seeds, device())
    labels = told = labels.to(device())
    model, network = deployed.model, deployed.network
    grid, sampler = (model.parts[s] if s in model.parts else getattr(recipe, s) for s in ("grid", "sampler"))
    times = grid(recipe.process, recipe.steps)
    if isinstance(network, Network):
        network.prompts = None
        if wanted is not None and recipe.control != Uncontrolled():
            network.prompts = Prompts(labels, recipe.control(wanted.to(device())))
            told = torch.arange(len(labels), device=device())
    x, times = model.starter(recipe.process, times, model.shape, labels, noise)
    return model.codec.decode(sampler(deployed.denoiser, x, times, told, noise), labels).cpu()
