"""What the pages show as files: catalog and ledger as JSON, measured numbers and paired differences as CSV."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from flows.ledger import EXACT_UNITS, as_json
from flows.rendering.atlas import Atlas
from flows.rendering.quantities import COSTS

Line = tuple[Any, ...]
RESULTS = ("bed", "id", "cell", "quantity", "value", "low", "high", "unit", "blocks", "n", "train_seeds", "record")
COMPARISONS = ("bed", "id", "metric", "against", "cells", "difference", "low", "high", "word", "unit", "blocks", "n")


def tables(atlas: Atlas) -> Iterator[tuple[str, bytes]]:
    """Every file of data that is made here, by its path."""
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
    yield "data/results.csv", table(RESULTS, results(atlas))
    yield "data/comparisons.csv", table(COMPARISONS, comparisons(atlas))


def results(atlas: Atlas) -> Iterator[Line]:
    """A line for each number of each cell; exact numbers have no interval."""
    for bed, records in atlas.records.items():
        for id, record in records.items():
            for name, cell in record["cells"].items():
                seeds, origin = len(cell["seeds"]["train"]), f"{bed}/{id}.json"
                for key, m in cell["metrics"].items():
                    found = (m["mean"], m.get("low"), m.get("high"), m["unit"], m["blocks"], cell["n"])
                    yield bed, id, name, key, *found, seeds, origin
                for key in COSTS:
                    if cell["cost"].get(key) is not None:
                        yield bed, id, name, key, cell["cost"][key], "", "", EXACT_UNITS[key], "", "", seeds, origin


def comparisons(atlas: Atlas) -> Iterator[Line]:
    """A line for each paired difference of the tables at equal cost."""
    for id, view in atlas.techniques.items():
        for on in view.beds:
            for opponent in on.opponents:
                for key, gap in opponent.differences.items():
                    low, high = (gap.number.low, gap.number.high) if gap.number.bounded else ("", "")
                    found = (gap.number.value, low, high, gap.word, gap.number.unit, gap.number.n, gap.number.samples)
                    yield on.bed.name, id, key, opponent.role, gap.number.cell, *found


def table(columns: Line, lines: Iterable[Line]) -> bytes:
    """A CSV with a heading."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *lines])
    return text.getvalue().encode()


def dump(value: Any) -> bytes:
    """JSON with sorted keys; infinities are an error."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
