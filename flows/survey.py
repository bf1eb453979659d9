"""Measure techniques: several composed into one, or every technique of an area, or all there are.

python -m flows.survey --bed digits --methods dpm_solver_pp_2m deepcache int8_dynamic
python -m flows.survey --bed digits --areas inference
python -m flows.survey
python -m flows.survey --model google/ddpm-cifar10-32 --methods dpm_solver_pp_2m deepcache int8_dynamic
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
import torch
from cyclopts import Parameter
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun
from prefect.states import Failed

from catalog import CatalogError
from catalog.reading import absent
from flows import forms
from flows.agenda import Row, fetch_record
from flows.artifacts import Progress, numbers, pages, show_links, table_of_verdicts
from flows.fan_out import Workers, rate, workers
from flows.forms import KNOWN, Bed, Blocks, Budget, Given, Request, form, parse, request, run_name, settings
from flows.home import SETTINGS
from flows.ledger import Record
from flows.pool import Here, Processes, failures, measure
from flows.progress import Display
from flows.records import readable
from flows.rendering import render
from flows.stages import settle
from flows.study import BASELINE, FULL, Effort, main, techniques_on
from methods.core.errors import Unavailable

if TYPE_CHECKING:
    Techniques = list[str]
    Areas = list[str]
    Pool = str
else:
    Techniques = Annotated[
        list[forms.TechniqueId],
        forms.asks("Composed with each other, as one run; with none, every technique by itself."),
    ]
    Areas = Annotated[list[forms.AreaName], forms.asks("Only the techniques of these areas, each by itself.")]
    Pool = Annotated[
        forms.PoolName,
        forms.asks("The pool whose workers share the survey; without any it runs where it was started."),
    ]


@flow(name="survey", flow_run_name=run_name("survey", "every technique"))
@form
def survey(
    bed: Bed = "digits", methods: Techniques = [], parameters: Given = [], budget: Budget = 1.0, blocks: Blocks = None,
    areas: Areas = [], pool: Pool = "cpu",
) -> list[str] | State:  # fmt: skip
    """Measure techniques, together or one by one, on all workers of a pool; then publish."""
    asked = requests(request(bed, methods, parameters, budget, blocks), [str(area) for area in areas])
    studies = [one.study() for one in asked]
    errand, title = asked[0].errand, f"survey of {len(asked)} on {bed}"
    artifact = Progress(title)
    with crew_of(asked, str(pool)) as crew, Display(title, 0.0) as display:

        def follow(done: float, whole: float, text: str) -> None:
            display.follow(done, whole, text)
            artifact(min(done / whole, 0.99), text)

        rows = measure(studies, errand, crew, follow)
    artifact(1.0)
    return close(asked, rows, mirrored=isinstance(crew, Workers))


def crew_of(asked: list[Request], pool: str) -> AbstractContextManager[Workers | Processes | Here]:
    """The workers of the pool where there are any, else processes of this machine. Raises Unavailable."""
    errand = asked[0].errand
    if workers(pool):
        return Workers(pool, errand, rate(asked[0].study().subject))
    if pool == "gpu" and not torch.cuda.is_available():
        raise Unavailable(
            "No worker of the pool gpu is online, and torch sees no CUDA device here: `make up` on a machine with one"
            " starts a worker, or choose the pool cpu."
        )
    return Processes(SETTINGS.jobs, errand) if SETTINGS.jobs > 1 else nullcontext(Here(errand))


def close(asked: list[Request], rows: list[Row], *, mirrored: bool) -> list[str] | State:
    """What follows when the records are there: mirror, settle, publish, and say what was found."""
    from flows.tracking import mirror  # MLflow takes seconds to import, and only records need it

    for one in asked:
        fetch_record(one.errand, one.bed, one.study().id)
    records = {one.study().id: readable(one.record) for one in asked}
    written = [found for found in records.values() if found is not None]
    if not mirrored:
        for each in written:
            mirror(each, asked[0].records, asked[0].place)
    if asked[0].effort == FULL:
        settle([each["id"] for each in written], asked[0].bed)
    render(KNOWN, asked[0].records, asked[0].site)
    table = [{"technique": each["id"], **row} for each in written for row in subject_and_control(each)]
    if table:
        create_table_artifact(table=table, description="The numbers of each, and of what it is held against")
    verdicts = [{"technique": each["id"], **row} for each in written for row in table_of_verdicts(KNOWN, each)]
    if verdicts:
        create_table_artifact(table=verdicts, description="What may be said of each claim")
    if written:
        show_links(where_to_read(asked[0], written))
    told = {row["id"] for row in rows if row["reason"] and row["step"] == "record"}
    lost = [f"{id}: its record did not arrive." for id, found in records.items() if found is None and id not in told]
    failed = failures(rows) + lost
    if failed:
        return Failed(message=f"{len(failed)} of {len(asked)} failed: {'; '.join(failed)}")
    return [str(one.record) for one in asked]


def where_to_read(asked: Request, written: Sequence[Record]) -> list[str]:
    """The page of every record; of a quick look, the first page of its own site."""
    if asked.effort != FULL:
        return [f"site: `{(asked.site / 'index.html').resolve().as_uri()}`"]
    return pages(KNOWN, (each["id"] for each in written))


def subject_and_control(written: Record) -> list[dict[str, Any]]:
    """The numbers of a record's two main cells."""
    return [row for row in numbers(written) if row["cell"] in (written["default"], written["control"])]


