"""Every record of a bed at once, with several processes: what many cells share is done once, and first.

Trainings, compressions, blocks of samples and scores are items of their own, so that processes are busy to the end;
records, which only put together what is there, follow; seconds and memory come last and alone, on an idle machine.
"""

import multiprocessing
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import catalog
from catalog import Catalog, Cell
from flows import cell, timing
from flows.cell import Spec, Workplace, compresses
from flows.progress import Display, effort
from flows.records import provenance, read_json, write_json
from flows.score import evaluate, feature_net, has_fidelity, many_steps
from flows.study import CANNOT, FULL, Effort, Study, equal_cost, record, study, techniques_on
from methods.core.identity import shipped_fingerprint, training_fingerprint

Row = dict[str, Any]
"""Where time went: the step, what it was done for, and its seconds."""


@dataclass(frozen=True)
class Item:
    """One file to make: a step of a cell with its seeds, or the record of an id."""

    step: str
    bed: str
    what: str
    """The name of the cell, or the id of the record."""
    cell: str = ""
    """The cell as JSON."""
    seed: int = 0
    block: int = 0


@dataclass(frozen=True)
class Errand:
    """What every process is told: how much is spent, and where the files lie."""

    spend: Effort
    work: Path
    results: Path


def survey(bed: str, spend: Effort, jobs: int, work: Path, results: Path) -> list[str]:
    """Measure every technique of a bed; returns the failures. Says where the time went in `survey.cost.json`."""
    known, errand, started = catalog.load(), Errand(spend, work, results), time.monotonic()
    studies = [study(known, bed, id, spend) for id in techniques_on(known, bed)]
    units = effort([spec for this in studies for spec in with_references(this)], Workplace(work))
    rows: list[Row] = []
    with Display(f"survey of {len(studies)} on {bed}", units) as display:
        if known.bed(bed).features is not None:
            with display.step("feature network", 0) as report:
                feature_net(known.bed(bed), Workplace(work), report)
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=spawned) as pool:
            for items in steps(studies, Workplace(work)):
                rows += run(pool, items, errand, display)
    if spend == FULL:
        rows += [carry_out(Item("timing", bed, this.id), errand) for this in studies]
        write_table(bed, rows, jobs, time.monotonic() - started, results)
    return [row["reason"] for row in rows if row["reason"] and row["step"] in ("record", "timing")]


def with_references(this: Study) -> list[Spec]:
    """The cells of a study, and those that fidelity is measured against."""
    own = list(this.specs.values())
    return own + [many_steps(spec) for spec in own if has_fidelity(spec)]


def steps(studies: Sequence[Study], place: Workplace) -> Iterator[list[Item]]:
    """What there is to do, step by step, each file once. Which controls are at equal cost is known after scoring."""
    specs = list({spec.name: spec for this in studies for spec in with_references(this)}.values())
    nets = [spec for spec in specs if spec.bed.network]
    trained = {training_fingerprint(spec.recipe): spec.training for spec in nets}
    shipped = {shipped_fingerprint(spec.recipe): spec for spec in nets if compresses(spec)}
    yield [step("train", spec, seed) for spec in trained.values() for seed in spec.train_seeds]
    yield [step("compress", spec, seed) for spec in shipped.values() for seed in spec.train_seeds]
    yield sampling(specs)
    own = list({spec.name: spec for this in studies for spec in this.specs.values()}.values())
    yield [step("score", spec) for spec in own]
    equal = list({spec.name: spec for this in studies for spec in at_equal_cost(this, place)}.values())
    yield sampling(equal)
    yield [step("score", spec) for spec in equal]
    yield [Item("record", this.subject.bed.name, this.id) for this in studies]


def sampling(specs: Iterable[Spec]) -> list[Item]:
    """An item for every block, the longest first."""
    longest_first = sorted(specs, key=lambda spec: -spec.recipe.steps)
    return [step("sample", spec, *block) for spec in longest_first for block in spec.blocks]


