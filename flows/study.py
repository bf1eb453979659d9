"""A study is the page of a technique: its cells, controls included, on one bed, as one record.

The plain door to the catalog's results, which DVC uses: no server, no tracking, one process.

    python -m flows.study run deepcache --bed digits        one record
    python -m flows.study train v_prediction --bed digits   the weights of one training
    python -m flows.study all --bed digits --jobs 2         every record of a bed
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

import catalog
from catalog import Catalog, CatalogError, Cell, Seeds, cell_name
from flows import floors, history, timing
from flows.cell import Spec, Workplace, source, train
from flows.home import QUICK, RESULTS, WORK
from flows.picture import picture
from flows.progress import Display, effort, share, shown
from flows.records import SCHEMA, FileProblem, read_json, write_bytes, write_json
from flows.score import evaluate, feature_net
from methods.core.errors import Conflict, NothingMatched, Unavailable
from methods.core.identity import training_fingerprint
from methods.data import MissingData
from methods.measure import features

BASELINE = "baseline"
EQUAL = ("evaluations", "macs")
"""The costs at which a page's control is measured once more, given as much of them as the subject spends."""
QUICK_LOOK = {"cell": None, "reason": "left out of a quick look"}
NO_CONTROL = {"cell": None, "reason": "it is what others are held against"}
MOST_STEPS = 1000

CANNOT = (Conflict, NothingMatched, Unavailable, RuntimeError)
"""Why a cell has no numbers: the reason becomes part of the record."""
EXPECTED = (CatalogError, Conflict, NothingMatched, Unavailable, MissingData, FileProblem)
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

    @property
    def has_equal_cost(self) -> bool:
        """Whether its control is measured once more at equal cost: not against itself, nor in a quick look."""
        return self.default != self.control and self.subject.fidelity


@dataclass(frozen=True)
class Effort:
    """How much is spent on every cell: the bed's seeds and whole training budget, unless a user asks for less.

    Less is a quick look: one training seed, and neither the baseline's curve, nor the cells that only claims need, nor
    controls at equal cost, nor fidelity.
    """

    budget: float = 1.0
    blocks: int | None = None

    def of(self, seeds: Seeds) -> tuple[tuple[int, int], ...]:
        """The blocks that are spent, of those a bed has."""
        return seeds.blocks if self == FULL else tuple((seeds.train[0], block) for block in seeds.sample[: self.blocks])

    def fidelity_of(self, cell: Cell) -> bool:
        """Whether a cell's fidelity is measured: not of weights on the way to the end of training."""
        return self == FULL and cell.trained == 1


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
    """The study of several techniques at once against the baseline. Raises CatalogError.

    At full effort each is also measured alone, on top of what others of them build on: what they gain together can be
    read against what each gains.
    """
    for id, params in methods.items():
        known.technique(id).resolve(params, bed)
    below = {id: params for id, params in methods.items() if any(id in known.technique(m).builds_on for m in methods)}
    alone = [{**below, id: params} for id, params in methods.items() if id not in below]
    parts = [below, *alone] if spend == FULL else []
    cells = [known.canonical(Cell(methods=each), bed) for each in (methods, {}, *parts)]
    return _study(known, bed, cell_name(cells[0], known, bed), cells, spend)


def _study(known: Catalog, bed_name: str, id: str, cells: Sequence[Cell], spend: Effort) -> Study:
    bed = known.bed(bed_name)
    blocks = spend.of(bed.seeds)
    specs = [Spec(known, bed, cell, blocks, spend.budget, fidelity=spend.fidelity_of(cell)) for cell in cells]
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
    equal: dict[str, Any] = dict.fromkeys(EQUAL, NO_CONTROL if this.default == this.control else QUICK_LOOK)
    reason = measure(this.specs.values(), place, known)
    if reason is None and this.has_equal_cost:
        found = equal_cost(this, known)
        reason = measure([spec for spec, _ in found.values() if spec], place, known)
        equal = {axis: {"cell": spec.name if spec else None, "reason": why} for axis, (spec, why) in found.items()}
    return write_record(this, known, equal, reason, place, results)


def measure(specs: Iterable[Spec], place: Workplace, known: dict[str, Any]) -> str | None:
    """Evaluate cells into `known`, by name; returns why one could not be, if one could not."""
    reason = None
    for spec in specs:
        try:
            with shown(spec.name, effort([spec], place)) as report:
                known[spec.name] = evaluate(spec, place, report)
        except CANNOT as error:
            if isinstance(error, FileProblem):
                raise
            reason = f"{spec.name}: {error}"
    return reason


def equal_cost(this: Study, known: dict[str, Any]) -> dict[str, tuple[Spec | None, str | None]]:
    """For each cost the control with the steps at which it spends what the subject does, or why there is none."""
    return {axis: _equal(this, known, axis) for axis in EQUAL}


