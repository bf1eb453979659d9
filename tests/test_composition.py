"""What can be combined, what pairs gain together, and the page of both."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import pytest

from catalog import load
from flows import composition
from flows.records import read_json, write_json
from flows.rendering import composition as page
from flows.rendering import render
from flows.rendering.measured import Measured

KNOWN = load()
BED = KNOWN.bed("digits")
WRITTEN = Path("results/digits/composition.json")
PAIR: tuple[str, str] = ("deepcache", "diff_pruning")


def test_what_is_written_is_what_the_catalog_refuses() -> None:
    """After a change of the catalog: python -m flows.composition which."""
    written = read_json(WRITTEN)
    assert written["techniques"] == list(KNOWN.techniques)
    assert written["refused"] == composition.refusals(KNOWN, "digits")


def test_what_one_builds_on_belongs_to_both_sides() -> None:
    this = composition.study_of(KNOWN, "digits", "tome_sd", "v_prediction")
    assert this.default == "dit+tome_sd+v_prediction"
    assert {*this.specs} == {this.default, "baseline", "dit", "dit+tome_sd", "dit+v_prediction"}


def test_what_they_build_on_is_left_out_where_they_go_together_only_so() -> None:
    assert {*composition.pair(KNOWN, "digits", "tome_sd", "deepcache").methods} == {"tome_sd", "deepcache"}
    assert {*composition.pair(KNOWN, "digits", "gits", "ddim").methods} == {"gits", "ddim"}
    assert composition.on_top(KNOWN, "ddim", "gits") and not composition.on_top(KNOWN, "ddim", "deepcache")


def test_only_the_most_used_are_measured_and_no_pair_that_cannot_be_composed() -> None:
    chosen = {*composition.pairs(KNOWN, "digits")}
    assert {id for both in chosen for id in both} == {*composition.MOST_USED} <= {*KNOWN.techniques}
    assert ("classifier_free_guidance", "guidance_interval") not in chosen  # both drop labels
    assert ("ddim", "dpm_solver_pp_2m") not in chosen  # both are samplers
    assert ("deepcache", "int8_dynamic") in chosen


def pair_record(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A record of a pair: neither, either alone, both; numbers by `change`, which is given the cells."""
    this = composition.study_of(KNOWN, "digits", *PAIR)
    cells = {name: made_up.made_cell(KNOWN, "digits", spec.cell, "deepcache") for name, spec in this.specs.items()}
    for name, macs, fd in (("baseline", 100, 1.0), ("deepcache", 50, 1.5), ("diff_pruning", 80, 2.0)):
        cells[name]["cost"]["macs"] = macs
        cells[name]["metrics"]["fd"]["values"] = [fd + block / 10 for block in range(5)]
    both = cells[this.default]
    both["cost"]["macs"] = 40
    both["metrics"]["fd"]["values"] = [2.5 + block / 10 + (-1) ** block / 100 for block in range(5)]
    change(both)
    none = {"cell": None, "reason": "nobody asked"}
    same = {
        "status": "ok",
        "reason": None,
        "equal_evaluations": none,
        "equal_macs": none,
        "default": this.default,
        "control": this.control,
        "features": None,
    }
    return {"schema": 2, "bed": "digits", "id": this.id, "spec_hash": "0", "cells": cells, **same}


def joint(change: Callable[[dict[str, Any]], None]) -> page.Joint:
    record = pair_record(change)
    return page.read(record, BED, record["default"], ["baseline", *PAIR])


def test_savings_multiply_and_qualities_add_up() -> None:
    found = joint(lambda both: None)
    together, product = found.savings["macs"]
    assert (together.value, product.value) == (2.5, 2 * 1.25) and set(found.savings) == {"macs"}
    assert found.outcome == "multiply"
    assert found.excess.value == pytest.approx(0.002) and found.excess.low is not None and found.excess.low < 0


@pytest.mark.parametrize(
    ("cost", "worse", "outcome"),
    [({"macs": 50}, 0.0, "saturate"), ({"macs": 40}, 0.3, "break"), ({"macs": 50}, 0.3, "break")],
)
def test_less_saving_saturates_and_lost_quality_breaks(cost: dict[str, int], worse: float, outcome: str) -> None:
    def change(both: dict[str, Any]) -> None:
        both["cost"] |= cost
        both["metrics"]["fd"]["values"] = [value + worse for value in both["metrics"]["fd"]["values"]]

    assert joint(change).outcome == outcome


def test_a_count_that_leaves_something_out_is_no_saving() -> None:
    found = joint(lambda both: both["cost"].update(uncounted_ops=["aten._int_mm"]))
    assert not found.savings and found.outcome == "nothing to save"


def test_the_page_shows_every_pair_and_what_was_measured(tmp_path: Path) -> None:
    results = made_up.everything(KNOWN, tmp_path / "results")
    written = read_json(WRITTEN)
    write_json(results / "digits" / composition.FILE, written)
    record = pair_record(lambda both: None)
    write_json(results / "digits" / f"{record['id']}.json", record)
    every, some = page.views(Measured(KNOWN, results))[0]
    assert len(every.refused) == sum(map(len, written["refused"].values())) == every.path.count("M") / 2
    assert every.pairs - len(every.refused) == sum(partner.goes for partner in every.partners) / 2
    assert some is not None and some.measured == 1
    assert isinstance(some.cells[PAIR], page.Joint) and some.cells[PAIR] is some.cells[PAIR[1], PAIR[0]]
    assert some.cells["ddim", "dpm_solver_pp_2m"] == page.Absent(
        "refused", written["refused"]["ddim"]["dpm_solver_pp_2m"]
    )
    assert some.cells["ddim", "deepcache"] == page.Absent("–", "not measured")
    render(KNOWN, results, tmp_path / "site")
    text = (tmp_path / "site/composition.html").read_text()
    assert len(re.findall(r"<strong>multiply</strong>", text)) == 2
    assert "deepcache+diff_pruning" not in (tmp_path / "site/index.html").read_text()
    refused = len(next(partner for partner in every.partners if partner.technique.id == "deepcache").refused)
    shown = (tmp_path / "site/t/deepcache.html").read_text()
    goes = next(partner for partner in every.partners if partner.technique.id == "deepcache").goes
    assert f'composition.html#of-deepcache">{goes} of {len(every.techniques) - 1} other techniques' in shown
    assert refused and "deepcache needs a UNetConfig in `net`, which is DiTConfig: <a" in shown
    assert 'id="of-deepcache"' in text and "Deepcache needs" not in text
    data = (tmp_path / "site/data/atlas.js").read_text().removeprefix("window.ATLAS = ").removesuffix(";\n")
    told = json.loads(data)["techniques"]["deepcache"]["refused"]
    assert "dit" in told["deepcache needs a UNetConfig in `net`, which is DiTConfig"]
    assert "both set `sampler`" in text and f"{len(every.refused)} of {every.pairs} are filled" in text
