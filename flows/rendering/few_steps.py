"""Techniques that are trained to sample in few evaluations, beside the best that is not: a chart and a table a bed."""

from collections.abc import Iterator
from dataclasses import dataclass

from catalog import Bed, Technique
from flows.records import share_of
from flows.rendering.charts import Datum
from flows.rendering.lines import Plot, plot
from flows.rendering.measured import COST, NARROW, WIDE, Measured
from flows.rendering.numbers import Number, Record, cost, quality
from flows.rendering.quantities import main_metric

FAMILIES = (
    "trajectory_distillation", "distribution_distillation", "consistency", "few_step_training", "adversarial"
)  # fmt: skip
COLUMNS = (1, 2, 4, 8)
"""Evaluations at which they are compared."""
OTHERWISE = "best without"
"""The label of what takes no training of its own."""


@dataclass(frozen=True)
class Row:
    """A technique, None for the best of all others, with its quality at each of the columns."""

    key: int
    technique: Technique | None
    qualities: list[Number | None]
    images: Number | None
    """What it saw in all, base training and its own."""


@dataclass(frozen=True)
class OnBed:
    """The comparison on a bed."""

    bed: Bed
    metric: str
    wide: Plot
    narrow: Plot
    rows: list[Row]
    best: list[float | None]
    """The least distance of each column."""


def views(measured: Measured) -> list[OnBed]:
    """The comparison on every bed that has one."""
    return [view for bed in measured.catalog.beds.values() if (view := on_bed(measured, bed))]


def on_bed(measured: Measured, bed: Bed) -> OnBed | None:
    """The comparison on a bed, None where none of the techniques has a result at these evaluations."""
    key, trained = main_metric(bed), [t for t in measured.catalog.techniques.values() if t.family in FAMILIES]
    curves: dict[str, list[Datum]] = {}
    rows: list[Row] = []
    for technique in trained:
        record = measured.record(bed.name, technique.id)
        if record and (data := by_evaluations(own(record, technique, key))):
            curves[technique.name] = list(data.values())
            rows.append(row(len(curves), technique, data, images(record)))
    if not rows:
        return None
    others = by_evaluations(untrained(measured, bed, trained, key))
    if others:
        curves[OTHERWISE] = list(others.values())
        rows.append(row(len(curves), None, others, None))
    best = [
        min((q.value for q in column if q), default=None) for column in zip(*(r.qualities for r in rows), strict=True)
    ]
    return OnBed(bed, key, plot(curves, WIDE, False), plot(curves, NARROW, True), rows, best)


def row(key: int, technique: Technique | None, data: dict[float, Datum], images: Number | None) -> Row:
    """The qualities at exactly the evaluations of the columns."""
    return Row(key, technique, [data[n].quality if n in data else None for n in COLUMNS], images)


def by_evaluations(data: Iterator[Datum]) -> dict[float, Datum]:
    """The best at every number of evaluations that is within the columns, by rising number."""
    found: dict[float, Datum] = {}
    for each in data:
        n = each.cost.value
        if n <= COLUMNS[-1] and (n not in found or each.quality.value < found[n].quality.value):
            found[n] = each
    return dict(sorted(found.items()))


def own(record: Record, technique: Technique, key: str) -> Iterator[Datum]:
    """A technique with its defaults, at whatever numbers of steps its record has."""
    if record["default"] not in record["cells"]:  # it failed
        return
    default = but_for_steps(record["cells"][record["default"]])
    for name, cell in record["cells"].items():
        if but_for_steps(cell) == default and share_of(cell) == 1:
            yield from point(record, name, key, technique.name)


def untrained(measured: Measured, bed: Bed, trained: list[Technique], key: str) -> Iterator[Datum]:
    """Every cell whose weights are the base training's, of the teachers or of the baseline."""
    ids = {technique.id for technique in trained}
    teachers = {id for technique in trained for id in technique.default.methods} - ids
    known = measured.catalog.techniques
    for record in measured.records.get(bed.name, {}).values():
        for name, cell in record["cells"].items():
            if all(id in teachers or not known[id].retrains for id in cell["methods"]):
                yield from point(record, name, key, OTHERWISE)


def but_for_steps(cell: Record) -> Record:
    """The methods of a cell with their parameters, without the one that says how many steps to take."""
    return {id: {k: v for k, v in params.items() if k != "steps"} for id, params in cell["methods"].items()}


def point(record: Record, name: str, key: str, label: str) -> Iterator[Datum]:
    """A cell in the drawing, if it has what the drawing shows."""
    path = f"data/{record['bed']}/{record['id']}.json"
    spent, found = cost(record, name, COST, path), quality(record, name, key, path)
    if spent and found:
        yield Datum(spent, found, label, "plain")


def images(record: Record) -> Number | None:
    """Images that the default cell saw: the base training's and its own."""
    path = f"data/{record['bed']}/{record['id']}.json"
    base, more = (cost(record, record["default"], k, path) for k in ("training_images", "one_off_images"))
    return base.but(base.value + more.value, None, None) if base and more else None
