"""Each page says what a sceptical reader would ask: against what, at which cost, how sure, and since when."""

import csv
import html
import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import made_up
import pytest
from scipy import stats

import catalog
from catalog import Catalog
from flows.ledger import EXACT_UNITS
from flows.rendering import render, spent
from flows.rendering.atlas import Atlas
from flows.rendering.claims import term
from flows.rendering.comparison import Difference
from flows.rendering.costs import pays_back, provenance
from flows.rendering.family import points
from flows.rendering.numbers import Number, exact, probability, sentence, singular
from flows.rendering.procedures import INTERVALS, READING
from flows.rendering.quantities import COSTS, MACHINE, METRICS
from methods.measure.reference import UNITS
from methods.measure.statistics import paired

NUMBER = re.compile(r"(−?[\d.]+)</a>")
CURVE = (4, 8, 10, 16, 20, 32, 50, 64)


@pytest.fixture(scope="module")
def known() -> Catalog:
    return catalog.load()


@pytest.fixture(scope="module")
def results(known: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.everything(known, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def site(known: Catalog, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    render(known, results, out)
    return out


@pytest.fixture(scope="module")
def atlas(known: Catalog, results: Path) -> Atlas:
    return Atlas(known, results)


def text(markup: str) -> str:
    """What a reader sees of it, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def section(site: Path, page: str, start: str, end: str) -> str:
    """The markup of a page from the element with an id to the next occurrence of `end`."""
    return (site / page).read_text().split(f'id="{start}"')[1].split(end)[0]


def rows(table: str) -> dict[str, str]:
    """The rows of a table by their heading."""
    cells = [row.split("</th>", 1) for row in table.split("<tr")[2:]]
    return {text(f"<tr{head}").split(" spends")[0]: rest for head, rest in cells}


def record(results: Path, bed: str, id: str) -> dict[str, Any]:
    return json.loads((results / bed / f"{id}.json").read_text())


@pytest.mark.parametrize(
    ("key", "low", "high", "word"),
    [
        ("fd", -2.0, -1.0, "better"), ("fd", 1.0, 2.0, "worse"), ("recall", -2.0, -1.0, "worse"),
        ("recall", 1.0, 2.0, "better"), ("nearest", -2.0, -1.0, "lower"), ("w2", -1.0, 2.0, "not told apart"),
        ("kid", 0.0, 2.0, "not told apart"), ("fidelity", -math.inf, math.inf, "not told apart"),
    ],
)  # fmt: skip
def test_a_difference_is_named_only_where_its_interval_excludes_zero(
    key: str, low: float, high: float, word: str
) -> None:
    middle = (low + high) / 2 if math.isfinite(low) else -3.0
    number = Number(middle, low, high, 5, 1437, UNITS[key], "digits", "a − b", "data/digits/a.json")
    assert Difference(key, number, scale=10.0).word == word
    assert Difference(key, number, scale=1e6).word == "not told apart", "it is less than rounding leaves"


@pytest.mark.parametrize(("bed", "id", "key"), [("digits", "edm_heun", "fd"), ("mixture", "ddim", "w2")])
def test_the_table_at_equal_cost_pairs_block_by_block(site: Path, results: Path, bed: str, id: str, key: str) -> None:
    found = record(results, bed, id)
    table = rows(section(site, f"t/{id}.html", f"equal-{bed}", "</table>"))
    for axis, name in (("evaluations", "evaluations"), ("macs", "MACs")):
        other, reason = found[f"equal_{axis}"]["cell"], found[f"equal_{axis}"]["reason"]
        row = next(rest for head, rest in table.items() if head.startswith(f"Control at equal {name}"))
        if other is None:
            assert reason.lower() in text(row).lower()
            continue
        if axis == "macs" and other == found["equal_evaluations"]["cell"]:
            assert "same cell as the control at equal evaluations" in text(row)
            continue
        subject, control = (found["cells"][cell]["metrics"][key]["values"] for cell in (found["default"], other))
        gap = paired(subject, control)
        shown = re.search(r'class="n gap"[^>]*>(.*?)</td>', row, re.S)
        assert shown
        value, low, high, word = re.fullmatch(r"(\S+) (\S+) to (\S+) (.+)", text(shown[1])).groups()
        for part, truth in ((value, gap.mean), (low, gap.low), (high, gap.high)):
            assert float(part.replace("−", "-")) == pytest.approx(truth, abs=10 ** -len(part.partition(".")[2]))
        assert word == ("better" if gap.high < 0 else "worse" if gap.low > 0 else "not told apart")


def test_what_a_quality_lies_above_a_perfect_sampler(site: Path, results: Path) -> None:
    fd = record(results, "digits", "edm_heun")["cells"][record(results, "digits", "edm_heun")["default"]]["metrics"][
        "fd"
    ]
    glance = text(section(site, "t/edm_heun.html", "on-digits", "</dl>"))
    shown = re.search(r"above a perfect sampler (\S+) (\S+) to (\S+)", glance)
    assert shown
    for part, key in zip(shown.groups(), ("mean", "low", "high"), strict=True):
        assert float(part) == pytest.approx(fd[key] - 0.21, abs=0.006)


def test_a_row_that_is_there_already_is_named_and_a_missing_one_has_its_reason(site: Path) -> None:
    own = rows(section(site, "t/min_snr_weighting.html", "equal-digits", "</table>"))
    assert "The control itself, which spends as much" in text(own["Control at equal evaluations"])
    unknown = rows(section(site, "t/int8_dynamic.html", "equal-digits", "</table>"))
    assert "The count leaves out aten._int_mm" in text(unknown["Control at equal MACs"])


def test_a_family_puts_its_techniques_side_by_side(site: Path, results: Path, known: Catalog) -> None:
    members = {t.id: t.name for t in known.techniques.values() if t.family == "ode_solver"}
    page = "family/inference-ode_solver.html"
    table = rows(section(site, page, "on-digits", "</table>"))
    assert list(table) == list(members.values())
    for id, name in members.items():
        found = record(results, "digits", id)
        own = found["cells"][found["default"]]
        cells = [text(cell).split(">")[-1].split() for cell in table[name].split("</td>")]
        assert float(cells[0][0]) == own["cost"]["evaluations"]
        assert float(cells[4][0]) == pytest.approx(own["metrics"]["fd"]["mean"], abs=0.006)
        assert f'href="../data/digits/{id}.json"' in table[name] and "toy scale" in text(table[name])
    drawn = section(site, page, "family-digits-fd-wide-title", "</svg>")
    assert drawn.count('class="point') == len(members) and drawn.count('class="plain"') == len(CURVE)
    assert all(f'href="../t/{id}.html"' in drawn for id in members)


def test_a_family_of_which_nothing_runs_says_so(site: Path, known: Catalog) -> None:
    filled = {(t.area, t.family) for t in known.techniques.values()}
    bare = [(a.id, f) for a in known.taxonomy.areas for f in a.families if (a.id, f.id) not in filled]
    for area, family in bare:
        page = text((site / f"family/{area}-{family.id}.html").read_text())
        assert f"{family.listed} technique" in page and "none is runnable here yet" in page
        assert f"{family.title} ({family.listed})" in text((site / "taxonomy.html").read_text()).replace(" )", ")")


def test_charts_offer_several_qualities_and_fidelity_only_where_weights_are_the_same(site: Path, results: Path) -> None:
    page = (site / "t/edm_heun.html").read_text()
    assert re.findall(r'type="radio" name="chart-digits" id="chart-digits-(\w+)"', page) == ["fd", "fidelity", "recall"]
    assert page.count(" checked>") == len(known_beds(results, "edm_heun"))
    found = record(results, "digits", "edm_heun")
    recall = found["cells"][found["default"]]["metrics"]["recall"]
    drawn = text(section(site, "t/edm_heun.html", "chart-digits-recall-wide-title", "</svg>"))
    assert (
        f"{found['default']}: {Number(recall['mean'], recall['low'], recall['high'], 5, 1, '', '', '', '').text}"
        in drawn
    )
    assert "chart-digits-fidelity" not in (site / "t/v_prediction.html").read_text()


@pytest.mark.parametrize("id", ["fora", "int8_dynamic", "edm_heun"])
def test_fidelity_is_not_compared_across_networks(atlas: Atlas, known: Catalog, id: str) -> None:
    apart = any(known.technique(each).retrains for each in known.technique(id).default.methods)
    bed = known.bed("digits")
    row = next(row for row in atlas.entrants(bed) if row.id == id)
    assert ("fidelity" in row.qualities) != apart
    on = atlas.techniques[id].beds[0]
    drawn = next((view for view in on.charts if view.key == "fidelity"), None)
    assert (drawn is None) == apart
    assert on.faith is not None or "fidelity" in on.opponents[1].differences
    members = [(view, on) for view, on in atlas.on(bed) if view.technique.id == id]
    assert bool(points(atlas, members, "evaluations", "fidelity")) != apart


def test_what_means_to_change_images_is_not_asked_how_little_it_changes_them(known: Catalog, tmp_path: Path) -> None:
    made_up.bed(known, tmp_path, "adaptation", ["controlnet"])
    found = Atlas(known, tmp_path)
    on = found.techniques["controlnet"].beds[0]
    assert on.scores and on.faith is None and not on.faithful
    assert "fidelity" not in {score.key for score in on.scores} | {view.key for view in on.charts}
    row = next(row for row in found.entrants(on.bed) if row.id == "controlnet")
    assert "fidelity" not in row.qualities and "fd" in row.qualities


def known_beds(results: Path, id: str) -> list[Path]:
    return list(results.glob(f"*/{id}.json"))


def test_what_nothing_beats_stands_on_the_first_page(site: Path) -> None:
    lines = list(csv.DictReader((site / "data/frontier.csv").read_text().splitlines()))
    free = {
        line["id"] for line in lines if line["id"] and (line["bed"], line["metric"]) == ("digits", "fd")
        and line["axis"] in ("evaluations", "macs", "latency") and line["standing"] in ("front", "tied")
    }  # fmt: skip
    table = section(site, "index.html", "unbeaten", "</table>")
    assert free and set(re.findall(r'<th scope="row"><a href="t/(\w+)\.html"', table)) == free


def test_what_did_not_fire_gets_no_verdict(site: Path) -> None:
    page = text((site / f"t/{made_up.SILENT}.html").read_text())
    assert "did not fire: no verdict rests on it" in page and "One whose counters read zero gets no verdict" in page
    judged = json.loads((site / "data/ledger.json").read_text())
    own = [each for each in judged if each["technique"] == made_up.SILENT and each["arm"] == made_up.SILENT]
    assert own and {each["status"] for each in own} == {"not tested"}


def test_the_whole_cost_vector_stands_beside_that_of_the_control(site: Path, results: Path) -> None:
    found = record(results, "digits", "progressive_distillation")
    table = rows(section(site, "t/progressive_distillation.html", "costs-digits", "</table>"))
    assert list(table) == [cost.title for cost in COSTS.values()]
    for key, cost in COSTS.items():
        own, control = (found["cells"][found[role]]["cost"][key] for role in ("default", "control"))
        shown = NUMBER.findall(table[cost.title].replace(",", ""))
        assert [text(cell) for cell in table[cost.title].split("</td>")[:2]] == [exact(own), exact(control)]
        assert not control or float(shown[-1]) == pytest.approx(own / control, rel=1e-3)
    assert "aten._int_mm" in section(site, "t/int8_dynamic.html", "costs-digits", "Break-even")


def pair(**own: Any) -> dict[str, Any]:
    """A record of a subject that costs as much as its control but for `own`."""
    plain = {"training_macs": 1000, "one_off_macs": 0, "macs": 10, "uncounted_ops": []}
    cells = {"a": {"cost": {**plain, **own}}, "baseline": {"cost": plain}}
    return {"bed": "digits", "default": "a", "control": "baseline", "cells": cells}


@pytest.mark.parametrize(
    ("own", "words", "samples"),
    [
        ({"macs": 5, "one_off_macs": 501}, "pays back after", 101),
        ({"macs": 5}, "at once", None),
        ({}, "nothing to pay back", None),
        ({"macs": 10, "one_off_macs": 7}, "never", None),
        ({"macs": 12, "one_off_macs": 7}, "never", None),
        ({"macs": 12, "training_macs": 499}, "ahead only up to", 250),
        ({"macs": 5, "training_macs": None}, "not known", None),
        ({"macs": 5, "uncounted_ops": ["mm"]}, "not known", None),
    ],
)  # fmt: skip
def test_break_even_in_words(own: dict[str, Any], words: str, samples: int | None) -> None:
    found = pays_back(pair(**own), "data/digits/a.json")
    assert found and words in found.words
    assert (found.samples.value if found.samples else None) == samples


def test_what_is_not_meant_to_save_work_is_not_asked_when_it_pays_back() -> None:
    record = pair(macs=10, one_off_macs=7)
    found = pays_back(record, "data/digits/a.json", ("training", "memory"))
    assert found and found.words == "not asked: meant to save training, memory"
    assert (pays_back(record, "data/digits/a.json", ("bytes", "macs")) or found).words.startswith("never")
    cheaper = pays_back(pair(macs=5), "data/digits/a.json", ("memory",))
    assert cheaper and cheaper.words.startswith("at once, since it costs no more")


def test_steps_of_which_no_time_was_noted_are_left_out() -> None:
    content = {**made_up.MADE, "seconds": {"train": 0, "sample": 9.5}, "timing": None}
    assert provenance(content, "digits", "ddim").seconds.keys() == {"sample"}


def test_numbers_and_units_read_as_they_are_said() -> None:
    assert [exact(value) for value in (3592.8, 12345.6, -1000.4, 999.96)] == ["3,593", "12,346", "−1,000", "1000"]
    units = [("steps", 1), ("steps", 2), ("branches", 1), ("calls of the network", 1), ("strata", 1), ("losses", 1.0)]
    said = ["step", "steps", "branch", "call of the network", "stratum", "loss"]
    assert [singular(*each) for each in units] == said and singular("logit of t", 1) == "logit of t"
    ids = {"deepcache"}
    assert (sentence("deepcache needs", ids), sentence("both set", ids)) == ("deepcache needs", "Both set")


def test_where_there_is_no_network_none_of_its_costs_is_zero(site: Path) -> None:
    table = section(site, "t/ddim.html", "main", "</table>")
    plane = next(row for row in table.split("<tr>") if "#on-mixture" in row)
    cells = [text("<td" + cell) for cell in plane.split("<td")[1:]]
    assert cells[1] == cells[2] == "–" and cells[0] != "–"


def test_the_grid_of_a_control_stands_between_technique_and_baseline(atlas: Atlas) -> None:
    titles = [title for title, _ in atlas.techniques["fora"].beds[0].pictures]
    own, control = (atlas.catalog.technique(id).name for id in ("fora", "dit"))
    assert titles == [own, f"Its control, {control}", "Baseline"]
    assert [title for title, _ in atlas.techniques["ddim"].beds[0].pictures][1:] == ["Baseline"]


def test_a_search_without_javascript_says_where_to_look(site: Path) -> None:
    assert "The search needs JavaScript." in (site / "taxonomy.html").read_text().split("<noscript>")[1]


def test_what_one_machine_took_stands_apart_with_the_machine(site: Path, results: Path) -> None:
    box = text(section(site, "t/edm_heun.html", "machine-digits", "</div>\n{%").split("<details")[0])
    for said in ("a processor", "load average 0.5", "2026-01-02", "commit c0ffee", "Energy Not measured", "6 rounds"):
        assert said in box
    assert re.search(r"Latency , batch of 1 seconds 0.2 0.4 0.50 0.40 to 0.60", box)
    assert re.search(r"Throughput , batch of 64 .* 200 100 0.51\d* 0.4", box)
    assert re.search(r"not sampled: 150 M 300 M 200 M 1.5 no interval", box)


def test_a_latency_under_load_or_with_a_wide_interval_is_compared_with_nobody(known: Catalog, tmp_path: Path) -> None:
    made_up.bed(known, tmp_path / "results", "digits", ["ddim", "edm_heun", "deepcache"])
    for id, load, high in (("ddim", 2.5, 0.6), ("edm_heun", 0.5, 0.81), ("deepcache", 2.0, 0.8)):
        path = tmp_path / f"results/digits/{id}.cost.json"
        content = json.loads(path.read_text())
        content["host"] = {**content["host"], "load": load}
        content["timing"]["latency"]["ratio"]["high"] = high
        path.write_text(json.dumps(content))
    found = Atlas(known, tmp_path / "results")
    rows = {row.id: row.costs for row in found.entrants(known.bed("digits"))}
    assert {id for id in rows if id and "latency" in rows[id]} == {"deepcache"}
    assert "memory" in rows["ddim"]
    render(known, tmp_path / "results", tmp_path / "site")
    first = (tmp_path / "site/beds.html").read_text()
    assert first.count("unsteady") == 2
    said = "more to do than cores (a load of 2.5 on 2 cores)"
    assert said in text(section(tmp_path / "site", "t/ddim.html", "machine-digits", "</table>"))
    assert "0.50 0.40 to 0.60" in text(section(tmp_path / "site", "t/ddim.html", "machine-digits", "</table>"))
    assert "more to do than cores" not in text((tmp_path / "site/t/edm_heun.html").read_text())
    assert "its interval is wide" not in text((tmp_path / "site/t/ddim.html").read_text())
    busy = provenance(
        {**made_up.MADE, "seconds": {}, "timing": {"against": "baseline", **made_up.TIMING}}, "digits", "a"
    )
    first = {row.key: row for row in busy.timed}["start"]
    assert first.ratio.value == 6 and not first.wide
    assert "First sample" in text((tmp_path / "site/t/ddim.html").read_text())
    wide = replace(busy.timed[0], ratio=busy.timed[0].ratio.but(0.5, 0.2, 0.6))
    assert not busy.wide and replace(busy, timed=[wide]).wide


def weakened(known: Catalog, root: Path, accuracy: float) -> Atlas:
    """A bed whose classifier recognises this share of the baseline's images."""
    made_up.bed(known, root, "digits", ["ddim"])
    path = root / "digits/baseline.json"
    content = json.loads(path.read_text())
    content["cells"]["baseline"]["metrics"]["accuracy"]["mean"] = accuracy
    path.write_text(json.dumps(content))
    return Atlas(known, root)


def test_a_bed_whose_baseline_nobody_recognises_says_so_wherever_it_judges(known: Catalog, tmp_path: Path) -> None:
    weak = weakened(known, tmp_path / "weak", 0.42)
    said = "Images of the baseline are recognised in 42 % of cases here, real ones in 98 %: FD says little"
    assert said in (weak.beds["digits"].weak or "")
    assert said in (weak.techniques["ddim"].beds[0].weak or "")
    judged = [each for each in weak.techniques["ddim"].claims if each.judged.verdict and each.judged.bed == "digits"]
    assert judged
    for each in judged:
        touched = each.claim.metric in METRICS and each.claim.metric != "fidelity"
        assert (said in (each.caution or "")) == touched
    assert weakened(known, tmp_path / "fair", 0.5).beds["digits"].weak is None


def test_a_stale_verdict_says_why_and_a_current_one_does_not(site: Path) -> None:
    judged = json.loads((site / "data/ledger.json").read_text())
    old = [each for each in judged if each["stale"]]
    assert {each["technique"] for each in old} == {made_up.STALE}
    for id, count in ((made_up.STALE, len(old)), ("ddim", 0)):
        claims = section(site, f"t/{id}.html", "claims", 'aria-labelledby="on-')
        assert text(claims).count("the verdict is of what was") == count
        assert claims.count('class="stale"') == count
    said = text((site / "claims.html").read_text())
    assert re.search(rf"{len(old)} verdicts? rests? on numbers that code and catalog would no longer give", said)


def test_terms_changed_after_a_run_are_shown_before_and_after(site: Path, known: Catalog) -> None:
    claim = known.technique("ddim").claims[0]
    article = text(section(site, "t/ddim.html", f"claim-{claim.id}-digits", "</article>"))
    assert "changed after a run" in article
    assert f"tolerance 7.25 {exact(claim.tolerance)} 2026-01-01, {'22' * 5}" in article
    page = text((site / "t/ddim.html").read_text())
    assert "Withdrawn claims" in page and "gone on digits, measured 2026-01-01" in page
    unchanged = text((site / "t/edm_heun.html").read_text())
    assert "changed after a run" not in unchanged and "unchanged in every record since 2026-01-01" in unchanged
    ledger = text((site / "claims.html").read_text())
    assert "Changed after a run for 1 claim" in ledger and "1 claim was withdrawn" in ledger


def test_a_claim_written_after_the_first_measurement_is_marked(known: Catalog, tmp_path: Path) -> None:
    made_up.bed(known, tmp_path / "results", "digits", ["ddim"])
    path = tmp_path / "results/digits/ddim.claims.json"
    noted = json.loads(path.read_text())
    claim = known.technique("ddim").claims[1].id
    noted[claim][0]["when"] = "2026-03-04T00:00:00Z"
    path.write_text(json.dumps(noted))
    render(known, tmp_path / "results", tmp_path / "site")
    said = "Written after this technique was first measured here , 2026-03-04"
    assert said in text(section(tmp_path / "site", "t/ddim.html", f"claim-{claim}-digits", "</article>"))
    assert text((tmp_path / "site/t/ddim.html").read_text()).count("Written after this technique") == 1
    ledger = text((tmp_path / "site/claims.html").read_text())
    assert ledger.count("written after the first measurement") == 1
    assert f"and marked: 1 claim, ddim, {claim}" in ledger


def test_a_share_of_the_training_is_part_of_a_term() -> None:
    cell = {"methods": {"p2_weighting": {}}, "steps": 10}
    assert term({**cell, "trained": 0.25}) == "p2_weighting@10~0.25"
    assert term({**cell, "trained": 1.0}) == term(cell) == "p2_weighting@10"


def test_a_question_of_ours_is_not_put_into_the_mouth_of_a_paper(atlas: Atlas) -> None:
    ours = [each for _, each in atlas.claims() if each.claim.where.startswith("not in the paper")]
    assert all(each.ours for each in ours) and any(each.claim.where != "not in the paper" for each in ours)


@pytest.mark.parametrize("opening", ["So are", "So is", "It does so", "The same"])
def test_a_sentence_of_the_ledger_stands_alone(known: Catalog, opening: str) -> None:
    said = [(t.id, claim.id, claim.says) for t in known.techniques.values() for claim in t.claims]
    assert not [each for each in said if each[2].startswith(opening + " ")]


def test_claims_about_several_grids_say_on_which(known: Catalog) -> None:
    said = [claim.says for claim in known.technique("deis").claims]
    assert len(said) == len({*said})


def test_the_ledger_counts_what_was_tested_and_what_the_correction_took_back(site: Path) -> None:
    judged = json.loads((site / "data/ledger.json").read_text())
    reached = [each["verdict"] for each in judged if each["verdict"]]
    tested = [verdict for verdict in reached if verdict["adjusted"] is not None]
    back = sum(verdict["p"] <= 0.05 < verdict["adjusted"] for verdict in tested)
    page = text((site / "claims.html").read_text())
    assert f"{len(reached)} of {len(judged)}; {len(tested)} on uncertain numbers" in page
    assert f"adjusted for all {len(tested)} tests" in page and f"{back} verdict" in page


def test_a_claim_shows_what_its_verdict_rests_on(site: Path) -> None:
    judged = json.loads((site / "data/ledger.json").read_text())
    tested = [each for each in judged if each["verdict"] and each["verdict"]["adjusted"] is not None]
    assert len(tested) > 20
    for each in tested:
        anchor = f"claim-{each['claim']['id']}-{each['bed']}"
        article = section(site, f"t/{each['technique']}.html", anchor, "</article>")
        seeds = ", ".join(map(str, each["seeds"]["sample"]))
        for said in (
            f"p {probability(each['verdict']['adjusted'])}",
            f"sampling {seeds}",
            f"Control {each['control']}",
            f"{each['n']:,} samples each",
            f"{each['verdict']['values']} values",
            f"{each['scale']} scale",
        ):
            assert said in text(article)
        tolerance = each["claim"]["tolerance"]
        assert not tolerance or f"tolerance {exact(tolerance)}" in text(article)
        assert f'href="../data/{each["bed"]}/{each["technique"]}.json"' in article


def test_a_bed_says_the_least_difference_it_resolves(site: Path, results: Path) -> None:
    cells = record(results, "digits", "baseline")["cells"]
    points = sorted(cells.values(), key=lambda cell: cell["steps"])
    assert tuple(cell["steps"] for cell in points) == CURVE
    table = rows(section(site, "beds.html", "resolution-digits", "</table>"))
    for key in made_up.IMAGES:
        values = [cell["metrics"][key]["values"] for cell in points]
        gaps = [paired(a, b) for a, b in pairwise(values)]
        samplers = sorted((gap.high - gap.low) / 2 for gap in gaps)[len(gaps) // 2]
        base = cells["baseline"]["metrics"][key]["values"]
        mean = sum(base) / 5
        spread = math.sqrt(sum((value - mean) ** 2 for value in base) / 4)
        trainings = stats.t.ppf(0.975, 4) * spread * math.sqrt(2 / 5)
        row = next(rest for head, rest in table.items() if head.startswith(METRICS[key].title))
        shown = [text(cell) for cell in row.split("</td>")]
        assert shown[3:5] == [exact(samplers, 3), exact(trainings, 3)]
        close = [f"{a} and {b}" for gap, (a, b) in zip(gaps, pairwise(CURVE), strict=True) if gap.low <= 0 <= gap.high]
        assert shown[5] == (f"{len(close)} of 7 {', '.join(close)} steps" if close else "none of 7")
        if key == "fd":  # falls with every step of the curve
            assert shown[6] == "none of 7"


def test_a_metric_by_which_more_steps_are_worse_is_named(known: Catalog, tmp_path: Path) -> None:
    made_up.bed(known, tmp_path / "results", "digits", [])
    path = tmp_path / "results/digits/baseline.json"
    content = json.loads(path.read_text())
    cells = {cell["steps"]: cell["metrics"]["fd"] for cell in content["cells"].values()}
    cells[20]["values"] = [value + 1 for value in cells[32]["values"]]
    cells[16]["values"] = [value - 1 for value in cells[20]["values"]]
    path.write_text(json.dumps(content))
    render(known, tmp_path / "results", tmp_path / "site")
    said = text(section(tmp_path / "site", "beds.html", "resolution-digits", "</table>"))
    assert "More steps score worse from 16 and 20 steps: there FD does not measure what steps do" in said
    page = text(section(tmp_path / "site", "beds.html", "bed-digits", "</section>"))
    assert "Read with care. By FD the baseline gets worse with more steps here, from 16 to 20" in page


def test_a_bed_with_one_training_does_not_know_how_much_trainings_differ(site: Path) -> None:
    assert "not known: one training seed" in text(section(site, "beds.html", "resolution-mnist", "</table>"))
    plane = text(section(site, "beds.html", "resolution-mixture", "</table>"))
    assert "between samplers" in plane and "between trainings" not in plane


def test_a_bed_says_what_its_baseline_has_from_the_start(site: Path) -> None:
    assert "t/v_prediction.html" in section(site, "beds.html", "bed-mnist", "</dl>")
    assert "from the start" not in section(site, "beds.html", "bed-digits", "</dl>")


def test_a_bed_shows_its_floor_ruler_and_curve(site: Path) -> None:
    digits = section(site, "beds.html", "bed-digits", "</section>")
    for said in (
        "98 % of held-out images",
        made_up.SHA,
        "352 k parameters",
        "0.21 0.06 to 0.36 n = 1,437",
        "0.70 0.55 to 0.85 n = 360",
    ):
        assert said in text(digits)
    for figure in ("baseline-digits-fd-wide", "baseline-digits-fidelity-wide"):
        drawn = digits.split(f'id="{figure}-title"')[1].split("</svg>")[0]
        assert drawn.count('class="plain"') == len(CURVE)
    assert 'id="baseline-mixture-w2-wide-title"' in (site / "beds.html").read_text()


def test_every_quantity_is_explained(site: Path) -> None:
    page = (site / "methods.html").read_text()
    assert METRICS.keys() == UNITS.keys() and COSTS.keys() == EXACT_UNITS.keys()
    for key, metric in METRICS.items():
        article = page.split(f'id="metric-{key}"')[1].split("</article>")[0]
        assert "<math" in article
        for said in (metric.about, metric.source, metric.blind, metric.bias, metric.uncertainty, UNITS[key]):
            assert " ".join(said.split()) in text(article)
        assert (f"{metric.better} is better" in text(article)) == (metric.better is not None)
    for cost in (*COSTS.values(), *MACHINE.values()):
        assert cost.about in text(page)
    for key, each in (INTERVALS | READING).items():
        assert each.about in text(page.split(f'<article class="procedure" id="{key}"')[1].split("</article>")[0])
    shown = {"cells", "counters", "on-the-way", "gradients", "reconstruction", "front", "together", "others"}
    assert shown == READING.keys()


def test_a_method_says_no_more_than_is_true(site: Path, known: Catalog, results: Path) -> None:
    page = text((site / "methods.html").read_text())
    assert "but for techniques that compile" in page and "training budget, seeds" not in page
    assert "whole range, which holds the median in 96.9 % of cases" in page
    assert "at most 5 % are expected to be wrong, if the tests are independent" in text(
        (site / "claims.html").read_text()
    )
    assert "by more than their number explains" not in page
    floor = Atlas(known, results).beds["digits"].floor
    assert floor and not floor.shifted
    apart = replace(floor, excess=floor.excess.but(0.3, 0.1, 0.5))
    assert apart.shifted


def test_memory_is_also_compared_above_what_is_loaded(site: Path) -> None:
    box = text(section(site, "t/edm_heun.html", "machine-digits", "</table>"))
    assert "ratio above what is loaded: 3 ; loaded and not sampled: 150 M 300 M 200 M 1.5 no interval" in box


def test_where_the_time_went(site: Path, atlas: Atlas, results: Path, known: Catalog) -> None:
    page = text(section(site, "methods.html", "time-digits", "</section>"))
    assert "45 s by the clock with 2 processes, 80 s added up" in page
    assert "Training 60 75 %" in page and "Records 20 25 %" in page
    there = len(atlas.records["digits"])
    assert f"This survey made 1 of the {there} records now there; others were made, or made again, since." in page
    later = {id: "2026-05-01T00:00:00Z" for id in atlas.records["digits"]}
    content = json.loads((results / "digits/survey.cost.json").read_text())
    assert spent.view(known.bed("digits"), content, later).made == 0
    assert "time-mnist" not in (site / "methods.html").read_text()


def test_paired_differences_come_as_data(site: Path, results: Path) -> None:
    lines = csv.DictReader((site / "data/comparisons.csv").read_text().splitlines())
    found = record(results, "digits", "ddim")
    line = next(
        line for line in lines if (line["bed"], line["id"], line["metric"], line["against"])
        == ("digits", "ddim", "fidelity", "control")
    )  # fmt: skip
    gap = paired(*(found["cells"][found[role]]["metrics"]["fidelity"]["values"] for role in ("default", "control")))
    assert [float(line[key]) for key in ("difference", "low", "high")] == [gap.mean, gap.low, gap.high]
    assert (line["word"], line["blocks"]) == (
        "worse" if gap.low > 0 else "better" if gap.high < 0 else "not told apart",
        "5",
    )


def test_a_quick_look_has_no_intervals_and_no_words(known: Catalog, tmp_path: Path) -> None:
    made_up.bed(known, tmp_path / "results", "digits", ["ddim"])
    for id in ("ddim", "baseline"):
        path = tmp_path / f"results/digits/{id}.json"
        content = json.loads(path.read_text())
        if id == "baseline":
            content["cells"] = {"baseline": content["cells"]["baseline"]}
        for cell in content["cells"].values():
            cell |= {"seeds": {"train": [0], "sample": [0]}, "budget": 0.1}
            for metric in cell["metrics"].values():
                metric |= {"values": metric["values"][:1], "low": None, "high": None, "blocks": 1}
                metric.pop("errors", None)
        path.write_text(json.dumps(content))
    render(known, tmp_path / "results", tmp_path / "site")
    table = text(section(tmp_path / "site", "t/ddim.html", "equal-digits", "</table>").split("<table")[1])
    assert "no interval not told apart" in table
    assert "better" not in table and "worse" not in table
    bed = text(section(tmp_path / "site", "beds.html", "bed-digits", "</section>"))
    assert "not known: one training seed" in bed and "pairs of neighbouring" not in bed and "Block i" not in bed
    assert "trained with 10 % of the budget of digits" in text((tmp_path / "site/index.html").read_text())


def test_no_network_is_no_count_of_zero(site: Path) -> None:
    lines = list(csv.DictReader((site / "data/results.csv").read_text().splitlines()))
    counted = {bed: {line["quantity"] for line in lines if line["bed"] == bed} for bed in ("mixture", "digits")}
    assert {"macs", "bytes", "evaluations"} <= counted["digits"]
    assert "evaluations" in counted["mixture"] and not counted["mixture"] & {"macs", "bytes", "parameters"}


def test_tables_are_what_the_data_package_says(site: Path) -> None:
    package = json.loads((site / "data/datapackage.json").read_text())
    assert {resource["name"] for resource in package["resources"]} >= {"results", "claims", "frontier", "machine"}
    read = {"number": float, "integer": int, "string": str}
    for resource in package["resources"]:
        fields = resource["schema"]["fields"]
        path = site / "data" / resource["path"]
        lines = list(csv.DictReader(path.read_text().splitlines()))
        assert lines and list(lines[0]) == [field["name"] for field in fields]
        assert all(field["description"] for field in fields)
        rows = json.loads(path.with_suffix(".json").read_text())
        for line, row in zip(lines, rows, strict=True):
            for field in fields:
                text, value = line[field["name"]], row[field["name"]]
                assert value is None if text == "" else read[field["type"]](text) == value


def test_the_first_page_names_what_was_measured_last(site: Path, results: Path) -> None:
    page = (site / "index.html").read_text()
    newest = re.findall(r'<time datetime="([^"]+)">', page)
    known = [
        json.loads(path.read_text())["when"] for path in results.glob("*/*.cost.json") if path.stem != "survey.cost"
    ]
    assert newest and newest == sorted(newest, reverse=True) and newest[0] == max(known)
