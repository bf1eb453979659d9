"""The site says nothing that was not measured, says all that was, and works as a folder of files."""

import gc
import gzip
import json
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import made_up
import pytest
from jinja2 import nodes

import catalog
from catalog import Catalog
from flows.rendering import SITE, render, templates
from methods.measure.reference import UNITS

VOID = {"area", "br", "wbr", "hr", "img", "input", "link", "meta", "path", "circle"}


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
    return made_up.everything(known, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def full(known: Catalog, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of made-up results: one technique failed, one has no record."""
    out = tmp_path_factory.mktemp("full")
    render(known, results, out)
    return out


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
def test_every_technique_family_and_survey_has_a_page(
    which: str, known: Catalog, request: pytest.FixtureRequest
) -> None:
    site = request.getfixturevalue(which)
    assert {page.stem for page in (site / "t").iterdir()} == set(known.techniques)
    assert {page.stem for page in (site / "survey").iterdir()} == {"index", *known.surveys}
    families = {f"{area.id}-{family.id}" for area in known.taxonomy.areas for family in area.families}
    assert {page.stem for page in (site / "family").iterdir()} == families


@pytest.mark.parametrize("which", ["empty", "full"])
def test_links_lead_somewhere_and_ids_are_unique(which: str, request: pytest.FixtureRequest) -> None:
    site = request.getfixturevalue(which)
    ids = {page: set(read(page).ids) for page in pages(site)}
    for page in pages(site):
        for link in read(page).links:
            if link.startswith(
                ("https://arxiv.org/", "https://doi.org/", "https://github.com/", "https://specs.frictionlessdata.io/")
            ):
                continue
            path, _, anchor = link.partition("#")
            path = path.partition("?")[0]
            target = (page.parent / unquote(path)).resolve() if path else page
            assert target.is_file(), f"{page.name}: {link}"
            choice = target.name in ("compare.html", "frontier.html") and "=" in anchor
            assert choice or not anchor or anchor in ids[target], f"{page.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(full: Path) -> None:
    for page in pages(full):
        assert not re.findall(r'<(?:script|link|img|iframe|object)[^>]*(?:src|href)="https?:', page.read_text())
    assert "url(" not in (full / "static/style.css").read_text()
    assert "@import" not in (full / "static/style.css").read_text()


def test_what_is_missing_is_said(empty: Path, full: Path) -> None:
    assert "no result yet" in (empty / "index.html").read_text()
    for page in [*(empty / "t").iterdir(), empty / "beds.html"]:
        assert "no result yet" in page.read_text()
    assert "not noted yet" in (empty / "methods.html").read_text()
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


def test_one_result_changes_only_the_pages_that_show_it(known: Catalog, results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "results")
    render(known, tmp_path / "results", tmp_path / "site")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "site").rglob("*") if path.is_file()}
    path = tmp_path / "results/digits/edm_heun.json"
    record = json.loads(path.read_text())
    record["cells"][record["default"]]["metrics"]["nearest"]["mean"] += 0.25
    path.write_text(json.dumps(record))
    render(known, tmp_path / "results", tmp_path / "site")
    changed = {path.relative_to(tmp_path / "site").as_posix() for path, when in before.items()
               if path.stat().st_mtime_ns != when}  # fmt: skip
    assert changed == {"t/edm_heun.html", "data/digits/edm_heun.json", "data/results.csv", "data/results.json"}


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
    judged = json.loads((full / "data/ledger.json").read_text())
    for each in judged:
        anchor = "-".join(filter(None, (each["claim"]["id"], each["bed"])))
        page = (full / f"t/{each['technique']}.html").read_text()
        article = page.split(f'id="claim-{anchor}"')[1].split("</article>")[0]
        assert f"<span>{each['status']}</span>" in article
        scale = known.bed(each["bed"]).scale if each["bed"] else None
        assert (f"{scale} scale" in article) == (each["verdict"] is not None)
    assert {each["status"] for each in judged} == {"supported", "not supported", "inconclusive", "not tested"}


def test_the_scale_stands_beside_every_count_of_verdicts(full: Path) -> None:
    counted = 0
    for page in pages(full):
        for tally in re.findall(r'<ul class="tally.*?</ul>', page.read_text(), re.DOTALL):
            reached = any(
                f'class="badge {status}"' in tally for status in ("supported", "not-supported", "inconclusive")
            )
            assert bool(re.search(r'class="scale">(toy|reduced)( and (toy|reduced))? scale<', tally)) == reached
            counted += reached
    assert counted > 50


def test_the_first_page_is_small(full: Path) -> None:
    assert sum(len((full / name).read_bytes()) for name in ("index.html", "static/style.css", "static/site.js")) < 500e3


@pytest.mark.slow
def test_150_techniques_render_in_ten_seconds(known: Catalog, tmp_path: Path) -> None:
    crowd = made_up.crowd(known, 150)
    for bed in ("digits", "mixture"):
        made_up.bed(crowd, tmp_path / "results", bed, [id for id, t in crowd.techniques.items() if bed in t.beds])
    for technique in known.techniques.values():
        import_module(technique.module)  # what libraries take to be loaded is theirs
    gc.collect()
    gc.freeze()  # what the tests before have left is none of its work
    began = time.process_time()
    files = render(crowd, tmp_path / "results", tmp_path / "site")
    taken = time.process_time() - began
    gc.unfreeze()
    assert taken < 10
    assert sum(path.parent.name == "t" for path in files) == 150
    assert len(gzip.compress((tmp_path / "site/index.html").read_bytes())) < 500_000
