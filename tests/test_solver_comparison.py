"""The comparison of all solvers on all grids: what is compared, that it repeats itself, and the page it makes."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import catalog
from flows import solvers
from flows.ledger import read_records
from flows.records import write_json
from flows.rendering import render
from flows.rendering.lines import apart

KNOWN = catalog.load()
SMALL = KNOWN.bed("mixture").model_copy(
    update={"n": 24, "batch": 24, "seeds": catalog.Seeds(train=(0,), sample=(0, 1))}
)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvers, "STEPS", (3, 5, 40, 64))
        content = solvers.compare(KNOWN, SMALL)
        assert json.dumps(content, sort_keys=True) == json.dumps(solvers.compare(KNOWN, SMALL), sort_keys=True)
    return content


def test_every_deterministic_solver_meets_every_grid(content: dict[str, Any]) -> None:
    pairs = {(cell["solver"], cell["grid"]) for cell in content["cells"].values()}
    known, grids = {solver for solver, _ in pairs}, {grid for _, grid in pairs}
    assert {"ddim", "dpm_solver", "dpm_solver(order=2)", "dpm_solver_pp_2m", "edm_heun", "pndm_plms", "unipc"} <= known
    assert {"baseline", "karras_rho_schedule"} <= grids and len(pairs) == len(known) * len(grids)
    assert not {solver for solver in known if solver.startswith(("paradigms", "gotta", "restart", "progressive"))}


def test_evaluations_are_those_that_were_made(content: dict[str, Any]) -> None:
    spent = {
        solver: [c["cost"]["evaluations"] for c in content["cells"].values()
                 if (c["solver"], c["grid"]) == (solver, "baseline")]
        for solver in ("ddim", "edm_heun", "pndm_plms", "dpm_solver")
    }  # fmt: skip
    assert spent == {"ddim": [5, 40, 64], "edm_heun": [5, 9], "pndm_plms": [4, 6, 41], "dpm_solver": [5, 40, 64]}


def test_errors_are_distances_to_the_end_of_the_flow(content: dict[str, Any]) -> None:
    """They fall with the evaluations on every grid, and DDIM's is DPM-Solver-1's to rounding."""
    cells = content["cells"]
    for cell in cells.values():
        values = cell["metrics"]["fidelity"]["values"]
        assert len(values) == 2 and all(value > 0 for value in values)
    for grid in ("", "karras_rho_schedule+"):
        for solver in ("ddim", "unipc"):
            few, many = (cells[name_of(cells, solver, grid, steps)]["metrics"]["fidelity"]["mean"] for steps in (5, 64))
            assert many < few / 5
    one = {c["steps"]: c["metrics"]["fidelity"]["mean"] for c in cells.values() if c["solver"] == "dpm_solver(order=1)"}
    two = {c["steps"]: c["metrics"]["fidelity"]["mean"] for c in cells.values() if c["solver"] == "ddim"}
    assert one == pytest.approx(two, rel=1e-3)


def name_of(cells: dict[str, Any], solver: str, grid: str, steps: int) -> str:
    named = grid.rstrip("+") or "baseline"
    return next(n for n, c in cells.items() if (c["solver"], c["grid"], c["steps"]) == (solver, named, steps))


def test_the_page_shows_the_record_and_the_ledger_does_not(content: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "results/mixture/solvers.json", content)
    assert read_records(tmp_path / "results") == {"mixture": {}}
    render(KNOWN, tmp_path / "results", tmp_path / "site")
    page = (tmp_path / "site/solvers.html").read_text()
    assert (tmp_path / "site/data/mixture/solvers.json").exists()
    shown = [float(text.replace("· 10⁻⁵", "e-5")) for text in re.findall(r'data-sort="([\d.e-]+)"', page)]
    means = {cell["metrics"]["fidelity"]["mean"] for cell in content["cells"].values()}
    assert shown and set(shown) <= means
    for cell in content["cells"].values():
        assert f"<code>{cell['solver']}</code>" in page
    render(KNOWN, tmp_path / "nowhere", tmp_path / "site")
    assert "no result yet" in (tmp_path / "site/solvers.html").read_text()


def test_labels_keep_apart_and_inside() -> None:
    found = apart([100.0, 101.0, 10.0, 199.0, 200.0], 10, 200)
    order = sorted(found)
    assert all(b - a >= 16 for a, b in pairwise(order)) and order[0] >= 10 and order[-1] <= 200
    assert sorted(range(5), key=lambda i: found[i]) == [2, 0, 1, 3, 4]
