"""The catalog is whole, and says where it is not."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from latex2mathml.converter import convert

from catalog import Catalog, CatalogError, Cell, cell_name, load
from catalog.__main__ import schemas

ROOT = Path(__file__).parents[1] / "catalog"
DDIM = "inference/ode_solver/ddim.yaml"
VELOCITY = "training/objective/v_prediction.yaml"
CATALOG = load()
TECHNIQUES = list(CATALOG.techniques.values())
Edit = Callable[[str, str, str], Path]


@pytest.fixture
def broken(tmp_path: Path) -> Edit:
    """Copies the catalog with ddim and what beds stand on, and replaces one text in one file of the copy."""

    def edit(file: str, old: str, new: str) -> Path:
        root = tmp_path / "catalog"
        shelves = (path for shelf in ("*.yaml", "surveys/*", "beds/*") for path in ROOT.glob(shelf))
        for path in [*shelves, ROOT / DDIM, ROOT / VELOCITY]:
            copy = root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        text = (root / file).read_text(encoding="utf-8")
        assert old in text
        (root / file).write_text(text.replace(old, new, 1), encoding="utf-8")
        return root

    return edit


def fails(root: Path) -> str:
    """The one sentence with which loading fails."""
    with pytest.raises(CatalogError) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def line_of(root: Path, file: str, text: str) -> int:
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("old", "new", "field", "says"),
    [
        ("id: ddim", "id: ddimm", "id", "the file belongs in inference/ode_solver/ddimm.yaml"),
        ("area: inference", "area: training", "area", "the file belongs in training/ode_solver/ddim.yaml"),
        ("family: ode_solver", "family: ode", "family", "the file belongs in inference/ode/ddim.yaml"),
        ("arxiv: '2010.02502'", "arxiv: 2010.02502", "paper.arxiv", "valid string, not 2010.02502"),
        ("year: 2021", "year: soon", "paper.year", "valid integer"),
        ("year: 2021", "year: !!python/name:os.system", "yaml", "tags are not allowed"),
        ("year: 2021", "year: &a 2021", "yaml", "anchors"),
        ("status: runnable", "status: listed", "status", "Input should be 'runnable', not 'listed'"),
        ("retrains: false", "retrains: no", "retrains", "valid boolean"),
        ("retrains: false", "retrains: false\nretrains: true", "retrains", "this key already stands in line"),
        ("retrains: false", "retrain: false", "retrains", "Field required"),
        ("code: ermongroup", "kode: ermongroup", "kode", "Extra inputs are not permitted"),
        ("changes: [sampler,", "changes: [solver,", "changes[0]", "'sampler'"),
        ("beds: [digits,", "beds: [digitz,", "beds[0]", "no bed 'digitz'; did you mean digits?"),
        ("default: 20", "default: 0", "parameters.steps", "0 is below 1"),
        ("default: 20", "default: 20\n    beds: {digit: 4}", "parameters.steps.beds.digit", "did you mean"),
        ("survey: ma2024", "survey: ma2025", "surveys[0].survey", "no survey 'ma2025'; did you mean ma2024"),
        ("section: '2.1'", "section: '2.9'", "surveys[0].section", "no section of ma2024 '2.9'"),
        ("section: '2.1'", "section: 7-rest", "surveys[0].status", "the row '7-rest' is not"),
        ("arm: {methods: {ddim", "arm: {methods: {dim", "claims[0].arm.methods.dim", "did you mean ddim"),
        ("{ddim: {eta: 1.0}}", "{ddim: {etta: 1}}", "claims[0].control.methods.ddim", "did you mean eta?"),
        ("{ddim: {eta: 1.0}}", "{ddim: {eta: 2}}", "claims[0].control.methods.ddim", "2 is above 1"),
        ("metric: fd", "metric: fid", "claims[0].metric", "'fd'"),
        ("expect: {at_most: 0.0}", "expect: {}", "claims[0].expect", "exactly one of at_most"),
        ("statistic: difference", "statistic: value", "claims[0]", "a value has none"),
        ("kind: ordering", "kind: equivalence", "claims[0]", "an equivalence is expected to be equal"),
        ("- id: ten_times", "- id: better_than_ancestral_at_few_steps #", "claims[1].id", "an earlier claim"),
    ],
)
def test_an_error_names_file_line_and_field(broken: Edit, old: str, new: str, field: str, says: str):
    root = broken(DDIM, old, new)
    message = fails(root)
    assert re.match(rf"catalog/{DDIM}:\d+: {re.escape(field)}: ", message)
    assert says in message


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("taxonomy.yaml", "  - id: ode_solver", "  - id: ode", ":5: family: There is no family of inference"),
        ("surveys/ma2024.yaml", "key: ma2024", "key: ma", ":2: key: 'ma' differs from the file's name"),
        ("surveys/ma2024.yaml", "- id: '2.2'", "- id: '2.1'", "sections: the row id '2.1' stands more than"),
        ("surveys/ma2024.yaml", "status: verified", "status: sure", "sections[0].status: Input should be"),
        ("beds/digits.yaml", "name: digits", "name: digit", ":2: name: 'digit' differs from the file's name"),
        ("beds/digits.yaml", "warmup: 100", "warmup: -1", "fit.warmup: Input should be greater than"),
        ("beds/mnist.yaml", "[v_prediction]", "[v_predictions]", "methods[0]: There is no technique 'v_pred"),
        ("baseline.yaml", "steps: 50", "steps: 0", "steps: Input should be greater than 0, not 0"),
    ],
)
def test_the_other_files_are_checked_too(broken: Edit, file: str, old: str, new: str, message: str):
    assert message in fails(broken(file, old, new))


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("arm: {methods: {ddim: {}}, steps: 10}", "arm:\n    methods:\n      ddimm: {}", "ddimm"),
        ("retrains: false", "retrains: false\nretrains: true", "retrains: true"),
        ("arxiv: '2010.02502'", "arxiv: 2010.02502", "arxiv"),
        ("venue: ICLR", "venu: ICLR", "venu:"),
        ("idea: >-", "idea: >-\n  ]\n bad", " bad"),
    ],
)
def test_the_line_is_that_of_the_entry(broken: Edit, old: str, new: str, place: str):
    root = broken(DDIM, old, new)
    assert fails(root).startswith(f"catalog/{DDIM}:{line_of(root, DDIM, place)}: ")


def test_an_id_stands_once(broken: Edit):
    root = broken(DDIM, "id: ddim", "id: ddim")
    shutil.copy(root / DDIM, root / "inference/sde_solver.yaml")
    assert re.match(r"catalog/inference/sde_solver.yaml:2: id: 'ddim' is also the id in", fails(root))


def test_yaml_is_strict(broken: Edit):
    root = broken(DDIM, "default: 0.0", "default: 1e-4")
    assert load(root).technique("ddim").parameters["eta"].default == 1e-4


def test_the_nearest_id_is_suggested():
    with pytest.raises(CatalogError, match=r"^There is no technique 'deepcash'; did you mean deepcache\?$"):
        CATALOG.technique("deepcash")
    with pytest.raises(CatalogError, match=r"^There is no bed 'digit'; did you mean digits\?$"):
        CATALOG.bed("digit")


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.id)
class TestEveryTechnique:
    def test_its_equation_renders(self, technique):
        assert "<merror" not in (mathml := convert(technique.equation))
        assert "\\" not in mathml

    def test_one_of_its_claims_is_tested_on_each_of_its_beds(self, technique):
        tested = {bed for claim in technique.claims if claim.untested is None for bed in claim.beds}
        assert tested == set(technique.beds)

    def test_absolute_numbers_are_not_tested_small(self, technique):
        assert all(claim.untested for claim in technique.claims if claim.kind == "absolute")

    def test_its_cells_begin_with_itself_and_its_control(self, technique):
        default, control, *_ = CATALOG.cells(technique.id, "digits").values()
        assert technique.id in default.methods and technique.id not in control.methods
        assert default.methods.keys() - control.methods.keys() == {technique.id}


@pytest.mark.parametrize(
    ("methods", "steps", "name"),
    [
        ({}, None, "baseline"),
        ({}, 50, "baseline"),
        ({}, 10, "baseline@10"),
        ({"ddim": {}}, 20, "ddim"),
        ({"ddim": {"eta": 1}}, 10, "ddim(eta=1.0)@10"),
        ({"ddim": {"steps": 4, "eta": 1.0}}, None, "ddim(eta=1.0,steps=4)"),
        ({"int8_dynamic": {}, "dit": {}}, None, "dit+int8_dynamic"),
        ({"dit": {"depth": 2, "width": 96}}, None, "dit(depth=2)"),
    ],
)
def test_cell_names(methods: dict, steps: int | None, name: str):
    assert cell_name(Cell(methods=methods, steps=steps), CATALOG, "digits") == name


def test_a_bed_has_its_own_defaults():
    latent = CATALOG.technique("latent_diffusion")
    assert latent.resolve({}, "digits") == {"factor": 2, "channels": 2, "kl": 1e-4}
    assert latent.resolve({"channels": 3}, "mnist") == {"factor": 4, "channels": 3, "kl": 1e-4}
    plain = Cell(methods={"latent_diffusion": {"factor": 4, "channels": 4}})
    assert cell_name(plain, CATALOG, "mnist") == "latent_diffusion"
    assert cell_name(plain, CATALOG, "digits") == "latent_diffusion(channels=4,factor=4)"


def test_what_a_bed_stands_on_is_not_named_there():
    cell = Cell(methods={"sfd": {}, "v_prediction": {}})
    assert CATALOG.bed("mnist").stands_on == ("v_prediction",)
    assert cell_name(cell, CATALOG, "mnist") == "sfd"
    assert cell_name(cell, CATALOG, "digits") == "sfd+v_prediction"


def test_the_order_is_the_taxonomy_s():
    folders = CATALOG.taxonomy.folders
    places = [folders.index((technique.area, technique.family)) for technique in TECHNIQUES]
    assert places == sorted(places)


def test_rows_hold_the_techniques_that_are_verified_there():
    said = {(s.survey, s.section, t.id) for t in TECHNIQUES for s in t.surveys if s.status == "verified"}
    held = {
        (key, row.id, id)
        for key, survey in CATALOG.surveys.items()
        for row in survey.rows().values()
        for id in row.techniques
    }
    assert said == held
    assert all(CATALOG.surveys[key].rows()[row].status == "verified" for key, row, _ in held)


def test_what_is_unverified_lists_no_names():
    rows = [row for survey in CATALOG.surveys.values() for row in survey.rows().values()]
    assert not any(row.names for row in rows if row.status == "unverified")


def test_the_curve_holds_the_baseline():
    assert CATALOG.baseline.steps in CATALOG.baseline.curve


def test_the_schema_is_in_sync():
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "schema").glob("*.json")}
    assert written == schemas(), "run: python -m catalog --write-schema"


def test_loading_imports_no_methods_and_is_done_once():
    code = "import sys, catalog; catalog.load(); sys.exit(bool({'methods', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=False).returncode == 0
    assert isinstance(CATALOG, Catalog) and load() is CATALOG
