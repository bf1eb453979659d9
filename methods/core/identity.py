"""What makes two runs the same: a fingerprint of what a run is given, the code behind it included."""

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from methods.core.calibration import SAMPLING, Calibrated
from methods.core.recipe import TRAINING, Recipe


def describe(value: Any) -> Any:
    """A value of a recipe as plain JSON: objects by class and attributes, tensors by their numbers.

    Raises TypeError for what has neither: two recipes that differ in it would look the same.
    """
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **{f.name: describe(getattr(value, f.name)) for f in fields(value)}}
    if type(value).__module__.startswith("methods."):
        return {"class": type(value).__name__, **{name: describe(held) for name, held in vars(value).items()}}
    raise TypeError(f"A recipe cannot hold a {type(value).__name__}: it has no description to tell it from another.")


def training_fingerprint(recipe: Recipe, context: str = "") -> str:
    """A digest of exactly what base training is given: the fields it reads and the code of the modules involved.

    Recipes that differ only in sampling or in later phases share it, and with it their weights. `context` names what
    lies outside of the recipe: data, seed.
    """
    return fingerprint([getattr(recipe, name) for name in TRAINING], context)


def shipped_fingerprint(recipe: Recipe, context: str = "") -> str:
    """A digest of everything that shapes the weights that ship: training, phases, fitted parts, shipping transforms."""
    shipping = [t for t in recipe.transforms if t.ships]
    fitted = bool(recipe.fitted) or any(isinstance(t, Calibrated) for t in shipping)
    heeded = {slot for phase in recipe.phases for slot in phase.heeds}
    made = [getattr(recipe, slot) for slot in SAMPLING if fitted or slot in heeded]
    deployed = [recipe.transforms, recipe.guidance, recipe.precision] if fitted else []
    return fingerprint(
        [*(getattr(recipe, name) for name in TRAINING), recipe.phases, recipe.start, shipping, made, deployed], context
    )


def recipe_fingerprint(recipe: Recipe, context: str = "") -> str:
    """A digest of the whole recipe: what its samples depend on."""
    return fingerprint([getattr(recipe, f.name) for f in fields(recipe)], context)


def fingerprint(values: Iterable[Any], context: str) -> str:
    """Sixteen hex digits over values and the code they come from."""
    values = list(values)
    modules = {"methods.core.run", *(module for value in values for module in modules_of(value))}
    text = json.dumps([describe(values), context, code_digest(frozenset(modules))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def modules_of(value: Any) -> set[str]:
    """The modules in which the classes of a value, and of what it holds, are defined."""
    if isinstance(value, (list, tuple)):
        return {module for item in value for module in modules_of(item)}
    held = {m for f in fields(value) for m in modules_of(getattr(value, f.name))} if is_dataclass(value) else set()
    module = type(value).__module__
    return held | ({module} if module.startswith("methods.") else set())


@cache
def code_digest(modules: frozenset[str]) -> str:
    """A digest of these modules of `methods` and all they import from it.

    Comments, docstrings and the annotations of functions do not count.
    """
    digest = hashlib.sha256()
    for name in sorted(import_closure(modules)):
        digest.update(f"{name}\n{_code(name)}\n".encode())
    return digest.hexdigest()


def import_closure(modules: Iterable[str]) -> set[str]:
    """The modules and everything they import, directly or not, inside the package `methods`."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_imports(name))
    return found


def source_file(module: str) -> Path:
    """Where a module's source lies."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(source_file(module).read_text())


@cache
def _imports(module: str) -> list[str]:
    nodes = [node for node in ast.walk(_tree(module)) if isinstance(node, ast.ImportFrom)]
    return sorted({name for node in nodes if (name := node.module or "").startswith("methods")})


@cache
def _code(module: str) -> str:
    tree = _tree(module)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [s for s in body if not _is_docstring(s)]  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
    return dumped(tree)


def dumped(tree: ast.AST) -> str:
    """The tree as Python 3.11 writes it, on every Python: later ones add a field, and leave out what is empty."""
    shown = ast.dump(tree) if sys.version_info < (3, 13) else ast.dump(tree, show_empty=True)
    return shown.replace(", type_params=[]", "")


def _is_docstring(statement: Any) -> bool:
    held = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(held, ast.Constant) and isinstance(held.value, str)
