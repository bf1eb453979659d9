"""Every record of a bed at once, with several processes of this machine.

python -m flows.study all --bed digits --jobs 2        the door to it
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType

import catalog
from catalog import Catalog
from flows.agenda import Crew, Errand, Item, Row, Watch, agenda_of, carry_out, fetch_record, make, page
from flows.ledger import read_floors, read_records, stale
from flows.progress import Display
from flows.records import provenance, write_json
from flows.score import feature_net
from flows.study import FULL, Effort, Study, techniques_on

SHOWN = 4
"""Of all that is being made, so many are named."""
Follow = Callable[[float, float, str], None]
"""Told how much is done, how much there is, and what came last."""


class Here:
    """This process itself, one item after another."""

    room = 1

    def __init__(self, errand: Errand) -> None:
        self.errand = errand

    def length(self, waiting: float) -> float:
        return 0.0

    def submit(self, items: Sequence[Item]) -> Future[list[Row]]:
        future: Future[list[Row]] = Future()
        future.set_result(make_all(items, self.errand))
        return future


class Processes:
    """Processes of this machine, one thread each; an item is a batch of its own."""

    def __init__(self, jobs: int, errand: Errand) -> None:
        self.errand, self.room = errand, jobs
        spawn = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=leave_with_parent)

    def length(self, waiting: float) -> float:
        return 0.0

    def submit(self, items: Sequence[Item]) -> Future[list[Row]]:
        return self.executor.submit(make_all, items, self.errand)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.executor.shutdown(cancel_futures=error is not None)


def leave_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended: nobody would fetch what it makes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, name="parent", daemon=True).start()


def make_all(items: Sequence[Item], errand: Errand) -> list[Row]:
    """Make items one after another."""
    return [make(item, errand) for item in items]


def survey(studies: Sequence[Study], spend: Effort, jobs: int, work: Path, results: Path) -> list[str]:
    """Bring studies of a bed to their records; returns the failures.

    A whole survey says where the time went in `survey.cost.json`.
    """
    known, started = catalog.load(), time.monotonic()
    if not studies:
        return []
    bed = studies[0].subject.bed.name
    errand = Errand(spend, work, results, known.digest)
    with Processes(jobs, errand) as crew, Display(f"survey of {len(studies)} on {bed}", 0.0) as display:
        rows = measure(studies, errand, crew, display.follow)
    if spend == FULL and [this.id for this in studies] == techniques_on(known, bed):
        write_table(bed, rows, jobs, time.monotonic() - started, results)
    return failures(rows)


def to_measure(known: Catalog, bed: str, results: Path) -> list[str]:
    """The techniques of a bed whose record is missing, stale or of a failure, or was never put beside its seconds."""
    records = read_records(results).get(bed, {})
    old = stale(known, {bed: records}, read_floors(results))[bed]
    timed = {path.name.removesuffix(".cost.json") for path in (results / bed).glob("*.cost.json")}
    current = {id for id in timed & records.keys() if records[id]["status"] == "ok" and not old[id]}
    return [id for id in techniques_on(known, bed) if id not in current]


@dataclass
class Following(Watch):
    """Fetches the records as they come, and passes on how much is done of what was not there already."""

    follow: Follow
    errand: Errand
    beds: Mapping[str, str]
    whole: float
    done: float = 0.0

    def found(self, row: Row, units: float) -> None:
        self.whole -= units

    def made(self, row: Row, units: float) -> None:
        self.done += units
        if row["step"] == "record":
            fetch_record(self.errand, self.beds[row["id"]], row["id"])
        self._say(f"{row['step']} {row['id']}")

    def busy(self, items: Sequence[Item]) -> None:
        more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
        self._say(f"still at {', '.join(map(str, items[:SHOWN]))}{more}")

    def _say(self, text: str) -> None:
        self.follow(self.done, max(self.whole, self.done, 1.0), text)


def measure(studies: Sequence[Study], errand: Errand, crew: Crew, follow: Follow) -> list[Row]:
    """Bring studies to their records; at full effort with seconds and memory, one at a time.

    `follow` is told after each item how much is done and how much there is in all, and what it was.
    """
    agenda = agenda_of(studies)
    beds = {this.id: this.subject.bed.name for this in studies}
    for bed in {this.subject.bed.name: this.subject.bed for this in studies}.values():
        if bed.features is not None:
            feature_net(bed, errand.place)
    watch = Following(follow, errand, beds, sum(map(errand.weight, agenda)))
    rows = carry_out(agenda, errand, crew, watch)
    timed = [page(this, "timing") for this in studies] if errand.spend == FULL else []
    return rows + (crew.submit(timed).result() if timed else [])


def failures(rows: Iterable[Row]) -> list[str]:
    """Why records or their machine-scoped numbers could not be written."""
    return [row["reason"] for row in rows if row["reason"] and row["step"] in ("record", "timing")]


def write_table(bed: str, rows: list[Row], jobs: int, wall: float, results: Path) -> None:
    """Where the time of a survey went, by step and by what it was done for."""
    total: dict[tuple[str, str], float] = {}
    for row in rows:
        key = row["step"], row["id"]
        total[key] = total.get(key, 0.0) + row["seconds"]
    table = [{"step": step, "id": id, "seconds": round(spent, 1)} for (step, id), spent in total.items()]
    content = {**provenance(), "bed": bed, "jobs": jobs, "wall_seconds": round(wall, 1), "rows": table}
    write_json(results / bed / "survey.cost.json", content)
