"""A study is the page of a technique: its cells, controls included, on one bed, as one record.

The plain door to the catalog's results, which DVC uses: no server, no tracking, one process.

    python -m flows.study run deepcache --bed digits        one record
    python -m flows.study train v_prediction --bed digits   the weights of one training
    python -m flows.study all --bed digits --jobs 2         every record of a bed
"""

import hashlib
import io
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyclopts
import torch
from PIL import Image
from torch import Tensor

import catalog
from catalog import Catalog, CatalogError, Cell, cell_name
from flows.cell import BLOCK, Spec, Workplace, deployed, evaluate, feature_net, images, seconds, train
from flows.progress import Display, effort, share, shown
from flows.records import SCHEMA, Damaged, provenance, read_json, write_bytes, write_json
from methods.core import run as core
from methods.core.errors import Conflict, NothingMatched, Unavailable
from methods.core.identity import training_fingerprint
from methods.data import Images, MissingData
from methods.measure import cost, features
from methods.measure.reference import UNITS, Reference, floor

BASELINE = "baseline"
ROWS = 8
"""Rows of a sample grid; a column per class."""
SHOWN = 2 * BLOCK**2 - BLOCK
"""The first seed of a sample grid, beyond those of any block that is measured."""
TIMED, ROUNDS = 16, 6
"""Samples per timed call, and interleaved rounds."""

EXPECTED = (CatalogError, Conflict, NothingMatched, Unavailable, MissingData, Damaged)
"""What a user can run into and read in one sentence."""


@dataclass(frozen=True)
class Study:
    """The cells of a page by name, one of them its subject and one what that is held against."""

    id: str
    default: str
    control: str
    specs: dict[str, Spec]

    @property
    def subject(self) -> Spec:
        return self.specs[self.default]


@dataclass(frozen=True)
class Effort:
    """How much is spent on every cell: the bed's seeds and whole training budget, unless a user asks for less.

    Less is a quick look, which leaves out the baseline's curve, the cells that only claims need, and fidelity.
    """

    budget: float = 1.0
    blocks: int | None = None


FULL = Effort()


def study(known: Catalog, bed: str, id: str, spend: Effort = FULL) -> Study:
    """The study of a technique, or of the baseline and its curve. Raises CatalogError."""
    if id == BASELINE:
        steps = [None, *(known.baseline.curve if spend == FULL else ())]
        cells = [known.canonical(Cell(methods={}, steps=n), bed) for n in steps]
        return _study(known, bed, id, cells, spend)
    technique = known.technique(id)
    plain = [known.canonical(technique.default, bed), known.canonical(technique.control, bed)]
    return _study(known, bed, id, list(known.cells(id, bed).values()) if spend == FULL else plain, spend)


def composed(known: Catalog, bed: str, methods: dict[str, dict[str, Any]], spend: Effort = FULL) -> Study:
    """The study of several techniques at once against the baseline. Raises CatalogError."""
    for id, params in methods.items():
        known.technique(id).resolve(params, bed)
    cell = known.canonical(Cell(methods=methods), bed)
    return _study(known, bed, cell_name(cell, known, bed), [cell, Cell(methods={})], spend)


def _study(known: Catalog, bed_name: str, id: str, cells: Sequence[Cell], spend: Effort) -> Study:
    bed = known.bed(bed_name)
    blocks = bed.seeds.sample[: spend.blocks]
    specs = [Spec(known, bed, cell, bed.seeds.train, blocks, spend.budget, fidelity=spend == FULL) for cell in cells]
    subject, control = specs[0], specs[0] if id == BASELINE else specs[1]
    return Study(id, subject.name, control.name, {spec.name: spec for spec in specs})


def techniques_on(known: Catalog, bed: str) -> list[str]:
    """The ids of the studies of a bed, the baseline first."""
    return [BASELINE, *(id for id, technique in known.techniques.items() if bed in technique.beds)]


def trainings(known: Catalog, bed: str, spend: Effort = FULL) -> dict[str, Spec]:
    """The distinct base trainings that the subjects of a bed's studies start from, by the first study's id."""
    found: dict[str, Spec] = {}
    seen: set[str] = set()
    if known.bed(bed).network is None:
        return found
    for id in techniques_on(known, bed):
        training = study(known, bed, id, spend).subject.training
        key = training_fingerprint(training.recipe)
        if key not in seen:
            seen.add(key)
            found[id] = training
    return found


