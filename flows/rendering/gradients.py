"""Which noise levels a training looks at and gets its noise from, as `flows.gradients` measured: a drawing for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from catalog import Bed, Technique
from flows.gradients import FAMILIES, FILE, SHARES, made_from, specs
from flows.rendering.measured import BASELINE, Measured
from flows.rendering.numbers import MINUS, Number, Record, quality
from flows.rendering.quantities import main_metric
from methods.measure.statistics import t_interval

STEP, HEIGHT = 22, 96
"""Width of a noise level in a drawing, and height of the largest share of the bed."""
UNITS = {
    "samples": "share of samples", "loss": "share of the loss", "variance": "share of the gradient's variance",
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """A technique, None for the baseline, with its shares of every noise level; `stale` says why they are old."""

    technique: Technique | None
    id: str
    quality: Number | None
    shares: dict[str, list[Number]]
    heights: dict[str, list[float]]
    stale: str | None

    def outline(self, key: str) -> str:
        """Steps over the noise levels: the points of a polyline."""
        drawn = [(i * STEP, HEIGHT - height) for i, height in enumerate(self.heights[key])]
        return " ".join(f"{x:g},{y:g} {x + STEP:g},{y:g}" for x, y in drawn)

    @property
    def bars(self) -> list[tuple[int, float]]:
        """Left and height of every bar."""
        return [(i * STEP, height) for i, height in enumerate(self.heights["variance"])]


@dataclass(frozen=True)
class Levels:
    """The drawings of a bed, in the order of the catalog, with the baseline first."""

    bed: Bed
    metric: str
    levels: list[str]
    ticks: list[tuple[int, str]]
    seeds: int
    panels: list[Panel]
    path: str

    step: int = STEP
    height: int = HEIGHT

    @property
    def width(self) -> int:
        return self.step * len(self.levels)

    def of(self, family: str) -> list[Panel]:
        """The baseline and the members of a family; empty where it has none."""
        found = [panel for panel in self.panels if panel.technique is None or panel.technique.family == family]
        return found if len(found) > 1 else []


def views(measured: Measured) -> list[Levels]:
    """The drawings of every bed that has them."""
    return [view for bed in measured.catalog.beds.values() if (view := on_bed(measured, bed))]


def on_bed(measured: Measured, bed: Bed) -> Levels | None:
    """The drawings of a bed, None where nothing was measured."""
    record, path = measured.file(bed.name, FILE), f"data/{bed.name}/{FILE}"
    if record is None or BASELINE not in record["cells"]:
        return None
    now = {id: made_from(spec, record["data"]) for id, spec in specs(measured.catalog, bed.name)}
    known = {BASELINE: None} | {id: t for id, t in measured.catalog.techniques.items() if t.family in FAMILIES}
    most = max(number.value for id in record["cells"] for row in numbers(record, id, path).values() for number in row)
    ticks = [(STEP * (i + 1), signed(edge)) for i, edge in enumerate(record["edges"]) if i % 2 == 0]
    panels = []
    for id, technique in known.items():
        if cell := record["cells"].get(id):
            shares = numbers(record, id, path)
            heights = {key: [round(HEIGHT * n.value / most, 1) for n in row] for key, row in shares.items()}
            stale = None if now.get(id) == cell["fingerprint"] else "code, parameters or test bed have changed since"
            panels.append(Panel(technique, id, of_defaults(measured, bed, id), shares, heights, stale))
    seeds = len(record["cells"][BASELINE]["seeds"])
    return Levels(bed, main_metric(bed), names(record["edges"]), ticks, seeds, panels, path)


def of_defaults(measured: Measured, bed: Bed, id: str) -> Number | None:
    """Quality of the technique at its defaults."""
    record = measured.record(bed.name, id)
    return quality(record, record["default"], main_metric(bed), f"data/{bed.name}/{id}.json") if record else None


def numbers(record: Record, id: str, path: str) -> dict[str, list[Number]]:
    """The shares of a cell, with intervals over training seeds."""
    found: dict[str, list[Number]] = {}
    for key in SHARES:
        by_level = zip(*record["cells"][id]["shares"][key], strict=True)
        intervals = [t_interval(values) for values in by_level]
        found[key] = [Number(i.mean, i.low, i.high, i.n, None, UNITS[key], record["bed"], id, path) for i in intervals]
    return found


def names(edges: Sequence[float]) -> list[str]:
    """The noise levels in words."""
    bounds = [signed(edge) for edge in edges]
    return [f"below {bounds[0]}", *(f"{low} to {high}" for low, high in pairwise(bounds)), f"above {bounds[-1]}"]


def signed(edge: float) -> str:
    """A bound with a true minus."""
    return f"{edge:g}".replace("-", MINUS)
