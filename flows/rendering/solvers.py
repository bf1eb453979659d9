"""All solvers on all grids, as `flows.solvers` measured them: a chart and a table for each grid."""

from collections.abc import Sequence
from dataclasses import dataclass

from catalog import Bed, Technique
from flows.rendering.charts import Datum
from flows.rendering.lines import Plot, plot
from flows.rendering.measured import COST, NARROW, WIDE, Measured
from flows.rendering.numbers import Number, Record, cost, quality
from flows.rendering.quantities import title
from flows.solvers import BED

FIDELITY = "fidelity"
COLUMNS = (4, 5, 6, 8, 10, 16, 20, 32, 64)
"""Evaluations that the tables show; a solver that cannot spend just as many is shown with fewer."""


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
