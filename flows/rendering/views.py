"""What each page shows, gathered from catalog, records and ledger; templates only lay it out."""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from html import unescape
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote
from xml.etree.ElementTree import tostring

from latex2mathml.converter import convert_to_element

from catalog import Area, Bed, Catalog, Claim, Family, Section, Survey, Surveyed, Technique
from catalog.models import Sampling, Training
from flows.ledger import EFFORT, SCALES, Judged, Record, Status, judge_records, read_records, tally
from flows.records import read_json
from flows.rendering.charts import Chart, Datum, Mark, chart
from flows.rendering.numbers import (
    COSTS,
    METRICS,
    MINUS,
    Number,
    cost,
    expectation,
    formula,
    grouped,
    percent,
    plural,
    quality,
    statistic,
    title,
)
from methods.measure.statistics import paired

BASELINE = "baseline"
QUALITY, COST = "fd", "evaluations"
"""What the frontier and the charts show."""
EXCLUSIVE = {*get_args(Training), *get_args(Sampling)}
"""Fields of the recipe that one technique at a time may edit."""
WIDE, NARROW = (760, 400), (350, 420)
FRONTIER = (1150, 600)
GRID = 380
"""About how wide a grid of samples is shown, in CSS pixels; whole multiples of its own pixels keep it crisp."""
BRACKETS = ((r"{", r"}"), (r"\\left\b", r"\\right\b"))
SIMILAR = "\N{TILDE OPERATOR}"  # unlike the tilde of the keyboard, browsers put space around it
NOT_IN_PAPER = "not in the paper"
"""How the catalog marks a claim that is a control of this survey."""
DISCOVERY = 0.05
"""The false-discovery rate held over the ledger."""


@dataclass(frozen=True)
class Comparison:
    """A cell against the baseline at (nearly) the same cost: qualities, costs, and the paired difference."""

    axis: str
    own_cost: Number
    baseline_cost: Number
    own: Number
    baseline: Number
    difference: Number

    @property
    def mark(self) -> Mark:
        """Whether the interval of the difference lies on one side of zero; less is better."""
        d = self.difference
        if not d.bounded or d.low is None or d.high is None:
            return "same"
        return "better" if d.high < 0 else "worse" if d.low > 0 else "same"


@dataclass(frozen=True)
class Row:
    """A cell in a table of numbers."""

    cell: str
    role: str
    costs: dict[str, Number | None]
    metrics: dict[str, Number | None]
    uncounted: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    path: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class ClaimView:
    judged: Judged
    number: Number | None
    formula: str
    expectation: str
    caution: str | None

    @property
    def claim(self) -> Claim:
        return self.judged.claim

    @property
    def ours(self) -> bool:
        """Whether it is a question of this survey rather than a sentence of the paper."""
        return self.claim.where == NOT_IN_PAPER

    @property
    def scale(self) -> str | None:
        """The scale that stands beside a verdict."""
        if self.judged.verdict is None:
            return None
        return f"{self.judged.scale} scale" + (", quick look" if self.judged.budget < 1 else "")

    @property
    def anchor(self) -> str:
        return "-".join(filter(None, (self.judged.claim.id, self.judged.bed)))


@dataclass(frozen=True)
class Counter:
    name: str
    count: int | None

    @property
    def fired(self) -> bool:
        return bool(self.count)


@dataclass(frozen=True)
class Provenance:
    commit: str | None
    dirty: bool
    when: str
    host: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, Number]
    latency: Number | None
    path: str


@dataclass(frozen=True)
class OnBed:
    """A technique on a bed: everything its page shows of it. Without a record most of it is empty."""

    bed: Bed
    scale: str
    path: str | None
    status: str
    reason: str | None
    default: str
    control: str
    rows: list[Row]
    metrics: list[str]
    comparisons: list[Comparison]
    charts: list[tuple[Chart, Chart]]
    pictures: list[tuple[str, Picture | None]]
    counters: list[Counter]
    provenance: Provenance | None
    seeds: Mapping[str, list[int]]
    spec_hash: str | None

    @property
    def row(self) -> Row | None:
        """The default cell's row."""
        return next((row for row in self.rows if row.cell == self.default), None)

    @property
    def at_equal(self) -> Comparison | None:
        return next((c for c in self.comparisons if c.axis == COST), None)


