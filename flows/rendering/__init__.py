"""Makes the site from the catalog and the results, and from nothing else: no server, no clock, no network.

The same inputs give the same bytes. Files that did not change are left alone, so rendering again after one result is
cheap for whoever copies or watches the folder.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from catalog import Catalog
from flows.ledger import EXACT_UNITS, STATUSES, as_json
from flows.records import write_bytes
from flows.rendering.numbers import COSTS, METRICS, exact, grouped, percent, plural, title
from flows.rendering.views import BASELINE, COST, DISCOVERY, QUALITY, Atlas

SITE = Path(__file__).parents[2] / "site"
MANIFEST = "data/manifest.json"
"""Lists what was written, so that the next rendering can remove what it no longer makes, and only that."""
HOME_BED = "digits"


def render(catalog: Catalog, results: Path, out: Path) -> list[Path]:
    """Write the site into `out` and return its files. Raises Damaged for a record that cannot be read."""
    atlas = Atlas(catalog, results)
    files = dict([*static(), *pages(atlas), *tables(atlas), *copies(atlas)])
    files[MANIFEST] = dump(sorted([*files, MANIFEST]))
    previous = json.loads((out / MANIFEST).read_text()) if (out / MANIFEST).exists() else []
    for name, content in sorted(files.items()):
        path = out / name
        if not path.exists() or path.read_bytes() != content:
            write_bytes(path, content)
    for name in previous:
        if name not in files:
            (out / name).unlink(missing_ok=True)
    return [out / name for name in sorted(files)]


def pages(atlas: Atlas) -> Iterator[tuple[str, bytes]]:
    """Every page, by its path."""
    environment = templates()

    def page(path: str, template: str, **context: Any) -> tuple[str, bytes]:
        root = "../" * path.count("/")
        text = environment.get_template(f"{template}.html.j2").render(atlas=atlas, root=root, here=path, **context)
        return path, text.encode()

    catalog = atlas.catalog
    yield page("index.html", "index", bed=catalog.beds[HOME_BED])
    yield page("taxonomy.html", "taxonomy")
    yield page("claims.html", "claims")
    yield page("methods.html", "methods")
    yield page("survey/index.html", "surveys")
    yield page("data/index.html", "data", copied=[name for name, _ in copies(atlas)])
    for key, survey in catalog.surveys.items():
        yield page(f"survey/{key}.html", "survey", survey=survey)
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
    environment.filters.update(exact=exact, grouped=grouped, title_of=title, mathml=Markup, percent=percent)
    environment.globals.update(
        METRICS=METRICS, COSTS=COSTS, STATUSES=STATUSES, BASELINE=BASELINE, DISCOVERY=DISCOVERY,
        QUALITY=QUALITY, COST=COST, plural=plural,
    )  # fmt: skip
    return environment


def static() -> Iterator[tuple[str, bytes]]:
    """Style sheet, script and icon."""
    for path in sorted((SITE / "static").iterdir()):
        yield f"static/{path.name}", path.read_bytes()


def copies(atlas: Atlas) -> Iterator[tuple[str, bytes]]:
    """Records, floors and sample grids as they are."""
    for folder in sorted(path for path in atlas.results.glob("*") if path.is_dir()):
        for path in sorted([*folder.glob("[!.]*.json"), *folder.glob("[!.]*.png")]):
            yield f"data/{folder.name}/{path.name}", path.read_bytes()


def tables(atlas: Atlas) -> Iterator[tuple[str, bytes]]:
    """The catalog and the ledger as JSON, all measured numbers as CSV."""
    catalog = atlas.catalog
    yield (
        "data/catalog.json",
        dump(
            {
                "taxonomy": catalog.taxonomy.model_dump(mode="json"),
                "surveys": {key: survey.model_dump(mode="json") for key, survey in catalog.surveys.items()},
                "beds": {name: bed.model_dump(mode="json") for name, bed in catalog.beds.items()},
                "baseline": catalog.baseline.model_dump(mode="json"),
                "techniques": {
                    id: technique.model_dump(mode="json", exclude_unset=True)
                    for id, technique in catalog.techniques.items()
                },
            }
        ),
    )
    yield "data/claims.json", dump([as_json(judged) for judged in atlas.judged])
    yield "data/results.csv", results_csv(atlas).encode()


COLUMNS = ("bed", "id", "cell", "quantity", "value", "low", "high", "unit", "blocks", "n", "train_seeds", "record")


def results_csv(atlas: Atlas) -> str:
    """A line for each number of each cell; exact numbers have no interval."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for bed, records in atlas.records.items():
        for id, record in records.items():
            for name, cell in record["cells"].items():
                seeds = len(cell["seeds"]["train"])
                origin = f"{bed}/{id}.json"
                for key, m in cell["metrics"].items():
                    table.writerow(
                        (bed, id, name, key, m["mean"], m["low"], m["high"], m["unit"], m["blocks"], cell["n"], seeds,
                         origin)
                    )  # fmt: skip
                for key in COSTS:
                    if key in cell["cost"]:
                        table.writerow(
                            (bed, id, name, key, cell["cost"][key], "", "", EXACT_UNITS[key], "", "", seeds, origin)
                        )
    return text.getvalue()


def dump(value: Any) -> bytes:
    """JSON with sorted keys; infinities are an error."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
