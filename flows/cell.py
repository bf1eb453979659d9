"""The one function behind every driver: a cell is trained, compressed, sampled and evaluated.

`train`, `compress`, `sample` and `evaluate` are the four steps. Each leaves a file that says what it was made from (a
fingerprint of recipe, code, data and seed); a step whose file is there and still true is not done again, so a killed
run resumes, and cells that share a training share its file. Nothing here knows Prefect, DVC or MLflow.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from catalog import Bed, Catalog, Cell, cell_name
from flows.records import Damaged, read_json, write_bytes, write_json
from methods import data
from methods.baseline import baseline
from methods.core import run
from methods.core.activation import tallied
from methods.core.calibration import FromNoise, Pixels, Report
from methods.core.denoiser import Mixture, Unguided
from methods.core.identity import code_digest, recipe_fingerprint, shipped_fingerprint, training_fingerprint
from methods.core.recipe import Conflict, Fit, Method, Recipe, compose
from methods.core.run import TrainingSet, quiet
from methods.measure import cost, features
from methods.measure.reference import UNITS, MixtureReference, Reference
from methods.measure.statistics import t_interval
from methods.nets.unet import UNetConfig

REFERENCE_STEPS = 64
"""Fidelity is the distance to the end point of DPM-Solver++(2M) in this many steps, from the same noise and weights."""
BATCH = 512
BLOCK = 1_000_000
"""Sample i of the block with seed s has the seed s * BLOCK + i."""
COUNTED = 8
"""Samples over which multiply-accumulates are counted."""


@dataclass(frozen=True)
class Spec:
    """A cell on a bed with its seeds: what a result depends on besides the code. `budget` scales training."""

    catalog: Catalog
    bed: Bed
    cell: Cell
    train_seeds: tuple[int, ...]
    sample_seeds: tuple[int, ...]
    budget: float = 1.0
    fidelity: bool = True
    """Whether to draw the many-step reference that fidelity is measured against."""

    @cached_property
    def name(self) -> str:
        return cell_name(self.cell, self.catalog, self.bed.name)

    def methods(self) -> list[Method]:
        """The cell's techniques as named edits."""
        return [
            replace(self.catalog.technique(id).call(params, self.bed.name), name=id)
            for id, params in self.cell.methods.items()
        ]

    @cached_property
    def recipe(self) -> Recipe:
        """The baseline of the bed with the cell's methods. Raises Conflict."""
        recipe = compose(base_recipe(self), *self.methods())
        if self.bed.network is None:
            require_exact(recipe, self)
        return replace(recipe, steps=self.cell.steps) if self.cell.steps else recipe

    def of(self, cell: Cell) -> "Spec":
        """The same bed, seeds and budget for another cell."""
        return replace(self, cell=self.catalog.canonical(cell, self.bed.name))

    @cached_property
    def training(self) -> "Spec":
        """The cell reduced to the methods that change base training: it names the weights this cell starts from."""
        whole = training_fingerprint(self.recipe)
        kept = dict(self.cell.methods)
        for id in self.cell.methods:
            fewer = {name: params for name, params in kept.items() if name != id}
            if training_fingerprint(replace(self, cell=Cell(methods=fewer)).recipe) == whole:
                kept = fewer
        return self.of(Cell(methods=kept))

    def context(self, seed: int) -> str:
        """What weights depend on besides the recipe: the data, and the seed of training."""
        loaded = images(self.bed.name)
        return f"{loaded.source if isinstance(loaded, data.Images) else loaded.name} seed {seed}"


def base_recipe(spec: Spec) -> Recipe:
    """The baseline for the bed's network and training budget."""
    network, fit = spec.bed.network, spec.bed.fit
    if network is None or fit is None:
        return baseline(UNetConfig(), Fit(0), spec.catalog.baseline.steps)
    return baseline(
        UNetConfig(network.width, network.multipliers, network.blocks),
        Fit(**fit.model_dump()).scaled(spec.budget),
        spec.catalog.baseline.steps,
    )


def require_exact(recipe: Recipe, spec: Spec) -> None:
    """On a bed whose denoiser is known nothing is trained: raise Conflict for methods that want to change that."""
    plain = base_recipe(spec)
    exact = training_fingerprint(replace(recipe, process=plain.process, parameterization=plain.parameterization))
    if exact != training_fingerprint(plain) or recipe.phases or recipe.transforms or recipe.start != plain.start:
        raise Conflict(
            f"The bed {spec.bed.name} has an exact denoiser and no network: {spec.name} has nothing to change."
        )


