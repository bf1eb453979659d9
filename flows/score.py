"""What a cell scores and costs: every block against the bed's reference, every count from instrumented calls.

The last of the four steps. Like the others it is a pure function of the cell that remembers its answer; what depends on
the machine (seconds, memory) is measured apart, in `flows.timing`.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from catalog import Bed, Cell
from flows.cell import (
    Spec,
    Workplace,
    block_labels,
    compress,
    deployed,
    images,
    metadata,
    read_samples,
    sample,
    source,
    train,
    training_set,
    wanted_images,
)
from flows.home import RESULTS
from flows.records import read_json, write_json
from methods.core import models, run
from methods.core.calibration import Report
from methods.core.codec import Pixels
from methods.core.denoiser import Network, Unguided
from methods.core.identity import code_digest, recipe_fingerprint, shipped_fingerprint, training_fingerprint
from methods.core.learning import quiet
from methods.core.models import Model
from methods.core.start import FromNoise
from methods.measure import cost, features
from methods.measure.reference import UNITS, MixtureReference, Reference, Scores
from methods.measure.statistics import t_interval

REFERENCE_STEPS, EXACT_REFERENCE_STEPS = 64, 1024
"""Fidelity is the distance to the end point of DPM-Solver++(2M) in this many steps, from the same noise and weights;
more where the denoiser is exact and costs next to nothing."""
COUNTED = 8
"""Samples over which multiply-accumulates are counted."""
SHORT, SHORT_IN_EIGHTHS = 20, 24
"""Iterations of the shorter of the two trainings from which multiply-accumulates are extrapolated: of a whole one, and
of one that ends on the way, at an eighth or more of it."""


def evaluate(spec: Spec, place: Workplace, report: Report = quiet) -> dict[str, Any]:
    """Score every block of the cell and count its cost: the cell's part of a record, the same bytes every time."""
    path, fingerprint = place.path(spec, "cell", suffix="json"), own_identity(spec, place, report)

    def make() -> None:
        write_json(path, measured(spec, fingerprint, place, report))

    return read_json(place.made(path, fingerprint, make, find_cell))


def is_scored(spec: Spec, place: Workplace) -> bool:
    """Whether the cell's scores are there."""
    return find_cell(place.path(spec, "cell", suffix="json"), own_identity(spec, place)) is not None


def own_identity(spec: Spec, place: Workplace, report: Report = quiet) -> str:
    """The cell's identity with the data and the feature network that are used here."""
    extractor = features.digest(features.load(feature_net(spec.bed, place, report))[0]) if spec.bed.features else ""
    return identity(spec, source(spec.bed.name), extractor)


def find_cell(path: Path, fingerprint: str) -> Path | None:
    """The scores at `path`, if they were made from this."""
    return path if path.exists() and read_json(path)["fingerprints"]["cell"] == fingerprint else None


def measured(spec: Spec, fingerprint: str, place: Workplace, report: Report) -> dict[str, Any]:
    """The cell's part of a record, from its blocks of samples."""
    paths = [sample(spec, seed, block, place, report) for seed, block in spec.blocks]
    scores = [score(spec, *block, path, place, report) for block, path in zip(spec.blocks, paths, strict=True)]
    notes = [metadata(path) for path in paths]
    trained = [train(spec, seed, place) for seed in spec.train_seeds] if spec.bed.network else []
    shipped = [compress(spec, seed, place) for seed in spec.train_seeds] if spec.bed.network else []
    context = spec.context(spec.train_seeds[0])
    return {
        "methods": spec.catalog.resolve(spec.cell, spec.bed.name),
        "steps": spec.recipe.steps,
        "budget": spec.budget,
        "seeds": {"train": list(spec.train_seeds), "sample": [block for _, block in spec.blocks]},
        "n": spec.bed.n,
        **({"trained": spec.cell.trained} if spec.passed else {}),
        "fidelity": spec.fidelity,
        "metrics": {key: metric(key, scores) for key in scores[0].values},
        "cost": costs(spec, notes, trained, shipped, place),
        "counters": total_counters([*notes, *map(metadata, dict.fromkeys([*trained, *shipped]))]),
        "fingerprints": {
            "cell": fingerprint,
            "training": training_fingerprint(spec.recipe, context),
            "shipped": shipped_fingerprint(spec.recipe, context),
        },
    }


