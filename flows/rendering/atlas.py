"""What all pages share: techniques, beds and claims of the whole site; templates only lay it out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from catalog import Area, Bed, Technique
from flows import composition
from flows.ledger import FALSE_DISCOVERIES
from flows.rendering import beds, family, frontier, gradients, spent, technique
from flows.rendering import composition as pairs
from flows.rendering.beds import BedView, Row
from flows.rendering.charts import MANY, Chart
from flows.rendering.claims import ClaimView, Counts, Withdrawn, withdrawn
from flows.rendering.comparison import Difference, at_equal
from flows.rendering.family import FamilyView, Member
from flows.rendering.frontier import AXES, Entrant, Place, standings
from flows.rendering.measured import BASELINE, COST, NARROW, Measured
from flows.rendering.numbers import Record, percent
from flows.rendering.quantities import main_metric
from flows.rendering.spent import Spent
from flows.rendering.technique import OnBed, TechniqueView

FRONTIER = (1150, 600)
SPENT_EACH = ("evaluations", "macs", "latency")
"""The costs of a sample, by which the first page says what is not beaten."""


@dataclass(frozen=True)
class Testing:
    """How many claims were tested, how many of them on uncertain numbers, and what the correction for many did."""

    claims: int
    tested: int
    uncertain: int
    held_back: int
    stale: int
    rate: float = FALSE_DISCOVERIES


class Atlas(Measured):
    """Catalog and results together, read once for one rendering."""

    @cached_property
    def techniques(self) -> dict[str, TechniqueView]:
        return {id: technique.view(self, known, self.withdrawn) for id, known in self.catalog.techniques.items()}

    @cached_property
    def beds(self) -> dict[str, BedView]:
        """The beds, from the smallest to the largest."""
        known = sorted(self.catalog.beds.values(), key=lambda bed: (math.prod(bed.shape), bed.name))
        return {bed.name: beds.view(self, bed) for bed in known}

    @cached_property
    def withdrawn(self) -> list[Withdrawn]:
        return withdrawn(self)

    @cached_property
    def counts(self) -> Counts:
        return Counts.of(self.judged)

    @cached_property
    def families(self) -> dict[str, list[FamilyView]]:
        """The families of each area."""
        views = self.techniques.values()
        return {
            area.id: [
                family.view(self, area, known, [v for v in views if (v.area, v.family) == (area, known)])
                for known in area.families
            ]
            for area in self.catalog.taxonomy.areas
        }

    @cached_property
    def partners(self) -> dict[str, pairs.Partner]:
        """By technique: whom it goes with, on the bed where every pair was composed; empty where none was."""
        found = (pairs.whole(self, bed) for bed in self.catalog.beds.values())
        return next(({each.technique.id: each for each in whole.partners} for whole in found if whole), {})

    @cached_property
    def levels(self) -> list[gradients.Levels]:
        """Which noise levels trainings get their noise from, on every bed where that was measured."""
        return gradients.views(self)

    @cached_property
    def testing(self) -> Testing:
        """What the claims page says of the ledger as a whole."""
        reached = [each for each in self.judged if each.verdict]
        adjusted = [each for each in reached if each.adjusted is not None]
        back = [j for j in adjusted if j.verdict and j.verdict.p <= FALSE_DISCOVERIES < (j.adjusted or 0)]
        stale = sum(each.stale is not None for each in reached)
        return Testing(len(self.judged), len(reached), len(adjusted), len(back), stale)

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

    @cached_property
    def spent(self) -> list[Spent]:
        """Where the time of each bed's survey went, of those that noted it."""
        found = [(view.bed, self.file(view.bed.name, "survey.cost.json")) for view in self.beds.values()]
        return [spent.view(bed, content, self.timed(bed.name)) for bed, content in found if content]

    def timed(self, bed: str) -> dict[str, str]:
        """When each record of a bed was put beside its seconds, empty for one that never was."""
        return {id: (self.file(bed, f"{id}.cost.json") or {}).get("when", "") for id in self.records.get(bed, {})}

    def newest(self, count: int = 6) -> list[tuple[TechniqueView, OnBed]]:
        """What was measured last."""
        found = [(view, on) for view in self.techniques.values() for on in view.beds if on.provenance]
        return sorted(found, key=lambda each: each[1].provenance.when if each[1].provenance else "", reverse=True)[
            :count
        ]

    def area_counts(self, area: Area) -> Counts:
        return Counts.of(each for each in self.judged if self.catalog.techniques[each.technique].area == area.id)

    def failed(self) -> list[Record]:
        return [r for bed in self.records.values() for r in bed.values() if r["status"] == "failed"]

    def few(self, bed: Bed) -> bool:
        """Whether a table of all its techniques is short enough to lie open."""
        return len(self.on(bed)) <= MANY

    def on(self, bed: Bed) -> list[Member]:
        """The techniques that run on a bed."""
        return [(view, on) for view in self.techniques.values() for on in view.beds if on.bed.name == bed.name]

    def entrants(self, bed: Bed) -> list[Entrant]:
        """The rows of a bed's frontier."""
        return self._entrants[bed.name]

    @cached_property
    def _entrants(self) -> dict[str, list[Entrant]]:
        return {name: frontier.entrants(self, bed) for name, bed in self.catalog.beds.items()}

    def unbeaten(self, bed: Bed) -> dict[str, list[str]]:
        """The techniques that nothing beats by the bed's main metric, each with the costs at which that holds."""
        free = {
            row.id or "": [axis for axis, place in places.items() if place.standing in ("front", "tied")]
            for row, places in self.standings(bed, SPENT_EACH)
        }
        return {id: axes for id, axes in free.items() if axes}

    def standings(self, bed: Bed, axes: Sequence[str] = AXES) -> list[tuple[Entrant, dict[str, Place]]]:
        """Every technique of a bed with where it stands by the bed's main metric, for each cost it has."""
        rows = self.entrants(bed)
        by_axis = {axis: self.ranked(bed, main_metric(bed), axis) for axis in axes}
        found = {axis: {id(place.entrant): place for place in places} for axis, places in by_axis.items()}
        return [
            (row, {axis: found[axis][id(row)] for axis in axes if id(row) in found[axis]}) for row in rows if row.id
        ]

    def ranked(self, bed: Bed, key: str, axis: str) -> list[Place]:
        """Where every row of a bed's frontier stands by a metric and a cost."""
        asked = (bed.name, key, axis)
        if asked not in self._ranked:
            self._ranked[asked] = standings(self.entrants(bed), key, axis)
        return self._ranked[asked]

    @cached_property
    def _ranked(self) -> dict[tuple[str, str, str], list[Place]]:
        return {}

    def frontier(self, bed: Bed) -> tuple[Chart, Chart] | None:
        """Every technique's default cell against the baseline's curve, once for wide screens and once for narrow."""
        points = family.points(self, self.on(bed), COST, main_metric(bed), list(self.unbeaten(bed)))
        return self.charts(bed, COST, points, f"Quality against cost on {bed.name}", sizes=(FRONTIER, NARROW))

    def combinations(self, bed: Bed) -> list[tuple[str, Row, Difference | None]]:
        """Techniques composed by somebody, which belong to no page: path of the record, numbers, equal-cost control."""
        known = {BASELINE, *self.catalog.techniques}
        strangers = {id: record for id, record in self.records.get(bed.name, {}).items() if id not in known}
        for id in strangers.keys() & (composition.names(self.catalog, bed.name) if strangers else set()):
            del strangers[id]  # which has a page
        paths = {id: quote(f"data/{bed.name}/{id}.json") for id in strangers}
        return [
            (paths[id], row, at_equal(record, COST, main_metric(bed), paths[id]))
            for id, record in strangers.items()
            for row in beds.rows(record, paths[id])
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
