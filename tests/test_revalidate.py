"""Results are kept over a change of code that moves no number, and over no other."""

from pathlib import Path
from typing import Any

import made_up
import pytest

import catalog
from catalog import Catalog, Cell
from flows.cell import Workplace
from flows.pool import to_measure
from flows.probe import probe
from flows.records import read_json, write_json
from flows.revalidate import KEPT, Answer, judge, keep, probe_both
from flows.study import spec_hash, techniques_on
from methods.inference.ode_solver import ddim


@pytest.fixture(scope="module")
def known() -> Catalog:
    return catalog.load()


def plain(known: Catalog, bed: str, steps: int) -> dict[str, Any]:
    cell = made_up.made_cell(known, bed, known.canonical(Cell(methods={"ddim": {}}, steps=steps), bed), "ddim")
    return {key: cell[key] for key in KEPT}


def test_a_probe_is_repeatable_and_sees_a_number_that_moves(
    known: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = plain(known, "mixture", 4)
    first, again = (probe(known, "mixture", cell, Workplace(tmp_path / name)) for name in "ab")
    assert first == again
    exact = ddim.transfer
    monkeypatch.setattr(ddim, "transfer", lambda *arguments: exact(*arguments) * (1 + 1e-6))
    moved = probe(known, "mixture", cell, Workplace(tmp_path / "c"))
    assert moved["digest"] != first["digest"]


def test_a_commit_gives_what_it_gave(known: Catalog) -> None:
    """Both sides run in processes and folders of their own; the one that is committed last is compared with itself."""
    before, now = probe_both({"mixture": {"ddim@4": plain(known, "mixture", 4)}}, "HEAD")
    assert before["mixture"]["ddim@4"]["digest"] == now["mixture"]["ddim@4"]["digest"]


def test_what_two_probes_say() -> None:
    before = {"fingerprints": {"cell": "old"}, "digest": "1"}
    now = {"fingerprints": {"cell": "new"}, "digest": "1"}
    assert judge("old", before, now) == Answer("same", {"cell": "new"})
    assert judge("old", before, {**now, "digest": "2"}).outcome == "moved"
    assert judge("older", before, now).outcome == "made by other code"
    assert judge("old", before, {"error": "Conflict: no"}) == Answer("cannot run", {}, "Conflict: no")


def test_only_what_did_not_move_is_kept(known: Catalog, tmp_path: Path) -> None:
    made_up.bed(known, tmp_path, "mixture", ["ddim"])
    path = tmp_path / "mixture" / "ddim.json"
    before = read_json(path)
    same, moved = list(before["cells"])[:2]
    today = {"cell": "dd", "training": "ee", "shipped": "ff"}
    keep(path, {same: Answer("same", today), moved: Answer("moved", {"cell": "gone"})}, "1234")
    after, beside = read_json(path), read_json(path.with_name("ddim.cost.json"))
    assert after["cells"][same]["fingerprints"] == today
    assert after["cells"][moved] == before["cells"][moved]
    assert after["cells"][same]["metrics"] == before["cells"][same]["metrics"]
    assert after["spec_hash"] == spec_hash(after) == beside["spec_hash"]
    assert [note["since"] for note in beside["revalidated"]] == ["1234"]
    keep(path, {}, "1234")
    assert read_json(path) == after and read_json(path.with_name("ddim.cost.json")) == beside


def test_only_what_is_stale_or_missing_is_measured_again(known: Catalog, tmp_path: Path) -> None:
    ids, folder = techniques_on(known, "mixture"), tmp_path / "mixture"
    made_up.bed(known, tmp_path, "mixture", ids[1:])
    assert to_measure(known, "mixture", tmp_path) == []
    (folder / f"{ids[0]}.json").unlink()
    (folder / f"{ids[1]}.cost.json").unlink()
    changed, failed = folder / f"{ids[2]}.json", folder / f"{ids[3]}.json"
    content = read_json(changed)
    next(iter(content["cells"].values()))["fingerprints"]["cell"] = "made by other code"
    write_json(changed, content)
    write_json(failed, read_json(failed) | {"status": "failed", "cells": {}})
    assert to_measure(known, "mixture", tmp_path) == ids[:4]