@dataclass(frozen=True)
class Place:
    """Where a survey lists a technique."""

    survey: Survey
    row: Section
    listed: Surveyed


@dataclass(frozen=True)
class TechniqueView:
    technique: Technique
    area: Area
    family: Family
    equations: list[str]
    claims: list[ClaimView]
    counts: dict[Status, int]
    beds: list[OnBed]
    places: list[Place]
    rivals: dict[str, list[Technique]]  # by field of the recipe

    @property
    def first(self) -> OnBed:
        return self.beds[0]


@dataclass(frozen=True)
class Shelf:
    """A family with its runnable techniques; what else the literature has is only counted."""

    family: Family
    techniques: list[Technique]
    counts: dict[Status, int]


class Atlas:
    """Catalog and results together, read once for one rendering."""

    def __init__(self, catalog: Catalog, results: Path) -> None:
        self.catalog = catalog
        self.results = results
        self.records = read_records(results)
        self.judged = judge_records(catalog, self.records)

    @cached_property
    def techniques(self) -> dict[str, TechniqueView]:
        return {id: self._technique(technique) for id, technique in self.catalog.techniques.items()}

    @cached_property
    def counts(self) -> dict[Status, int]:
        return tally(self.judged)

    @cached_property
    def verdicts(self) -> dict[str, dict[Status, int]]:
        """How many claims of each technique have each status."""
        ids = self.catalog.techniques
        return {id: tally(each for each in self.judged if each.technique == id) for id in ids}

    @cached_property
    def holding(self) -> dict[Status, int]:
        """Verdicts on uncertain numbers that stand when the false-discovery rate is held."""
        return tally(j for j in self.judged if j.adjusted is not None and j.adjusted <= DISCOVERY)

    @cached_property
    def beds(self) -> list[Bed]:
        """The beds, from the smallest to the largest."""
        return sorted(self.catalog.beds.values(), key=lambda bed: (math.prod(bed.shape), bed.name))

    @cached_property
    def quick(self) -> list[str]:
        """What was spared where results were made with less than the bed's budget or seeds; empty otherwise."""
        spared: dict[str, None] = {}
        for name, records in self.records.items():
            seeds = len(self.catalog.bed(name).seeds.sample)
            for cell in (cell for record in records.values() for cell in record["cells"].values()):
                if cell["budget"] < 1:
                    spared[f"trained with {percent(cell['budget'])} of the budget of {name}"] = None
                if len(cell["seeds"]["sample"]) < seeds:
                    spared[f"sampled with {len(cell['seeds']['sample'])} of its {seeds} seeds"] = None
        return list(spared)

    def blocks(self, bed: Bed) -> str:
        """What stands behind a quality on the bed: from its records, or as planned where there are none."""
        cells = [cell for record in self.records.get(bed.name, {}).values() for cell in record["cells"].values()]
        seeds = cells[0]["seeds"] if cells else {"train": bed.seeds.train, "sample": bed.seeds.sample}
        n = grouped(cells[0]["n"] if cells else bed.n)
        sampled, trained = plural(len(seeds["sample"]), "sampling seed"), plural(len(seeds["train"]), "training seed")
        return f"{n} samples for each of {sampled}, {trained}"

    def record(self, bed: str, id: str) -> Record | None:
        return self.records.get(bed, {}).get(id)

    def shelves(self, area: Area) -> list[Shelf]:
        """The families of an area."""
        return [self._shelf(area, family) for family in area.families]

    def _shelf(self, area: Area, family: Family) -> Shelf:
        known = [t for t in self.catalog.techniques.values() if (t.area, t.family) == (area.id, family.id)]
        counts = tally(each for each in self.judged if each.technique in {t.id for t in known})
        return Shelf(family, known, counts)

    def area_counts(self, area: Area) -> dict[Status, int]:
        return tally(each for each in self.judged if self.catalog.techniques[each.technique].area == area.id)

    def failed(self) -> list[Record]:
        return [r for bed in self.records.values() for r in bed.values() if r["status"] == "failed"]

    def combinations(self, bed: str) -> list[tuple[str, Row, Comparison | None]]:
        """Techniques composed by somebody, which belong to no page: path of the record, numbers, equal-cost control."""
        known = {BASELINE, *self.catalog.techniques}
        strangers = {id: record for id, record in self.records.get(bed, {}).items() if id not in known}
        paths = {id: quote(f"data/{bed}/{id}.json") for id in strangers}
        return [
            (paths[id], row, self._comparison(record, row.cell, COST, paths[id]))
            for id, record in strangers.items()
            for row in _rows(record, paths[id])
            if row.cell == record["default"]
        ]

    def claims(self) -> list[tuple[Technique, ClaimView]]:
        return [(view.technique, claim) for view in self.techniques.values() for claim in view.claims]

    def unverified(self, survey: str, section: str) -> list[str]:
        """Techniques that a row of a survey may list; nobody has checked."""
        return [
            technique.id
            for technique in self.catalog.techniques.values()
            for place in technique.surveys
            if (place.survey, place.section, place.status) == (survey, section, "unverified")
        ]

    def floor(self, bed: str) -> Record | None:
        path = self.results / bed / "floor.json"
        return read_json(path) if path.exists() else None

    def floor_number(self, bed: str) -> Number | None:
        """What a perfect sampler is expected to score at the bed's number of samples."""
        found, value = self.floor(bed), self.floor_line(bed, QUALITY)
        if found is None or value is None:
            return None
        n, path = found[QUALITY]["n"], f"data/{bed}/floor.json"
        return Number(value, -math.inf, math.inf, 1, n, METRICS[QUALITY].title, bed, "held-out images", path)

    def baseline_picture(self, bed: Bed) -> Picture | None:
        return self._picture(bed, BASELINE, "the baseline")

    def floor_line(self, bed: str, key: str) -> float | None:
        """What a perfect sampler is expected to score; known for FD at the bed's number of samples."""
        found = self.floor(bed)
        return None if found is None or key != QUALITY else found.get(key, {}).get("bias_at_n")

    def curve(self, bed: str, axis: str = COST, key: str = QUALITY) -> list[Datum]:
        """The baseline at each of its step counts, by rising cost; empty without its record."""
        record = self.record(bed, BASELINE)
        if record is None:
            return []
        data = [datum(record, cell, axis, key, BASELINE, "plain") for cell in record["cells"]]
        return sorted((d for d in data if d), key=lambda d: d.cost.value)

    def frontier(self, bed: str) -> tuple[Chart, Chart] | None:
        """Every technique's default cell against the baseline's curve, once for wide screens and once for narrow."""
        points = [
            replace(found, mark=at.mark if at else "same", href=f"t/{view.technique.id}.html", key=str(number))
            for number, view in enumerate(self.techniques.values(), 1)
            for on in view.beds
            if on.bed.name == bed and (record := self.record(bed, view.technique.id))
            and (found := datum(record, on.default, COST, QUALITY, view.technique.name, "same"))
            for at in [on.at_equal]
        ]  # fmt: skip
        return self._charts(bed, COST, points, (FRONTIER, NARROW), f"Quality against cost on {bed}")

    def baseline_chart(self, bed: str) -> tuple[Chart, Chart] | None:
        return self._charts(bed, COST, [], (WIDE, NARROW), f"The baseline on {bed}")

    def baseline_rows(self, bed: str) -> tuple[list[Row], list[str]]:
        """The points of the baseline's curve and the metrics they have."""
        record = self.record(bed, BASELINE)
        if record is None:
            return [], []
        rows = _rows(record, f"data/{bed}/{BASELINE}.json")
        return sorted(rows, key=lambda row: number_or_zero(row.costs[COST])), _metrics(record)

    def _charts(
        self, bed: str, axis: str, points: list[Datum], sizes: tuple[tuple[int, int], tuple[int, int]], heading: str
    ) -> tuple[Chart, Chart] | None:
        curve = self.curve(bed, axis)
        if not curve and not points:
            return None
        shown = [*curve, *points]
        unit, samples = shown[0].quality.unit, shown[0].quality.samples
        about = f"{title(QUALITY)} in {unit}, less is better, from {grouped(samples)} samples at a time. "
        if curve:
            first, last = curve[0], curve[-1]
            about += (
                f"The baseline goes from {first.quality.text} at {first.cost.text} {title(axis).lower()}"
                f" to {last.quality.text} at {last.cost.text}. "
            )
        about += plural(len(points), "point") + " drawn beside it." if points else ""
        titles = (f"{title(axis)} per sample (logarithmic)", f"{title(QUALITY)} (logarithmic, lower is better)")
        line = self.floor_line(bed, QUALITY)
        wide, narrow = (
            chart(curve, points, line, titles, (heading, about), size, keyed=size == NARROW) for size in sizes
        )
        return wide, narrow

    def _technique(self, technique: Technique) -> TechniqueView:
        area = next(a for a in self.catalog.taxonomy.areas if a.id == technique.area)
        judged = [each for each in self.judged if each.technique == technique.id]
        return TechniqueView(
            technique,
            area,
            next(f for f in area.families if f.id == technique.family),
            equations(technique.equation),
            [self._claim(each) for each in judged],
            tally(judged),
            [self._on(technique, self.catalog.bed(bed)) for bed in technique.beds],
            [
                Place(self.catalog.surveys[p.survey], self.catalog.surveys[p.survey].rows()[p.section], p)
                for p in technique.surveys
            ],
            self._rivals(technique),
        )

    def _claim(self, judged: Judged) -> ClaimView:
        number = statistic(judged, f"data/{judged.bed}/{judged.technique}.json")
        trained = self.catalog.technique(judged.technique).retrains
        alone = trained and len(judged.train) == 1 and number is not None and not number.exact
        caution = "One training seed: the interval holds sampling noise only, not that of training." if alone else None
        return ClaimView(judged, number, formula(judged), expectation(judged), caution)

    def _rivals(self, technique: Technique) -> dict[str, list[Technique]]:
        others = [t for t in self.catalog.techniques.values() if t.id not in {technique.id, *technique.builds_on}]
        found = {
            field: [t for t in others if field in t.changes and technique.id not in t.builds_on]
            for field in technique.changes
            if field in EXCLUSIVE
        }
        return {field: rivals for field, rivals in found.items() if rivals}

    def _on(self, technique: Technique, bed: Bed) -> OnBed:
        names = list(self.catalog.cells(technique.id, bed.name))
        record = self.record(bed.name, technique.id)
        default, control = names[0], names[min(1, len(names) - 1)]
        pictures = [(technique.name, self._picture(bed, technique.id, technique.name))]
        pictures.append(("Baseline", self._picture(bed, BASELINE, "the baseline")))
        if record is None:
            return OnBed(
                bed, SCALES[bed.name], None, "none", None, default, control, [], [], [], [], pictures,
                [Counter(name, None) for name in technique.counters], None, {}, None,
            )  # fmt: skip
        path = f"data/{bed.name}/{technique.id}.json"
        cell = record["cells"].get(default)
        axes = [COST, *(["macs"] if "macs" in technique.cost_axis else [])]
        compared = [self._comparison(record, default, axis, path) for axis in (COST, "macs")]
        return OnBed(
            bed, SCALES[bed.name], path, record["status"], record["reason"], default, control,
            _rows(record, path), _metrics(record), [c for c in compared if c],
            [found for axis in axes if (found := self._cells_chart(technique, record, bed.name, axis))],
            pictures,
            [Counter(name, cell["counters"].get(name, 0) if cell else None) for name in technique.counters],
            self._provenance(bed.name, technique.id), cell["seeds"] if cell else {}, record.get("spec_hash"),
        )  # fmt: skip

    def _cells_chart(self, technique: Technique, record: Record, bed: str, axis: str) -> tuple[Chart, Chart] | None:
        """The technique's cells against the baseline's curve; plain baseline cells lie on it and are left out."""
        points = [
            found
            for cell, content in record["cells"].items()
            if content["methods"] and not (axis == "macs" and content["cost"]["uncounted_ops"])
            and (found := datum(record, cell, axis, QUALITY, cell, "subject" if technique.id in content["methods"]
                                else "control"))
        ]  # fmt: skip
        return self._charts(bed, axis, points, (WIDE, NARROW), f"{technique.name}: quality against {title(axis)}")

    def _comparison(self, record: Record, cell: str, axis: str, path: str) -> Comparison | None:
        """The cell against the nearest point of the baseline's curve; None where they cannot be compared."""
        bed, base = record["bed"], self.record(record["bed"], BASELINE)
        own = quality(record, cell, QUALITY, path)
        if base is None or own is None or base["features"] != record["features"]:
            return None
        mine = record["cells"][cell]
        curve = {d.quality.cell: d for d in self.curve(bed, axis)}
        spent = cost(record, cell, axis, path)
        comparable = [name for name in curve if all(base["cells"][name][key] == mine[key] for key in EFFORT)]
        uncounted = axis == "macs" and mine["cost"]["uncounted_ops"]
        if spent is None or not comparable or uncounted or not spent.value:
            return None
        nearest = min(comparable, key=lambda name: abs(math.log(curve[name].cost.value / spent.value)))
        pair = [r["cells"][c]["metrics"][QUALITY]["values"] for r, c in ((record, cell), (base, nearest))]
        gap = paired(*pair) if len(pair[0]) > 1 else None
        difference = replace(
            own,
            value=gap.mean if gap else pair[0][0] - pair[1][0],
            low=gap.low if gap else -math.inf,
            high=gap.high if gap else math.inf,
            cell=f"{cell} {MINUS} {nearest}",
        )
        return Comparison(axis, spent, curve[nearest].cost, own, curve[nearest].quality, difference)

    def _picture(self, bed: Bed, id: str, name: str) -> Picture | None:
        path = self.results / bed.name / f"{id}.png"
        if not path.exists():
            return None
        width, height = struct.unpack(">II", path.read_bytes()[16:24])  # the header chunk of a PNG
        times = max(1, round(GRID / width))
        alt = f"Samples of {name} on {bed.name}: a column for each of {bed.classes} classes, a row for each seed"
        return Picture(f"data/{bed.name}/{id}.png", times * width, times * height, alt)

    def _provenance(self, bed: str, id: str) -> Provenance | None:
        file = self.results / bed / f"{id}.cost.json"
        if not file.exists():
            return None
        content, path = read_json(file), f"data/{bed}/{id}.cost.json"

        def timed(step: str, value: float) -> Number:
            return Number(value, -math.inf, math.inf, 1, None, "seconds", bed, step, path)

        ratio = content.get("latency_ratio")
        unit = "seconds of the technique over those of its control, measured in turns"
        latency = None
        if ratio is not None:
            batch = ratio.get("batch")
            latency = Number(ratio["mean"], ratio["low"], ratio["high"], ratio["n"], batch, unit, bed, id, path)
        return Provenance(
            content["commit"], content["dirty"], content["when"], content["host"], content["versions"],
            {step: timed(step, value) for step, value in content["seconds"].items()}, latency, path,
        )  # fmt: skip


