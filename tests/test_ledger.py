"""The ledger finds the numbers that a claim is about, and says why where it cannot judge."""

import json
from pathlib import Path
from typing import Any

import pytest

import catalog
from catalog import Catalog, Claim, Expectation
from catalog.models import Cell
from flows.ledger import SCALES, STATUSES, Judged, as_json, judge, judge_records, tally
from flows.records import Damaged, write_json

LOWER, EQUAL, HIGHER = [0.80, 0.91, 0.84, 0.95, 0.86], [1.01, 1.10, 1.02, 1.12, 1.06], [1.80, 1.95, 1.85, 1.90, 1.88]
CONTROL = [1.00, 1.12, 1.03, 1.13, 1.05]
MIN_SNR = "min_snr_weighting"


@pytest.fixture(scope="module")
def known() -> Catalog:
    return catalog.load()


def cell(fd: list[float], fired: int = 5, **cost: Any) -> dict[str, Any]:
    return {
        "metrics": {"fd": {"values": fd, "unit": "squared feature distance"}},
        "cost": {"evaluations": 50.0, "macs": 100, "uncounted_ops": []} | cost,
        "counters": {"weights_clamped": fired, "calls_skipped": fired},
        "seeds": {"train": [0], "sample": [0, 1, 2, 3, 4]},
        "n": 1437,
        "budget": 1.0,
    }


def record(**cells: dict[str, Any]) -> dict[str, Any]:
    return {"status": "ok", "reason": None, "cells": cells}


def claim(known: Catalog, id: str, records: dict[str, Any], name: str = "") -> Judged:
    """The judged claim of a technique, the first by default."""
    found = [each for each in judge_records(known, {"digits": records}) if each.technique == id]
    return next(each for each in found if not name or each.claim.id == name)


@pytest.mark.parametrize(
    "values, status", [(LOWER, "supported"), (HIGHER, "not supported"), (EQUAL, "inconclusive")]
)  # fmt: skip
def test_the_interval_decides(known: Catalog, values: list[float], status: str) -> None:
    judged = claim(known, MIN_SNR, {MIN_SNR: record(min_snr_weighting=cell(values), baseline=cell(CONTROL))})
    assert judged.status == status
    assert judged.verdict is not None and judged.verdict.interval.n == 5
    assert (judged.arm, judged.control, judged.bed, judged.scale) == (MIN_SNR, "baseline", "digits", "toy")
    assert (judged.train, judged.sample, judged.n, judged.unit) == (
        (0,),
        (0, 1, 2, 3, 4),
        1437,
        "squared feature distance",
    )


def test_several_trainings_count_once_each(known: Catalog) -> None:
    arm, control = cell(LOWER * 3), cell(CONTROL * 3)
    for each in (arm, control):
        each["seeds"]["train"] = [0, 1, 2]
    judged = claim(known, MIN_SNR, {MIN_SNR: record(min_snr_weighting=arm, baseline=control)})
    assert judged.verdict is not None and judged.verdict.interval.n == 3
    assert judged.verdict.interval.low == judged.verdict.interval.high  # three equal means


def test_exact_numbers_need_no_interval(known: Catalog) -> None:
    cells = record(deepcache=cell(EQUAL, macs=60), baseline=cell(CONTROL))
    judged = claim(known, "deepcache", {"deepcache": cells}, "fewer_macs")
    assert judged.status == "supported" and judged.unit == "ratio" and judged.adjusted is None
    same = claim(known, "deepcache", {"deepcache": cells}, "nearly_the_same_quality")
    assert same.status == "supported"


@pytest.mark.parametrize(
    "records, reason",
    [
        ({}, "no result yet"),
        ({MIN_SNR: record(min_snr_weighting=cell(LOWER))}, "no result yet for baseline"),
        ({MIN_SNR: record(min_snr_weighting=cell(LOWER, 0), baseline=cell(CONTROL))}, "the technique did not fire"),
        ({MIN_SNR: {"status": "failed", "reason": "it broke", "cells": {}}}, "it broke"),
        (
            {MIN_SNR: record(min_snr_weighting=cell(LOWER), baseline=cell(CONTROL) | {"n": 1000})},
            "arm and control differ in seeds, samples or training budget",
        ),
        (
            {MIN_SNR: record(min_snr_weighting=cell(LOWER) | {"metrics": {}}, baseline=cell(CONTROL))},
            "fd was not measured",
        ),
    ],
)
def test_without_a_fair_number_there_is_no_verdict(known: Catalog, records: dict[str, Any], reason: str) -> None:
    judged = claim(known, MIN_SNR, records)
    assert (judged.status, judged.reason, judged.verdict) == ("not tested", reason, None)


