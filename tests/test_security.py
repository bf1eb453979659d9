"""What is read from files is data: nothing unpickles, evaluates or reaches a shell; servers stay on this machine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

import catalog
from catalog import CatalogError, Technique
from flows import forms, operate

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("catalog", "flows", "methods") for path in (ROOT / package).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS_TEXT = {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
UNPICKLES = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file by its dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(path: Path) -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert not imported & PICKLES
    for name, call in calls(path):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        assert name not in RUNS_TEXT, f"{name} in line {call.lineno}"
        assert name not in UNPICKLES or "Loader" in given, f"{name} in line {call.lineno}"
        assert "shell" not in given, f"a shell in line {call.lineno}"


@pytest.mark.parametrize("id", ["os.system", "../secret", "deepcache; rm -rf x", "__import__('os')", "Deepcache"])
def test_an_id_is_a_name_of_the_catalog_and_nothing_else(id: str) -> None:
    with pytest.raises(CatalogError):
        forms.parse([id])


def test_a_technique_is_imported_from_methods_and_from_nowhere_else() -> None:
    for technique in catalog.load().techniques.values():
        assert technique.module == f"methods.{technique.area}.{technique.family}.{technique.id}"
        raw = technique.model_dump(mode="json", exclude_none=True, by_alias=True)
        for field in ("id", "family", "area"):
            with pytest.raises(ValidationError, match=rf"\n{field}\n"):
                Technique.model_validate({**raw, field: "os.path"})


def test_servers_stay_on_this_machine_unless_told_otherwise() -> None:
    assert operate.SETTINGS.host == "127.0.0.1"
    conf = operate.CONFIGURATION.read_text()
    assert "0.0.0.0" not in conf and "inet_http_server" not in conf
    assert conf.count("ATLAS_HOST") >= 2, "every server is told where to listen"
