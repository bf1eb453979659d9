"""Results are kept over a change of code that moves no number, and over no other."""

import json
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from safetensors.torch import load_file, save

import catalog
import flows.revalidate as module
from catalog import Catalog, Cell
from flows.agenda import agenda_of, spec_of
from flows.cell import Workplace, metadata, target
from flows.pool import to_measure
from flows.probe import files, probe, smaller
from flows.records import read_json, write_bytes, write_json
from flows.revalidate import KEPT, Answer, cell_of, judge, keep, keep_files, probe_both
from flows.study import FULL, spec_hash, study, techniques_on
from methods.inference.ode_solver import ddim


@pytest.fixture(scope="module")
def known() -> Catalog:
    return catalog.load()


def plain(known: Catalog, bed: str, steps: int) -> dict[str, Any]:
    cell = made_up.made_cell(known, bed, known.canonical(Cell(methods={"ddim": {}}, steps=steps), bed), "ddim")
    return {key: value for key, value in cell.items() if key in KEPT}


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


def test_every_bed_is_asked_for_less_in_more_than_one_batch(known: Catalog) -> None:
    for name in known.beds:
        bed = known.bed(name)
        small, share = smaller(bed)
        assert small.batch < small.n < bed.n, name
        if bed.fit and small.fit:
            assert small.fit.batch <= bed.fit.batch and 1 <= round(share * bed.fit.iterations) < bed.fit.iterations
            assert share * small.fit.batch < bed.fit.batch / 10, name


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


def test_files_of_cells_that_did_not_move_are_kept(tmp_path: Path) -> None:
    weights, paths = {"weight": torch.arange(6.0)}, [tmp_path / f"{name}.safetensors" for name in ("same", "moved")]
    for path in paths:
        write_bytes(path, save(weights, {"note": json.dumps({"fingerprint": f"old {path.stem}", "images": 64})}))
    before = {name: {"digest": "1", "files": {"train 0": f"old {name}"}} for name in ("same", "moved")}
    now = {name: {"digest": digest, "files": {"train 0": "new"}} for name, digest in (("same", "1"), ("moved", "2"))}
    assert keep_files(paths, before | {"gone": {"error": "no"}}, now | {"gone": {"error": "no"}}, "1234") == 1
    assert metadata(paths[0]) == {"fingerprint": "new", "images": 64, "revalidated": "1234"}
    assert metadata(paths[1]) == {"fingerprint": "old moved", "images": 64}
    assert torch.equal(load_file(paths[0])["weight"], weights["weight"])


def test_a_probe_knows_the_fingerprint_of_every_file(known: Catalog, tmp_path: Path) -> None:
    item = next(item for item in agenda_of([study(known, "digits", "diff_pruning")]) if item.step == "compress")
    spec, place = spec_of(item, FULL), Workplace(tmp_path)
    wanted = {
        " ".join(map(str, [step, *part])): target(spec, step, place, *part)[1]
        for seed, block in spec.blocks
        for step, part in (("train", (seed,)), ("compress", (seed,)), ("sample", (seed, block)))
    }
    assert files(spec) == wanted
    assert cell_of(item)["seeds"] == {"train": [0, 1, 2, 3, 4], "sample": [0, 1, 2, 3, 4]}


def test_a_bed_without_files_is_not_asked_for_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "provenance", lambda: {"dirty": False})
    monkeypatch.setattr(module, "stale_files", lambda known, bed, errand: asked.append(bed) or {})
    (tmp_path / "work" / "digits").mkdir(parents=True)
    module.revalidate("HEAD", work=tmp_path / "work", results=tmp_path / "results")
    assert asked == ["digits"]
