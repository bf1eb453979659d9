"""Who stands on the frontier: hand-made rows with known answers, and the pages that show them."""

import json
from pathlib import Path

import made_up
import numpy as np
import pytest

import catalog
from catalog import Catalog
from flows.rendering import render
from flows.rendering.frontier import Entrant, standings, told_apart
from flows.rendering.numbers import Number
from methods.measure.statistics import paired


@pytest.fixture(scope="module")
def known() -> Catalog:
    return catalog.load()


@pytest.fixture(scope="module")
def site(known: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    render(known, made_up.everything(known, tmp_path_factory.mktemp("results")), out)
    return out


def row(name: str, spent: float, values: list[float], key: str = "fd") -> Entrant:
    quality = Number(float(np.mean(values)), 0, 1, len(values), 100, "distance", "digits", name, "r.json")
    cost = Number(spent, None, None, 1, None, "evaluations", "digits", name, "r.json")
    return Entrant(name, name, name, "r.json", {key: quality}, {key: values}, {"evaluations": cost})


NOISE = [0.0, 0.01, -0.01, 0.02, -0.02]


def at(level: float, noise: float = 1.0) -> list[float]:
    return [level + noise * each for each in NOISE]


def test_rows_are_told_apart_as_a_paired_interval_tells_them() -> None:
    values = np.random.default_rng(0).normal(size=(6, 5)) + np.arange(6)[:, None] * 0.5
    better = told_apart(values, lower=True)
    for i in range(6):
        for j in range(6):
            if i != j:
                assert better[i, j] == (paired(list(values[i]), list(values[j])).high < 0)
    assert (told_apart(-values, lower=False) == better).all()


def test_who_is_beaten_ties_or_stands_on_the_front() -> None:
    rows = [
        row("cheap", 4, at(2.0)),
        row("middle", 10, at(1.0)),
        row("no better than the middle", 20, [1.0, 1.2, 0.8, 1.1, 0.9]),
        row("worse than the middle", 20, at(1.5)),
        row("best", 50, at(0.5)),
        row("as dear and as good as the best", 50, [0.5, 0.7, 0.3, 0.6, 0.4]),
        row("as dear as the best and worse", 50, at(0.9)),
    ]
    found = {
        each.entrant.name: (each.standing, each.by and each.by.name) for each in standings(rows, "fd", "evaluations")
    }
    assert found == {
        "cheap": ("front", None),
        "middle": ("front", None),
        "no better than the middle": ("tied", "middle"),
        "worse than the middle": ("beaten", "middle"),
        "best": ("front", None),
        "as dear and as good as the best": ("front", None),
        "as dear as the best and worse": ("beaten", "best"),
    }


def test_where_more_is_better_the_highest_leads() -> None:
    rows = [row("low", 4, at(0.5), "accuracy"), row("high", 4, at(0.9), "accuracy")]
    found = {each.entrant.name: each.standing for each in standings(rows, "accuracy", "evaluations")}
    assert found == {"low": "beaten", "high": "front"}


def test_one_value_decides_nothing() -> None:
    places = standings([row("a", 4, [2.0]), row("b", 2, [1.0])], "fd", "evaluations")
    assert [(each.entrant.name, each.standing) for each in places] == [("b", "one value"), ("a", "one value")]
    assert standings([], "fd", "evaluations") == []


def test_what_pages_are_given_is_what_the_records_hold(site: Path, known: Catalog) -> None:
    text = (site / "data/atlas.js").read_text()
    data = json.loads(text.removeprefix("window.ATLAS = ").removesuffix(";\n"))
    bed = data["beds"]["digits"]
    for shown in bed["rows"]:
        record = json.loads((site / shown["record"]).read_text())
        cell = record["cells"][shown["cell"]]
        for key, found in shown["qualities"].items():
            assert found["value"] == cell["metrics"][key]["mean"]
        assert shown["costs"]["evaluations"]["value"] == cell["cost"]["evaluations"]
        if shown["id"] and known.techniques[shown["id"]].retrains:
            assert "fidelity" not in shown["qualities"]
    front = {bed["rows"][row]["name"] for row, standing, _ in bed["standings"]["fd evaluations"] if standing == "front"}
    page = (site / "frontier.html").read_text()
    assert front and "on the front" in page
    for row, standing, by in bed["standings"]["fd evaluations"]:
        if standing == "beaten":
            assert bed["rows"][by]["costs"]["evaluations"]["value"] <= bed["rows"][row]["costs"]["evaluations"]["value"]
