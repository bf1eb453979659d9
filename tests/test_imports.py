"""Imports run one way: flows -> catalog, methods; techniques -> core, nets, data; the core stands alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from methods.core.objective import Independent, UnitOnTarget

ROOT = Path(__file__).parents[1]
AREAS = ("architecture", "training", "inference", "deployment")
DRIVERS = ("prefect", "mlflow", "dvc", "yaml", "argparse", "flows", "catalog")
ALLOWED = {
    "methods.core": ("methods.core",),
    "methods.nets": ("methods.core", "methods.nets"),
    "methods.data": ("methods.core", "methods.data"),
    "methods.checkpoints": (
        "methods.core",
        "methods.nets",
        "methods.training",
        "methods.baseline",
        "methods.checkpoints",
    ),
    "methods.measure": ("methods.core", "methods.nets", "methods.data", "methods.measure"),
    **{
        f"methods.{area}": ("methods.core", "methods.nets", "methods.data", *(f"methods.{a}" for a in AREAS))
        for area in AREAS
    },
}
"""What each package may import from `methods`. A technique may build on another: guidance on guidance."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package.replace(".", "/")).rglob("*.py"))


def imported(path: Path, *, late: bool) -> Iterator[str]:
    """The dotted names a module imports; with `late`, also those inside of functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if not late and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            submodules = [alias.name for alias in node.names if (ROOT / module.replace(".", "/") / alias.name).is_dir()
                          or (ROOT / module.replace(".", "/") / f"{alias.name}.py").exists()]  # fmt: skip
            yield from (f"{module}.{name}" for name in submodules) if submodules else (module,)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_methods_know_neither_drivers_nor_catalog() -> None:
    for path in modules("methods"):
        for name in imported(path, late=True):
            assert not within(name, DRIVERS), f"{path} imports {name}"


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_of_methods_import_what_they_may(package: str) -> None:
    paths = modules(package)
    assert paths
    for path in paths:
        for name in imported(path, late=True):
            assert not within(name, ("methods",)) or within(name, ALLOWED[package]), f"{path} imports {name}"


def test_the_catalog_imports_methods_late_and_only_by_name() -> None:
    for path in modules("catalog"):
        for name in imported(path, late=True):
            assert not within(name, ("methods", "flows", "prefect", "mlflow", "dvc", "torch")), f"{path} imports {name}"


def test_the_cell_knows_no_driver() -> None:
    for name in imported(ROOT / "flows" / "cell.py", late=True):
        assert not within(name, ("prefect", "mlflow", "dvc")), name


def test_nothing_imports_flows_but_flows() -> None:
    for package in ("methods", "catalog"):
        for path in modules(package):
            assert not any(within(name, ("flows",)) for name in imported(path, late=True)), path


def test_imports_of_optional_packages_are_not_tried() -> None:
    """No `try: import`: a missing package is an error with an install line, not a silent skip."""
    for package in ("methods", "catalog", "flows"):
        for path in modules(package):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Try):
                    assert not any(isinstance(s, ast.Import | ast.ImportFrom) for s in node.body), path


def test_core_is_written_in_files_of_one_screen_or_two() -> None:
    """A core file is about 120 lines."""
    for path in modules("methods.core"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 145, f"{path} has {lines} lines"


def test_shapes_are_checked_while_tests_run() -> None:
    """The hook is there before any module of `methods`: one that came too late would check nothing, and say nothing."""
    levels = torch.zeros(3)
    assert UnitOnTarget().on_target(levels, levels).shape == (3,)
    with pytest.raises(jaxtyping.TypeCheckError):
        UnitOnTarget().on_target(levels[:, None], levels)
    with pytest.raises(jaxtyping.TypeCheckError):
        Independent()(3.0, torch.Generator())  # pyright: ignore[reportArgumentType]