def requests(asked: Request, areas: list[str]) -> list[Request]:
    """What a survey is made of: the composition asked for, else a request per technique of the areas, or of all."""
    for area in areas:
        if area not in {known.id for known in KNOWN.taxonomy.areas}:
            raise CatalogError(absent("area", area, [known.id for known in KNOWN.taxonomy.areas]))
    if asked.methods and areas:
        raise CatalogError(
            "Choose either techniques, which are composed, or areas, whose techniques are measured one by one."
        )
    if asked.methods:
        return [asked]
    chosen = [
        id for id in techniques_on(KNOWN, asked.bed)
        if not areas or (id != BASELINE and KNOWN.technique(id).area in areas)
    ]  # fmt: skip
    return [replace(asked, methods=() if id == BASELINE else (id,)) for id in chosen]


MODEL = (
    "Instead of a bed, a checkpoint of diffusers: a folder, or owner/name on the hub. Without methods, every technique "
    "that applies, one by one."
)

app = cyclopts.App(name="python -m flows.survey", help=__doc__, help_format="plaintext")


@app.default
def run(
    *,
    bed: str = "digits",
    methods: Annotated[list[str], Parameter(consume_multiple=True)] = [],
    areas: Annotated[list[str], Parameter(consume_multiple=True)] = [],
    budget: float = 1.0,
    blocks: int | None = None,
    model: Annotated[str | None, Parameter(help=MODEL)] = None,
    samples: Annotated[int, Parameter(help="Of a model: how many to draw in each block.")] = 8,
) -> None:
    """Run a survey.

    Parameters
    ----------
    bed: test bed
    methods: techniques to compose into one: `id` or `id(parameter=number)`
    areas: measure every technique of these areas, one by one
    budget: share of the bed's training iterations; below 1 is a quick look, kept apart from the results
    blocks: how many of the bed's sampling seeds to use; all of them by default
    """
    chosen, parameters = parse(methods)
    if model is not None:
        if areas or budget != 1:
            raise CatalogError("A model has no training to scale, and its techniques are chosen with --methods alone.")
        return of_model(model, {id: parameters.get(id, {}) for id in chosen}, samples, blocks)
    for one in requests(Request(bed, tuple(chosen), parameters, Effort(budget, blocks)), areas):
        one.study()
    given = settings(parameters)
    try:
        for path in survey(bed=bed, methods=chosen, parameters=given, areas=areas, budget=budget, blocks=blocks):
            print(path)
    except FailedRun as error:
        sys.exit(str(error))


def of_model(model: str, methods: dict[str, dict[str, float]], samples: int, blocks: int | None) -> None:
    """Measure techniques on a checkpoint, and say where records and page are."""
    from flows.checkpoints import BLOCKS  # diffusers takes seconds to import, and only checkpoints need it
    from flows.checkpoints import survey as survey_model

    found = survey_model(model, methods, samples=samples, blocks=blocks or BLOCKS)
    for path in [*found.records, found.page.resolve().as_uri()]:
        print(path)
    if found.failed:
        sys.exit("\n".join(found.failed))


if __name__ == "__main__":
    main(app)
