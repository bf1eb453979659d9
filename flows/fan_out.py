"""A survey's items on the workers of a pool: one machine or many, wherever workers listen.

What can be done now is cut into batches that are long beside the start of a process, and each batch is a flow run. More
machines are more workers and nothing else.
"""

import json
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from itertools import accumulate, pairwise
from types import TracebackType
from typing import Any
from uuid import UUID, uuid4

import httpx
import torch
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import AwaitingRetry, Cancelling, Failed
from tenacity import retry, retry_if_exception, stop_after_delay, wait_exponential

from flows.agenda import Errand, Item, Row, make, require_same_catalog
from flows.artifacts import Progress, show_record
from flows.cell import Spec
from flows.forms import KNOWN, errand_of, form
from flows.home import SETTINGS, TRIES
from flows.records import read_json
from flows.study import Effort
from methods.core import models
from methods.core.calibration import Report
from methods.core.errors import Unavailable

SHORTEST, LONGEST = 300.0, 900.0
"""Seconds that a batch takes at least, so that the ten it needs to begin are few, and at most, so that little is lost.

Where everybody's share is shorter, that is what they get.
"""
ROUNDS = 4
"""Batches in a row that everybody's share is cut into, so that the others need not wait for a slow one."""
EVERY = 2.0
"""Seconds between two looks at the runs that are under way."""
PATIENCE = 60.0
"""Seconds after which a crashed run is tried again from here: the server does so after ten, unless SQLite was locked
when it noted the crash, and it lost it."""
EXACT_RATE, TIMED = 1e6, 5
"""Evaluations per second of an exact denoiser, about; and of a network, how many batches are timed to know it."""
MADE = "What this run made"


@flow(name="batch", log_prints=True)
@form
def batch(
    items: list[dict[str, Any]], budget: float = 1.0, blocks: int | None = None, catalog: str = "", store: str = ""
) -> list[str] | State:
    """A part of a survey, started by the survey: trainings, samples, scores or records, one after another."""
    errand, rows = replace(errand_of(Effort(budget, blocks)), catalog=catalog), list[Row]()
    require_same_catalog(errand)
    require_same_store(store)
    asked = [Item(**each) for each in items]
    progress = Progress(name_of(asked))
    for item, report in zip(asked, parts(asked, errand, progress), strict=True):
        rows.append(make(item, errand, report))
        if item.step == "record" and rows[-1]["reason"] is None:
            patiently(publish_record)(item, errand)
        took = f"{rows[-1]['seconds']:.1f} s"
        print(f"{item}: {rows[-1]['reason'] or took}")
    progress(1.0)
    patiently(create_table_artifact)(table=rows, description=MADE)
    failed = [row["reason"] for row in rows if row["reason"]]
    if failed:
        return Failed(message=f"{len(failed)} of {len(rows)} could not be made: {'; '.join(failed)}")
    return [str(item) for item in asked]


def require_same_store(store: str) -> None:
    """Raise Unavailable if this worker would put its files where the survey does not look."""
    if store != SETTINGS.shared:
        theirs, here = (f"through {each}" if each else "within its own machine" for each in (store, SETTINGS.shared))
        raise Unavailable(
            f"The survey shares files {theirs}, and this worker {here}: start both with the same ATLAS_STORE."
        )


def parts(items: Sequence[Item], errand: Errand, progress: Progress) -> list[Report]:
    """What shows the progress of each item: it goes over a share of the whole that is as long as its work."""
    ends = [0.0, *accumulate(map(errand.weight, items))]
    whole = ends[-1] or 1.0
    return [progress.part(first / whole, last / whole) for first, last in pairwise(ends)]


def publish_record(item: Item, errand: Errand) -> None:
    """Show a record on the page of the run, and mirror it into MLflow."""
    from flows.tracking import mirror  # MLflow takes seconds to import, and only records need it

    written = read_json(errand.results / item.bed / f"{item.what}.json")
    mirror(written, errand.results, errand.place, flow_run.id or "")
    show_record(KNOWN, written, errand.results)


