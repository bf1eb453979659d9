"""What the pages show as files: tables as CSV and as JSON, described by a data package, and catalog and ledger whole.

The data package follows Frictionless Data's specification (https://specs.frictionlessdata.io/tabular-data-package/).
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flows.ledger import EXACT_UNITS, as_json
from flows.rendering.atlas import Atlas
from flows.rendering.costs import Timed
from flows.rendering.frontier import AXES
from flows.rendering.numbers import Number, counted
from flows.rendering.quantities import COSTS, METRICS

Line = tuple[Any, ...]
PACKAGE = "data/datapackage.json"
COMMON = {
    "bed": "test bed",
    "id": "technique, or `baseline`",
    "cell": "what was run: techniques, parameters, steps",
    "low": "lower end of the 95 % interval; empty where there is none",
    "high": "upper end of the 95 % interval; empty where there is none",
    "value": "the number, a mean over blocks where it has an interval",
    "unit": "unit of the number",
    "blocks": "independent sampling seeds behind the number",
    "n": "samples per block",
    "record": "where the number comes from, within data/",
}


@dataclass(frozen=True)
class Table:
    """A table: its columns with what they hold, and where its lines come from."""

    name: str
    about: str
    columns: dict[str, str]
    lines: Callable[[Atlas], Iterable[Line]]

    @property
    def schema(self) -> dict[str, Any]:
        """As Table Schema has it."""
        fields = [
            {"name": name, "type": kind(name), "description": about or COMMON[name]}
            for name, about in self.columns.items()
        ]
        return {"fields": fields, "missingValues": [""]}


def kind(column: str) -> Literal["number", "integer", "string"]:
    """The type of a column by its name, which means the same in every table."""
    known: dict[str, Literal["number", "integer"]] = {
        "low": "number", "high": "number", "value": "number", "difference": "number", "p": "number",
        "adjusted": "number", "cost": "number", "quality": "number", "n": "integer", "blocks": "integer",
        "train_seeds": "integer", "seeds": "integer", "year": "integer", "batch": "integer", "rounds": "integer",
        "subject": "number", "of_control": "number", "supported": "integer", "not_supported": "integer",
        "inconclusive": "integer", "not_tested": "integer",
    }  # fmt: skip
    return known.get(column, "string")


def files(atlas: Atlas) -> Iterator[tuple[str, bytes]]:
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
    yield "data/ledger.json", dump([as_json(judged) for judged in atlas.judged])
    for table in TABLES:
        lines = list(table.lines(atlas))
        yield f"data/{table.name}.csv", as_csv(tuple(table.columns), lines)
        rows = [{key: None if value == "" else value for key, value in zip(table.columns, line, strict=True)}
                for line in lines]  # fmt: skip
        yield f"data/{table.name}.json", dump(rows)
    yield PACKAGE, dump(package())


def package() -> dict[str, Any]:
    """What describes the tables."""
    resources = [
        {
            "name": table.name.replace("_", "-"), "path": f"{table.name}.csv", "profile": "tabular-data-resource",
            "description": table.about, "schema": table.schema,
        }
        for table in TABLES
    ]  # fmt: skip
    return {
        "name": "atlas-of-efficient-diffusion",
        "title": "Atlas of Efficient Diffusion",
        "profile": "tabular-data-package",
        "resources": resources,
    }


def techniques(atlas: Atlas) -> Iterator[Line]:
    for id, view in atlas.techniques.items():
        known, counts = view.technique, view.counts.statuses
        yield (
            id, known.name, known.area, known.family, known.paper.title, known.paper.year, known.paper.arxiv or "",
            " ".join(known.cost_axis), "yes" if known.retrains else "no", " ".join(known.beds),
            *(counts[status] for status in ("supported", "not supported", "inconclusive", "not tested")),
        )  # fmt: skip


def claims(atlas: Atlas) -> Iterator[Line]:
    for judged in atlas.judged:
        found, reached = judged.claim, as_json(judged)["verdict"] or {}
        yield (
            judged.technique, found.id, judged.bed or "", judged.scale or "", judged.status, judged.reason or "",
            found.says, found.where, found.metric or "", found.statistic or "", judged.arm or "", judged.control or "",
            *(_given(reached.get(key)) for key in ("statistic", "low", "high")), judged.unit or "",
            _given(reached.get("p")), _given(judged.adjusted), judged.stale or "",
        )  # fmt: skip


def results(atlas: Atlas) -> Iterator[Line]:
    for bed, records in atlas.records.items():
        for id, record in records.items():
            for name, cell in record["cells"].items():
                seeds, origin = len(cell["seeds"]["train"]), f"{bed}/{id}.json"
                for key, m in cell["metrics"].items():
                    low, high = _given(m.get("low")), _given(m.get("high"))
                    found = (m["mean"], low, high, m["unit"], m["blocks"], cell["n"])
                    yield bed, id, name, key, *found, seeds, origin
                for key in COSTS:
                    if (amount := counted(cell["cost"], key)) is not None:
                        yield bed, id, name, key, amount, "", "", EXACT_UNITS[key], "", "", seeds, origin


def comparisons(atlas: Atlas) -> Iterator[Line]:
    for id, view in atlas.techniques.items():
        for on in view.beds:
            for opponent in on.opponents:
                for key, gap in opponent.differences.items():
                    number = gap.number
                    found = (number.value, *_ends(number), gap.word, number.unit, number.n, number.samples)
                    yield on.bed.name, id, key, opponent.role, number.cell, *found


def machine(atlas: Atlas) -> Iterator[Line]:
    def values(timed: Timed) -> Line:
        return timed.subject.value, timed.control.value, timed.ratio.value, *_ends(timed.ratio)

    for id, view in atlas.techniques.items():
        for on in view.beds:
            for timed in on.provenance.timed if on.provenance else []:
                made = on.provenance
                assert made is not None
                machine = made.host.get("gpu", made.host["cpu"]), made.when, made.commit or "", made.path
                rounds = timed.ratio.n if timed.ratio.bounded else ""
                yield on.bed.name, id, on.control, timed.key, timed.batch, *values(timed), rounds, *machine


def of_gradients(atlas: Atlas) -> Iterator[Line]:
    for view in atlas.levels:
        for panel in view.panels:
            for key, numbers in panel.shares.items():
                for level, number in zip(view.levels, numbers, strict=True):
                    ends = _ends(number)
                    yield view.bed.name, panel.id, level, key, number.value, *ends, number.n, number.record


def of_codecs(atlas: Atlas) -> Iterator[Line]:
    for id, view in atlas.techniques.items():
        for on in view.beds:
            for key in METRICS:
                if number := atlas.codec(on.bed, id, key):
                    yield on.bed.name, id, key, number.value, *_ends(number), number.unit, number.n, number.record


def frontier(atlas: Atlas) -> Iterator[Line]:
    for name, view in atlas.beds.items():
        for key in METRICS:
            for axis in AXES:
                for place in atlas.ranked(view.bed, key, axis):
                    row, by = place.entrant, place.by
                    yield (
                        name, row.id or "", row.cell, key, axis, row.costs[axis].value, row.qualities[key].value,
                        place.standing, "" if by is None else by.cell,
                    )  # fmt: skip


def _given(value: float | None) -> Any:
    return "" if value is None else value


def _ends(number: Number) -> tuple[Any, Any]:
    return (number.low, number.high) if number.bounded else ("", "")


TABLES: Sequence[Table] = (
    Table(
        "techniques",
        "Every technique that runs, with how many of its claims have each verdict.",
        {
            "id": "", "name": "its name", "area": "area of the taxonomy", "family": "family within the area",
            "paper": "title of its paper", "year": "year of the paper", "arxiv": "number at arXiv",
            "saves": "what it is meant to save", "retrains": "whether it needs a training of its own",
            "beds": "test beds it runs on", "supported": "claims supported", "not_supported": "claims not supported",
            "inconclusive": "claims without a decision", "not_tested": "claims that were not tested",
        },
        techniques,
    ),
    Table(
        "claims",
        "Every claim on every test bed with its verdict and the interval it rests on.",
        {
            "id": "", "claim": "id of the claim", "bed": "", "scale": "scale of the test bed",
            "verdict": "the verdict", "reason": "why it was not tested", "says": "what is claimed, in our words",
            "where": "where the paper says so", "metric": "what is measured", "statistic": "what is taken of it",
            "cell": "", "control": "what it is held against",
            "value": "", "low": "", "high": "", "unit": "", "p": "p-value of the test alone",
            "adjusted": "p-value adjusted for all tests of the ledger", "stale": "what changed since; empty if nothing",
        },
        claims,
    ),
    Table(
        "results",
        "Every measured number of every cell; exact numbers have no interval.",
        {
            "bed": "", "id": "page of the record: a technique, or `baseline`", "cell": "", "quantity": "metric or cost",
            "value": "", "low": "", "high": "", "unit": "", "blocks": "", "n": "",
            "train_seeds": "training seeds behind the number", "record": "",
        },
        results,
    ),
    Table(
        "comparisons",
        "Every paired difference of the tables at equal cost: the technique minus what it is held against.",
        {
            "bed": "", "id": "", "metric": "metric", "against": "which control", "cells": "the two cells",
            "difference": "mean difference over blocks", "low": "", "high": "",
            "word": "what the interval lets one say", "unit": "", "blocks": "", "n": "",
        },
        comparisons,
    ),
    Table(
        "machine",
        "What one machine took, technique and control in turns. Ratios are medians over rounds.",
        {
            "bed": "", "id": "", "control": "cell it was timed against",
            "quantity": "latency or start (seconds), throughput (samples a second), or memory (bytes)",
            "batch": "batch size",
            "subject": "of the technique", "of_control": "of the control", "value": "ratio", "low": "", "high": "",
            "rounds": "rounds behind the ratio", "cpu": "processor", "when": "when, in UTC",
            "commit": "commit of the code", "record": "",
        },
        machine,
    ),
    Table(
        "gradients",
        "Shares of each noise level in what a training draws, loses, and gets the variance of its gradient from.",
        {
            "bed": "", "id": "technique; baseline for none", "level": "noise level, in log(alpha / sigma)",
            "share": "of what", "value": "mean over training seeds", "low": "", "high": "", "seeds": "training seeds",
            "record": "",
        },
        of_gradients,
    ),
    Table(
        "reconstruction",
        "What the space of a technique loses by itself: scores of training images, encoded and decoded.",
        {
            "bed": "", "id": "technique", "metric": "metric", "value": "mean over training seeds", "low": "",
            "high": "", "unit": "", "seeds": "training seeds", "record": "",
        },
        of_codecs,
    ),
    Table(
        "frontier",
        "Where everything stands for each quality and cost: on the front, tied with something cheaper, or beaten by "
        "something that costs no more.",
        {
            "bed": "", "id": "technique; empty for the baseline", "cell": "", "metric": "quality", "axis": "cost",
            "cost": "how much of it", "quality": "mean over blocks", "standing": "front, tied, beaten, or one value",
            "by": "the cell that beats it, or that it ties with",
        },
        frontier,
    ),
)  # fmt: skip


def as_csv(columns: Line, lines: Iterable[Line]) -> bytes:
    """A CSV with a heading."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *lines])
    return text.getvalue().encode()


def dump(value: Any) -> bytes:
    """JSON with sorted keys; infinities are an error."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
