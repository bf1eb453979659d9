"""The page of a family: its techniques side by side on each bed, and where they lie beside the baseline's curve."""

from collections.abc import Sequence
from dataclasses import dataclass

from catalog import Area, Bed, Family
from flows.rendering.charts import Datum, View
from flows.rendering.claims import Counts
from flows.rendering.comparison import at_equal
from flows.rendering.measured import COST, Measured, datum, shares_flow
from flows.rendering.technique import OnBed, TechniqueView

Member = tuple[TechniqueView, OnBed]
COMPARED = 5
"""How many techniques stand side by side at most."""


@dataclass(frozen=True)
class Together:
    """The measured members of a family on a bed."""

    bed: Bed
    members: list[Member]
    views: list[View]

    @property
    def compared(self) -> list[str]:
        """The first few, for the page that compares; empty where there is only one."""
        ids = [view.technique.id for view, _ in self.members[:COMPARED]]
        return ids if len(ids) > 1 else []


@dataclass(frozen=True)
class FamilyView:
    """A family of the taxonomy; what else the literature has of it is only counted.

    `unmeasured` are its techniques that no bed has a number of.
    """

    area: Area
    family: Family
    techniques: list[TechniqueView]
    counts: Counts
    beds: list[Together]

    @property
    def path(self) -> str:
        return f"family/{self.area.id}-{self.family.id}.html"

    @property
    def unmeasured(self) -> list[TechniqueView]:
        return [view for view in self.techniques if not any(on.row for on in view.beds)]


def view(measured: Measured, area: Area, family: Family, techniques: list[TechniqueView]) -> FamilyView:
    """Everything the page of a family shows."""
    counts = Counts.of(each for view in techniques for each in measured.judged_of[view.technique.id])
    shown = [(view, on) for view in techniques for on in view.beds if on.row]
    beds = [
        together(measured, bed, members, family.title)
        for bed in measured.catalog.beds.values()
        if (members := [(view, on) for view, on in shown if on.bed is bed])
    ]
    return FamilyView(area, family, techniques, counts, sorted(beds, key=lambda found: -len(found.members)))


def together(measured: Measured, bed: Bed, members: list[Member], title: str) -> Together:
    """Members on a bed, by MACs too where one is meant to save them."""
    axes = [COST, *(["macs"] if bed.network and any("macs" in v.technique.cost_axis for v, _ in members) else [])]
    views = measured.views(bed, axes, lambda axis, key: points(measured, members, axis, key) or None, title)
    return Together(bed, members, views)


def points(
    measured: Measured, members: Sequence[Member], axis: str, key: str, leading: Sequence[str] | None = None
) -> list[Datum]:
    """Each member at its defaults, marked by its difference to the control given as much of the cost.

    `leading` are the ids that are named where room is scarce, None for all.
    """
    found = []
    for view, on in members:
        known, record = view.technique, measured.record(on.bed.name, view.technique.id)
        if record is None or not on.path or on.default not in record["cells"]:
            continue
        if key == "fidelity" and not shares_flow(measured.catalog, record["cells"][on.default]["methods"]):
            continue
        gap = at_equal(record, axis, key, on.path)
        mark, leads = gap.mark if gap else "same", leading is None or known.id in leading
        placed = datum(record, on.default, axis, key, known.name, mark, f"t/{known.id}.html", leads)
        found += [placed] if placed else []
    return found