def record(this: Study, place: Workplace, results: Path) -> dict[str, Any]:
    """Run every cell of a study and write its record; a cell that cannot run becomes a record with its reason."""
    path = results / this.subject.bed.name / f"{this.id}.json"
    if path.exists():
        read_json(path)  # a damaged record is named, not overwritten
    known: dict[str, Any] = {}
    reason = None
    for name, spec in this.specs.items():
        try:
            with shown(name, effort([spec], place)) as report:
                known[name] = evaluate(spec, place, report)
        except (Conflict, NothingMatched, Unavailable, RuntimeError) as error:
            if isinstance(error, Damaged):
                raise
            reason = f"{name}: {error}"
    return write_record(this, known, reason, place, results)


def write_record(
    this: Study, known: dict[str, Any], reason: str | None, place: Workplace, results: Path
) -> dict[str, Any]:
    """The three files of a study: numbers, what belongs to this machine, and the picture."""
    bed = this.subject.bed
    extractor = None
    if bed.features is not None:
        net, accuracy = features.load(feature_net(bed, place))
        extractor = {"sha256": features.digest(net), "accuracy": accuracy, "dimensions": net.dimensions}
    content = {
        "schema": SCHEMA, "bed": bed.name, "id": this.id,
        "status": "ok" if reason is None else "failed", "reason": reason,
        "default": this.default, "control": this.control, "cells": known, "features": extractor,
    }  # fmt: skip
    made_from = json.dumps([cell["fingerprints"] for cell in known.values()] + [extractor], sort_keys=True)
    content["spec_hash"] = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    base = results / bed.name / this.id
    write_json(base.with_name(f"{this.id}.json"), content)
    if this.default in known and bed.network is not None:
        write_bytes(base.with_name(f"{this.id}.png"), picture(this.subject, place))
        write_json(base.with_name(f"{this.id}.cost.json"), machine_scoped(this, known, place))
    return content


def picture(spec: Spec, place: Workplace) -> bytes:
    """A PNG with a column per class and eight rows, from the same seeds and labels for every technique."""
    classes = spec.bed.classes
    labels = torch.arange(classes).repeat(ROWS)
    ready = deployed(spec, spec.train_seeds[0], place)
    drawn = core.generate(spec.recipe, ready, labels, range(SHOWN, SHOWN + len(labels)))
    return png(drawn, classes)


def png(drawn: Tensor, columns: int) -> bytes:
    """Images in [-1, 1] as one PNG, in rows of `columns` with a pixel between."""
    pixels = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    padded = torch.nn.functional.pad(pixels, (0, 1, 0, 1), value=255)
    n, c, h, w = padded.shape
    sheet = (
        padded.reshape(n // columns, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(n // columns * h, columns * w, c)
    )
    array = sheet[:-1, :-1].numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if c == 1 else array).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def machine_scoped(this: Study, known: dict[str, Any], place: Workplace) -> dict[str, Any]:
    """What is true of this machine only: time per step, and latency against the control, measured in turns."""
    folder = place.root / this.subject.bed.name
    spent = {
        step: round(sum(seconds(path) for path in (folder / step).glob(f"{this.default}-*.safetensors")), 2)
        for step in ("train", "ship", "sample")
    }
    own = this.specs.get(this.default), this.specs.get(this.control)
    timed = None
    if own[0] is not None and own[1] is not None and this.default != this.control and this.control in known:
        calls = [timer(spec, place) for spec in own if spec is not None]
        ratio = cost.interleaved(calls[0], calls[1], ROUNDS)
        timed = {"mean": ratio.mean, "low": ratio.low, "high": ratio.high, "n": ratio.n, "batch": TIMED}
    return {**provenance(), "seconds": spent, "latency_ratio": timed}


def timer(spec: Spec, place: Workplace) -> Any:
    """A call that samples a small batch."""
    ready = deployed(spec, spec.train_seeds[0], place)
    labels = torch.arange(TIMED) % max(spec.bed.classes, 1)
    return lambda: core.generate(spec.recipe, ready, labels, range(TIMED))


