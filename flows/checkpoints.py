"""Measure techniques on a model that somebody already has, against that model's own output in many steps.

A checkpoint comes without training data, so a technique is judged by paired fidelity alone, beside its costs and the
proof that it fired; what would need data is refused in a sentence. Records have the form of all others, and lie apart.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from catalog import Bed, Catalog, Cell, Seeds, cell_name
from catalog.models import Network
from flows.cell import BLOCK, Spec, Workplace, find, metadata, read_samples, seconds, took, write_samples
from flows.forms import KNOWN
from flows.home import PUBLIC, RESULTS, WORK
from flows.picture import png
from flows.progress import Display, shown
from flows.records import SCHEMA, FileProblem, provenance, read_json, write_bytes, write_json
from flows.rendering import render
from flows.rendering.checkpoint import MANY_STEPS, Shown, publish
from flows.score import COUNTED, REFERENCE_STEPS, find_cell, metric
from flows.study import BASELINE, CANNOT, EQUAL, NO_CONTROL, Study, equal_cost, spec_hash
from flows.timing import ROUNDS, as_json
from methods.core import run
from methods.core.activation import tallied
from methods.core.calibration import Calibrated, Fitted, Report
from methods.core.errors import Conflict
from methods.core.identity import code_digest, recipe_fingerprint, shipped_fingerprint, training_fingerprint
from methods.core.learning import quiet
from methods.core.recipe import TRAINING, Method, Recipe, compose
from methods.measure import cost
from methods.measure.quality import paired_fidelity
from methods.measure.reference import Scores

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it comments on parts of torchao that it does not find

from methods.checkpoints.folder import Checkpoint, read

MODELS = WORK / "models"
SAMPLES, BLOCKS, BATCH = 8, 5, 16
"""Samples of a block, blocks, and the most samples that are drawn at a time, unless somebody asks for others."""
COLUMNS = 8
"""Samples in a row of a picture."""


@dataclass(frozen=True)
class ModelSpec(Spec):
    """A cell on a checkpoint, which takes the place of the bed's data and training."""

    checkpoint: Checkpoint = field(kw_only=True)

    @cached_property
    def recipe(self) -> Recipe:
        """The checkpoint's baseline with the cell's methods. Raises Conflict, also for what needs training or data."""
        methods = self.methods()
        for method in methods:
            require_applicable(method)
        recipe = compose(self.checkpoint.recipe(self.catalog.baseline.steps), *methods)
        return replace(recipe, steps=self.cell.steps) if self.cell.steps else recipe

    @property
    def labels(self) -> Tensor:
        """The labels of a block: each class with its share; all 0 where there are none."""
        return torch.arange(self.bed.n) * self.bed.classes // self.bed.n

    @property
    def seeds(self) -> list[int]:
        """The sampling seeds, one a block."""
        return [block for _, block in self.blocks]


def require_applicable(method: Method) -> None:
    """Raise Conflict for a method that needs training or data, or that aims at something else than the model does."""
    trained = sorted(method.edits.keys() & {*TRAINING})
    if trained:
        raise Conflict(f"{method.name} takes a training of its own: it changes `{trained[0]}`, which a checkpoint has.")
    if "phases" in method.edits:
        raise Conflict(f"{method.name} trains the network further, and a checkpoint comes without training data.")
    if "start" in method.edits or any(isinstance(value, Fitted | Calibrated) for value in method.edits.values()):
        raise Conflict(f"{method.name} is fitted to training data, and a checkpoint comes without.")
    if "guidance" in method.edits:
        raise Conflict(f"{method.name} changes what is sampled: the model's own output is no measure for it.")
    if getattr(method.edits.get("sampler"), "order", None) == 0:
        raise Conflict(f"{method.name} draws fresh noise on the way: it has no end point to pair with the model's own.")


