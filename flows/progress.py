"""Says on the terminal what is running and how long is left."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.cell import Spec, Workplace
from methods.core.calibration import Report

BACKWARD = 3
"""A training image costs about three evaluations: forward, and twice that backward."""
EVERY = 15.0
"""Seconds between lines where the output is not a terminal."""


Task = tuple[str, str, int, int]
"""What leaves a file: step, name, training seed, sampling seed."""


def units(spec: Spec, step: str) -> float:
    """About how many network evaluations one step of a cell is."""
    once = float(BACKWARD * spec.recipe.fit.iterations * spec.recipe.fit.batch)
    match step:
        case "train":
            return once
        case "compress":
            return once / 2 if spec.recipe.phases else 0.0
        case "sample":
            return float(spec.bed.n * spec.recipe.steps)
        case _:
            return 5.0 * spec.bed.n


def tasks(spec: Spec, place: Workplace) -> dict[Task, float]:
    """What is left to do for a cell, with about how many network evaluations each takes; cells share trainings."""
    left: dict[Task, float] = {("evaluate", spec.name, 0, 0): units(spec, "score")}
    for seed, block in spec.blocks:
        whole = spec.training.after(1.0)
        if spec.bed.network is not None and not place.path(whole, "train", seed).exists():
            left["train", whole.name, seed, 0] = units(spec, "train")
        if spec.recipe.phases and not place.path(spec, "ship", seed).exists():
            left["compress", spec.name, seed, 0] = units(spec, "compress")
        if not place.path(spec, "sample", seed, block).exists():
            left["sample", spec.name, seed, block] = units(spec, "sample")
    return left


def effort(specs: Iterable[Spec], place: Workplace) -> float:
    """About how many network evaluations are left for all of these cells together."""
    return sum({task: units for spec in specs for task, units in tasks(spec, place).items()}.values())


def share(spec: Spec, place: Workplace, *task: object) -> float:
    """About how many network evaluations one step of a cell is, 0 if it is done."""
    return sum(units for key, units in tasks(spec, place).items() if (key[0], *key[2:]) == (*task, 0, 0)[:3])


_active: list["Display"] = []


@contextmanager
def shown(title: str, units: float) -> Iterator[Report]:
    """A step of the display that is open, or a display of its own."""
    if _active:
        with _active[-1].step(title, units) as report:
            yield report
    else:
        with Display(title, units) as display, display.step(title, units) as report:
            yield report


@contextmanager
def hushed() -> Iterator[None]:
    """Say nothing: somebody else does."""
    with Display("", 0.0, quiet=True):
        yield


class Display:
    """A bar for the whole and one for the step that is running; plain lines where there is no terminal."""

    def __init__(self, title: str, total: float, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.total, self.done, self.started, self.spoken = total, 0.0, time.monotonic(), 0.0
        self.bars = Progress(
            TextColumn("{task.description}", justify="left"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(), console=self.console, transient=False,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self.whole: TaskID = self.bars.add_task(f"[bold]{title}", total=total)

    def __enter__(self) -> "Display":
        _active.append(self)
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()
        _active.remove(self)

    @contextmanager
    def step(self, title: str, units: float) -> Iterator[Report]:
        """Run one step that is about `units` of work; yields the function that reports its progress."""
        bar = self.bars.add_task(title, total=1.0)
        before = self.done
        self._line(f"{title} ...")

        def report(what: str, done: int, total: int, loss: float) -> None:
            part = done / total
            suffix = f", loss {loss:.3f}" if loss else ""
            self.bars.update(bar, completed=part, description=f"{title}: {what}{suffix}")
            self.bars.update(self.whole, completed=before + units * part)
            self.done = before + units * part
            if time.monotonic() - self.spoken > EVERY:
                self._line(f"{title}: {what} {done}/{total}{suffix}")

        yield report
        self.done = before + units
        self.bars.update(self.whole, completed=self.done)
        self.bars.remove_task(bar)

    def follow(self, done: float, total: float, text: str) -> None:
        """Note how much is done by now, here or elsewhere, of how much."""
        self.done, self.total = done, total
        self.bars.update(self.whole, completed=self.done, total=self.total)
        if time.monotonic() - self.spoken > EVERY:
            self._line(text)

    def _line(self, text: str) -> None:
        if self.bars.disable:
            self.spoken = time.monotonic()
            passed = self.spoken - self.started
            known = 0.02 * self.total < self.done < self.total
            left = f", about {passed * (self.total / self.done - 1):.0f} s left" if known else ""
            self.console.print(f"[{passed:4.0f} s{left}] {text}", highlight=False, markup=False)