def identity(spec: Spec, data: str, extractor: str) -> str:
    """A digest of everything a cell's numbers are made from; `data` and `extractor` are named by their own digests.

    A record that carries another one than its spec has now is stale.
    """
    rulers = code_digest(frozenset({"methods.measure.reference", "methods.measure.cost"}))
    seeds = " ".join(f"{train}:{block}" for train, block in spec.blocks)
    shown = f"{data}{spec.mirrored}"
    effort = f"{shown} blocks {seeds} n {spec.bed.n} by {spec.bed.batch} fidelity {spec.fidelity}{spec.passed}"
    return recipe_fingerprint(spec.recipe, f"{effort} {reference_steps(spec)} {rulers} {extractor}")


def feature_net(bed: Bed, place: Workplace, report: Report = quiet) -> Path:
    """The classifier in whose features the bed's quality is measured: the frozen one that is committed, else its own.

    Trained again only for other data or other settings; two machines do not train the same bits.
    """
    assert bed.features is not None
    settings = {"data": source(bed.name), **bed.features.model_dump()}
    path = place.root / bed.name / "features.safetensors"
    for candidate in (RESULTS / bed.name / "features.safetensors", path):
        if metadata(candidate).get("settings") == settings:
            return candidate
    report("feature network", 0, 1, 0.0)
    dimensions, epochs, on = bed.features.dimensions, bed.features.epochs, str(models.device())
    net, accuracy = features.train_features(images(bed.name), dimensions, epochs, device=on)
    features.save(path, net, accuracy, settings)
    report("feature network", 1, 1, 0.0)
    return path


@cache
def reference(bed: str, n: int, path: Path | None) -> Reference | MixtureReference:
    """What blocks of n samples of a bed are scored against."""
    if path is None:
        return MixtureReference.of(images(bed), n)
    net, _ = features.load(path)
    return Reference.of(images(bed), net, n)


def score(spec: Spec, seed: int, block: int, path: Path, place: Workplace, report: Report) -> Scores:
    """The quality of one block."""
    extractor = feature_net(spec.bed, place, report) if spec.bed.features else None
    ruler = reference(spec.bed.name, spec.bed.n, extractor)
    same_noise = None
    if has_fidelity(spec):
        same_noise = read_samples(sample(many_steps(spec), seed, block, place, report))
    samples, labels = read_samples(path), block_labels(spec)
    if isinstance(ruler, MixtureReference):
        return ruler.score(samples, labels, same_noise)
    return ruler.score(samples, labels, same_noise, wanted_images(spec, labels))


def reference_steps(spec: Spec) -> int:
    """Steps of the solver whose end points fidelity is measured against."""
    return REFERENCE_STEPS if spec.bed.network else EXACT_REFERENCE_STEPS


def many_steps(spec: Spec) -> Spec:
    """The cell whose end points fidelity is measured against: the same weights, a better solver, many steps."""
    return spec.of(Cell(methods={**spec.training.cell.methods, "dpm_solver_pp_2m": {}}, steps=reference_steps(spec)))


def has_fidelity(spec: Spec) -> bool:
    """Whether the cell aims at the end points of its own weights' flow: it samples them, from noise, unguided.

    A sampler of order 0, through whichever door it comes, ends where chance takes it; weights that were trained for a
    sampler of their own have no other flow.
    """
    recipe = spec.recipe
    samples_only = not spec.cell.methods or spec.cell.methods.keys() - spec.training.cell.methods.keys()
    follows = getattr(recipe.kind("sampler"), "order", None) != 0
    aims = recipe.start == FromNoise() and recipe.guidance == Unguided() and isinstance(recipe.space, Pixels)
    free = not any("sampler" in method.edits for method in spec.training.methods())
    return spec.fidelity and bool(samples_only) and aims and follows and free


