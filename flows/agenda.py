"""What a survey is made of: every file once, each after what it is made from.

Trainings, compressions, blocks of samples and scores are items of their own, so that processes and workers are busy to
the end and cells that share a training wait for one. A record puts together what is there, and measures its control at
equal cost, which is known only then; seconds and memory come last.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from pathlib import Path
from subprocess import CalledProcessError
from time import monotonic
from typing import Any, Protocol

import catalog
from catalog import Catalog, CatalogError, Cell
from flows import cell, timing
from flows.cell import Spec, Workplace, compresses
from flows.progress import hushed, units
from flows.records import FileProblem, read_json
from flows.score import evaluate, has_fidelity, is_scored, many_steps
from flows.study import CANNOT, EXPECTED, FULL, Effort, Study, composed, record, study
from methods.core.calibration import Report
from methods.core.identity import shipped_fingerprint, training_fingerprint
from methods.core.learning import quiet

log = logging.getLogger(__name__)

Row = dict[str, Any]
"""Where time went: the step, what it was done for, its seconds, and why it failed if it did."""


SILENCE = 60.0
"""Seconds after which a survey says what it is busy with, if nothing has ended."""
Place = tuple[bool, float, int]
"""Where an item stands in the order in which items are handed over; no two stand in the same."""


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
    catalog: str = ""
    """The digest of the catalog that the agenda was made from; empty to take whatever there is."""

    @property
    def place(self) -> Workplace:
        return Workplace(self.work)

    def weight(self, item: Item) -> float:
        """About how many network evaluations an item is; a record has two controls at equal cost."""
        if item.step == "record":
            this = study_of(item, self.spend)
            control = this.specs[this.control]
            return 2.0 * len(control.blocks) * units(control, "sample") if this.has_equal_cost else 0.0
        return 0.0 if is_page(item) else units(spec_of(item, self.spend), item.step)

    def found(self, item: Item) -> Row | None:
        """The row of an item that is there already, with what it took when it was made; a record is made anew.

        A damaged file is not there: whoever is to make it says what is wrong.
        """
        if is_page(item):
            return None
        spec = spec_of(item, self.spend)
        try:
            if item.step == "score":
                there = is_scored(spec, self.place)
            else:
                there = cell.is_made(spec, item.step, self.place, item.seed, item.block)
        except FileProblem:
            return None
        return self.earlier(item) if there else None

    def earlier(self, item: Item) -> Row:
        """The row of a step that need not be made, with what it took when it was."""
        seconds = 0.0
        if item.step != "score":
            spec = spec_of(item, self.spend)
            with suppress(FileProblem):
                seconds = cell.seconds(cell.target(spec, item.step, self.place, item.seed, item.block)[0])
        return {"step": item.step, "id": item.what, "seconds": seconds, "reason": None}


class Crew(Protocol):
    """Who carries items out. What is handed over as one batch is done one after another."""

    @property
    def room(self) -> float:
        """How many batches are handed over at once; the others wait here, where what is more urgent overtakes them."""
        ...

    def length(self, waiting: float) -> float:
        """The weight up to which items are put into one batch, of all that weigh so much and can be done now; 0 for an
        item a batch."""
        ...

    def submit(self, items: Sequence[Item]) -> Future[list[Row]]:
        """Begin a batch; its rows are one per item, in order."""
        ...


def agenda_of(studies: Iterable[Study]) -> Agenda:
    """Everything up to the records. A record measures what is known only then: its control at equal cost."""
    pages = list(studies)
    own = distinct(spec for this in pages for spec in this.specs.values())
    scored = scores(own)
    by_name = {item.what: item for item in scored}
    records = {page(this): {by_name[name] for name in this.specs} for this in pages}
    return files([*own, *references(own)]) | scored | records


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
                trained = first.setdefault(training_fingerprint(spec.recipe), spec.training.after(1.0))
                needs = {step("train", trained, seed)}
                agenda.setdefault(step("train", trained, seed), set())
                if spec.passed:
                    on_its_way = step("train", trained.after(spec.cell.trained), seed)
                    agenda.setdefault(on_its_way, needs)
                    needs = {on_its_way}
            if spec.bed.network is not None and compresses(spec):
                shipped = step("compress", first.setdefault(shipped_fingerprint(spec.recipe, spec.passed), spec), seed)
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


def step(name: str, spec: Spec, seed: int = 0, block: int = 0) -> Item:
    """A step of a cell as an item."""
    return Item(name, spec.bed.name, spec.name, spec.cell.model_dump_json(), seed, block)


def page(this: Study, name: str = "record") -> Item:
    """The record of a study as an item, or its machine-scoped numbers."""
    subject = this.subject
    own = this.id in subject.catalog.techniques or not subject.cell.methods
    return Item(name, subject.bed.name, this.id, "" if own else subject.cell.model_dump_json())


@cache
def known() -> Catalog:
    """The catalog, read once in every process."""
    return catalog.load()


@cache
def spec_of(item: Item, spend: Effort) -> Spec:
    """The cell of an item, with the seeds that are spent."""
    bed = known().bed(item.bed)
    asked = Cell.model_validate_json(item.cell)
    return Spec(known(), bed, asked, spend.of(bed.seeds), spend.budget, fidelity=spend.fidelity_of(asked))


@cache
def study_of(item: Item, spend: Effort) -> Study:
    """The study whose record an item is."""
    if not item.cell:
        return study(known(), item.bed, item.what, spend)
    return composed(known(), item.bed, Cell.model_validate_json(item.cell).methods, spend)


def is_page(item: Item) -> bool:
    """Whether an item is about a record, not about a step of a cell."""
    return item.step in ("record", "timing")


class Watch:
    """Told how an agenda goes on; this one keeps it to itself."""

    def found(self, row: Row, units: float) -> None:
        """An item of this weight was there already."""

    def made(self, row: Row, units: float) -> None:
        """An item of this weight was made, or could not be."""

    def busy(self, items: Sequence[Item]) -> None:
        """These are being made, and none has ended for a while."""


UNWATCHED = Watch()


def carry_out(agenda: Agenda, errand: Errand, crew: Crew, watch: Watch = UNWATCHED) -> list[Row]:
    """Carry out an agenda, and tell of each item; what fails stops nothing else.

    The longest trainings come first, for much waits for them; then page after page, so that records arrive early.
    """
    urgency = urgencies(agenda)
    unasked = needless(agenda, errand)

    def first(item: Item) -> Place:
        trains = item.step == "train"
        return not trains, -errand.weight(item) if trains else 0.0, urgency[item]

    plan, rows = Plan(agenda, first, errand.weight), list[Row]()
    running: dict[Future[list[Row]], list[Item]] = {}

    def done(item: Item, row: Row, tell: Callable[[Row, float], None]) -> None:
        rows.append(row)
        tell(row, errand.weight(item))
        plan.finish(item)

    while plan.open or running:
        while plan.free:
            item = plan.free.popleft()
            if row := errand.earlier(item) if item in unasked else errand.found(item):
                done(item, row, watch.found)
            else:
                plan.wait(item)
        length = crew.length(plan.waiting) if plan.lines else 0.0
        while plan.lines and len(running) < crew.room:
            batch = plan.take(length)
            running[crew.submit(batch)] = batch
        if not running:
            continue
        finished, _ = wait(running, timeout=SILENCE, return_when=FIRST_COMPLETED)
        if not finished:
            watch.busy([item for batch in running.values() for item in batch])
        for future in finished:
            for item, row in zip(running.pop(future), future.result(), strict=True):
                done(item, row, watch.made)
    return rows


def needless(agenda: Agenda, errand: Errand) -> set[Item]:
    """The samples of which every score is there: they may have been deleted, and nobody asks for them again."""
    scored = {item for item in agenda if item.step == "score" and errand.found(item)}
    asked = {need for item in agenda.keys() - scored for need in agenda[item]}
    return {need for item in scored for need in agenda[item]} - asked


def urgencies(agenda: Agenda) -> dict[Item, int]:
    """The place of every item in the order that finishes one page after another, each as soon as can be."""
    order: dict[Item, int] = {}

    def put(item: Item) -> None:
        if item not in order:
            for need in sorted(agenda[item], key=lambda need: place[need]):
                put(need)
            order[item] = len(order)

    place = {item: index for index, item in enumerate(agenda)}
    for item in sorted(agenda, key=lambda item: (not is_page(item), place[item])):
        put(item)
    return order


class Plan:
    """What of an agenda is still to be handed over, in which order, and what has been done.

    What can be handed over waits in a line for each weight, so that what still fits into a batch is found at the head
    of a line. All of it together takes time in proportion to the agenda.
    """

    def __init__(self, agenda: Agenda, order: Callable[[Item], Place], weigh: Callable[[Item], float]) -> None:
        self.needs, self.order, self.weigh = agenda, order, weigh
        self.followers: dict[Item, list[Item]] = {item: [] for item in agenda}
        for item, needs in agenda.items():
            for need in needs:
                self.followers[need].append(item)
        self.missing = {item: len(needs) for item, needs in agenda.items()}
        self.free = deque(item for item, count in self.missing.items() if not count)
        """What has all it needs, and was not looked for yet."""
        self.lines: dict[float, list[tuple[Place, Item]]] = {}
        """What is to be made, by weight: heaps, the most urgent first."""
        self.waiting = 0.0
        """What the lines weigh together."""
        self.open = dict.fromkeys(agenda)
        self.done: set[Item] = set()

    def wait(self, item: Item) -> None:
        """An item is to be made: it gets into line."""
        weight = self.weigh(item)
        heappush(self.lines.setdefault(weight, []), (self.order(item), item))
        self.waiting += weight

    def finish(self, item: Item) -> None:
        """An item is done."""
        self.open.pop(item, None)
        self.done.add(item)
        for next in self.followers[item]:
            self.missing[next] -= 1
            if not self.missing[next] and next in self.open:
                self.free.append(next)

    def take(self, length: float) -> list[Item]:
        """Hand over a batch of up to a length: the most urgent item, of the others what fits in, and what becomes
        ready within the batch itself."""
        item, filled = self.next(math.inf)
        batch = dict.fromkeys([item])
        while any(filled + weight <= length for weight in self.lines):
            item, weight = self.next(length, filled)
            batch[item] = None
            filled += weight
        ahead = deque(batch if length else ())
        while ahead:
            for next in self.followers[ahead.popleft()]:
                fits = next in self.open and next not in batch and filled + self.weigh(next) <= length
                if fits and all(need in batch or need in self.done for need in self.needs[next]):
                    batch[next] = None
                    filled += self.weigh(next)
                    ahead.append(next)
        for item in batch:
            del self.open[item]
        return list(batch)

    def next(self, length: float, filled: float = 0.0) -> tuple[Item, float]:
        """The most urgent item that fits in, which leaves its line, and its weight."""
        heads = ((line[0], weight) for weight, line in self.lines.items() if filled + weight <= length)
        (_, item), weight = min(heads, key=lambda head: head[0][0])
        heappop(self.lines[weight])
        self.waiting -= weight
        if not self.lines[weight]:
            del self.lines[weight]
        return item, weight


def make(item: Item, errand: Errand, report: Report = quiet) -> Row:
    """Make one file; what stands in the way is a reason in the row, so that the others go on.

    `report` is told of training and sampling on the way.
    """
    started, reason, earlier = monotonic(), None, 0.0
    try:
        require_same_catalog(errand)
        with hushed():
            if is_page(item):
                reason = make_page(item, errand)
            else:
                made = make_step(item, errand, report)
                earlier = cell.seconds(made) if made else 0.0
    except (*CANNOT, *EXPECTED, CalledProcessError) as error:
        reason = f"{item.what}: {error}"
    except Exception as error:
        log.exception("%s came to an unexpected end.", item)
        reason = f"{item.what}: {type(error).__name__}: {error}"
    return {"step": item.step, "id": item.what, "seconds": max(monotonic() - started, earlier), "reason": reason}


def require_same_catalog(errand: Errand) -> None:
    """Raise CatalogError if the catalog is no longer the one that the survey began with."""
    if errand.catalog and errand.catalog != known().digest:
        raise CatalogError(
            "The catalog was edited while the survey ran: start it again, and what is finished and still true is found."
        )


def make_step(item: Item, errand: Errand, report: Report) -> Path | None:
    """Carry out one step of a cell; returns the file whose making was timed."""
    spec, place = spec_of(item, errand.spend), errand.place
    match item.step:
        case "train":
            return cell.train(spec, item.seed, place, report)
        case "compress":
            return cell.compress(spec, item.seed, place, report)
        case "sample":
            return cell.sample(spec, item.seed, item.block, place, report)
        case _:
            evaluate(spec, place)
            return None


def make_page(item: Item, errand: Errand) -> str | None:
    """Write a record, or its machine-scoped numbers; returns why it could not be, if it could not."""
    this = study_of(item, errand.spend)
    if item.step == "record":
        reason = record(this, errand.place, errand.results)["reason"]
    else:
        reason = None
        fetch_record(errand, item.bed, this.id)
        written = read_json(errand.results / item.bed / f"{this.id}.json")
        if written["status"] == "ok":
            timing.write(this, written["spec_hash"], errand.place, errand.results)
    push_record(errand, item.bed, this.id)
    return reason


def push_record(errand: Errand, bed: str, id: str) -> None:
    """Put a record, and what lies beside it, where other machines find it."""
    if errand.place.store is not None:
        for path in (errand.results / bed).glob(f"{id}.*"):
            errand.place.store.push(path, f"{shared_folder(errand, bed)}/{path.name}")


def fetch_record(errand: Errand, bed: str, id: str) -> None:
    """Bring a record, and what lies beside it, from where other machines put it."""
    if errand.place.store is not None:
        folder = shared_folder(errand, bed)
        for name in errand.place.store.list(folder):
            if name.startswith(f"{id}."):
                errand.place.store.fetch(f"{folder}/{name}", errand.results / bed / name)


def shared_folder(errand: Errand, bed: str) -> str:
    """Where the store keeps a bed's records: those of quick looks apart."""
    return f"{'results' if errand.spend == FULL else 'quick'}/{bed}"