def floor_record(known: Catalog, bed_name: str, place: Workplace, results: Path) -> None:
    """What real held-out images score: the best any sampler can hope for on this bed."""
    bed = known.bed(bed_name)
    path = feature_net(bed, place)
    net, accuracy = features.load(path)
    loaded: Images = images(bed_name)
    best = floor(loaded, Reference.of(loaded, net, bed.n))
    write_json(
        results / bed_name / "floor.json",
        {
            "schema": SCHEMA, "bed": bed_name, "id": "floor", "data": loaded.source,
            "features": {"sha256": features.digest(net), "accuracy": accuracy, "dimensions": net.dimensions},
            "held_out": {
                key: {"mean": value, "unit": UNITS[key], "n": len(loaded.held_out)}
                for key, value in best.scores.items()
            },
            "fd": {"bias_at_held_out": best.bias, "excess": best.excess, "bias_at_n": best.bias_at_n, "n": bed.n},
        },
    )  # fmt: skip


app = cyclopts.App(name="python -m flows.study", help=__doc__, help_format="plaintext")


@app.command
def run(id: str, *, bed: str = "digits", work: Path = Path("work"), results: Path = Path("results")) -> None:
    """Measure one technique (or `baseline`) and write its record."""
    known = catalog.load()
    this = study(known, bed, id)
    with Display(f"{id} on {bed}", effort(this.specs.values(), Workplace(work))):
        written = record(this, Workplace(work), results)
    if written["status"] == "failed":
        sys.exit(f"{id} on {bed}: {written['reason']}")


@app.command(name="train")
def train_one(id: str, *, bed: str = "digits", work: Path = Path("work")) -> None:
    """Train the weights that a technique (or `baseline`) starts from, for every training seed of the bed."""
    known = catalog.load()
    found = trainings(known, bed)
    if id not in found:
        raise CatalogError(f"There is no training {id!r} on {bed}; there are {', '.join(found)}.")
    spec = found[id]
    place = Workplace(work)
    with Display(f"training {id} on {bed}", effort([spec], place)):
        for seed in spec.train_seeds:
            with shown(f"{spec.name}, seed {seed}", share(spec, place, "train", seed)) as report:
                train(spec, seed, place, report)


@app.command(name="features")
def features_of(*, bed: str = "digits", work: Path = Path("work"), results: Path = Path("results")) -> None:
    """Train the feature network of a bed, and measure its floor."""
    floor_record(catalog.load(), bed, Workplace(work), results)


@app.command(name="all")
def everything(
    *,
    bed: str = "digits",
    jobs: int = 2,
    budget: float = 1.0,
    blocks: int | None = None,
    work: Path = Path("work"),
    results: Path = Path("results"),
) -> None:
    """Measure every technique of a bed with several processes of one thread each: trainings first, then records.

    `budget` scales every training, `blocks` limits the sampling seeds: for a quick look, into folders of its own.
    """
    known, spend = catalog.load(), Effort(budget, blocks)
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawned) as pool:
        for line in pool.map(_train_job, [(bed, id, spend, work) for id in trainings(known, bed)]):
            print(line, flush=True)
        for line in pool.map(_run_job, [(bed, id, spend, work, results) for id in techniques_on(known, bed)]):
            print(line, flush=True)


def _train_job(job: tuple[str, str, Effort, Path]) -> str:
    bed, id, spend, work = job
    started = time.perf_counter()
    spec = trainings(catalog.load(), bed, spend)[id]
    for seed in spec.train_seeds:
        train(spec, seed, Workplace(work))
    return f"trained {id} in {time.perf_counter() - started:.0f} s"


def _run_job(job: tuple[str, str, Effort, Path, Path]) -> str:
    bed, id, spend, work, results = job
    started = time.perf_counter()
    this = study(catalog.load(), bed, id, spend)
    with Display(id, effort(this.specs.values(), Workplace(work))):
        written = record(this, Workplace(work), results)
    return f"measured {id} in {time.perf_counter() - started:.0f} s: {written['reason'] or 'ok'}"


def main(application: cyclopts.App, arguments: Iterable[str] | None = None) -> None:
    """Run a command line; what a user can run into is one sentence and exit code 2."""
    try:
        application(arguments)
    except EXPECTED as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(app)