def may_come_back(error: BaseException) -> bool:
    """Whether a server that did not answer, or not well, may do so in a while: it starts again, or is busy."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
    return isinstance(error, httpx.TransportError) or status >= HTTPStatus.INTERNAL_SERVER_ERROR


patiently = retry(
    retry=retry_if_exception(may_come_back), wait=wait_exponential(max=15), stop=stop_after_delay(600), reraise=True
)
"""Asks again for ten minutes while the server is away."""


@patiently
def workers(pool: str) -> int:
    """How many workers of a pool are online; 0 where there is no server or no such pool."""
    if not PREFECT_API_URL.value():
        return 0
    try:
        with get_client(sync_client=True) as client:
            known = client.read_workers_for_work_pool(pool)
    except PrefectHTTPStatusError as error:
        if error.response.status_code == HTTPStatus.NOT_FOUND:
            return 0
        raise
    return sum(worker.status == WorkerStatus.ONLINE for worker in known)


def rate(spec: Spec) -> float:
    """Network evaluations that one process of this machine does in a second, measured in less than one."""
    if spec.bed.network is None:
        return EXACT_RATE
    net = models.network(spec.recipe, models.build(spec.recipe, spec.bed.shape, spec.bed.classes))
    x = torch.zeros(spec.bed.batch, *spec.bed.shape, device=models.device())
    with torch.inference_mode():
        net(x, torch.tensor(0.5, dtype=torch.float64))
        started = time.perf_counter()
        for _ in range(TIMED):
            net(x, torch.tensor(0.5, dtype=torch.float64))
    return TIMED * len(x) / (time.perf_counter() - started)


@dataclass
class Underway:
    """A batch that was handed over, when its run was first seen crashed, and how often it was tried again from here."""

    items: list[Item]
    future: "Future[list[Row]]"
    crashed: float | None = None
    again: int = 0


@dataclass
class Workers:
    """The workers of a pool. `rate` is how many network evaluations one of them does in a second."""

    pool: str
    errand: Errand
    rate: float
    flow: str = "batch"
    """The flow whose deployment on the pool carries out a batch."""
    underway: dict[UUID, Underway] = field(default_factory=dict)
    closed: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    """Why nobody watches any more."""
    room: float = math.inf
    """The server keeps the line: workers come and go."""

    def length(self, waiting: float) -> float:
        """Batches of about equal length: a few for everybody, none shorter or longer than it should be."""
        at_once = max(workers(self.pool), 1) * (SETTINGS.jobs if self.pool == "cpu" else 1)
        share = waiting / at_once
        return min(max(share / ROUNDS, min(share, SHORTEST * self.rate)), LONGEST * self.rate)

    def submit(self, items: Sequence[Item]) -> "Future[list[Row]]":
        if self.error is not None:
            raise self.error
        future: Future[list[Row]] = Future()
        spend = self.errand.spend
        created = patiently(run_deployment)(
            f"{self.flow}/{self.pool}",
            parameters={
                "items": [asdict(item) for item in items], "budget": spend.budget, "blocks": spend.blocks,
                "catalog": self.errand.catalog, "store": SETTINGS.shared,
            },
            flow_run_name=name_of(items),
            idempotency_key=uuid4().hex,
            timeout=0,
        )  # fmt: skip
        assert isinstance(created, FlowRun)
        self.underway[created.id] = Underway(list(items), future)
        return future

    def __enter__(self) -> "Workers":
        threading.Thread(target=self.watch, name="batches", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop watching; what is still under way because something went wrong here is cancelled."""
        self.closed.set()
        with get_client(sync_client=True) as client:
            for id in self.underway:
                client.set_flow_run_state(id, Cancelling())

    def watch(self) -> None:
        """Look at the runs that are under way until the survey is over; what goes wrong here is everybody's error."""
        try:
            while not self.closed.wait(EVERY):
                self.look()
        except Exception as error:
            self.error = error
            for batch in list(self.underway.values()):
                batch.future.set_exception(error)

    @patiently
    def look(self) -> None:
        """Settle the batches whose runs have come to an end."""
        with get_client(sync_client=True) as client:
            ids = list(self.underway)
            for first in range(0, len(ids), 200):
                asked = FlowRunFilter(id=FlowRunFilterId(any_=ids[first : first + 200]))
                for found in client.read_flow_runs(flow_run_filter=asked):
                    if self.never_began(found):
                        client.set_flow_run_state(found.id, AwaitingRetry(message="It did not begin."))
                    elif self.was_left(found):
                        client.set_flow_run_state(found.id, AwaitingRetry(message="It crashed."))
                    elif self.is_over(found):
                        rows = rows_of(found, self.underway[found.id].items)
                        self.underway.pop(found.id).future.set_result(rows)

    def never_began(self, found: FlowRun) -> bool:
        """Whether a run crashed before it began, and is to be tried again: the server has no count of such tries.

        A worker that is killed takes with it the runs whose processes it has just started.
        """
        if found.state is None or not found.state.is_crashed() or found.run_count:
            return False
        self.underway[found.id].again += 1
        return self.underway[found.id].again <= TRIES

    def was_left(self, found: FlowRun) -> bool:
        """Whether a run crashed after it began, and nobody has tried it again for a while."""
        batch = self.underway[found.id]
        if found.state is None or not found.state.is_crashed():
            batch.crashed = None
            return False
        batch.crashed = batch.crashed or time.monotonic()
        if time.monotonic() - batch.crashed <= PATIENCE or not 1 <= found.run_count <= TRIES:
            return False
        batch.crashed = None
        batch.again += 1
        return batch.again <= TRIES

    def is_over(self, found: FlowRun) -> bool:
        """Whether a run has come to its end. One that crashed after it began is tried again, here or by the server."""
        state = found.state
        if state is None or not state.is_final():
            return False
        may_be_tried = state.is_crashed() and 1 <= found.run_count <= TRIES
        return not may_be_tried or self.underway[found.id].again > TRIES


def name_of(items: Sequence[Item]) -> str:
    """What a batch does: its only item, or how many of which step."""
    if len(items) == 1:
        return f"{items[0]} on {items[0].bed}"
    steps = [item.step for item in items]
    counts = ", ".join(f"{name} {steps.count(name)}" for name in dict.fromkeys(steps))
    return f"{counts} on {items[0].bed}"


def rows_of(found: FlowRun, items: Sequence[Item]) -> list[Row]:
    """What a run noted of its items; if it noted nothing, why."""
    asked = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[found.id]), type=ArtifactFilterType(any_=["table"])
    )
    with get_client(sync_client=True) as client:
        tables = [each for each in client.read_artifacts(artifact_filter=asked) if each.description == MADE]
    if tables:
        return json.loads(str(tables[-1].data))
    why = found.state.message if found.state else None
    return [{"step": item.step, "id": item.what, "seconds": 0.0, "reason": f"{item}: {why}"} for item in items]