@dataclass(frozen=True)
class Workplace:
    """Where intermediate files lie: weights, samples, scores. Deleting it loses time, not results."""

    root: Path = Path("work")

    def path(self, spec: Spec, step: str, *parts: object, suffix: str = "safetensors") -> Path:
        return self.root / spec.bed.name / step / ("-".join(map(str, (spec.name, *parts))) + f".{suffix}")


@cache
def images(bed: str) -> Any:
    """The bed's data, read once."""
    return data.load(bed)


@cache
def training_set(bed: str) -> TrainingSet:
    loaded = images(bed)
    return TrainingSet(loaded.train, loaded.train_labels, loaded.classes)


def metadata(path: Path) -> dict[str, Any]:
    """What a file says about itself; empty if it is not there. Raises Damaged."""
    if not path.exists():
        return {}
    try:
        return run.read_note(path)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise Damaged(path, "make it again") from error


def find(path: Path, fingerprint: str) -> Path | None:
    """The file with this fingerprint: at `path`, or a neighbour that was made from the same under another name."""
    neighbours = sorted(path.parent.glob(f"*{path.suffix}")) if path.parent.exists() else []
    for candidate in [path, *neighbours]:
        if metadata(candidate).get("fingerprint") == fingerprint:
            return candidate
    return None


def train(spec: Spec, seed: int, place: Workplace, report: Report = quiet) -> Path:
    """Train the weights the cell starts from, or find them."""
    fingerprint = training_fingerprint(spec.recipe, spec.context(seed))
    path = place.path(spec.training, "train", seed)
    found = find(path, fingerprint)
    if found is not None:
        return found
    curve = Curve(report)
    with tallied() as counters:
        started = time.perf_counter()
        model, seen = run.train(spec.training.recipe, training_set(spec.bed.name), seed, curve)
    note = {"fingerprint": fingerprint, "images": seen, "counters": counters, "curve": curve.points}
    run.save(model, path, note)
    took(path, time.perf_counter() - started)
    return path


def compress(spec: Spec, seed: int, place: Workplace, report: Report = quiet) -> Path:
    """Make the weights that ship: fit the start, distil, prune, quantize. Without any of these, the trained ones do."""
    trained = train(spec, seed, place, report)
    recipe = spec.recipe
    ships = [transform for transform in recipe.transforms if transform.ships]
    if not (recipe.phases or ships or recipe.start != FromNoise()):
        return trained
    fingerprint = shipped_fingerprint(recipe, spec.context(seed))
    path = place.path(spec, "ship", seed)
    found = find(path, fingerprint)
    if found is not None:
        return found
    bed = spec.bed
    started = time.perf_counter()
    model = run.load(spec.training.recipe, trained, bed.shape, bed.classes, shipped=False)
    model.starter = run.build(recipe, bed.shape, bed.classes, seed).starter
    curve = Curve(report)
    with tallied() as counters:
        model, seen = run.compress(recipe, model, training_set(bed.name), seed, curve)
        shapes = run.shapes_of(model)
        model = run.ship(recipe, model)
    note = {"fingerprint": fingerprint, "images": seen, "counters": counters, "curve": curve.points}
    run.save(model, path, note, shapes)
    took(path, time.perf_counter() - started)
    return path


def deployed(spec: Spec, seed: int, place: Workplace, report: Report = quiet) -> run.Deployed:
    """The cell ready to sample, from the files that earlier steps left."""
    if spec.bed.network is None:
        mixture = images(spec.bed.name)
        return run.deploy_exact(spec.recipe, Mixture(mixture.means, mixture.stds, mixture.weights, spec.recipe.process))
    path = compress(spec, seed, place, report)
    shipped = path.parent.name == "ship"
    model = run.load(spec.recipe, path, spec.bed.shape, spec.bed.classes, shipped=shipped)
    return run.deploy(spec.recipe, model)


