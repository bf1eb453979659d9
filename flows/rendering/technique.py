"""The page of a technique: what its paper says, what was measured on each bed, and what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from catalog import Area, Bed, Catalog, Family, Section, Survey, Surveyed, Technique, cell_name
from catalog.models import Sampling, Training
from flows.records import share_of
from flows.rendering import claims, costs
from flows.rendering.beds import Row, rows
from flows.rendering.charts import Datum, View
from flows.rendering.claims import ClaimView, Counts, Withdrawn
from flows.rendering.comparison import Difference, Opponent, Score, against, at_equal, compare, metrics, scores
from flows.rendering.costs import PaysBack, Provenance, Spending
from flows.rendering.equations import equations
from flows.rendering.measured import ADAPTATION, BASELINE, COST, Measured, Picture, datum, shares_flow
from flows.rendering.numbers import Number, Record, excess, quality
from flows.rendering.quantities import counted, main_metric
from flows.rendering.training import Along, along
from flows.rendering.weak import weak

EXCLUSIVE = {*get_args(Training), *get_args(Sampling)}
"""Fields of the recipe that one technique at a time may edit."""


@dataclass(frozen=True)
class Counter:
    name: str
    count: int | None

    @property
    def fired(self) -> bool:
        return bool(self.count)


@dataclass(frozen=True)
class OnBed:
    """A technique on a bed: everything its page shows of it. Without a record most of it is empty.

    `gap` is the difference to the control by the bed's main metric, `at_equal` that to the control at equal cost,
    `faith` the latter in fidelity, at equal evaluations.
    """

    bed: Bed
    counts: Counts
    metric: str
    path: str | None
    status: str
    reason: str | None
    default: str
    control: str
    counters: list[Counter]
    pictures: list[tuple[str, Picture | None]]
    rows: list[Row]
    metrics: list[str]
    charts: list[View]
    opponents: list[Opponent]
    gap: Difference | None
    excess: Number | None
    at_equal: dict[str, Difference | None]
    faith: Difference | None
    scores: list[Score]
    spending: list[Spending]
    uncounted: dict[str, list[str]]
    pays_back: PaysBack | None
    provenance: Provenance | None
    along: Along | None
    seeds: Mapping[str, list[int]]
    stale: dict[str, str]
    spec_hash: str | None
    weak: str | None = None
    """Why qualities of the bed are to be read with care."""
    codec: Number | None = None
    """What its space scores by itself; None for one that diffuses pixels."""

    @property
    def row(self) -> Row | None:
        """The subject's row."""
        return next((row for row in self.rows if row.cell == self.default), None)

    @property
    def counted(self) -> list[str]:
        """The costs of its table of all cells."""
        return counted(self.bed)

    @property
    def outdated(self) -> tuple[str, list[str]] | None:
        """Why its numbers are stale, the subject's before others', and the other cells that are."""
        if not self.stale:
            return None
        first = self.default if self.default in self.stale else next(iter(self.stale))
        return self.stale[first], [cell for cell in self.stale if cell != first]

    @property
    def faithful(self) -> bool:
        """Whether subject and some opponent have a fidelity to compare."""
        return any("fidelity" in opponent.differences for opponent in self.opponents)

    @property
    def plain(self) -> bool:
        """Whether the control is the baseline itself."""
        return self.control.partition("@")[0] == BASELINE


@dataclass(frozen=True)
class Place:
    """Where a survey lists a technique."""

    survey: Survey
    row: Section
    listed: Surveyed


@dataclass(frozen=True)
class TechniqueView:
    """Everything the page of a technique shows.

    `rivals` edit a field of the recipe that this one edits too, by that field; `partners` were run together with it.
    """

    technique: Technique
    area: Area
    family: Family
    equations: list[str]
    claims: list[ClaimView]
    withdrawn: list[Withdrawn]
    counts: Counts
    beds: list[OnBed]
    places: list[Place]
    rivals: dict[str, list[Technique]]
    partners: list[Technique]

    @property
    def asked(self) -> list[list[ClaimView]]:
        """The claims, those of one claim on several beds together."""
        grouped: dict[str, list[ClaimView]] = {}
        for each in self.claims:
            grouped.setdefault(each.claim.id, []).append(each)
        return list(grouped.values())

    @property
    def recorded(self) -> list[OnBed]:
        """The beds that have a record, failed ones included."""
        return [on for on in self.beds if on.status != "none"]


def view(measured: Measured, technique: Technique, withdrawn: list[Withdrawn]) -> TechniqueView:
    """Everything the page of a technique shows."""
    catalog = measured.catalog
    area = next(a for a in catalog.taxonomy.areas if a.id == technique.area)
    judged = measured.judged_of[technique.id]
    return TechniqueView(
        technique,
        area,
        next(f for f in area.families if f.id == technique.family),
        equations(technique.equation),
        [claims.view(measured, each) for each in judged],
        [each for each in withdrawn if each.technique == technique.id],
        Counts.of(judged),
        [on_bed(measured, technique, catalog.bed(bed)) for bed in technique.beds],
        [Place(catalog.surveys[p.survey], catalog.surveys[p.survey].rows()[p.section], p) for p in technique.surveys],
        rivals(measured, technique),
        partners(measured, technique),
    )


