"""The page that compares what is trained for few evaluations: the numbers of the records, and the best opponent."""

import re
from pathlib import Path

import made_up
import pytest

from catalog import load
from flows.records import read_json, write_json
from flows.rendering import few_steps, render
from flows.rendering.measured import Measured

KNOWN = load()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.everything(KNOWN, tmp_path_factory.mktemp("results"))


def test_a_technique_stands_at_the_evaluations_its_record_has(results: Path) -> None:
    view = few_steps.on_bed(Measured(KNOWN, results), KNOWN.bed("digits"))
    assert view is not None
    rows = {row.technique.id: row for row in view.rows if row.technique}
    assert rows.keys() == {t.id for t in KNOWN.techniques.values() if t.family in few_steps.FAMILIES}
    cells = read_json(results / "digits/consistency_distillation.json")["cells"]
    means = [cells[f"consistency_distillation{at}"]["metrics"]["fd"]["mean"] for at in ("@1", "", "@4", "@8")]
    assert [n.value for n in rows["consistency_distillation"].qualities if n] == means
    shown = rows["sfd"].qualities
    assert [n is None for n in shown] == [True, False, False, True], "as many steps as its parameter says"


def test_the_opponent_is_the_best_cell_without_a_training_of_its_own(results: Path) -> None:
    view = few_steps.on_bed(Measured(KNOWN, results), KNOWN.bed("digits"))
    assert view is not None
    (row,) = (row for row in view.rows if row.technique is None)
    found: dict[float, list[float]] = {}
    for path in (results / "digits").glob("*.json"):
        for name, cell in read_json(path)["cells"].items() if path.stem in ("baseline", *KNOWN.techniques) else ():
            methods = [id for id in cell["methods"] if id not in ("v_prediction", "flow_matching")]
            if not any(KNOWN.techniques[id].retrains for id in methods):
                found.setdefault(cell["cost"]["evaluations"], []).append(cell["metrics"]["fd"]["mean"])
                assert "ddgan" not in name
    assert [n.value if n else None for n in row.qualities] == [min(found[n], default=None) for n in few_steps.COLUMNS]
    assert view.best == [
        min(r.qualities[i].value for r in view.rows if r.qualities[i]) for i in range(len(few_steps.COLUMNS))
    ]


def test_the_page_shows_the_records_and_says_when_there_are_none(results: Path, tmp_path: Path) -> None:
    render(KNOWN, results, tmp_path / "site")
    page = (tmp_path / "site/few_steps.html").read_text()
    shown = {float(text) for text in re.findall(r'data-sort="([\d.e-]+)"', page)}
    cells = read_json(results / "digits/ect.json")["cells"]
    assert {cells[name]["metrics"]["fd"]["mean"] for name in ("ect", "ect@1", "ect@4", "ect@8")} <= shown
    assert 'href="../few_steps.html"' in (tmp_path / "site/family/inference-consistency.html").read_text()
    write_json(tmp_path / "none/digits/floor.json", read_json(results / "digits/floor.json"))
    render(KNOWN, tmp_path / "none", tmp_path / "empty")
    assert "no result yet" in (tmp_path / "empty/few_steps.html").read_text()