def datum(record: Record, cell: str, axis: str, key: str, label: str, mark: Mark) -> Datum | None:
    """A cell as a point of a chart, None where the chart has no place for it."""
    path = f"data/{record['bed']}/{record['id']}.json"
    spent, found = cost(record, cell, axis, path), quality(record, cell, key, path)
    return Datum(spent, found, label, mark) if spent and found and spent.value > 0 else None


def number_or_zero(number: Number | None) -> float:
    return number.value if number else 0.0


def equations(latex: str) -> list[str]:
    """The formulas of a line of LaTeX as MathML, one for each part that a wide space sets off."""
    parts = re.split(r"\\q?quad", latex)
    whole = all(
        len(re.findall(left, part)) == len(re.findall(right, part)) for part in parts for left, right in BRACKETS
    )
    return [mathml(part.strip()) for part in (parts if whole else [latex])]


def mathml(latex: str) -> str:
    """LaTeX as MathML, displayed as a block; the library's own text output does not escape what stands in \\text."""
    math = convert_to_element(latex, display="block")
    for node in math.iter():
        node.text = unescape(node.text).replace("~", SIMILAR) if node.text else None
    return tostring(math, encoding="unicode", short_empty_elements=False)


def _rows(record: Record, path: str) -> list[Row]:
    roles = {record["control"]: "control", record["default"]: "default"}
    return [
        Row(
            name,
            roles.get(name, ""),
            {key: cost(record, name, key, path) for key in COSTS},
            {key: quality(record, name, key, path) for key in _metrics(record)},
            tuple(cell["cost"]["uncounted_ops"]),
        )
        for name, cell in sorted(
            record["cells"].items(),
            key=lambda item: (
                item[0] != record["default"],
                item[0] != record["control"],
                item[1]["cost"][COST],
                item[0],
            ),
        )
    ]


def _metrics(record: Record) -> list[str]:
    """The metrics that any cell of the record has, in the order in which they are explained."""
    present = {key for cell in record["cells"].values() for key in cell["metrics"]}
    return [key for key in METRICS if key in present]
