"""Quality against training: a technique that changes base training beside its control, on the way to the end."""

from dataclasses import dataclass

from catalog import Bed
from flows.records import on_the_way
from flows.rendering.charts import Datum
from flows.rendering.comparison import Difference, compare
from flows.rendering.lines import Plot, plot
from flows.rendering.measured import HALF, NARROW
from flows.rendering.numbers import Number, Record, cost, quality
from flows.rendering.quantities import main_metric

AXES = ("training_images", "training_macs")
"""What training spends: equal images are equal updates, equal MACs are equal work."""


@dataclass(frozen=True)
class Point:
    """Subject and control after one share of the training of each."""

    share: float
    images: Number | None
    subject: Number
    control: Number
    difference: Difference | None


@dataclass(frozen=True)
class Along:
    """The curves of both by each of the costs, and the points as a table."""

    bed: Bed
    metric: str
    plots: dict[str, tuple[Plot, Plot]]
    points: list[Point]


def along(record: Record, bed: Bed, path: str) -> Along | None:
    """What a record holds of the way through its trainings, None where that is nothing."""
    key, sides = main_metric(bed), {name: on_the_way(record, record[name]) for name in ("default", "control")}
    shared = [share for share in sides["default"] if share in sides["control"]]
    if len(shared) < 2:
        return None
    points: list[Point] = []
    for share in shared:
        ours, theirs = (sides[name][share] for name in ("default", "control"))
        subject, control = quality(record, ours, key, path), quality(record, theirs, key, path)
        gap = compare(record, ours, theirs, key, path)
        if subject and control:
            images = cost(record, ours, AXES[0], path)
            points.append(Point(share, images, subject, control, gap))
    plots: dict[str, tuple[Plot, Plot]] = {}
    for axis in AXES:
        curves = {
            record[name]: [
                Datum(spent, found, cell, "plain")
                for cell in cells.values()
                if (spent := cost(record, cell, axis, path)) and (found := quality(record, cell, key, path))
            ]
            for name, cells in sides.items()
        }
        if all(len(curve) > 1 for curve in curves.values()):
            plots[axis] = plot(curves, HALF, True), plot(curves, NARROW, True)
    return Along(bed, key, plots, points) if plots else None
