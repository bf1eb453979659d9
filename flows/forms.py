"""What the flows' forms ask for: drop-downs drawn from the catalog, and the request they add up to.

The form in the Prefect UI does not run validators, so a request is checked again at the start of a flow, and what
cannot be done is answered by one sentence.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter
from prefect import Flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run
from pydantic import Field

import catalog
from flows.cell import Workplace
from flows.home import PUBLIC, QUICK, RESULTS, WORK
from flows.progress import shown
from flows.study import BASELINE, FULL, Effort, Study, composed, study
from methods.core.calibration import Report

NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
KNOWN = catalog.load()
BedName = StrEnum("BedName", {name: name for name in KNOWN.beds}, module=__name__)
TechniqueId = StrEnum("TechniqueId", {id: id for id in KNOWN.techniques}, module=__name__)
AreaName = StrEnum("AreaName", {area.id: area.id for area in KNOWN.taxonomy.areas}, module=__name__)
Parameters = dict[str, dict[str, float]]


def asks(position: int, title: str, description: str, **bounds: Any) -> Any:
    """A field of a form, in its place."""
    return Field(title=title, description=description, json_schema_extra={"position": position}, **bounds)


if TYPE_CHECKING:  # a checker cannot see the members of enums that are made from data
    Bed = str
    Methods = list[str]
    Given = Parameters
    Budget = float
    Blocks = int | None
else:
    Bed = Annotated[BedName, asks(0, "Test bed", "Data, network size and training budget.")]
    Methods = Annotated[
        list[TechniqueId],
        asks(1, "Techniques", "Composed with each other; none is the baseline."),
    ]
    Given = Annotated[
        Parameters,
        asks(2, "Parameters", 'What differs from its default, as {"technique": {"parameter": value}}.'),
    ]
    Budget = Annotated[
        float,
        asks(3, "Training budget", "Share of the bed's training iterations; below 1 is a quick look.", gt=0, le=1),
    ]
    Blocks = Annotated[
        int | None,
        asks(4, "Sampling seeds", "How many of the bed's sampling seeds to use; empty for all.", ge=1),
    ]


@dataclass(frozen=True)
class Request:
    """A composition of techniques on a bed."""

    bed: str
    methods: tuple[str, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    effort: Effort = FULL

    @property
    def place(self) -> Workplace:
        return Workplace(WORK if self.effort == FULL else QUICK)

    @property
    def records(self) -> Path:
        return RESULTS if self.effort == FULL else QUICK / "results"

    @property
    def site(self) -> Path:
        return PUBLIC if self.effort == FULL else QUICK / "public"

    @property
    def record(self) -> Path:
        return self.records / self.bed / f"{self.study().id}.json"

    def form(self) -> dict[str, Any]:
        """The request as the fields of a form."""
        return {
            "bed": self.bed,
            "methods": list(self.methods),
            "parameters": self.parameters,
            "budget": self.effort.budget,
            "blocks": self.effort.blocks,
        }

    def study(self) -> Study:
        """A technique's own page, the baseline's, or several techniques at once. Raises CatalogError and Conflict."""
        strangers = self.parameters.keys() - set(self.methods)
        if strangers:
            raise catalog.CatalogError(
                f"Parameters are given for {', '.join(strangers)}, which is not among the methods."
            )
        if not self.parameters and len(self.methods) <= 1:
            this = study(KNOWN, self.bed, self.methods[0] if self.methods else BASELINE, self.effort)
        else:
            this = composed(KNOWN, self.bed, {id: self.parameters.get(id, {}) for id in self.methods}, self.effort)
        assert this.subject.recipe is not None  # composing it now says at once what cannot be combined
        return this


def request(bed: object, methods: list[Any], parameters: Parameters, budget: float, blocks: int | None) -> Request:
    """A request from the fields of a form."""
    return Request(str(bed), tuple(str(id) for id in methods), parameters, Effort(budget, blocks))


def parse(methods: list[str]) -> tuple[list[str], Parameters]:
    """Techniques as a command line names them, `deepcache` or `deepcache(period=5)`. Raises CatalogError."""
    given: Parameters = {}
    for text in methods:
        match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", text)
        pairs = [pair.split("=") for pair in (match[2] or "").split(",") if pair] if match else [[]]
        if not match or any(len(pair) != 2 or not re.fullmatch(NUMBER, pair[1].strip()) for pair in pairs):
            raise catalog.CatalogError(f"{text!r} is not a technique; write id or id(parameter=number,...).")
        KNOWN.technique(match[1])
        given[match[1]] = {name.strip(): float(value) for name, value in pairs}
    return list(given), {id: params for id, params in given.items() if params}


def command_line(flow: Flow[..., Any], text: str | None) -> cyclopts.App:
    """The command line of a step's flow. What cannot be done is said before a flow is started."""
    app = cyclopts.App(name=f"python -m flows.{flow.name}", help=text, help_format="plaintext")

    @app.default
    def run(
        *,
        bed: str = "digits",
        methods: Annotated[list[str], Parameter(consume_multiple=True)] = [],
        budget: float = 1.0,
        blocks: int | None = None,
    ) -> None:
        """Run the step.

        Parameters
        ----------
        bed: test bed
        methods: techniques, composed: `id` or `id(parameter=number)`; none is the baseline
        budget: share of the bed's training iterations
        blocks: how many of the bed's sampling seeds to use; all of them by default
        """
        chosen, parameters = parse(methods)
        request(bed, chosen, parameters, budget, blocks).study()
        print(flow(bed=bed, methods=chosen, parameters=parameters, budget=budget, blocks=blocks))

    return app


def run_name(verb: str) -> Callable[[], str]:
    """Names a flow run after what it does, such as `sample deepcache on digits`."""

    def name() -> str:
        given = flow_run.parameters
        chosen = "+".join(str(id) for id in given.get("methods") or []) or "baseline"
        return f"{verb} {chosen} on {given['bed']}"

    return name


@contextmanager
def progress(title: str, units: float) -> Iterator[Report]:
    """Shows progress on the terminal and on the page of the run."""
    artifact = create_progress_artifact(progress=0.0, description=title)
    last = 0
    with shown(title, units) as inner:

        def report(what: str, done: int, total: int, loss: float) -> None:
            nonlocal last
            inner(what, done, total, loss)
            percent = 100 * done // total
            if percent >= last + 10 or percent < last:
                last = percent
                update_progress_artifact(artifact, progress=float(percent))  # pyright: ignore[reportArgumentType]

        yield report
    update_progress_artifact(artifact, progress=100.0)  # pyright: ignore[reportArgumentType]
