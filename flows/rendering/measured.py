"""What there is to show: the catalog, the records and the ledger, read once for one rendering."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from catalog import Bed, Catalog
from flows import history, reconstruction
from flows.history import Histories
from flows.ledger import Judged, judge_records, read_floors, read_records, stale
from flows.records import read_json
from flows.rendering.charts import Chart, Datum, Mark, View, chart
from flows.rendering.numbers import Number, Record, cost, grouped, plural, quality
from flows.rendering.quantities import METRICS, charted, main_metric, title
from methods.measure.reference import UNITS
from methods.measure.statistics import t_interval

BASELINE = "baseline"
COST = "evaluations"
"""The cost that charts show."""
WIDE, HALF, NARROW = (760, 400), (566, 380), (350, 420)
ADAPTATION = "adaptation"
"""The family of techniques that mean to change the images."""
GRID = 380
"""About how wide a grid of samples is shown, in CSS pixels; whole multiples of its own pixels keep it crisp."""
DRAWN_AGAIN = "training images drawn again"
FRESH = "fresh draws of the truth"


@dataclass(frozen=True)
class Picture:
    path: str
    width: int
    height: int
    alt: str


class Measured:
    """Catalog and results together. Raises Damaged for a record that cannot be read."""

    def __init__(self, catalog: Catalog, results: Path) -> None:
        self.catalog = catalog
        self.results = results
        self.records = read_records(results)
        self.floors = read_floors(results)
        self.stale = stale(catalog, self.records, self.floors)
        self.curve = cache(self._curve)

    @cached_property
    def judged(self) -> list[Judged]:
        """Every claim with its verdict and the history of its terms."""
        return judge_records(self.catalog, self.records, self.stale, self.histories)

    @cached_property
    def judged_of(self) -> dict[str, list[Judged]]:
        """The claims of each technique."""
        found: dict[str, list[Judged]] = {id: [] for id in self.catalog.techniques}
        for each in self.judged:
            found[each.technique].append(each)
        return found

    @cached_property
    def measured(self) -> set[str]:
        """The techniques that have a record on some bed, of a run that did not fail."""
        return {id for bed in self.records.values() for id, each in bed.items() if each["cells"]} - {BASELINE}

    @cached_property
    def histories(self) -> Histories:
        """The terms of every claim that was ever measured."""
        return history.read_all(self.results)

    @cached_property
    def together(self) -> dict[str, set[str]]:
        """By technique: those that some cell runs together with it."""
        found: dict[str, set[str]] = {}
        for record in (record for bed in self.records.values() for record in bed.values()):
            for cell in record["cells"].values():
                for id in cell["methods"]:
                    found.setdefault(id, set()).update(cell["methods"])
        return found

    def record(self, bed: str, id: str) -> Record | None:
        return self.records.get(bed, {}).get(id)

    @cached_property
    def codecs(self) -> dict[str, dict[str, Any]]:
        """By bed and technique: what training images score that its space has encoded and decoded."""
        records = {bed: self.file(bed, reconstruction.FILE) for bed in self.catalog.beds}
        return {bed: reconstruction.current(self.catalog, record) for bed, record in records.items() if record}

    def codec(self, bed: Bed, id: str, key: str) -> Number | None:
        """What the space of a technique scores by itself, over training seeds; None for one that diffuses pixels."""
        cell = self.codecs.get(bed.name, {}).get(id)
        if cell is None or key not in cell["scores"]:
            return None
        found, path = t_interval(cell["scores"][key]), f"data/{bed.name}/{reconstruction.FILE}"
        return Number(found.mean, found.low, found.high, found.n, cell["n"], UNITS[key], bed.name, id, path)

    def file(self, bed: str, name: str) -> dict[str, Any] | None:
        """Another file of a bed's folder, None where there is none."""
        path = self.results / bed / name
        return read_json(path) if path.exists() else None

    def picture(self, bed: Bed, id: str, name: str) -> Picture | None:
        """The sample grid of a record, None where there is none."""
        path = self.results / bed.name / f"{id}.png"
        if not path.exists():
            return None
        width, height = struct.unpack(">II", path.read_bytes()[16:24])  # the header chunk of a PNG
        times = max(1, round(GRID / width))
        alt = f"Samples of {name} on {bed.name}: a column for each of {bed.classes} classes, a row for each seed"
        return Picture(f"data/{bed.name}/{id}.png", times * width, times * height, alt)

    def seeds(self, bed: Bed) -> str:
        """What stands behind a quality on the bed: from its records, or as planned where there are none."""
        records = self.records.get(bed.name, {}).values()
        cell = next((cell for record in records for cell in record["cells"].values()), None)
        seeds = cell["seeds"] if cell else {"train": bed.seeds.train, "sample": bed.seeds.sample}
        n, blocks = grouped(cell["n"] if cell else bed.n), plural(len(seeds["sample"]), "block")
        if bed.network is None:
            return f"{blocks} of {n} samples, each with its own sampling seed"
        trained = "its own training seed" if len(seeds["train"]) > 1 else "one training seed for all"
        return f"{blocks} of {n} samples, each with its own sampling seed, {trained}"

    def floor_line(self, bed: str, key: str) -> float | None:
        """Where charts draw the perfect sampler."""
        number = self.floor_number(bed, key)
        return number.value if number else None

    def floor_number(self, bed: str, key: str) -> Number | None:
        """What a perfect sampler is expected to score with as many samples as a block has.

        Known for FD from the training images drawn again, and in the plane from fresh draws of the truth.
        """
        found = self.floors.get(bed)
        if found is None:
            return None
        if found.get(key):
            return self.of_floor(bed, found[key]["bias_at_n"], DRAWN_AGAIN)
        if found["features"] is None and key in found["held_out"]:
            return self.of_floor(bed, found["held_out"][key], FRESH)
        return None

    def of_floor(self, bed: str, found: Mapping[str, Any], what: str) -> Number:
        """A number of a bed's floor."""
        path = f"data/{bed}/floor.json"
        return Number(
            found["mean"], found["low"], found["high"], found["blocks"], found["n"], found["unit"], bed, what, path
        )

    def _curve(self, bed: str, axis: str, key: str) -> list[Datum]:
        """The baseline at each of its step counts, by rising cost; empty without its record."""
        record = self.record(bed, BASELINE)
        if record is None:
            return []
        data = [datum(record, cell, axis, key, BASELINE, "plain") for cell in record["cells"]]
        return sorted((d for d in data if d), key=lambda d: d.cost.value)

    def views(
        self, bed: Bed, axes: Sequence[str], points: Callable[[str, str], Iterable[Datum] | None], heading: str
    ) -> list[View]:
        """A view for each metric that has charts; `points` gives those of a cost and a metric, None for no chart."""
        sizes = (HALF if len(axes) > 1 else WIDE, NARROW)
        found = []
        for key in charted(bed):
            drawn = [(axis, each) for axis in axes if (each := points(axis, key)) is not None]
            pairs = [
                self.charts(bed, axis, list(each), f"{heading}: {title(key)} against {title(axis)}", key, sizes)
                for axis, each in drawn
            ]
            found.append(View(key, [pair for pair in pairs if pair]))
        return [view for view in found if view.pairs]

    def charts(
        self, bed: Bed, axis: str, points: Sequence[Datum], heading: str, key: str | None = None,
        sizes: tuple[tuple[int, int], tuple[int, int]] = (WIDE, NARROW),
    ) -> tuple[Chart, Chart] | None:  # fmt: skip
        """Points beside the baseline's curve, once for wide screens and once for narrow; None without any."""
        key = key or main_metric(bed)
        curve = self.curve(bed.name, axis, key)
        if not curve and not points:
            return None
        about = f"{title(key)} in {[*curve, *points][0].quality.unit}, {METRICS[key].better} is better. "
        if curve:
            about += (
                f"The baseline goes from {curve[0].quality.text} at {curve[0].cost.text} {title(axis).lower()}"
                f" to {curve[-1].quality.text} at {curve[-1].cost.text}. "
            )
        about += f"{plural(len(points), 'point')} drawn beside it." if points else ""
        titles = ((f"{title(axis)} per sample", ""), (title(key), f"{METRICS[key].better} is better"))
        line = self.floor_line(bed.name, key)
        wide, narrow = (chart(curve, points, line, titles, (heading, about), size) for size in sizes)
        return wide, narrow


def shares_flow(catalog: Catalog, methods: Iterable[str]) -> bool:
    """Whether the fidelity of a cell with these methods compares with the baseline's.

    It does not where one of them trains another network, which has a flow of its own, nor where one means to change the
    images.
    """
    known = [catalog.techniques[id] for id in methods if id in catalog.techniques]
    return not any(technique.retrains or technique.family == ADAPTATION for technique in known)


def datum(
    record: Record, cell: str, axis: str, key: str, label: str, mark: Mark, href: str | None = None, leads: bool = True
) -> Datum | None:
    """A cell as a point of a chart, None where the chart has no place for it, or its cost is not all counted."""
    if axis == "macs" and cell in record["cells"] and record["cells"][cell]["cost"]["uncounted_ops"]:
        return None
    path = f"data/{record['bed']}/{record['id']}.json"
    spent, found = cost(record, cell, axis, path), quality(record, cell, key, path)
    return Datum(spent, found, label, mark, href, leads) if spent and found and spent.value > 0 else None
