"""The site says nothing that was not measured, says all that was, and works as a folder of files."""

import hashlib
import json
import random
import re
import statistics
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from jinja2 import nodes
from PIL import Image

import catalog
from catalog import Catalog, Cell, cell_name
from flows.records import write_json
from flows.rendering import SITE, render, templates

UNITS = {"fd": "squared feature distance", "kid": "squared kernel mean discrepancy", "accuracy": "fraction of samples"}
UNITS |= {"recall": "fraction of reference images", "fidelity": "RMS pixel error, pixels in [-1, 1]"}
FEATURES = {"sha256": "ab12", "accuracy": 0.98, "dimensions": 64}
VOID = {"area", "br", "hr", "img", "input", "link", "meta", "path", "circle"}


@pytest.fixture(scope="module")
def known() -> Catalog:
    return catalog.load()


@pytest.fixture(scope="module")
def empty(known: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of nothing measured."""
    out = tmp_path_factory.mktemp("empty")
    render(known, tmp_path_factory.mktemp("no-results"), out)
    return out


@pytest.fixture(scope="module")
def results(known: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(known, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def full(known: Catalog, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of made-up results: one technique failed, one has no record."""
    out = tmp_path_factory.mktemp("full")
    render(known, results, out)
    return out


def made_up(known: Catalog, root: Path) -> Path:
    """Results in the format of real ones, on digits; the same every time."""
    folder = root / "digits"
    curve = [known.canonical(Cell(methods={}, steps=n)) for n in known.baseline.curve]
    names = {cell_name(cell, known, "digits"): cell for cell in curve}
    write_record(known, folder, "baseline", names, "baseline", "baseline")
    for id, technique in known.techniques.items():
        cells = known.cells(id, "digits")
        default, control = list(cells)[:2]
        if id == "diff_pruning":
            content = {"status": "failed", "reason": f"{default}: the gradient was not finite", "cells": {}}
            write_json(folder / f"{id}.json", head(id, default, control) | content)
        elif id != "immiscible_diffusion":
            write_record(known, folder, id, cells, default, control, technique.counters)
    write_json(
        folder / "floor.json",
        {"schema": 1, "bed": "digits", "id": "floor", "features": FEATURES, "held_out": {},
         "fd": {"bias_at_held_out": 0.9, "excess": 0.1, "bias_at_n": 0.21, "n": 1437}},
    )  # fmt: skip
    return root


def head(id: str, default: str, control: str) -> dict[str, Any]:
    return {
        "schema": 1, "bed": "digits", "id": id, "status": "ok", "reason": None, "default": default, "control": control,
        "spec_hash": "0123456789abcdef", "features": FEATURES,
    }  # fmt: skip


def write_record(
    known: Catalog, folder: Path, id: str, cells: dict[str, Cell], default: str, control: str, counters: Any = ()
) -> None:
    content = {name: made_up_cell(known, name, cell, counters) for name, cell in cells.items()}
    write_json(folder / f"{id}.json", head(id, default, control) | {"cells": content})
    write_json(
        folder / f"{id}.cost.json",
        {"commit": "c0ffee", "dirty": False, "when": "2026-01-02T03:04:05Z", "versions": {"torch": "2.13.0"},
         "host": {"cpu": "a processor", "cores": 2, "threads": 1, "load": 0.5}, "seconds": {"train": 71.2, "sample": 9},
         "latency_ratio": None if id == "baseline" else {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 6, "batch": 16}},
    )  # fmt: skip
    Image.frombytes("L", (89, 71), random.Random(id).randbytes(89 * 71)).save(folder / f"{id}.png")


def made_up_cell(known: Catalog, name: str, cell: Cell, counters: Any) -> dict[str, Any]:
    rng = random.Random(int(hashlib.sha256(name.encode()).hexdigest(), 16))
    steps = known.steps(cell, "digits")
    centre = 0.45 + 9 / steps**1.3 + (rng.uniform(-0.15, 0.5) if cell.methods else 0)

    def metric(key: str, mean: float, spread: float) -> dict[str, Any]:
        values = [mean + random.Random(i).gauss(0, spread) + rng.gauss(0, spread / 2) for i in range(5)]
        middle, half = statistics.fmean(values), 2.776 * statistics.stdev(values) / 5**0.5
        return {
            "values": values, "mean": middle, "low": middle - half, "high": middle + half, "unit": UNITS[key],
            "blocks": 5,
        }  # fmt: skip

    return {
        "methods": known.resolve(cell, "digits"), "steps": steps, "budget": 1.0, "n": 1437,
        "seeds": {"train": [0], "sample": [0, 1, 2, 3, 4]},
        "metrics": {
            "fd": metric("fd", centre, 0.08), "kid": metric("kid", centre / 900, 1e-4),
            "accuracy": metric("accuracy", 0.97, 0.003), "recall": metric("recall", 0.8, 0.01),
            "fidelity": metric("fidelity", centre / 20, 0.002),
        },
        "cost": {
            "evaluations": float(steps * (2 if "guidance" in name else 1)), "sequential_calls": float(steps),
            "macs": steps * (400_000 if "deepcache" in name else 912_345),
            "uncounted_ops": ["aten._int_mm"] if "int8" in name else [], "parameters": 352_111, "bytes": 1_408_444,
            "training_images": 99_840, "one_off_images": 0,
        },
        "counters": {counter: 0 if counter == "calls_skipped" else 1234 for counter in counters},
        "fingerprints": {"cell": "aa", "training": "bb", "shipped": "cc"},
    }  # fmt: skip


def pages(site: Path) -> Iterator[Path]:
    yield from sorted(site.rglob("*.html"))


class Links(HTMLParser):
    """Collects links and ids, and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [value for key in ("href", "src") if (value := found.get(key))]
        self.ids += [value for value in [found.get("id")] if value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def read(page: Path) -> Links:
    parser = Links()
    parser.feed(page.read_text())
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))
    return parser


@pytest.mark.parametrize("which", ["empty", "full"])
def test_every_technique_and_survey_has_a_page(which: str, known: Catalog, request: pytest.FixtureRequest) -> None:
    site = request.getfixturevalue(which)
    assert {page.stem for page in (site / "t").iterdir()} == set(known.techniques)
    assert {page.stem for page in (site / "survey").iterdir()} == {"index", *known.surveys}


@pytest.mark.parametrize("which", ["empty", "full"])
def test_links_lead_somewhere_and_ids_are_unique(which: str, request: pytest.FixtureRequest) -> None:
    site = request.getfixturevalue(which)
    ids = {page: set(read(page).ids) for page in pages(site)}
    for page in pages(site):
        for link in read(page).links:
            if link.startswith(("https://arxiv.org/", "https://doi.org/", "https://github.com/")):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / unquote(path)).resolve() if path else page
            assert target.is_file(), f"{page.name}: {link}"
            assert not anchor or anchor in ids[target], f"{page.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(full: Path) -> None:
    for page in pages(full):
        assert not re.findall(r'<(?:script|link|img|iframe|object)[^>]*(?:src|href)="https?:', page.read_text())
    assert "url(" not in (full / "static/style.css").read_text()
    assert "@import" not in (full / "static/style.css").read_text()


def test_what_is_missing_is_said(empty: Path, full: Path) -> None:
    assert "no result yet" in (empty / "index.html").read_text()
    for page in (empty / "t").iterdir():
        assert "no result yet" in page.read_text()
    assert "no result yet" in (full / "t/immiscible_diffusion.html").read_text()
    assert "the gradient was not finite" in (full / "t/diff_pruning.html").read_text()
    assert "the gradient was not finite" in (full / "index.html").read_text()
    assert "the technique did not fire" in (full / "t/deepcache.html").read_text()


def test_the_same_inputs_give_the_same_bytes(known: Catalog, results: Path, full: Path, tmp_path: Path) -> None:
    again = render(known, results, tmp_path)
    assert {p.relative_to(tmp_path) for p in again} == {p.relative_to(full) for p in full.rglob("*") if p.is_file()}
    for path in again:
        assert path.read_bytes() == (full / path.relative_to(tmp_path)).read_bytes(), path


def test_rendering_again_leaves_files_alone_and_removes_its_own(known: Catalog, results: Path, tmp_path: Path) -> None:
    render(known, results, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.html")}
    render(known, results, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.html")}
    render(known, tmp_path / "nowhere", tmp_path)
    assert not (tmp_path / "data/digits/ddim.json").exists()
    assert (tmp_path / "notes.txt").exists()


def test_markup_in_the_catalog_is_text(known: Catalog, tmp_path: Path) -> None:
    ddim = known.techniques["ddim"]
    claim = ddim.claims[0].model_copy(update={"says": "<b onclick='x()'>bold</b>"})
    changed = ddim.model_copy(
        update={"idea": "<script>alert()</script> & <i>", "name": '<img src="x">', "claims": (claim, *ddim.claims[1:]),
                "equation": r"x < \text{<script>alert()</script>}"}
    )  # fmt: skip
    altered = Catalog(known.taxonomy, known.surveys, known.beds, known.baseline, known.techniques | {"ddim": changed})
    render(altered, tmp_path / "none", tmp_path / "out")
    for page in pages(tmp_path / "out"):
        text = page.read_text()
        assert "<script>" not in text and "<b onclick" not in text and '<img src="x"' not in text
    assert "&lt;script&gt;alert()&lt;/script&gt; &amp; &lt;i&gt;" in (tmp_path / "out/t/ddim.html").read_text()


@pytest.mark.parametrize("template", sorted(path.name for path in (SITE / "templates").iterdir()))
def test_templates_type_no_number(template: str) -> None:
    source = (SITE / "templates" / template).read_text()
    without_code = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", source, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", "", without_code)
    assert not re.findall(r".*\d.*", text)
    words = [
        const.value
        for output in templates().parse(source).find_all(nodes.Output)
        for const in output.nodes
        if isinstance(const, nodes.Const)
    ]
    assert not [word for word in words if re.search(r"\d", str(word))]


def test_numbers_on_pages_are_those_of_the_records(results: Path, full: Path) -> None:
    number = re.compile(r'title="(.*?)">([\d.]+)</a> <span class="ci">([\d.]+) to ([\d.]+)</span>')
    for id in ("ddim", "edm_heun", "min_snr_weighting", "v_prediction"):
        record = json.loads((results / f"digits/{id}.json").read_text())
        fd = record["cells"][record["default"]]["metrics"]["fd"]
        page = (full / f"t/{id}.html").read_text()
        basis = f"{UNITS['fd']}; 95 % interval from 5 values of 1,437 samples each; {record['default']} on digits"
        shown = [[float(part) for part in parts] for title, *parts in number.findall(page) if title == basis]
        assert shown
        assert all(parts == [pytest.approx(fd[key], abs=0.006) for key in ("mean", "low", "high")] for parts in shown)
        assert f'href="../data/digits/{id}.json"' in page


def test_a_verdict_stands_beside_its_claim_with_its_scale(known: Catalog, full: Path) -> None:
    judged = json.loads((full / "data/claims.json").read_text())
    for each in judged:
        anchor = "-".join(filter(None, (each["claim"]["id"], each["bed"])))
        page = (full / f"t/{each['technique']}.html").read_text()
        article = page.split(f'id="claim-{anchor}"')[1].split("</article>")[0]
        assert f"<span>{each['status']}</span>" in article
        assert ("toy scale" in article) == (each["verdict"] is not None)
    assert {each["status"] for each in judged} == {"supported", "not supported", "inconclusive", "not tested"}


def test_the_first_page_is_small(full: Path) -> None:
    assert sum(len((full / name).read_bytes()) for name in ("index.html", "static/style.css", "static/site.js")) < 500e3