def rivals(measured: Measured, technique: Technique) -> dict[str, list[Technique]]:
    """Techniques that edit an exclusive field of the recipe which this one edits too."""
    others = [t for t in measured.catalog.techniques.values() if t.id not in {technique.id, *technique.builds_on}]
    found = {
        field: [t for t in others if field in t.changes and technique.id not in t.builds_on]
        for field in technique.changes
        if field in EXCLUSIVE
    }
    return {field: rivals for field, rivals in found.items() if rivals}


def partners(measured: Measured, technique: Technique) -> list[Technique]:
    """Techniques that some cell of a record runs together with this one, those that it needs left out."""
    found = measured.together.get(technique.id, set()) - {technique.id, *technique.builds_on}
    return [known for id, known in measured.catalog.techniques.items() if id in found]


def on_bed(measured: Measured, technique: Technique, bed: Bed) -> OnBed:
    """A technique on a bed, with a record or without."""
    names = list(measured.catalog.cells(technique.id, bed.name))
    counts = Counts.of(each for each in measured.judged_of[technique.id] if each.bed == bed.name)
    blank = OnBed(
        bed, counts, main_metric(bed), None, "none", None, names[0], names[min(1, len(names) - 1)],
        [Counter(name, None) for name in technique.counters],
        [
            (technique.name, measured.picture(bed, technique.id, technique.name)),
            *of_control(measured, technique, bed),
            ("Baseline", measured.picture(bed, BASELINE, "the baseline")),
        ],
        [], [], [], [], None, None, {}, None, [], [], {}, None, None, None, {}, {}, None,
    )  # fmt: skip
    record = measured.record(bed.name, technique.id)
    return blank if record is None else filled(blank, measured, technique, record)


def of_control(measured: Measured, technique: Technique, bed: Bed) -> list[tuple[str, Picture | None]]:
    """The samples of the control, where that is another technique at its defaults and has some."""
    known = measured.catalog
    control = cell_name(technique.control, known, bed.name)
    return [
        (f"Its control, {other.name}", picture)
        for other in known.techniques.values()
        if other.id in technique.builds_on
        and cell_name(other.default, known, bed.name) == control
        and (picture := measured.picture(bed, other.id, other.name))
    ]


def filled(blank: OnBed, measured: Measured, technique: Technique, record: Record) -> OnBed:
    """The same with everything its record holds."""
    bed, metric, path = blank.bed, blank.metric, f"data/{blank.bed.name}/{technique.id}.json"
    default, control = record["default"], record["control"]
    cell, machine = record["cells"].get(default), measured.file(bed.name, f"{technique.id}.cost.json")
    gap = compare(record, default, control, metric, path)
    axes = [COST, *(["macs"] if "macs" in technique.cost_axis else [])]
    beside = () if technique.family == ADAPTATION else ("fidelity",)
    return replace(
        blank,
        path=path,
        status=record["status"],
        reason=record["reason"],
        default=default,
        control=control,
        counters=[Counter(name, cell["counters"].get(name, 0) if cell else None) for name in technique.counters],
        rows=rows(record, path),
        metrics=metrics(record),
        charts=measured.views(
            bed,
            axes,
            lambda axis, key: cell_points(measured.catalog, technique, record, axis, key) or None,
            technique.name,
        ),
        opponents=against(record, metric, path, beside),
        gap=gap,
        excess=excess(quality(record, default, metric, path), measured.floor_number(bed.name, metric)),
        codec=measured.codec(bed, technique.id, metric),
        at_equal={axis: at_equal(record, axis, metric, path) for axis in ("evaluations", "macs")},
        faith=at_equal(record, COST, "fidelity", path) if beside else None,
        scores=scores(record, path, ignored=() if beside else ("fidelity",)),
        spending=costs.vector(record, path) if cell and bed.network else [],
        uncounted=costs.uncounted(record),
        pays_back=costs.pays_back(record, path, technique.cost_axis),
        provenance=costs.provenance(machine, bed.name, technique.id) if machine else None,
        along=along(record, bed, path),
        seeds=cell["seeds"] if cell else {},
        stale=dict(measured.stale.get(bed.name, {}).get(technique.id, {})),
        spec_hash=record["spec_hash"],
        weak=weak(measured, bed),
    )


def cell_points(catalog: Catalog, technique: Technique, record: Record, axis: str, key: str) -> list[Datum]:
    """The technique's cells and its controls'; plain baseline cells lie on the curve and are left out.

    Fidelity is to another network where one of a cell's techniques retrains, and has no place beside the baseline's.
    """
    return [
        found
        for cell, content in record["cells"].items()
        if content["methods"] and share_of(content) == 1
        and (key != "fidelity" or shares_flow(catalog, content["methods"]))
        and (found := datum(record, cell, axis, key, cell, "subject" if technique.id in content["methods"]
                            else "control"))
    ]  # fmt: skip