def at_equal_cost(this: Study, place: Workplace) -> list[Spec]:
    """The controls of a study that spend what its subject does, none where they cannot be known."""
    if not this.has_equal_cost:
        return []
    try:
        known = {name: evaluate(this.specs[name], place) for name in (this.default, this.control)}
    except CANNOT:
        return []
    return [spec for spec, _ in equal_cost(this, known).values() if spec]


@cache
def _catalog() -> Catalog:
    """The catalog, read once in every process."""
    return catalog.load()


def step(name: str, spec: Spec, seed: int = 0, block: int = 0) -> Item:
    """A step of a cell as an item."""
    return Item(name, spec.bed.name, spec.name, spec.cell.model_dump_json(), seed, block)


def run(pool: ProcessPoolExecutor, items: list[Item], errand: Errand, display: Display) -> list[Row]:
    """Carry out items in whatever order they finish, and advance the display."""
    rows = []
    for future in as_completed([pool.submit(carry_out, item, errand) for item in items]):
        rows.append(future.result())
        display.advance(rows[-1]["units"], f"{rows[-1]['step']} {rows[-1]['id']}")
    return rows


def carry_out(item: Item, errand: Errand) -> Row:
    """Make one file; what stands in the way is a reason in the row, so that the others go on.

    A file that was there already counts what it took when it was made.
    """
    known, place, started = _catalog(), Workplace(errand.work), time.monotonic()
    reason, units, earlier = None, 0.0, 0.0
    try:
        if item.cell:
            spec = spec_of(known, item, errand.spend)
            units = effort([spec], place)
            made = do_step(spec, item, place)
            earlier = cell.seconds(made) if made else 0.0
            units -= effort([spec], place)
        else:
            reason = do_record(study(known, item.bed, item.what, errand.spend), item, place, errand.results)
    except (*CANNOT, subprocess.CalledProcessError) as error:
        reason = f"{item.what}: {error}"
    spent = max(time.monotonic() - started, earlier)
    return {"step": item.step, "id": item.what, "seconds": spent, "reason": reason, "units": units}


def spec_of(known: Catalog, item: Item, spend: Effort) -> Spec:
    """The cell of an item, with the seeds that are spent."""
    bed = known.bed(item.bed)
    asked = Cell.model_validate_json(item.cell)
    return Spec(known, bed, asked, spend.of(bed.seeds), spend.budget, fidelity=spend == FULL)


def do_step(spec: Spec, item: Item, place: Workplace) -> Path | None:
    """Carry out one step of a cell; returns the file whose making was timed."""
    match item.step:
        case "train":
            return cell.train(spec, item.seed, place)
        case "compress":
            return cell.compress(spec, item.seed, place)
        case "sample":
            return cell.sample(spec, item.seed, item.block, place)
        case _:
            evaluate(spec, place)
            return None


def do_record(this: Study, item: Item, place: Workplace, results: Path) -> str | None:
    """Write a record, or its machine-scoped numbers."""
    if item.step == "record":
        return record(this, place, results)["reason"]
    written = read_json(results / item.bed / f"{this.id}.json")
    if written["status"] == "ok":
        timing.write(this, written["spec_hash"], place, results)
    return None


def write_table(bed: str, rows: list[Row], jobs: int, wall: float, results: Path) -> None:
    """Where the time of a survey went, by step and by what it was done for."""
    total: dict[tuple[str, str], float] = {}
    for row in rows:
        key = row["step"], row["id"]
        total[key] = total.get(key, 0.0) + row["seconds"]
    table = [{"step": step, "id": id, "seconds": round(spent, 1)} for (step, id), spent in total.items()]
    content = {**provenance(), "bed": bed, "jobs": jobs, "wall_seconds": round(wall, 1), "rows": table}
    write_json(results / bed / "survey.cost.json", content)
