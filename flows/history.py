"""The terms under which claims were measured: written down with every record, and only ever added to.

A tolerance that is changed after the run that tested it leaves a second entry, and the claim's page shows both.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from catalog import Catalog, Claim
from flows.records import commit, read_json, write_json

SUFFIX = ".claims.json"
TERMS = ("kind", "metric", "arm", "control", "statistic", "expect", "tolerance")
"""The fields of a claim that decide its verdict."""


@dataclass(frozen=True)
class Terms:
    """What a claim asked for when it was measured, in which commit and when (ISO 8601)."""

    terms: dict[str, Any]
    commit: str | None
    when: str


Histories = Mapping[tuple[str, str], Mapping[str, tuple[Terms, ...]]]
"""By bed and technique: every claim that was ever measured, withdrawn ones included, with its terms, oldest first."""


def terms_of(claim: Claim) -> dict[str, Any]:
    """The fields of a claim that decide its verdict, as JSON has them."""
    return plain(claim.model_dump(mode="json", include=set(TERMS), exclude_none=True))


def plain(terms: dict[str, Any]) -> dict[str, Any]:
    """Terms without what goes without saying: that a cell had all of its training, which old entries do not tell."""
    return {field: _all_trained(term) if field in ("arm", "control") else term for field, term in terms.items()}


def _all_trained(cell: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cell.items() if (key, value) != ("trained", 1.0)}


def path_of(results: Path, bed: str, id: str) -> Path:
    """Where the history of a technique's claims on a bed lies."""
    return results / bed / f"{id}{SUFFIX}"


def read(results: Path, bed: str, id: str) -> dict[str, tuple[Terms, ...]]:
    """The history of every claim that was ever measured, withdrawn ones included, oldest first.

    An entry that says the same as the one before in other words is left out.
    """
    found: dict[str, tuple[Terms, ...]] = {}
    for claim, entries in _noted(results, bed, id).items():
        said = [replace(entry, terms=plain(entry.terms)) for entry in entries]
        found[claim] = tuple(
            entry for index, entry in enumerate(said) if not index or entry.terms != said[index - 1].terms
        )
    return found


def _noted(results: Path, bed: str, id: str) -> dict[str, tuple[Terms, ...]]:
    """The history as it stands in the file."""
    path = path_of(results, bed, id)
    known = read_json(path) if path.exists() else {}
    return {claim: tuple(Terms(**entry) for entry in entries) for claim, entries in known.items()}


def read_all(results: Path) -> Histories:
    """The history of every technique on every bed."""
    found = [(path.parent.name, path.name.removesuffix(SUFFIX)) for path in sorted(results.glob(f"*/*{SUFFIX}"))]
    return {(bed, id): read(results, bed, id) for bed, id in found}


def add(known: Catalog, bed: str, id: str, results: Path) -> None:
    """Note the terms of every claim of a technique that is tested on the bed, where they are new."""
    if id not in known.techniques:
        return
    history = _noted(results, bed, id)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for claim in known.technique(id).claims:
        entries = history.get(claim.id, ())
        if (
            claim.untested is None
            and bed in claim.beds
            and (not entries or plain(entries[-1].terms) != terms_of(claim))
        ):
            history[claim.id] = (*entries, Terms(terms_of(claim), commit(), now))
    if history:
        write_json(path_of(results, bed, id), {claim: [asdict(entry) for entry in history[claim]] for claim in history})
