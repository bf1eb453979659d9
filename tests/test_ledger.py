"""The ledger finds the numbers that a claim is about, and says why where it cannot judge."""

import json
from pathlib import Path
from typing import Any

import pytest

import catalog
from catalog import Catalog, Claim, Expectation
from catalog.models import Cell
from flows import history
from flows.cell import Spec
from flows.ledger import FALSE_DISCOVERIES, STATUSES, Judged, as_json, judge, judge_records, stale, tally
from flows.records import Damaged, write_json
from flows.score import identity

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


def test_every_block_counts_once_whether_its_training_is_its_own_or_not(known: Catalog) -> None:
    intervals = []
    for seeds in ([0], [0, 1, 2, 3, 4]):
        arm, control = cell(LOWER), cell(CONTROL)
        for each in (arm, control):
            each["seeds"]["train"] = seeds
        judged = claim(known, MIN_SNR, {MIN_SNR: record(min_snr_weighting=arm, baseline=control)})
        assert judged.verdict is not None and judged.train == tuple(seeds)
        intervals.append(judged.verdict.interval)
    assert intervals[0] == intervals[1] and intervals[0].n == 5


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
        (
            {MIN_SNR: record(min_snr_weighting=cell(CONTROL), baseline=cell(CONTROL))},
            "what arm and control differ in did nothing: their numbers are the same",
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


def test_a_decision_that_many_tests_explain_is_taken_back(known: Catalog) -> None:
    """One small p-value stands alone, and not among many that show nothing."""
    barely = [c - d for c, d in zip(CONTROL, [0.30, 0.02, 0.22, 0.10, 0.12], strict=True)]
    alone = {MIN_SNR: record(min_snr_weighting=cell(barely), baseline=cell(CONTROL))}
    judged = claim(known, MIN_SNR, alone)
    assert judged.status == "supported" and judged.adjusted is not None and 0.01 < judged.adjusted <= FALSE_DISCOVERIES
    technique = known.techniques[MIN_SNR]
    nothing = technique.claims[0].model_copy(
        update={"arm": Cell(methods={}, steps=10), "control": Cell(methods={}, steps=20)}
    )
    doubtful = tuple(nothing.model_copy(update={"id": f"nothing_{i}"}) for i in range(9))
    crowd = technique.model_copy(update={"claims": (technique.claims[0], *doubtful)})
    changed = Catalog(
        known.taxonomy, known.surveys, known.beds, known.baseline, known.techniques | {MIN_SNR: crowd}
    )  # fmt: skip
    cells = {"baseline@10": cell(EQUAL), "baseline@20": cell([1.02, 1.09, 1.05, 1.10, 1.05])}
    among = claim(changed, MIN_SNR, {MIN_SNR: record(min_snr_weighting=cell(barely), baseline=cell(CONTROL), **cells)})
    assert among.status == "inconclusive" and among.adjusted is not None and among.adjusted > FALSE_DISCOVERIES
    assert among.verdict is not None and "10 tests" in among.verdict.text


def measured(known: Catalog, results: Path, id: str = MIN_SNR) -> dict[str, Any]:
    """A record whose fingerprints are those that code and catalog give now."""
    cells = {}
    for name, asked in known.cells(id, "digits").items():
        spec = Spec(known, known.beds["digits"], asked, known.beds["digits"].seeds.blocks)
        resolved = {"methods": known.resolve(asked, "digits"), "steps": spec.recipe.steps, "fidelity": True}
        resolved |= {"trained": asked.trained}
        prints = {"cell": identity(spec, "some data", "abc")}
        cells[name] = cell(LOWER if asked.methods else CONTROL) | resolved | {"fingerprints": prints}
        cells[name]["seeds"] = {"train": [0, 1, 2, 3, 4], "sample": [0, 1, 2, 3, 4]}
    whole = record(**cells) | {"data": "some data", "features": {"sha256": "abc"}}
    write_json(results / "digits" / f"{id}.json", whole)
    history.add(known, "digits", id, results)
    return whole


def altered(known: Catalog, **change: Any) -> Catalog:
    """The catalog with the first claim of a technique changed."""
    technique = known.techniques[MIN_SNR]
    first = technique.claims[0].model_copy(update=change)
    other = technique.model_copy(update={"claims": (first, *technique.claims[1:])})
    return Catalog(known.taxonomy, known.surveys, known.beds, known.baseline, known.techniques | {MIN_SNR: other})


def first(known: Catalog, results: Path) -> Judged:
    return next(each for each in judge(known, results) if each.technique == MIN_SNR)


def test_a_verdict_goes_stale_when_what_it_was_made_from_changes(known: Catalog, tmp_path: Path) -> None:
    whole = measured(known, tmp_path)
    assert first(known, tmp_path).stale is None and first(known, tmp_path).status == "supported"
    digits = known.beds["digits"]
    fewer = Catalog(
        known.taxonomy, known.surveys, known.beds | {"digits": digits.model_copy(update={"n": 100})}, known.baseline,
        known.techniques,
    )  # fmt: skip
    assert "have changed since min_snr_weighting was measured" in (first(fewer, tmp_path).stale or "")
    whole["cells"]["baseline"]["fingerprints"]["cell"] = "0000"
    found = stale(known, {"digits": {MIN_SNR: whole}}, {})["digits"][MIN_SNR]
    assert found.keys() == {"baseline"}
    floor = {"digits": {"features": {"sha256": "another"}}}
    assert "feature network" in stale(known, {"digits": {MIN_SNR: whole}}, floor)["digits"][MIN_SNR]["baseline"]


def test_a_tolerance_changed_after_the_run_stays_visible(known: Catalog, tmp_path: Path) -> None:
    measured(known, tmp_path)
    assert len(first(known, tmp_path).terms) == 1
    kinder = altered(known, tolerance=0.5)
    judged = first(kinder, tmp_path)
    assert judged.terms[-1].terms != history.terms_of(judged.claim), "before the next run"
    for _ in range(2):
        history.add(kinder, "digits", MIN_SNR, tmp_path)
    tolerances = [entry.terms["tolerance"] for entry in first(kinder, tmp_path).terms]
    assert tolerances == [0.0, 0.5], "after it, and only once"
    json.dumps(as_json(first(kinder, tmp_path)))


def test_what_goes_without_saying_is_no_change_of_terms(known: Catalog, tmp_path: Path) -> None:
    measured(known, tmp_path)
    path = history.path_of(tmp_path, "digits", MIN_SNR)
    noted = json.loads(path.read_text())
    claim = first(known, tmp_path).claim.id
    (entry,) = noted[claim]
    assert "trained" not in entry["terms"]["arm"]
    said = {**entry["terms"], "arm": {**entry["terms"]["arm"], "trained": 1.0}}
    half = {**entry["terms"], "arm": {**entry["terms"]["arm"], "trained": 0.5}}
    noted[claim] = [entry, {**entry, "terms": said, "when": "2026-02-01T00:00:00Z"}]
    path.write_text(json.dumps(noted))
    assert [each.when for each in first(known, tmp_path).terms] == [entry["when"]]
    history.add(known, "digits", MIN_SNR, tmp_path)
    assert json.loads(path.read_text())[claim] == noted[claim], "what was noted stays as it was"
    noted[claim][1]["terms"] = half
    path.write_text(json.dumps(noted))
    assert len(first(known, tmp_path).terms) == 2


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
    write_json(tmp_path / "digits" / "ddim.json", record())
    (tmp_path / "digits/ddim.json").write_text('{"schema": 1,')
    with pytest.raises(Damaged, match=r"ddim\.json"):
        judge(known, tmp_path)


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