def sample(spec: Spec, seed: int, block: int, place: Workplace, report: Report = quiet) -> Path:
    """Draw one block of n samples: from the weights of a training seed, with a sampling seed."""
    fingerprint = recipe_fingerprint(spec.recipe, f"{spec.context(seed)} block {block} n {spec.bed.n}")
    path = place.path(spec, "sample", seed, block)
    if metadata(path).get("fingerprint") == fingerprint:
        return path
    ready = deployed(spec, seed, place, report)
    labels = block_labels(spec)
    drawn: list[Tensor] = []
    started = time.perf_counter()
    with tallied() as counters:
        for first in range(0, spec.bed.n, BATCH):
            part = labels[first : first + BATCH]
            seeds = range(block * BLOCK + first, block * BLOCK + first + len(part))
            drawn.append(run.generate(spec.recipe, ready, part, seeds))
            report(f"{spec.name}, block {block}", first + len(part), spec.bed.n, 0.0)
    samples = torch.cat(drawn)
    note = {
        "fingerprint": fingerprint, "counters": counters, "evaluations": ready.network.rows / spec.bed.n,
        "sequential": ready.network.calls / len(drawn),
    }  # fmt: skip
    shown = {"samples": samples.clamp(-1, 1) if samples.ndim == 4 else samples}
    write_bytes(path, save(shown, {"note": json.dumps(note, sort_keys=True)}))
    took(path, time.perf_counter() - started)
    return path