def _equal(this: Study, known: dict[str, Any], axis: str) -> tuple[Spec | None, str | None]:
    subject, control = known[this.default]["cost"], known[this.control]["cost"]
    held = this.specs[this.control]
    if axis == "macs" and held.bed.network is None:
        return None, "an exact denoiser has no network to count"
    uncounted = sorted({*subject["uncounted_ops"], *control["uncounted_ops"]})
    if axis == "macs" and uncounted:
        return None, f"the count leaves out {', '.join(uncounted)}"
    if held.recipe.phases:
        return None, "the control was distilled to its number of steps"
    steps = round(subject[axis] / control[axis] * held.recipe.steps)
    return held.of(Cell(methods=held.cell.methods, steps=min(max(steps, 1), MOST_STEPS))), None


def write_record(
    this: Study, known: dict[str, Any], equal: dict[str, Any], reason: str | None, place: Workplace, results: Path
) -> dict[str, Any]:
    """The record of a study, its picture, and the terms of the claims it tests."""
    bed = this.subject.bed
    extractor = None
    if bed.features is not None:
        net, accuracy = features.load(feature_net(bed, place))
        extractor = {"sha256": features.digest(net), "accuracy": accuracy, "dimensions": net.dimensions}
    content = {
        "schema": SCHEMA, "bed": bed.name, "id": this.id, "data": source(bed.name),
        "status": "ok" if reason is None else "failed", "reason": reason,
        "default": this.default, "control": this.control, **{f"equal_{axis}": equal[axis] for axis in EQUAL},
        "cells": known, "features": extractor,
    }  # fmt: skip
    content["spec_hash"] = spec_hash(content)
    base = results / bed.name / this.id
    write_json(base.with_name(f"{this.id}.json"), content)
    if this.default in known and bed.network is not None:
        write_bytes(base.with_name(f"{this.id}.png"), picture(this.subject, place))
    if reason is None and this.subject.fidelity:
        history.add(this.subject.catalog, bed.name, this.id, results)
    return content


def spec_hash(content: dict[str, Any]) -> str:
    """What names everything that a record was made from: the fingerprints of its cells, and its feature network."""
    made_from = [{name: cell["fingerprints"] for name, cell in content["cells"].items()}, content["features"]]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


app = cyclopts.App(name="python -m flows.study", help=__doc__, help_format="plaintext")


@app.command
def run(id: str, *, bed: str = "digits", work: Path = WORK, results: Path = RESULTS) -> None:
    """Measure one technique (or `baseline`): its record, and beside it the seconds and memory of this machine."""
    known = catalog.load()
    this = study(known, bed, id)
    with Display(f"{id} on {bed}", effort(this.specs.values(), Workplace(work))):
        written = record(this, Workplace(work), results)
    if written["status"] == "failed":
        sys.exit(f"{id} on {bed}: {written['reason']}")
    timing.write(this, written["spec_hash"], Workplace(work), results)


@app.command(name="train")
def train_one(id: str, *, bed: str = "digits", work: Path = WORK) -> None:
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


@app.command(name="floor")
def floor_of(*, bed: str = "digits", work: Path = WORK, results: Path = RESULTS) -> None:
    """Measure the best that a sampler can score on a bed; trains and freezes the bed's feature network before."""
    found = catalog.load().bed(bed)
    if found.features is None:
        return floors.of_plane(found, results)
    frozen = results / bed / "features.safetensors"
    path = feature_net(found, Workplace(work))
    if path.resolve() != frozen.resolve():
        write_bytes(frozen, path.read_bytes())
    floors.of_images(found, Workplace(work), results)


@app.command(name="all")
def everything(
    *,
    bed: str = "digits",
    methods: Annotated[list[str], Parameter(consume_multiple=True)] = [],
    jobs: int = 2,
    budget: float = 1.0,
    blocks: int | None = None,
    only_stale: bool = False,
    work: Path | None = None,
    results: Path | None = None,
) -> None:
    """Measure every technique of a bed, or those named, with several processes of one thread each.

    A whole survey says where the time went. `only_stale` leaves out those whose record was made by the code and the
    catalog of today. `budget` scales every training, `blocks` limits the sampling seeds: for a quick look, into
    `work/quick`.
    """
    from flows.pool import survey, to_measure  # which are made of studies

    spend = Effort(budget, blocks)
    place, records = (WORK, RESULTS) if spend == FULL else (QUICK, QUICK / "results")
    work, results = work or place, results or records
    known = catalog.load()
    there = techniques_on(known, bed)
    for id in methods:
        if id not in there:
            raise CatalogError(f"{id} does not run on {bed}; what does: {', '.join(there)}.")
    asked = to_measure(known, bed, results) if only_stale else there
    ids = [id for id in asked if not methods or id in methods]
    if not ids:
        print("Every record is current: there is nothing to measure.")
    failed = survey([study(known, bed, id, spend) for id in ids], spend, jobs, work, results)
    if failed:
        sys.exit("\n".join(failed))


def main(application: cyclopts.App, arguments: Iterable[str] | None = None) -> None:
    """Run a command line; what a user can run into is one sentence and exit code 2."""
    try:
        application(arguments)
    except EXPECTED as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":  # run as itself: a class defined in __main__ would not equal the one others import
    import_module("flows.study").main(import_module("flows.study").app)
