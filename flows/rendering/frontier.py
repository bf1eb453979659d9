"""Which techniques are worth their cost on a bed, by a metric and a cost of choice.

A row is beaten where another that costs no more is better; it ties where a cheaper one cannot be told from it. What is
left is the front. Rows are told apart by Student's interval of their difference, paired block by block, at 95 %.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from catalog import Bed
from flows.rendering import costs
from flows.rendering.costs import Provenance
from flows.rendering.measured import BASELINE, Measured, shares_flow
from flows.rendering.numbers import Number, Record, cost, quality
from flows.rendering.quantities import METRICS, title

Standing = Literal["front", "tied", "beaten", "one value"]
PREPARATION = "preparation_macs"
AXES = ("evaluations", "macs", "latency", "bytes", "memory", PREPARATION)
"""What a technique may be meant to save: counted per sample or once, or measured on one machine over the baseline."""
RELATIVE = ("latency", "memory")
"""Costs of one machine, which are compared as ratios to the baseline."""
LEVEL = 0.95


@dataclass(frozen=True)
class Entrant:
    """A technique at its defaults, or the baseline at one of its step counts (`id` is None).

    `values` has a quality per block for each metric.
    """

    id: str | None
    name: str
    cell: str
    record: str
    qualities: dict[str, Number]
    values: dict[str, list[float]]
    costs: dict[str, Number]


@dataclass(frozen=True)
class Place:
    """Where an entrant stands; `by` is the best of those that beat it, or the cheapest of those it ties with."""

    entrant: Entrant
    standing: Standing
    by: Entrant | None = None


def axis_title(axis: str) -> str:
    """The name of a cost as the frontier counts it."""
    return f"{title(axis)} over the baseline’s" if axis in RELATIVE else title(axis)


def entrants(measured: Measured, bed: Bed) -> list[Entrant]:
    """The baseline's curve, then every technique with a record."""
    records = measured.records.get(bed.name, {})
    found = []
    if BASELINE in records:
        cells = records[BASELINE]["cells"]
        found = [entrant(records[BASELINE], None, cell, cell, None) for cell in cells]
    for id, technique in measured.catalog.techniques.items():
        if id in records and records[id]["default"] in records[id]["cells"]:
            machine = measured.file(bed.name, f"{id}.cost.json")
            timed = costs.provenance(machine, bed.name, id) if machine else None
            default = records[id]["default"]
            found.append(entrant(
                records[id], id, technique.name, default, timed,
                shares_flow(measured.catalog, records[id]["cells"][default]["methods"]),
            ))  # fmt: skip
    return found


def entrant(
    record: Record, id: str | None, name: str, cell: str, timed: Provenance | None, faithful: bool = True
) -> Entrant:
    """A cell with all its costs, and all qualities that have a better and a worse.

    Fidelity is one of them only where the cell is `faithful`: else it is that to another network, and compares with
    nobody else's.
    """
    path = f"data/{record['bed']}/{record['id']}.json"
    metrics = record["cells"][cell]["metrics"]
    rated = [key for key in METRICS if METRICS[key].better and (faithful or key != "fidelity")]
    qualities = {key: found for key in rated if (found := quality(record, cell, key, path))}
    counted = [key for key in ("evaluations", "macs", "bytes") if record["cells"][cell]["cost"][key]]
    spent = {key: found for key in counted if (found := cost(record, cell, key, path))}
    if record["cells"][cell]["cost"]["uncounted_ops"]:
        spent.pop("macs", None)
    once = [cost(record, cell, key, path) for key in ("training_macs", "one_off_macs")]
    if once[0] and once[1] and once[0].value + once[1].value:
        spent[PREPARATION] = once[0].but(once[0].value + once[1].value, None, None)
    if id is None and cell == record["default"]:
        spent |= {key: spent["evaluations"].but(1, None, None, "ratio to itself") for key in RELATIVE}
    if timed and record["control"] == BASELINE:
        spent |= {row.key: row.ratio for row in timed.timed if row.key in RELATIVE and timed.steady(row)}
    return Entrant(id, name, cell, path, qualities, {key: metrics[key]["values"] for key in qualities}, spent)


def standings(entrants: Sequence[Entrant], key: str, axis: str) -> list[Place]:
    """Every entrant with this metric and this cost, by rising cost."""
    there = [each for each in entrants if key in each.qualities and axis in each.costs]
    blocks = Counter(len(each.values[key]) for each in there).most_common(1)
    if not blocks or blocks[0][0] < 2:
        return [Place(each, "one value") for each in sorted(there, key=lambda each: each.costs[axis].value)]
    there = [each for each in there if len(each.values[key]) == blocks[0][0]]
    better = told_apart(np.array([each.values[key] for each in there]), lower=METRICS[key].better == "lower")
    spent = np.array([each.costs[axis].value for each in there])
    beats = better & (spent[:, None] <= spent)
    ties = ~better & ~better.T & (spent[:, None] < spent)
    sign = 1 if METRICS[key].better == "lower" else -1
    reached = np.array([sign * each.qualities[key].value for each in there])
    best = np.lexsort((spent, reached))
    rank = np.empty(len(there), int)
    rank[best] = range(len(there))
    places = []
    for index, each in enumerate(there):
        above, beside = np.flatnonzero(beats[:, index]), np.flatnonzero(ties[:, index])
        if len(above):
            places.append(Place(each, "beaten", there[best[rank[above].min()]]))
        elif len(beside):
            places.append(Place(each, "tied", there[beside[spent[beside].argmin()]]))
        else:
            places.append(Place(each, "front"))
    return sorted(places, key=lambda place: place.entrant.costs[axis].value)


def told_apart(values: np.ndarray, lower: bool) -> np.ndarray:
    """Whether each row (entrants by blocks) is better than each other: the interval of the difference excludes zero."""
    differences = values[:, None] - values
    blocks = values.shape[1]
    error = differences.std(axis=2, ddof=1) / np.sqrt(blocks)
    half = stats.t.ppf((1 + LEVEL) / 2, blocks - 1) * error
    mean = differences.mean(axis=2)
    return mean + half < 0 if lower else mean - half > 0