def block_labels(spec: Spec) -> Tensor:
    """The labels every block asks for: those of n training images, evenly spaced."""
    if spec.bed.network is None:
        return torch.zeros(spec.bed.n, dtype=torch.long)
    labels = images(spec.bed.name).train_labels
    return labels[torch.arange(spec.bed.n) * len(labels) // spec.bed.n]


def read_samples(path: Path) -> Tensor:
    """The samples of a block."""
    with safe_open(path, "pt") as file:
        return file.get_tensor("samples")


def feature_net(bed: Bed, place: Workplace, report: Report = quiet) -> Path:
    """Train the classifier in whose features the bed's quality is measured, or find it."""
    assert bed.features is not None
    path = place.root / bed.name / "features.safetensors"
    metadata(path)
    if not path.exists():
        report("feature network", 0, 1, 0.0)
        net, accuracy = features.train_features(images(bed.name), bed.features.dimensions, bed.features.epochs)
        temporary = path.with_name(f".{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        features.save(temporary, net, accuracy)
        temporary.replace(path)
        report("feature network", 1, 1, 0.0)
    return path


@cache
def reference(bed: str, n: int, path: Path | None) -> Reference | MixtureReference:
    """What blocks of n samples of a bed are scored against."""
    if path is None:
        return MixtureReference.of(images(bed), n)
    net, _ = features.load(path)
    return Reference.of(images(bed), net, n)


def evaluate(spec: Spec, place: Workplace, report: Report = quiet) -> dict[str, Any]:
    """Score every block of the cell and count its cost: the cell's part of a record, the same bytes every time."""
    seeds = [spec.context(seed) for seed in spec.train_seeds] + list(map(str, spec.sample_seeds))
    rulers = code_digest(frozenset({"methods.measure.reference", "methods.measure.cost"}))
    extractor = features.digest(features.load(feature_net(spec.bed, place, report))[0]) if spec.bed.features else ""
    fingerprint = recipe_fingerprint(
        spec.recipe, " ".join([*seeds, str(spec.bed.n), str(spec.fidelity), str(REFERENCE_STEPS), rulers, extractor])
    )
    path = place.path(spec, "cell", suffix="json")
    if path.exists() and (known := read_json(path))["fingerprints"]["cell"] == fingerprint:
        return known
    blocks = [(seed, block) for seed in spec.train_seeds for block in spec.sample_seeds]
    paths = [sample(spec, seed, block, place, report) for seed, block in blocks]
    scores = [score(spec, seed, block, path, place, report) for (seed, block), path in zip(blocks, paths, strict=True)]
    notes = [metadata(path) for path in paths]
    weights = [] if spec.bed.network is None else [compress(spec, seed, place) for seed in spec.train_seeds]
    cell = {
        "methods": spec.catalog.resolve(spec.cell, spec.bed.name),
        "steps": spec.recipe.steps,
        "budget": spec.budget,
        "seeds": {"train": list(spec.train_seeds), "sample": list(spec.sample_seeds)},
        "n": spec.bed.n,
        "metrics": {key: metric(key, [s[key] for s in scores]) for key in scores[0]},
        "cost": costs(spec, notes, weights, place),
        "counters": total_counters(
            notes, [*weights, *(train(spec, seed, place) for seed in spec.train_seeds if weights)]
        ),
        "fingerprints": {
            "cell": fingerprint,
            "training": training_fingerprint(spec.recipe, spec.context(spec.train_seeds[0])),
            "shipped": shipped_fingerprint(spec.recipe, spec.context(spec.train_seeds[0])),
        },
    }
    write_json(path, cell)
    return cell


def score(spec: Spec, seed: int, block: int, path: Path, place: Workplace, report: Report) -> dict[str, float]:
    """The quality of one block."""
    extractor = feature_net(spec.bed, place, report) if spec.bed.features else None
    ruler = reference(spec.bed.name, spec.bed.n, extractor)
    samples = read_samples(path)
    if isinstance(ruler, MixtureReference):
        return ruler.score(samples)
    same_noise = None
    if has_fidelity(spec):
        many = spec.of(Cell(methods={**spec.training.cell.methods, "dpm_solver_pp_2m": {}}, steps=REFERENCE_STEPS))
        same_noise = read_samples(sample(many, seed, block, place, report))
    return ruler.score(samples, block_labels(spec), same_noise)


def has_fidelity(spec: Spec) -> bool:
    """Whether the cell aims at the end points of its own weights' flow: it samples them, from noise, unguided."""
    recipe = spec.recipe
    samples_only = not spec.cell.methods or spec.cell.methods.keys() - spec.training.cell.methods.keys()
    aims = recipe.start == FromNoise() and recipe.guidance == Unguided() and isinstance(recipe.space, Pixels)
    return spec.fidelity and bool(samples_only) and aims and spec.bed.network is not None


def metric(key: str, values: list[float]) -> dict[str, Any]:
    """Values per block with their mean and its 95 % t interval, which one block does not give."""
    summary: dict[str, Any] = {"values": values, "unit": UNITS[key], "blocks": len(values)}
    if len(values) == 1:
        return summary | {"mean": values[0], "low": None, "high": None}
    interval = t_interval(values)
    return summary | {"mean": interval.mean, "low": interval.low, "high": interval.high}


def costs(spec: Spec, notes: list[dict[str, Any]], weights: list[Path], place: Workplace) -> dict[str, Any]:
    """The exact part of the cost vector, per sample where that makes sense."""
    ready = deployed(spec, spec.train_seeds[0], place)
    labels = block_labels(spec)[:COUNTED]
    operations, uncounted = cost.macs(lambda: run.generate(spec.recipe, ready, labels, range(len(labels))))
    seeds = spec.train_seeds
    trained = [train(spec, seed, place) for seed in seeds] if weights else []
    return {
        "evaluations": notes[0]["evaluations"],
        "sequential_calls": notes[0]["sequential"],
        "macs": operations // len(labels),
        "uncounted_ops": uncounted,
        "parameters": cost.parameters(ready.model) if weights else 0,
        "bytes": cost.nbytes(ready.model) if weights else 0,
        "training_images": sum(metadata(path)["images"] for path in trained) // len(seeds),
        "one_off_images": sum(
            metadata(path)["images"] for path in weights if path.parent.name == "ship"
        ) // len(seeds),
    }  # fmt: skip


def total_counters(notes: list[dict[str, Any]], weights: list[Path]) -> dict[str, int]:
    """What was counted while training, compressing and sampling."""
    total: Counter[str] = Counter()
    for note in [*notes, *map(metadata, dict.fromkeys(weights))]:
        total.update(note["counters"])
    return dict(total)


def took(path: Path, seconds: float) -> None:
    """Remember how long a file took to make, beside it: it depends on the machine, the file does not."""
    write_json(path.with_suffix(".seconds.json"), {"seconds": round(seconds, 3)})


def seconds(path: Path) -> float:
    """How long a file took to make."""
    beside = path.with_suffix(".seconds.json")
    return read_json(beside)["seconds"] if beside.exists() else 0.0


class Curve:
    """Passes progress on and keeps the losses on the way."""

    def __init__(self, report: Callable[[str, int, int, float], None]) -> None:
        self.report = report
        self.points: list[list[Any]] = []

    def __call__(self, what: str, done: int, total: int, loss: float) -> None:
        self.points.append([what, done, round(loss, 6)])
        self.report(what, done, total, loss)
