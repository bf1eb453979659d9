"""Says on the terminal what is running and how long is left."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.cell import Spec
from methods.core.calibration import Report

BACKWARD = 3
"""A training image costs about three evaluations: forward, and twice that backward."""
EVERY = 15.0
"""Seconds between lines where the output is not a terminal."""


def effort(spec: Spec, step: str) -> float:
    """About how much work a step of a cell is, in network evaluations."""
    fit = spec.recipe.fit
    if step == "train":
        return BACKWARD * fit.iterations * fit.batch * len(spec.train_seeds)
    if step == "compress":
        return BACKWARD * fit.iterations * fit.batch * len(spec.recipe.phases) / 2
    if step == "sample":
        return spec.bed.n * len(spec.sample_seeds) * len(spec.train_seeds) * spec.recipe.steps
    return spec.bed.n * 5.0


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


class Display:
    """A bar for the whole and one for the step that is running; plain lines where there is no terminal."""

    def __init__(self, title: str, total: float) -> None:
        self.console = Console(stderr=True)
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
            share = done / total
            suffix = f", loss {loss:.3f}" if loss else ""
            self.bars.update(bar, completed=share, description=f"{title}: {what}{suffix}")
            self.bars.update(self.whole, completed=before + units * share)
            self.done = before + units * share
            if time.monotonic() - self.spoken > EVERY:
                self._line(f"{title}: {what} {done}/{total}{suffix}")

        yield report
        self.done = before + units
        self.bars.update(self.whole, completed=self.done)
        self.bars.remove_task(bar)

    def _line(self, text: str) -> None:
        if self.bars.disable:
            self.spoken = time.monotonic()
            passed = self.spoken - self.started
            left = (
                f", about {passed * (self.total / self.done - 1):.0f} s left" if self.done > 0.02 * self.total else ""
            )
            self.console.print(f"[{passed:4.0f} s{left}] {text}", highlight=False, markup=False)
