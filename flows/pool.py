"""Every record of a bed at once, with several processes of this machine.

python -m flows.study all --bed digits --jobs 2        the door to it
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import TracebackType

import catalog
from flows.agenda import Agenda, Crew, Errand, Item, Row, carry_out, make, page, up_to_records, up_to_scores, weight
from flows.progress import Display
from flows.records import provenance, write_json
from flows.score import feature_net
from flows.study import FULL, Effort, Study, study, techniques_on


class Processes:
    """Processes of this machine, one thread each; an item is a batch of its own."""

    def __init__(self, jobs: int, errand: Errand) -> None:
        self.errand = errand
        self.executor = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))

    def share(self, ready: Sequence[Item], weigh: Callable[[Item], float]) -> list[list[Item]]:
        return [[item] for item in ready]

    def submit(self, items: Sequence[Item]) -> Future[list[Row]]:
        return self.executor.submit(make_all, items, self.errand)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.executor.shutdown(cancel_futures=error is not None)


def make_all(items: Sequence[Item], errand: Errand) -> list[Row]:
    """Make items one after another."""
    return [make(item, errand) for item in items]


def survey(bed: str, spend: Effort, jobs: int, work: Path, results: Path) -> list[str]:
    """Measure every technique of a bed; returns the failures. Says where the time went in `survey.cost.json`."""
    known, started = catalog.load(), time.monotonic()
    studies = [study(known, bed, id, spend) for id in techniques_on(known, bed)]
    errand = Errand(spend, work, results)
    with Processes(jobs, errand) as crew:
        rows = measure(studies, errand, crew, f"survey of {len(studies)} on {bed}")
    if spend == FULL:
        write_table(bed, rows, jobs, time.monotonic() - started, results)
    return failures(rows)


def measure(studies: Sequence[Study], errand: Errand, crew: Crew, title: str) -> list[Row]:
    """Bring studies to their records; at full effort with seconds and memory, one at a time."""
    agenda = up_to_scores(studies)
    with Display(title, total(agenda, errand)) as display:

        def note(row: Row, units: float) -> None:
            display.advance(units, f"{row['step']} {row['id']}")

        for bed in {this.subject.bed.name: this.subject.bed for this in studies}.values():
            if bed.features is not None:
                feature_net(bed, errand.place)
        rows = carry_out(agenda, errand, crew, note)
        rows += carry_out(up_to_records(studies, errand.place), errand, crew, note)
        if errand.spend == FULL:
            for this in studies:
                rows += crew.submit([page(this, "timing")]).result()
    return rows


def total(agenda: Agenda, errand: Errand) -> float:
    """About how many network evaluations an agenda is."""
    return sum(weight(item, errand.spend) for item in agenda)


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
