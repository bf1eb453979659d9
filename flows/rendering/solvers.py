"""All solvers on all grids, as `flows.solvers` measured them: a chart and a table for each grid."""

from collections.abc import Sequence
from dataclasses import dataclass

from catalog import Bed, Technique
from flows.rendering.charts import BOTTOM, LEFT, LINE, TOP, Box, Datum, Placed, Tick, place, scale
from flows.rendering.measured import COST, NARROW, WIDE, Measured
from flows.rendering.numbers import Number, Record, cost, quality
from flows.rendering.quantities import title
from flows.solvers import BED

FIDELITY = "fidelity"
COLUMNS = (4, 5, 6, 8, 10, 16, 20, 32, 64)
"""Evaluations that the tables show; a solver that cannot spend just as many is shown with fewer."""
NAMES, KEYS = 150, 28
"""Room for labels to the right of the lines: names, or on narrow screens keys."""
HUES = 5
"""Colours of lines, after which they begin again with another dash."""
DASHES = ("none", "6 4", "2 3")


@dataclass(frozen=True)
class Line:
    """A solver's errors in a drawing, from few evaluations to many; its label stands beside the last one."""

    points: list[Placed]
    label: str
    hue: int
    dashes: str
    tx: float
    ty: float

    @property
    def path(self) -> str:
        """The points of a polyline."""
        return " ".join(f"{p.x:g},{p.y:g}" for p in self.points)


@dataclass(frozen=True)
class Plot:
    """A drawing of several lines, ready for the template."""

    width: int
    height: int
    frame: Box
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


@dataclass(frozen=True)
class Row:
    """A solver with its error at each of the columns, None where it cannot spend so little."""

    key: int
    name: str
    technique: Technique
    errors: list[Number | None]


@dataclass(frozen=True)
class OnGrid:
    """The comparison on one grid; `technique` is None for the baseline's."""

    technique: Technique | None
    wide: Plot
    narrow: Plot
    rows: list[Row]
    best: list[float]
    """The least error of each column."""


@dataclass(frozen=True)
class Comparison:
    """Everything the page shows."""

    bed: Bed
    reference: str
    blocks: int
    n: int
    unit: str
    x_title: str
    y_title: str
    grids: list[OnGrid]


def view(measured: Measured) -> Comparison | None:
    """The comparison, None where it was not made yet."""
    record = measured.file(BED, "solvers.json")
    if record is None:
        return None
    grids = dict.fromkeys(cell["grid"] for cell in record["cells"].values())
    some = next(iter(record["cells"].values()))
    return Comparison(
        measured.catalog.bed(BED), record["reference"], len(some["seeds"]["sample"]), some["n"],
        some["metrics"][FIDELITY]["unit"], f"{title(COST)} per sample (logarithmic)", "Error (logarithmic)",
        [on_grid(measured, record, grid) for grid in grids],
    )  # fmt: skip


def on_grid(measured: Measured, record: Record, grid: str) -> OnGrid:
    """The comparison on a grid."""
    techniques, path = measured.catalog.techniques, f"data/{BED}/solvers.json"
    curves: dict[str, list[Datum]] = {}
    for name, cell in record["cells"].items():
        spent, error = cost(record, name, COST, path), quality(record, name, FIDELITY, path)
        if cell["grid"] == grid and spent and error:
            curves.setdefault(cell["solver"], []).append(Datum(spent, error, cell["solver"], "plain"))
    curves = {solver: sorted(data, key=lambda datum: datum.cost.value) for solver, data in curves.items()}
    rows = [
        Row(key, solver, techniques[solver.partition("(")[0]], [at_most(data, column) for column in COLUMNS])
        for key, (solver, data) in enumerate(curves.items(), 1)
    ]
    best = [min(e.value for e in column if e) for column in zip(*(row.errors for row in rows), strict=True)]
    return OnGrid(techniques.get(grid), plot(curves, WIDE, False), plot(curves, NARROW, True), rows, best)


def at_most(data: Sequence[Datum], evaluations: int) -> Number | None:
    """The error with as many evaluations, or with the next fewer."""
    return next((datum.quality for datum in reversed(data) if datum.cost.value <= evaluations), None)


def plot(curves: dict[str, list[Datum]], size: tuple[int, int], keyed: bool) -> Plot:
    """Lay out the lines; labels keep apart from each other."""
    (width, height), room = size, KEYS if keyed else NAMES
    left, top, right, bottom = LEFT, TOP, width - room, height - BOTTOM
    data = [datum for curve in curves.values() for datum in curve]
    x, y = scale([d.cost.value for d in data], left + 8, right - 8), scale([d.quality.value for d in data], bottom, top)
    drawn = [[place(datum, x, y) for datum in curve] for curve in curves.values()]
    heights = apart([points[-1].y for points in drawn], top, bottom)
    lines = [
        Line(points, str(i + 1) if keyed else solver, i % HUES + 1, DASHES[i // HUES % len(DASHES)], right + 6, height)
        for i, (solver, points, height) in enumerate(zip(curves, drawn, heights, strict=True))
    ]
    return Plot(width, height, (left, top, right, bottom), x.ticks(), y.ticks(), lines)


def apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights near the wanted ones, a line of text apart, and within the drawing if there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    found = dict.fromkeys(order, 0.0)
    above = top - LINE
    for i in order:
        above = found[i] = max(wanted[i], above + LINE)
    below = bottom + LINE
    for i in reversed(order):
        below = found[i] = min(found[i], below - LINE)
    return [round(found[i], 2) for i in range(len(wanted))]
