"""Reads strict YAML and says where every value stands, so that an error can name file, line and field."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class CatalogError(ValueError):
    """The catalog or a question put to it is wrong: a sentence, about a file after `path:line: field:`."""


Fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's reader, where there is one: the same as PyYAML's own, eight times as fast."""


class StrictLoader(Fast):
    """YAML 1.2's core schema: `no` and dates are strings, `1e-4` is a number."""


StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
StrictLoader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
StrictLoader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value))


@dataclass(frozen=True)
class Document:
    """One YAML file: its plain value, and the line of every entry in it."""

    path: str
    value: Any
    lines: dict[Location, int]

    def error(self, location: Location, message: str) -> CatalogError:
        """The error to raise about the entry at `location`; an absent entry stands where its parent does."""
        known = location
        while known not in self.lines:
            known = known[:-1]
        return CatalogError(f"{self.path}:{self.lines[known]}: {dotted(location)}: {message}")

    def parse(self, model: type[Model]) -> Model:
        """The file as a `model`; the first thing wrong with it is raised as a CatalogError."""
        try:
            return model.model_validate(self.value)
        except ValidationError as failure:
            first = failure.errors()[0]
        location: Location = first["loc"]
        if first["type"] != "missing":  # pydantic appends the names of union members and of validators
            while location not in self.lines:
                location = location[:-1]
        given = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
        raise self.error(location, first["msg"].removeprefix("Value error, ") + given)


def dotted(location: Location) -> str:
    """`("claims", 0, "arm")` as `claims[0].arm`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or "file"


def refuse_references(text: str) -> None:
    """Raises MarkedYAMLError if a value has an anchor, an alias or a tag."""
    for event in yaml.parse(text, Loader=Fast):
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            problem = "anchors, aliases and tags are not allowed"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def read(path: Path, name: str) -> Document:
    """Reads one file; `name` is what its errors call it."""
    text = path.read_text(encoding="utf-8")
    loader = StrictLoader(text)
    lines: dict[Location, int] = {}
    try:
        refuse_references(text)
        node = loader.get_single_node()
        document = Document(name, loader.construct_document(node) if node else None, lines)
        _note_lines(document, node, (), 1)
        return document
    except yaml.MarkedYAMLError as failure:
        line = failure.problem_mark.line + 1 if failure.problem_mark else 1
        raise CatalogError(f"{name}:{line}: yaml: {failure.problem}") from None
    except yaml.reader.ReaderError as failure:
        raise CatalogError(f"{name}:1: yaml: {failure.reason}") from None
    finally:
        loader.dispose()


def _note_lines(document: Document, node: yaml.Node | None, location: Location, line: int) -> None:
    document.lines[location] = line
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(document, item, (*location, index), item.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            inner = (*location, key.value)
            if inner in document.lines:
                where = f"line {document.lines[inner]}"
                document.lines[inner] = key.start_mark.line + 1
                raise document.error(inner, f"this key already stands in {where}")
            _note_lines(document, item, inner, key.start_mark.line + 1)


def absent(kind: str, name: str, options: Iterable[str]) -> str:
    """`There is no technique 'deepcash'; did you mean deepcache?`"""
    near = difflib.get_close_matches(name, list(options), n=3)
    return f"There is no {kind} {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
