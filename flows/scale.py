"""What it costs to share work out: cells that only wait, on the server and the workers that are there.

    python -m flows.scale --cells 24 --seconds 20      a survey of 24 cells; again with more workers
    python -m flows.scale --cells 300 --seconds 1      many small ones
    python -m flows.scale --plan                       what planning alone takes, for 110,000 items and no worker

A cell that sleeps does not compete for cores, so what is measured is orchestration alone: cutting into batches, handing
over, starting processes, noticing the end.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import cyclopts
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from flows.agenda import Agenda, Errand, Item, Row, carry_out
from flows.fan_out import MADE, Workers, workers
from flows.home import QUICK
from flows.pool import Following
from flows.progress import Display
from flows.study import Effort, main
from methods.core.errors import Unavailable

BLOCKS = 5
"""Blocks of samples of a planned cell."""


@dataclass(frozen=True)
class Resting(Errand):
    """An errand whose items wait for the seconds that stand in place of their cell."""

    def weight(self, item: Item) -> float:
        return float(item.cell)

    def found(self, item: Item) -> Row | None:
        return None


@flow(name="rest")
def rest(
    items: list[dict[str, Any]], budget: float = 1.0, blocks: int | None = None, catalog: str = "", store: str = ""
) -> None:
    """As `batch`, but every item only waits."""
    rows: list[Row] = []
    for item in items:
        time.sleep(float(item["cell"]))
        rows.append({"step": item["step"], "id": item["what"], "seconds": float(item["cell"]), "reason": None})
    create_table_artifact(table=rows, description=MADE)


def measured(cells: int, seconds: float, pool: str) -> float:
    """Seconds by the clock that the workers of a pool take for so many cells of so many seconds each."""
    deployment = rest.to_deployment(pool, work_pool_name=pool, entrypoint_type=EntrypointType.MODULE_PATH)
    assert isinstance(deployment, RunnerDeployment)
    deployment.apply()
    agenda = {Item("rest", "none", f"cell {i}", str(seconds)): set[Item]() for i in range(cells)}
    errand = Resting(Effort(), QUICK, QUICK)
    started = time.monotonic()
    with Workers(pool, errand, 1.0, flow="rest") as crew, Display("scale", cells * seconds) as display:
        carry_out(agenda, errand, crew, Following(display.follow, errand, {}, cells * seconds))
    return time.monotonic() - started


class AtOnce:
    """Makes nothing, and is done with a batch when it gets it."""

    room = math.inf

    def __init__(self, length: float) -> None:
        self.batch, self.batches = length, 0

    def length(self, waiting: float) -> float:
        return self.batch

    def submit(self, items: Sequence[Item]) -> Future[list[Row]]:
        self.batches += 1
        future: Future[list[Row]] = Future()
        future.set_result([{"step": item.step, "id": item.what, "seconds": 0.0, "reason": None} for item in items])
        return future


def pages(cells: int) -> Agenda:
    """The agenda of so many cells of their own: a training, five blocks of samples, a score and a record each."""
    agenda: Agenda = {}
    for cell in range(cells):
        train, score, record = (Item(step, "none", f"cell {cell}", "1") for step in ("train", "score", "record"))
        blocks = {Item("sample", "none", f"cell {cell}", "1", block=block) for block in range(BLOCKS)}
        agenda |= {train: set(), **{block: {train} for block in blocks}, score: blocks, record: {score}}
    return agenda


app = cyclopts.App(name="python -m flows.scale", help=__doc__, help_format="plaintext")


@app.default
def run(*, cells: int = 24, seconds: float = 20.0, pool: str = "cpu") -> None:
    """Measure, and print what it took beside what the cells add up to.

    Parameters
    ----------
    cells: how many
    seconds: how long each of them waits
    pool: whose workers
    """
    online = workers(pool)
    if not online:
        raise Unavailable(f"No worker of the pool {pool} is online: `make up` starts one.")
    wall, together = measured(cells, seconds, pool), cells * seconds
    print(
        f"{cells} cells of {seconds:g} s, {together:g} s in all: {wall:.1f} s, {wall / together:.3f} of that,"
        f" with {online} workers of the pool {pool}."
    )


@app.command(name="--plan")
def plan(*, items: int = 110_000, batch: int = 30) -> None:
    """Plan an agenda whose items take no time, and print what that took.

    Parameters
    ----------
    items: how many, about
    batch: how many of them make a batch
    """
    agenda, crew = pages(items // (BLOCKS + 3)), AtOnce(batch)
    started = time.perf_counter()
    carry_out(agenda, Resting(Effort(), QUICK, QUICK), crew)
    print(f"{len(agenda)} items in {crew.batches} batches planned in {time.perf_counter() - started:.1f} s.")


if __name__ == "__main__":  # run as itself: workers import the flow by the name of its module
    main(import_module("flows.scale").app)