def test_operations_that_were_not_counted_void_a_count(known: Catalog) -> None:
    cells = record(deepcache=cell(EQUAL, uncounted_ops=["aten._int_mm"]), baseline=cell(CONTROL))
    judged = claim(known, "deepcache", {"deepcache": cells}, "fewer_macs")
    assert (judged.status, judged.reason) == ("not tested", "the count leaves out aten._int_mm")


def test_a_claim_nothing_can_test_keeps_its_reason(known: Catalog) -> None:
    for judged in judge_records(known, {}):
        assert judged.status == "not tested"
        assert judged.reason == (judged.claim.untested or "no result yet")
        assert (judged.bed is None) == (not judged.claim.beds)


def test_a_control_of_zero_is_a_reason(known: Catalog) -> None:
    cells = record(deepcache=cell(EQUAL), baseline=cell(CONTROL, macs=0))
    judged = claim(known, "deepcache", {"deepcache": cells}, "fewer_macs")
    assert judged.status == "not tested" and "zero" in (judged.reason or "")


def test_the_discovery_rate_is_held_over_the_ledger(known: Catalog) -> None:
    records = {
        MIN_SNR: record(min_snr_weighting=cell(LOWER), baseline=cell(CONTROL)),
        "deepcache": record(deepcache=cell(EQUAL, macs=60), baseline=cell(CONTROL)),
    }
    judged = [each for each in judge_records(known, {"digits": records}) if each.adjusted is not None]
    assert len(judged) == 2
    assert all(each.verdict and each.adjusted and each.adjusted >= each.verdict.p for each in judged)


def test_every_claim_stands_once_for_each_bed_and_is_json(known: Catalog, tmp_path: Path) -> None:
    judged = judge(known, tmp_path)
    expected = sum(len(each.beds) or 1 for technique in known.techniques.values() for each in technique.claims)
    assert len(judged) == expected == sum(tally(judged).values())
    assert list(tally(judged)) == list(STATUSES)
    json.dumps([as_json(each) for each in judged], allow_nan=False)


def test_an_unbounded_interval_is_null_in_json(known: Catalog) -> None:
    arm, control = cell([1.0]), cell([1.1])
    for each in (arm, control):
        each["seeds"]["sample"] = [0]
    judged = claim(known, MIN_SNR, {MIN_SNR: record(min_snr_weighting=arm, baseline=control)})
    assert judged.status == "inconclusive"
    assert as_json(judged)["verdict"]["low"] is None


def test_a_damaged_record_is_named(known: Catalog, tmp_path: Path) -> None:
    write_json(tmp_path / "digits/ddim.json", record())
    (tmp_path / "digits/ddim.json").write_text('{"schema": 1,')
    with pytest.raises(Damaged, match=r"ddim\.json"):
        judge(known, tmp_path)


def test_every_bed_has_a_scale(known: Catalog) -> None:
    assert SCALES.keys() == known.beds.keys()


def test_a_higher_bound_is_read_from_the_other_side(known: Catalog) -> None:
    technique = known.techniques[MIN_SNR]
    turned = Claim(
        **technique.claims[0].model_dump(exclude={"expect", "arm", "control"}),
        arm=Cell(methods={MIN_SNR: {}}),
        control=Cell(methods={}),
        expect=Expectation(at_least=0.0),
    )
    altered = technique.model_copy(update={"claims": (turned,)})
    changed = Catalog(
        known.taxonomy, known.surveys, known.beds, known.baseline, known.techniques | {MIN_SNR: altered}
    )  # fmt: skip
    judged = claim(changed, MIN_SNR, {MIN_SNR: record(min_snr_weighting=cell(LOWER), baseline=cell(CONTROL))})
    assert judged.status == "not supported"
