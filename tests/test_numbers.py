"""The site of the committed results says what their records say: ten pages, read as a reader reads them."""

import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy import stats

import catalog
from flows.rendering import render

RESULTS = Path(__file__).parents[1] / "results"
RECORDED = sorted({path.stem.removesuffix(".claims") for path in RESULTS.glob("*/*.claims.json")})
SAMPLED = sorted(random.Random(0).sample(RECORDED, 10))
PREFIXES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
WRITTEN = re.compile(r"([−\d.,]+)(?: · 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?(?: ([kMGTP]))?")


class Reader(HTMLParser):
    """The rows of every table under its label: where the heading leads, and the text of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[tuple[str, list[str]]]] = {}
        self.rows: list[tuple[str, list[str]]] = []
        self.cells: list[str] | None = None
        self.key = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("role") == "region":
            self.rows = self.tables.setdefault(found.get("aria-label") or "", [])
        elif tag == "tr":
            self.cells, self.key = [], ""
        elif tag in ("td", "th") and self.cells is not None:
            self.cells.append("")
        elif tag == "a" and self.cells is not None and len(self.cells) == 1:
            self.key = (found.get("href") or "").partition("#")[2]

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self.cells is not None:
            self.rows.append((self.key, [" ".join(cell.split()) for cell in self.cells]))
            self.cells = None

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += f" {data}"


def numbers(text: str) -> Iterator[tuple[float, float]]:
    """Every number of a text with half a unit of its last digit."""
    for digits, power, prefix in WRITTEN.findall(text):
        if not re.search(r"\d", digits):
            continue
        plain = digits.replace(",", "").replace("−", "-")
        unit = PREFIXES[prefix] * 10.0 ** int(power.translate(RAISED) or 0)
        yield float(plain) * unit, 0.5001 * unit * 10.0 ** -len(plain.partition(".")[2])


def is_said(text: str, truth: list[float]) -> None:
    """A text says these numbers and no others, each to the digits that it gives."""
    shown = list(numbers(text))
    assert len(shown) == len(truth), (text, truth)
    for (value, half), known in zip(shown, truth, strict=True):
        slack = max(half, 5.01e-4 * abs(known)) if abs(known) >= 1e5 else half
        assert abs(value - known) <= slack, (text, truth)


def interval(values: list[float]) -> list[float]:
    """Mean and the ends of Student's interval at 95 %; the mean alone where nothing varies."""
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return [fmean(values), fmean(values) - half, fmean(values) + half] if half else [fmean(values)]


def gap(record: dict[str, Any], key: str) -> list[float]:
    """The subject minus its control, block by block."""
    own, other = (record["cells"][record[role]]["metrics"][key]["values"] for role in ("default", "control"))
    return interval([a - b for a, b in zip(own, other, strict=True)])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    render(catalog.load(), RESULTS, out)
    return out


def measured(id: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The records of a technique, each with the title of its bed."""
    for path in sorted(RESULTS.glob(f"*/{id}.json")):
        record = json.loads(path.read_text())
        if record["status"] == "ok":
            yield record, catalog.load().bed(record["bed"]).title


@pytest.mark.parametrize("id", SAMPLED)
def test_a_page_says_what_the_record_says(site: Path, id: str) -> None:
    reader = Reader()
    reader.feed((site / f"t/{id}.html").read_text())
    for record, title in measured(id):
        own, control = (record["cells"][record[role]] for role in ("default", "control"))
        shown = 0
        for key, cells in reader.tables[f"All quality metrics on {title}"][1:]:
            metric = key.removeprefix("metric-")
            for cell, text in ((own, cells[1]), (control, cells[2])):
                if metric in cell["metrics"]:
                    is_said(text, interval(cell["metrics"][metric]["values"]))
                    shown += 1
            if record["default"] != record["control"] and metric in own["metrics"] and metric in control["metrics"]:
                is_said(cells[3], gap(record, metric))
        assert shown >= len(own["metrics"])
        for key, cells in reader.tables.get(f"What it costs on {title}", [])[1:]:
            spent = [cell["cost"][key.removeprefix("cost-")] for cell in (own, control)]
            for text, truth in zip(cells[1:3], spent, strict=True):
                is_said(text, [] if truth is None else [truth])


@pytest.mark.parametrize("id", SAMPLED)
def test_what_stands_first_is_what_the_record_says(site: Path, id: str) -> None:
    reader = Reader()
    reader.feed((site / f"t/{id}.html").read_text())
    lines = {key: cells for key, cells in reader.tables["In short, on each test bed"] if key}
    for record, _ in measured(id):
        subject = record["cells"][record["default"]]
        main = "fd" if record["features"] else "w2"
        cells = lines[f"on-{record['bed']}"]
        is_said(cells[1], [subject["cost"]["evaluations"]])
        for key, text in (("macs", cells[2]), ("bytes", cells[3])):
            is_said(text, [subject["cost"][key]] if subject["cost"]["parameters"] else [])  # a formula has none
        is_said(cells[5], interval(subject["metrics"][main]["values"]))
        for axis, text in (("evaluations", cells[6]), ("macs", cells[7])):
            other = record["cells"].get(record[f"equal_{axis}"]["cell"])
            if other and record[f"equal_{axis}"]["cell"] != record["default"]:
                pairs = zip(subject["metrics"][main]["values"], other["metrics"][main]["values"], strict=True)
                is_said(text, interval([a - b for a, b in pairs]))
            else:
                is_said(text, [])


@pytest.mark.parametrize("id", SAMPLED)
def test_a_finding_says_what_the_record_says(site: Path, id: str) -> None:
    page, found = (site / f"t/{id}.html").read_text(), 0
    ledger = json.loads((site / "data/ledger.json").read_text())
    for each in (each for each in ledger if each["technique"] == id and each["verdict"]):
        cells = json.loads((RESULTS / each["bed"] / f"{id}.json").read_text())["cells"]
        metric, statistic = each["claim"]["metric"], each["claim"]["statistic"]
        arm, control = (cells[name] if name else None for name in (each["arm"], each["control"]))
        if metric not in arm["metrics"]:
            own, other = (cell and cell["cost"][metric] for cell in (arm, control))
            truth = [own if control is None else own / other if statistic == "ratio" else own - other]
        elif statistic in ("value", "difference"):
            values = arm["metrics"][metric]["values"]
            others = control["metrics"][metric]["values"] if control else [0.0] * len(values)
            truth = [fmean(a - b for a, b in zip(values, others, strict=True))]
        else:
            continue
        article = page.split(f'id="claim-{each["claim"]["id"]}-{each["bed"]}"')[1].split("</article>")[0]
        number = re.search(r'class="num" href="([^"]+)"[^>]*>([^<]+)</a>', article)
        assert number and number[1] == f"../data/{each['bed']}/{id}.json"
        is_said(number[2], truth)
        found += 1
    assert found or not any(each["technique"] == id and each["verdict"] for each in ledger)


def test_a_wrong_number_is_noticed() -> None:
    is_said("1.86 1.46 to 2.25", [1.8576, 1.4618, 2.2534])
    is_said("−0.87 −1.00 to −0.75", [-0.8749, -0.9961, -0.7536])
    is_said("3.76 · 10⁻⁶", [3.7569e-6])
    is_said("185 M", [184_713_216])
    for text, truth in (("1.86", [1.87]), ("0.87", [-0.87]), ("185 k", [185e6]), ("1.86", [1.86, 1.46])):
        with pytest.raises(AssertionError):
            is_said(text, truth)
