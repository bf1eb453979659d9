"""Measure techniques: several composed into one, or every technique of an area, or all there are.

python -m flows.survey --bed digits --methods dpm_solver_pp_2m deepcache int8_dynamic
python -m flows.survey --bed digits --areas inference
python -m flows.survey
"""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter
from prefect import flow

from catalog import CatalogError
from catalog.reading import absent
from flows import forms
from flows.compress import compress
from flows.evaluate import evaluate
from flows.forms import KNOWN, Bed, Blocks, Budget, Given, Methods, Request, parse, request, run_name
from flows.progress import Display, effort
from flows.publish import publish
from flows.sample import sample
from flows.study import BASELINE, main, techniques_on
from flows.train import train

if TYPE_CHECKING:
    Areas = list[str]
else:
    Areas = Annotated[list[forms.AreaName], forms.asks(5, "Areas", "Every technique of these areas, one by one.")]


@flow(name="survey", flow_run_name=run_name("survey"))
def survey(
    bed: Bed = "digits", methods: Methods = [], parameters: Given = {}, budget: Budget = 1.0, blocks: Blocks = None,
    areas: Areas = [],
) -> list[str]:  # fmt: skip
    """Train, compress, sample and evaluate; then publish. A technique that fails does not stop the others."""
    asked = requests(request(bed, methods, parameters, budget, blocks), [str(area) for area in areas])
    failed: list[str] = []
    with Display(f"survey of {len(asked)} on {bed}", units(asked)):
        for one in asked:
            try:
                measure(one)
            except Exception as error:
                failed.append(f"{one.study().id}: {error}")
    publish(asked[0].records, asked[0].site)
    if failed:
        raise RuntimeError("; ".join(failed))
    return [str(one.record) for one in asked]


def measure(asked: Request) -> None:
    """The four steps for one request, each a flow run of its own."""
    for step in (train, compress, sample, evaluate):
        step(**asked.form())


def units(asked: list[Request]) -> float:
    """About how much work requests are together."""
    return effort([spec for one in asked for spec in one.study().specs.values()], asked[0].place)


def requests(asked: Request, areas: list[str]) -> list[Request]:
    """What a survey is made of: the composition asked for, else a request per technique of the areas, or of all."""
    for area in areas:
        if area not in {known.id for known in KNOWN.taxonomy.areas}:
            raise CatalogError(absent("area", area, [known.id for known in KNOWN.taxonomy.areas]))
    if asked.methods:
        return [asked]
    chosen = [
        id for id in techniques_on(KNOWN, asked.bed)
        if not areas or (id != BASELINE and KNOWN.technique(id).area in areas)
    ]  # fmt: skip
    return [replace(asked, methods=() if id == BASELINE else (id,)) for id in chosen]


app = cyclopts.App(name="python -m flows.survey", help=__doc__, help_format="plaintext")


@app.default
def run(
    *,
    bed: str = "digits",
    methods: Annotated[list[str], Parameter(consume_multiple=True)] = [],
    areas: Annotated[list[str], Parameter(consume_multiple=True)] = [],
    budget: float = 1.0,
    blocks: int | None = None,
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
    for one in requests(request(bed, chosen, parameters, budget, blocks), areas):
        one.study()
    try:
        for path in survey(bed=bed, methods=chosen, parameters=parameters, areas=areas, budget=budget, blocks=blocks):
            print(path)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(app)
