"""Makes the site from the catalog and the results, and from nothing else: no server, no clock, no network.

The same inputs give the same bytes. Files that did not change are left alone, so rendering again after one result is
cheap for whoever copies or watches the folder.
"""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from catalog import Catalog
from flows.ledger import EXACT_UNITS, STATUSES
from flows.records import write_bytes
from flows.rendering import composition, few_steps, solvers, tables
from flows.rendering.atlas import Atlas
from flows.rendering.equations import equations
from flows.rendering.frontier import AXES, LEVEL, axis_title
from flows.rendering.interactive import DATA, script
from flows.rendering.measured import COST
from flows.rendering.numbers import (
    capital,
    day,
    exact,
    grouped,
    percent,
    plural,
    probability,
    sentence,
    short,
    singular,
)
from flows.rendering.procedures import BIAS, BREAK_EVEN, INTERVALS, READING, RESOLUTION
from flows.rendering.quantities import COSTS, MACHINE, METRICS, title
from flows.rendering.spent import step_title
from methods.measure.reference import UNITS

SITE = Path(__file__).parents[2] / "site"
MANIFEST = "data/manifest.json"
"""Lists what was written, so that the next rendering can remove what it no longer makes, and only that."""
HOME_BED = "digits"


def render(catalog: Catalog, results: Path, out: Path) -> list[Path]:
    """Write the site into `out` and return its files. Raises Damaged for a record that cannot be read."""
    with uncollected():
        atlas = Atlas(catalog, results)
        files = dict([*static(), *pages(atlas), *tables.files(atlas), (DATA, script(atlas)), *copies(atlas)])
    files[MANIFEST] = tables.dump(sorted([*files, MANIFEST]))
    previous = json.loads((out / MANIFEST).read_text()) if (out / MANIFEST).exists() else []
    for name, content in sorted(files.items()):
        path = out / name
        if not path.exists() or path.read_bytes() != content:
            write_bytes(path, content, durable=False)
    for name in previous:
        if name not in files:
            (out / name).unlink(missing_ok=True)
    return [out / name for name in sorted(files)]


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the search for cycles, which finds none worth it among millions of short-lived objects."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


def pages(atlas: Atlas) -> Iterator[tuple[str, bytes]]:
    """Every page, by its path."""
    environment = templates()

    def page(path: str, template: str, **context: Any) -> tuple[str, bytes]:
        root = "../" * path.count("/")
        text = environment.get_template(f"{template}.html.j2").render(atlas=atlas, root=root, here=path, **context)
        return path, text.encode()

    catalog = atlas.catalog
    yield page("index.html", "index", bed=atlas.beds[HOME_BED])
    yield page("taxonomy.html", "taxonomy")
    yield page("frontier.html", "frontier")
    yield page("compare.html", "compare")
    yield page("claims.html", "claims")
    yield page("beds.html", "beds")
    yield page("methods.html", "methods")
    yield page("solvers.html", "solvers", view=solvers.view(atlas), columns=solvers.COLUMNS)
    yield page("few_steps.html", "few_steps", views=few_steps.views(atlas), columns=few_steps.COLUMNS)
    yield page("composition.html", "composition", views=composition.views(atlas), full=composition.WHOLE)
    yield page("survey/index.html", "surveys")
    copied = [name.split("/")[1:] for name, _ in copies(atlas)]
    folders = {bed: [name for folder, name in copied if folder == bed] for bed, _ in copied}
    yield page("data/index.html", "data", tables=tables.TABLES, folders=folders)
    for key, survey in catalog.surveys.items():
        yield page(f"survey/{key}.html", "survey", survey=survey)
    for family in (family for area in atlas.families.values() for family in area):
        few = family.family.id in few_steps.FAMILIES
        yield page(family.path, "family", family=family, few=few)
    for id, view in atlas.techniques.items():
        yield page(f"t/{id}.html", "technique", view=view)


def templates() -> Environment:
    """Escapes everything, and fails on a name that is not there."""
    environment = Environment(
        loader=FileSystemLoader(SITE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        exact=exact, grouped=grouped, title_of=title, mathml=Markup, percent=percent, step_title=step_title,
        axis_title=axis_title, equations=equations, probability=probability, short=short, capital=capital, day=day,
        sentence=sentence, singular=singular,
    )  # fmt: skip
    environment.globals.update(
        METRICS=METRICS, COSTS=COSTS, MACHINE=MACHINE, STATUSES=STATUSES, COST=COST, UNITS=UNITS,
        EXACT_UNITS=EXACT_UNITS, INTERVALS=INTERVALS, BIAS=BIAS, RESOLUTION=RESOLUTION, BREAK_EVEN=BREAK_EVEN,
        READING=READING, plural=plural, AXES=AXES, LEVEL=LEVEL, DATA=DATA,
    )  # fmt: skip
    return environment


def static() -> Iterator[tuple[str, bytes]]:
    """Style sheet, scripts and icon; what others wrote lies in `vendor`, with its licence."""
    for path in sorted((SITE / "static").rglob("*")):
        if path.is_file():
            yield path.relative_to(SITE).as_posix(), path.read_bytes()


def copies(atlas: Atlas) -> Iterator[tuple[str, bytes]]:
    """Records, floors and sample grids as they are."""
    for folder in sorted(path for path in atlas.results.glob("*") if path.is_dir()):
        for path in sorted([*folder.glob("[!.]*.json"), *folder.glob("[!.]*.png")]):
            yield f"data/{folder.name}/{path.name}", path.read_bytes()
