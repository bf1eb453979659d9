"""What the flows' forms ask for: drop-downs drawn from the catalog, and the request they add up to.

The form in the Prefect UI does not run validators, so a request is checked again at the start of a flow, and what
cannot be done is answered by one sentence.
"""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar, get_type_hints

import cyclopts
from cyclopts import Parameter
from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun
from prefect.runtime import flow_run
from prefect.states import Failed
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

import catalog
from flows.agenda import Errand, known
from flows.cell import Workplace
from flows.home import PUBLIC, QUICK, RESULTS, TRIES, WORK
from flows.study import BASELINE, EXPECTED, FULL, Effort, Study, composed, study

NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
KNOWN = known()
BedName = StrEnum("BedName", {name: name for name in KNOWN.beds}, module=__name__)
TechniqueId = StrEnum("TechniqueId", {id: id for id in KNOWN.techniques}, module=__name__)
AreaName = StrEnum("AreaName", {area.id: area.id for area in KNOWN.taxonomy.areas}, module=__name__)
PoolName = StrEnum("PoolName", {"cpu": "cpu", "gpu": "gpu"}, module=__name__)
Parameters = dict[str, dict[str, float]]
"""By technique and name: the values that differ from their defaults."""
P = ParamSpec("P")
R = TypeVar("R")


def asks(description: str, **bounds: Any) -> Any:
    """A field of a form: what it is, and its bounds."""
    return Field(description=description, **bounds)


def label(technique: str, name: str, parameter: catalog.Parameter) -> str:
    """A parameter as a drop-down shows it: `deepcache.period (steps, at least 1, 3 by default)`."""
    low = None if parameter.min is None else f"at least {parameter.min:g}"
    high = None if parameter.max is None else f"at most {parameter.max:g}"
    unit = None if parameter.unit == "1" else parameter.unit
    said = [each for each in (unit, low, high, f"{parameter.default} by default") if each]
    return f"{technique}.{name} ({', '.join(said)})"


LABELS = {
    f"{technique.id}.{name}": label(technique.id, name, parameter)
    for technique in KNOWN.techniques.values()
    for name, parameter in technique.parameters.items()
}
ParameterName = StrEnum("ParameterName", LABELS, module=__name__)


if TYPE_CHECKING:
    ParameterLabel = str
else:
    ParameterLabel = ParameterName


class Setting(BaseModel):
    """A parameter of a technique, and its value."""

    parameter: ParameterLabel = Field(
        description="A technique's parameter, with its unit, bounds and default.", json_schema_extra={"position": 0}
    )
    value: float = Field(
        description="In the unit and within the bounds that the parameter names.", json_schema_extra={"position": 1}
    )


if TYPE_CHECKING:  # a checker cannot see the members of enums that are made from data
    Bed = str
    Methods = list[str]
    Given = list[Setting]
    Budget = float
    Blocks = int | None
else:
    Bed = Annotated[BedName, asks("Data, network size and training budget.")]
    Methods = Annotated[
        list[TechniqueId],
        asks("Composed with each other, as one run; none is the baseline."),
    ]
    Given = Annotated[list[Setting], asks("What differs from its default, for the techniques chosen.")]
    Budget = Annotated[
        float,
        asks("Share of the bed's training iterations; below 1 is a quick look.", gt=0, le=1),
    ]
    Blocks = Annotated[
        int | None,
        asks("How many of the bed's sampling seeds to use; empty for all.", ge=1),
    ]


def settings(parameters: Parameters) -> list[Setting]:
    """Parameters as a form has them."""
    return [
        Setting(parameter=LABELS[f"{id}.{name}"], value=value)
        for id, given in parameters.items()
        for name, value in given.items()
    ]


def parameters_of(given: Iterable[Setting]) -> Parameters:
    """Parameters by technique and name, from a form."""
    found: Parameters = {}
    for setting in given:
        id, name = str(setting.parameter).split(" ")[0].split(".")
        found.setdefault(id, {})[name] = setting.value
    return found


def errand_of(spend: Effort) -> Errand:
    """Where files lie on this machine, for this much effort: a quick look is kept apart from the results."""
    if spend == FULL:
        return Errand(spend, WORK, RESULTS, KNOWN.digest)
    return Errand(spend, QUICK, QUICK / "results", KNOWN.digest)


@dataclass(frozen=True)
class Request:
    """A composition of techniques on a bed."""

    bed: str
    methods: tuple[str, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    effort: Effort = FULL

    @property
    def errand(self) -> Errand:
        return errand_of(self.effort)

    @property
    def place(self) -> Workplace:
        return self.errand.place

    @property
    def records(self) -> Path:
        return self.errand.results

    @property
    def site(self) -> Path:
        return PUBLIC if self.effort == FULL else QUICK / "public"

    @property
    def record(self) -> Path:
        return self.records / self.bed / f"{self.study().id}.json"

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


def request(bed: object, methods: list[Any], given: list[Setting], budget: float, blocks: int | None) -> Request:
    """A request from the fields of a form."""
    return Request(str(bed), tuple(str(id) for id in methods), parameters_of(given), Effort(budget, blocks))


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
    shared_out = "processes" in signature(flow.fn).parameters

    @app.default
    def run(
        *,
        bed: str = "digits",
        methods: Annotated[list[str], Parameter(consume_multiple=True)] = [],
        budget: float = 1.0,
        blocks: int | None = None,
        processes: Annotated[int, Parameter(parse=shared_out)] = 1,
    ) -> None:
        """Run the step.

        Parameters
        ----------
        bed: test bed
        methods: techniques, composed: `id` or `id(parameter=number)`; none is the baseline
        budget: share of the bed's training iterations
        blocks: how many of the bed's sampling seeds to use; all of them by default
        processes: share each batch out over so many, one per device
        """
        chosen, parameters = parse(methods)
        Request(bed, tuple(chosen), parameters, Effort(budget, blocks)).study()
        try:
            more = {"processes": processes} if shared_out else {}
            print(flow(bed=bed, methods=chosen, parameters=settings(parameters), budget=budget, blocks=blocks, **more))
        except FailedRun as error:
            sys.exit(str(error))

    return app


def run_name(verb: str, nothing: str = BASELINE) -> Callable[[], str]:
    """Names a flow run after what it does, such as `sample deepcache on digits`; `nothing` is what no choice means."""

    def name() -> str:
        given = flow_run.parameters
        areas = ", ".join(str(area) for area in given.get("areas") or [])
        chosen = "+".join(str(id) for id in given.get("methods") or []) or areas or nothing
        return f"{verb} {chosen} on {given['bed']}"

    return name


def form(function: Callable[P, R]) -> Callable[P, R | State]:
    """Of a flow: its fields are explained, and what cannot be done is one sentence in the run's state.

    Prefect takes descriptions from the docstring alone, so those of the fields are written there. A run that was tried
    again after each crash, and crashed each time, gives up.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R | State:
        if (flow_run.run_count or 0) > TRIES:
            return Failed(message=f"Given up: it crashed {TRIES} times.")
        try:
            return function(*args, **kwargs)
        except EXPECTED as error:
            return Failed(message=str(error))

    run.__doc__ = f"{function.__doc__}\n\nArgs:\n" + "".join(
        f"    {name}: {about}\n" for name, about in descriptions(function).items()
    )
    return run


def descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """What is said of each of a flow's fields, by name."""
    found = {
        name: [held.description for held in getattr(hint, "__metadata__", ()) if isinstance(held, FieldInfo)]
        for name, hint in get_type_hints(function, include_extras=True).items()
    }
    return {name: said[0] for name, said in found.items() if said and said[0]}