def metric(key: str, scores: list[Scores]) -> dict[str, Any]:
    """Values per block with their mean and its 95 % t interval, which one block does not give."""
    values = [each.values[key] for each in scores]
    summary: dict[str, Any] = {"values": values, "unit": UNITS[key], "blocks": len(values)}
    if all(key in each.errors for each in scores):
        summary["errors"] = [each.errors[key] for each in scores]
    if len(values) == 1:
        return summary | {"mean": values[0], "low": None, "high": None}
    interval = t_interval(values)
    return summary | {"mean": interval.mean, "low": interval.low, "high": interval.high}


def costs(
    spec: Spec, notes: list[dict[str, Any]], trained: list[Path], shipped: list[Path], place: Workplace
) -> dict[str, Any]:
    """The exact part of the cost vector: evaluations, calls and MACs per sample, and what was spent once."""
    spent = {
        "evaluations": fmean(note["evaluations"] for note in notes),
        "sequential_calls": fmean(note["sequential"] for note in notes),
    }
    if not spec.bed.network:
        nothing = dict.fromkeys(("macs", "parameters", "active_parameters", "bytes"), 0)
        once = dict.fromkeys(("training_images", "training_macs", "one_off_images", "one_off_macs"), 0)
        return {**spent, **nothing, **once, "uncounted_ops": []}
    ready = deployed(spec, spec.train_seeds[0], place)
    labels = block_labels(spec)[:COUNTED]
    wanted = wanted_images(spec, labels)

    def draw() -> object:
        return run.generate(spec.recipe, ready, labels, range(len(labels)), wanted)

    assert isinstance(ready.network, Network)
    operations, uncounted = cost.macs(draw)
    own = [path for path in shipped if path not in trained]
    training, one_off = preparation_macs(spec, place) if spec.fidelity or spec.passed else (None, None)
    return {
        **spent,
        "macs": operations // len(labels),
        "uncounted_ops": uncounted,
        "parameters": cost.parameters(ready.model),
        "active_parameters": round(cost.active_parameters(ready.network.net, draw)),
        "bytes": cost.nbytes(ready.model),
        "training_images": round(fmean(metadata(path)["images"] for path in trained)),
        "training_macs": training,
        "one_off_images": round(fmean(metadata(path)["images"] for path in own)) if own else 0,
        "one_off_macs": one_off if own else 0,
    }


def preparation_macs(spec: Spec, place: Workplace) -> tuple[int, int]:
    """MACs of base training as far as the cell takes it, and of everything between it and shipping.

    Both grow in a straight line with the iterations, so they are extrapolated from two short runs of the real loops. A
    share of a training is no such line: its updates may cost less than later ones. So the runs end at that share.
    """
    least = SHORT_IN_EIGHTHS if spec.passed else SHORT
    fingerprint = shipped_fingerprint(spec.recipe, f"{spec.bed.shape} {least}{spec.passed}")
    path = place.root / spec.bed.name / "macs" / f"{fingerprint}.json"
    if not path.exists():
        write_json(path, {"runs": [short_run(spec, iterations) for iterations in (least, 2 * least)]})
    further = (spec.recipe.fit.iterations - least) / least
    training, one_off = (round(a + (b - a) * further) for a, b in zip(*read_json(path)["runs"], strict=True))
    return training, one_off


class _Passed(Exception):
    """As much of a training has passed as was asked for."""


def short_run(spec: Spec, iterations: int) -> tuple[int, int]:
    """MACs of the cell's share of a training of so many iterations, and of what follows it."""
    recipe = replace(spec.recipe, fit=replace(spec.recipe.fit, iterations=iterations))
    data = training_set(spec.bed)
    trained: list[Model] = []

    def stop(model: Model, seen: int) -> None:
        trained.append(model.eval().requires_grad_(False))
        raise _Passed

    def train() -> None:
        with suppress(_Passed):
            keep = {spec.cell.trained: stop} if spec.passed else None
            trained.append(run.train(recipe, data, 0, keep=keep)[0])

    training, _ = cost.macs(train)
    following, _ = cost.macs(lambda: run.compress(recipe, trained[0], data, 0))
    return training, following


def total_counters(notes: list[dict[str, Any]]) -> dict[str, int]:
    """What was counted while training, compressing and sampling."""
    total: Counter[str] = Counter()
    for note in notes:
        total.update(note["counters"])
    return dict(total)