class Ready:
    """A cell's model, made when it is first asked for, and what was counted while it was made."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @cached_property
    def made(self) -> tuple[run.Deployed, Counter[str]]:
        recipe = self.spec.recipe
        with tallied() as counters:
            deployed = run.deploy(recipe, self.spec.checkpoint.model(recipe))
        return deployed, counters

    def draw(self, labels: Tensor, first: int = 0) -> Tensor:
        """Samples from the seeds `first`, `first` + 1, ..."""
        return run.generate(self.spec.recipe, self.made[0], labels, range(first, first + len(labels)))


def sample(ready: Ready, block: int, place: Workplace, report: Report = quiet) -> Path:
    """Draw one block, or find it."""
    spec, bed = ready.spec, ready.spec.bed
    path, labels = place.path(spec, "sample", block), spec.labels
    fingerprint = recipe_fingerprint(spec.recipe, f"block {block} n {bed.n} by {bed.batch}")

    def make() -> None:
        deployed, started, drawn = ready.made[0], time.perf_counter(), []
        rows, calls = deployed.network.rows, deployed.network.calls
        with tallied() as counters:
            for first in range(0, bed.n, bed.batch):
                drawn.append(ready.draw(labels[first : first + bed.batch], block * BLOCK + first))
                report(f"block {block}", block * bed.n + first + len(drawn[-1]), len(spec.blocks) * bed.n, 0.0)
        note = {
            "fingerprint": fingerprint, "counters": counters, "evaluations": (deployed.network.rows - rows) / bed.n,
            "sequential": (deployed.network.calls - calls) / len(drawn),
        }  # fmt: skip
        write_samples(torch.cat(drawn), path, note)
        took(path, time.perf_counter() - started)

    return place.made(path, fingerprint, make, find)


def many_steps(spec: ModelSpec) -> ModelSpec:
    """The cell whose end points fidelity is measured against: the checkpoint itself, a better solver, many steps."""
    found = spec.of(Cell(methods={"dpm_solver_pp_2m": {}}, steps=REFERENCE_STEPS))
    assert isinstance(found, ModelSpec)
    return found


def evaluate(spec: ModelSpec, place: Workplace, report: Report = quiet) -> dict[str, Any]:
    """Score and count a cell, or find what was: its part of a record."""
    rulers = code_digest(frozenset({"methods.measure.quality", "methods.measure.cost"}))
    context = f"blocks {spec.seeds} n {spec.bed.n} by {spec.bed.batch} {REFERENCE_STEPS} {rulers}"
    path, fingerprint = place.path(spec, "cell", suffix="json"), recipe_fingerprint(spec.recipe, context)

    def make() -> None:
        write_json(path, measured(spec, fingerprint, place, report))

    return read_json(place.made(path, fingerprint, make, find_cell))


def measured(spec: ModelSpec, fingerprint: str, place: Workplace, report: Report) -> dict[str, Any]:
    """The cell's part of a record, from its blocks."""
    ready, truth = Ready(spec), Ready(many_steps(spec))
    paths = [sample(ready, block, place, report) for block in spec.seeds]
    ends = [sample(truth, block, place, report) for block in spec.seeds]
    pairs = [(read_samples(path), read_samples(end)) for path, end in zip(paths, ends, strict=True)]
    scores = [Scores({"fidelity": paired_fidelity(*pair)}, {}) for pair in pairs]
    notes = [metadata(path) for path in paths]
    counters = Counter(ready.made[1])
    for note in notes:
        counters.update(note["counters"])
    return {
        "methods": spec.catalog.resolve(spec.cell, spec.bed.name),
        "steps": spec.recipe.steps,
        "budget": 1.0,
        "seeds": {"train": [], "sample": spec.seeds},
        "n": spec.bed.n,
        "fidelity": True,
        "metrics": {"fidelity": metric("fidelity", scores)},
        "cost": costs(ready, notes),
        "counters": dict(counters),
        "fingerprints": {
            "cell": fingerprint,
            "training": training_fingerprint(spec.recipe),
            "shipped": shipped_fingerprint(spec.recipe),
        },
    }  # fmt: skip


