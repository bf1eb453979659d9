"""What a survey is made of: every file once, each after what it is made from.

Trainings, compressions, blocks of samples and scores are items of their own, so that processes and workers are busy to
the end and cells that share a training wait for one. Records only put together what is there; seconds and memory come
last.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from subprocess import CalledProcessError
from time import monotonic
from typing import Any, Protocol

import catalog
from catalog import Catalog, Cell
from flows import cell, timing
from flows.cell import Spec, Workplace, compresses
from flows.progress import hushed, units
from flows.records import read_json
from flows.score import evaluate, has_fidelity, is_scored, many_steps
from flows.study import CANNOT, FULL, Effort, Study, composed, equal_cost, record, study
from methods.core.identity import shipped_fingerprint, training_fingerprint

Row = dict[str, Any]
"""Where time went: the step, what it was done for, its seconds, and why it failed if it did."""


@dataclass(frozen=True)
class Item:
    """One file to make: a step of a cell with its seeds, or the record of a page."""

    step: str
    bed: str
    what: str
    """The name of the cell, or the id of the record."""
    cell: str = ""
    """The cell as JSON; empty for the record of a technique, which the catalog knows."""
    seed: int = 0
    block: int = 0

    def __str__(self) -> str:
        seeds = {"train": f", seed {self.seed}", "compress": f", seed {self.seed}", "sample": f", block {self.block}"}
        return f"{self.step} {self.what}{seeds.get(self.step, '')}"


Agenda = dict[Item, set[Item]]
"""Items with what each needs first."""


@dataclass(frozen=True)
class Errand:
    """What everyone who carries items out is told: how much is spent, and where the files lie."""

    spend: Effort
    work: Path
    results: Path

    @property
    def place(self) -> Workplace:
        return Workplace(self.work)


class Crew(Protocol):
    """Who carries items out."""

    def share(self, ready: Sequence[Item], weigh: Callable[[Item], float]) -> list[list[Item]]:
        """Cut what can be done now into batches."""
        ...

    def submit(self, items: Sequence[Item]) -> Future[list[Row]]:
        """Begin a batch; its rows are one per item, in order."""
        ...


def up_to_scores(studies: Iterable[Study]) -> Agenda:
    """Everything up to the score of every cell."""
    pages = list(studies)
    own = distinct(spec for this in pages for spec in this.specs.values())
    return files([*own, *references(own)]) | scores(own)


def up_to_records(studies: Iterable[Study], place: Workplace) -> Agenda:
    """What is known only after scoring: the controls at equal cost; and then the records."""
    pages = list(studies)
    equal = {this.id: at_equal_cost(this, place) for this in pages}
    specs = distinct(spec for found in equal.values() for spec in found)
    scored = scores(specs)
    agenda = files([*specs, *references(specs)]) | scored
    by_name = {item.what: item for item in scored}
    for this in pages:
        agenda[page(this)] = {by_name[spec.name] for spec in equal[this.id]}
    return agenda


def distinct(specs: Iterable[Spec]) -> list[Spec]:
    """Cells by name, each once."""
    return list({spec.name: spec for spec in specs}.values())


def references(specs: Iterable[Spec]) -> list[Spec]:
    """The cells that fidelity is measured against."""
    return distinct(many_steps(spec) for spec in specs if has_fidelity(spec))


def files(specs: Iterable[Spec]) -> Agenda:
    """The weights and samples of cells; those that are given the same training or compression share its file."""
    agenda: Agenda = {}
    first: dict[str, Spec] = {}
    for spec in distinct(specs):
        for seed, block in spec.blocks:
            needs: set[Item] = set()
            if spec.bed.network is not None:
                trained = first.setdefault(training_fingerprint(spec.recipe), spec.training)
                needs = {step("train", trained, seed)}
                agenda.setdefault(step("train", trained, seed), set())
            if spec.bed.network is not None and compresses(spec):
                shipped = step("compress", first.setdefault(shipped_fingerprint(spec.recipe), spec), seed)
                agenda.setdefault(shipped, needs)
                needs = {shipped}
            agenda[step("sample", spec, seed, block)] = needs
    return agenda


def scores(specs: Iterable[Spec]) -> Agenda:
    """The scores of cells, from their samples and those they are compared with."""
    return {
        step("score", spec): {
            step("sample", drawn, *block)
            for drawn in (spec, *([many_steps(spec)] if has_fidelity(spec) else []))
            for block in spec.blocks
        }
        for spec in distinct(specs)
    }


def at_equal_cost(this: Study, place: Workplace) -> list[Spec]:
    """The controls of a study that spend what its subject does, none where they cannot be known."""
    if not this.has_equal_cost:
        return []
    try:
        known = {name: evaluate(this.specs[name], place) for name in (this.default, this.control)}
    except CANNOT:
        return []
    return [spec for spec, _ in equal_cost(this, known).values() if spec]


def step(name: str, spec: Spec, seed: int = 0, block: int = 0) -> Item:
    """A step of a cell as an item."""
    return Item(name, spec.bed.name, spec.name, spec.cell.model_dump_json(), seed, block)


def page(this: Study, name: str = "record") -> Item:
    """The record of a study as an item, or its machine-scoped numbers."""
    subject = this.subject
    own = this.id in subject.catalog.techniques or not subject.cell.methods
    return Item(name, subject.bed.name, this.id, "" if own else subject.cell.model_dump_json())


@cache
def _catalog() -> Catalog:
    """The catalog, read once in every process."""
    return catalog.load()


@cache
def spec_of(item: Item, spend: Effort) -> Spec:
    """The cell of an item, with the seeds that are spent."""
    known = _catalog()
    bed = known.bed(item.bed)
    asked = Cell.model_validate_json(item.cell)
    return Spec(known, bed, asked, spend.of(bed.seeds), spend.budget, fidelity=spend == FULL)


def study_of(item: Item, spend: Effort) -> Study:
    """The study whose record an item is."""
    if not item.cell:
        return study(_catalog(), item.bed, item.what, spend)
    return composed(_catalog(), item.bed, Cell.model_validate_json(item.cell).methods, spend)


def is_page(item: Item) -> bool:
    """Whether an item is about a record, not about a step of a cell."""
    return item.step in ("record", "timing")


def weight(item: Item, spend: Effort) -> float:
    """About how many network evaluations an item is."""
    return 0.0 if is_page(item) else units(spec_of(item, spend), item.step)


def is_done(item: Item, errand: Errand) -> bool:
    """Whether what an item makes is there; a record is always put together anew."""
    if is_page(item):
        return False
    spec = spec_of(item, errand.spend)
    if item.step == "score":
        return is_scored(spec, errand.place)
    return cell.is_made(spec, item.step, errand.place, item.seed, item.block)


def carry_out(agenda: Agenda, errand: Errand, crew: Crew, note: Callable[[Row, float], None]) -> list[Row]:
    """Carry out an agenda and say of each item that it is done, with its weight; what fails stops nothing else."""
    sorter = TopologicalSorter(agenda)
    sorter.prepare()
    running: dict[Future[list[Row]], list[Item]] = {}
    rows: list[Row] = []

    def done(item: Item, row: Row) -> None:
        rows.append(row)
        note(row, weight(item, errand.spend))
        sorter.done(item)

    while sorter.is_active():
        ready = sorter.get_ready()
        there = {item for item in ready if is_done(item, errand)}
        for item in there:
            done(item, there_already(item, errand))
        left = [item for item in ready if item not in there]
        left.sort(key=lambda item: -weight(item, errand.spend))
        for batch in crew.share(left, lambda item: weight(item, errand.spend)):
            running[crew.submit(batch)] = batch
        if there or not running:
            continue
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            for item, row in zip(running.pop(future), future.result(), strict=True):
                done(item, row)
    return rows


def there_already(item: Item, errand: Errand) -> Row:
    """The row of an item that need not be made: it counts what it took when it was made."""
    earlier = 0.0
    if item.step != "score":
        path, _ = cell.target(spec_of(item, errand.spend), item.step, errand.place, item.seed, item.block)
        earlier = cell.seconds(path)
    return {"step": item.step, "id": item.what, "seconds": earlier, "reason": None}


def make(item: Item, errand: Errand) -> Row:
    """Make one file; what stands in the way is a reason in the row, so that the others go on."""
    started, reason, earlier = monotonic(), None, 0.0
    try:
        with hushed():
            if is_page(item):
                reason = make_page(item, errand)
            else:
                made = make_step(item, errand)
                earlier = cell.seconds(made) if made else 0.0
    except (*CANNOT, CalledProcessError) as error:
        reason = f"{item.what}: {error}"
    return {"step": item.step, "id": item.what, "seconds": max(monotonic() - started, earlier), "reason": reason}


def make_step(item: Item, errand: Errand) -> Path | None:
    """Carry out one step of a cell; returns the file whose making was timed."""
    spec, place = spec_of(item, errand.spend), errand.place
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


def make_page(item: Item, errand: Errand) -> str | None:
    """Write a record, or its machine-scoped numbers; returns why it could not be, if it could not."""
    this = study_of(item, errand.spend)
    if item.step == "record":
        return record(this, errand.place, errand.results)["reason"]
    written = read_json(errand.results / item.bed / f"{this.id}.json")
    if written["status"] == "ok":
        timing.write(this, written["spec_hash"], errand.place, errand.results)
    return None
