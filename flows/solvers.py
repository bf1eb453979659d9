"""Every deterministic solver of the catalog on every grid: how far from the end of the flow after how many evaluations.

    python -m flows.solvers

In the plane, where the denoiser is exact, so that an error is the solver's and the grid's own. Errors are distances to
the end points of `flows.score.many_steps`, from the same noise: the fidelity of a record, without its other metrics.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyclopts
from torch import Tensor

import catalog
from catalog import Bed, Catalog, Cell, Technique, cell_name
from flows.cell import BLOCK, Spec, Workplace, block_labels, deployed, source
from flows.home import RESULTS
from flows.records import SCHEMA, write_json
from flows.score import identity, many_steps, metric
from flows.study import main, spec_hash
from methods.core import run
from methods.core.sampling import Solver
from methods.measure.quality import paired_fidelity
from methods.measure.reference import Scores

BED = "mixture"
STEPS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 20, 24, 31, 32, 48, 63, 64)
LEAST, MOST = 4, 64
"""Evaluations outside of these are left out: a step may take two, and a first step one more."""


@dataclass(frozen=True)
class Pairing:
    """A solver, a grid and a number of steps, by the names under which they are compared."""

    solver: str
    grid: str
    spec: Spec


def solvers(known: Catalog, bed: Bed) -> Iterator[Cell]:
    """The deterministic solvers, each at every order that may be chosen."""
    for technique in alone(known, bed, "sampler"):
        sampler = technique.call({}, bed.name).edits["sampler"]
        if isinstance(sampler, Solver) and sampler.order > 0:
            for params in orders(technique):
                yield known.canonical(Cell(methods={technique.id: params}), bed.name)


def orders(technique: Technique) -> list[dict[str, int | float]]:
    """The parameters to compare: every order, if there are several."""
    order = technique.parameters.get("order")
    if order is None or order.min is None or order.max is None:
        return [{}]
    return [{"order": value} for value in range(int(order.min), int(order.max) + 1)]


def grids(known: Catalog, bed: Bed) -> Iterator[Cell]:
    """The baseline's grid, then the others."""
    yield Cell(methods={})
    for technique in alone(known, bed, "grid"):
        yield Cell(methods={technique.id: {}})


def alone(known: Catalog, bed: Bed, slot: str) -> Iterator[Technique]:
    """Techniques of the bed that change this slot, and but for the number of steps no other."""
    for technique in known.techniques.values():
        if bed.name in technique.beds and slot in technique.changes and {*technique.changes} <= {slot, "steps"}:
            yield technique


def pairings(known: Catalog, bed: Bed) -> Iterator[Pairing]:
    """All there is to compare."""
    for grid in grids(known, bed):
        for solver in solvers(known, bed):
            one, other = (cell_name(cell, known, bed.name) for cell in (solver, grid))
            for steps in STEPS:
                cell = known.canonical(Cell(methods={**solver.methods, **grid.methods}, steps=steps), bed.name)
                yield Pairing(one, other, Spec(known, bed, cell, bed.seeds.blocks))


def end_points(spec: Spec) -> tuple[list[Tensor], float]:
    """The samples of every block of the cell, and the evaluations that each took."""
    found, spent = [], 0.0
    for seed, block in spec.blocks:
        ready = deployed(spec, seed, Workplace())
        seeds = range(block * BLOCK, block * BLOCK + spec.bed.n)
        found.append(run.generate(spec.recipe, ready, block_labels(spec), seeds))
        spent += ready.network.rows / spec.bed.n / len(spec.blocks)
    return found, spent


def compare(known: Catalog, bed: Bed) -> dict[str, Any]:
    """The record: a cell for every solver on every grid at every number of steps."""
    plain = Spec(known, bed, Cell(methods={}), bed.seeds.blocks)
    fine = many_steps(plain)
    truth, _ = end_points(fine)
    cells = {each.spec.name: found for each in pairings(known, bed) if (found := measured(each, truth))}
    content: dict[str, Any] = {
        "schema": SCHEMA, "bed": bed.name, "id": "solvers", "data": source(bed.name), "features": None,
        "reference": fine.name, "cells": cells,
    }  # fmt: skip
    return content | {"spec_hash": spec_hash(content)}


def measured(pairing: Pairing, truth: list[Tensor]) -> dict[str, Any] | None:
    """A cell of the record; None where it takes fewer or more evaluations than are compared."""
    spec = pairing.spec
    found, spent = end_points(spec)
    if not LEAST <= spent <= MOST:
        return None
    scores = [Scores({"fidelity": paired_fidelity(ours, best)}, {}) for ours, best in zip(found, truth, strict=True)]
    return {
        "solver": pairing.solver, "grid": pairing.grid, "steps": spec.recipe.steps, "n": spec.bed.n,
        "methods": spec.catalog.resolve(spec.cell, spec.bed.name),
        "seeds": {"train": list(spec.train_seeds), "sample": [block for _, block in spec.blocks]},
        "metrics": {"fidelity": metric("fidelity", scores)}, "cost": {"evaluations": spent},
        "fingerprints": {"cell": identity(spec, source(spec.bed.name), "")},
    }  # fmt: skip


app = cyclopts.App(name="python -m flows.solvers", help=__doc__, help_format="plaintext")


@app.default
def write(*, results: Path = RESULTS) -> None:
    """Compare them, and write the record."""
    known = catalog.load()
    write_json(results / BED / "solvers.json", compare(known, known.bed(BED)))


if __name__ == "__main__":
    main(app)