def costs(ready: Ready, notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The exact part of the cost vector; what training cost is not known, and nothing is prepared."""
    deployed, labels = ready.made[0], ready.spec.labels[:COUNTED]
    operations, uncounted = cost.macs(lambda: ready.draw(labels))
    net = deployed.model.net if isinstance(deployed.network, run.Mixture) else deployed.network.net
    return {
        "evaluations": fmean(note["evaluations"] for note in notes),
        "sequential_calls": fmean(note["sequential"] for note in notes),
        "macs": operations // len(labels),
        "uncounted_ops": uncounted,
        "parameters": cost.parameters(deployed.model),
        "active_parameters": round(cost.active_parameters(net, lambda: ready.draw(labels))),
        "bytes": cost.nbytes(deployed.model),
        "training_images": None,
        "training_macs": None,
        "one_off_images": 0,
        "one_off_macs": 0,
    }


def bed_of(checkpoint: Checkpoint, n: int, blocks: int) -> Bed:
    """What a checkpoint says of itself, in the place of a test bed."""
    folder = Path(checkpoint.name).expanduser()
    title = folder.resolve().name if folder.is_dir() else checkpoint.name
    name = re.sub(r"\W+", "_", title.lower()).strip("_")
    config = checkpoint.config
    levels, depth = getattr(config, "multipliers", (1,)), getattr(config, "blocks", None) or getattr(config, "depth", 1)
    return Bed(
        name=name if name[:1].isalpha() else f"model_{name}",
        title=title,
        role="A model that somebody already has.",
        data="none: what it was trained on is not here",
        source=f"{title}, {checkpoint.kind}, weights {config.weights}",
        license="that of the checkpoint",
        scale="paper",
        shape=checkpoint.shape,
        classes=checkpoint.classes,
        n=n,
        batch=min(n, BATCH),
        seeds=Seeds(train=(0,), sample=tuple(range(blocks))),
        network=Network(width=config.width, multipliers=levels, blocks=depth),
    )


@dataclass(frozen=True)
class Bench:
    """A checkpoint ready to be measured on: the catalog with its bed, and where its files lie."""

    checkpoint: Checkpoint
    known: Catalog
    bed: Bed
    place: Workplace

    @classmethod
    def of(cls, model: str, samples: int, blocks: int, root: Path) -> "Bench":
        """Raises Unusable."""
        checkpoint = read(model)
        bed = bed_of(checkpoint, samples, blocks)
        return cls(checkpoint, replace(KNOWN, beds={**KNOWN.beds, bed.name: bed}), bed, Workplace(root, None))

    def study(self, methods: dict[str, dict[str, Any]]) -> Study:
        """Techniques at once against the checkpoint's baseline. Raises CatalogError and Conflict."""
        for id, params in methods.items():
            self.known.technique(id).resolve(params, self.bed.name)
        plain = self.known.canonical(Cell(methods={}), self.bed.name)
        cell = self.known.canonical(Cell(methods=methods), self.bed.name)
        blocks = self.bed.seeds.blocks
        subject, control = (
            ModelSpec(self.known, self.bed, c, blocks, checkpoint=self.checkpoint) for c in (cell, plain)
        )
        assert subject.recipe and control.recipe  # composing now says at once what cannot be
        name = cell_name(cell, self.known, self.bed.name) if methods else BASELINE
        return Study(name, subject.name, control.name, {spec.name: spec for spec in (subject, control)})

    def alone(self) -> tuple[list[Study], dict[str, str]]:
        """The studies of all techniques that apply, each by itself, and why the others do not."""
        applicable, refused = [], {}
        for id in self.known.techniques:
            try:
                applicable.append(self.study({id: {}}))
            except Conflict as why:
                refused[id] = str(why)
        return applicable, refused


def record(this: Study, bench: Bench) -> dict[str, Any]:
    """Measure a study and write its record, its pictures and the seconds of this machine."""
    known: dict[str, Any] = {}
    equal: dict[str, Any] = dict.fromkeys(EQUAL, NO_CONTROL)
    reason = measure(this.specs.values(), bench, known)
    if reason is None and this.has_equal_cost:
        found = equal_cost(this, known)
        reason = measure([spec for spec, _ in found.values() if spec], bench, known)
        equal = {axis: {"cell": spec.name if spec else None, "reason": why} for axis, (spec, why) in found.items()}
    content = {
        "schema": SCHEMA, "bed": bench.bed.name, "id": this.id, "data": bench.bed.source,
        "status": "ok" if reason is None else "failed", "reason": reason,
        "default": this.default, "control": this.control, **{f"equal_{axis}": equal[axis] for axis in EQUAL},
        "cells": known, "features": None,
    }  # fmt: skip
    content["spec_hash"] = spec_hash(content)
    folder = bench.place.root / bench.bed.name
    write_json(folder / f"{this.id}.json", content)
    if this.default in known:
        subject, control = (as_model(this.specs[name]) for name in (this.default, this.control))
        for name, spec in ((this.id, subject), (BASELINE, control), (MANY_STEPS, many_steps(control))):
            draw_picture(folder / f"{name}.png", sample(Ready(spec), spec.seeds[0], bench.place))
        write_machine(folder / f"{this.id}.cost.json", content["spec_hash"], subject, control, bench.place)
    return content


def as_model(spec: Spec) -> ModelSpec:
    assert isinstance(spec, ModelSpec)
    return spec


def measure(specs: Iterable[Spec], bench: Bench, known: dict[str, Any]) -> str | None:
    """Evaluate cells into `known`, by name; returns why one could not be, if one could not."""
    reason = None
    for spec in map(as_model, specs):
        try:
            with shown(spec.name, effort(spec)) as report:
                known[spec.name] = evaluate(spec, bench.place, report)
        except CANNOT as error:
            if isinstance(error, FileProblem):
                raise
            reason = f"{spec.name}: {error}"
    return reason


def effort(spec: ModelSpec) -> float:
    """About how many evaluations of the network a cell takes."""
    return float(spec.bed.n * len(spec.blocks) * spec.catalog.steps(spec.cell, spec.bed.name))


def draw_picture(path: Path, block: Path) -> None:
    """The samples of a block, if they are images at all."""
    drawn = read_samples(block)[: 2 * COLUMNS]
    columns = min(len(drawn), COLUMNS)
    if drawn.shape[1] in (1, 3):
        write_bytes(path, png(drawn[: len(drawn) // columns * columns], columns))


def write_machine(path: Path, spec_hash: str, subject: ModelSpec, control: ModelSpec, place: Workplace) -> None:
    """Seconds of a technique beside those of the baseline, in turns, unless this record has them."""
    if path.exists() and read_json(path).get("spec_hash") == spec_hash:
        return
    spent = sum(seconds(place.path(subject, "sample", block)) for block in subject.seeds)
    timing = None if subject == control else compare(Ready(subject), Ready(control))
    write_json(path, {"spec_hash": spec_hash, **provenance(), "seconds": {"sample": round(spent, 2)}, "timing": timing})


def compare(ours: Ready, theirs: Ready) -> dict[str, Any]:
    """Latency of one sample and of a batch."""
    labels = ours.spec.labels[: ours.spec.bed.batch]
    one, many = (
        cost.interleaved(lambda part=part: ours.draw(part), lambda part=part: theirs.draw(part), ROUNDS)
        for part in (labels[:1], labels)
    )
    rate = {"subject": len(labels) / many.a.mean, "control": len(labels) / many.b.mean}
    return {
        "against": theirs.spec.name,
        "latency": {
            "batch": 1, "seconds": {"subject": one.a.mean, "control": one.b.mean}, "ratio": as_json(one.ratio),
        },
        "throughput": {"batch": len(labels), "samples_per_second": rate, "ratio": as_json(many.ratio)},
        "memory": None,
    }  # fmt: skip


@dataclass(frozen=True)
class Surveyed:
    """What a survey of a model left: its records, its page, and why what failed did."""

    records: list[Path]
    page: Path
    failed: list[str]


def survey(
    model: str, methods: dict[str, dict[str, Any]], *, samples: int = SAMPLES, blocks: int = BLOCKS,
    root: Path = MODELS, out: Path = PUBLIC,
) -> Surveyed:  # fmt: skip
    """Measure techniques on a checkpoint, together, or with none each that applies; then render the model's page.

    Raises Unusable, CatalogError and Conflict.
    """
    bench = Bench.of(model, samples, blocks, root)
    applicable, refused = bench.alone()
    studies = [bench.study(methods)] if methods else applicable
    total = sum(effort(as_model(spec)) for this in studies for spec in this.specs.values())
    with Display(f"{len(studies)} on {model}", total):
        written = [record(this, bench) for this in studies]
    if not (out / "index.html").exists():
        render(KNOWN, RESULTS, out)
    folder, page = root / bench.bed.name, publish(Shown(bench.known, bench.bed, facts(bench), refused, root), out)
    return Surveyed(
        [folder / f"{each['id']}.json" for each in written],
        page,
        [each["reason"] for each in written if each["reason"]],
    )


def facts(bench: Bench) -> dict[str, str]:
    """What a checkpoint was read as."""
    own, schedule = bench.checkpoint, bench.checkpoint.schedule
    clipped = "no" if schedule.space.bounds is None else "to {:g} and {:g}".format(*schedule.space.bounds)
    return {
        "Read from": own.name,
        "Network": f"{own.kind}, samples of {' x '.join(map(str, own.shape))}",
        "Classes": str(own.classes) if own.classes else "none",
        "Predicts": type(schedule.parameterization).__name__.lower(),
        "Schedule": f"{len(schedule.process.angles):,} timesteps",
        "Estimates clipped": clipped,
        "Weights": own.config.weights,
    }
