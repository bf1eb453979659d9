"""The terms under which claims were measured: written down with every record, and only ever added to.

A tolerance that is changed after the run that tested it leaves a second entry, and the claim's page shows both.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    return claim.model_dump(mode="json", include=set(TERMS), exclude_none=True)


def path_of(results: Path, bed: str, id: str) -> Path:
    """Where the history of a technique's claims on a bed lies."""
    return results / bed / f"{id}{SUFFIX}"


def read(results: Path, bed: str, id: str) -> dict[str, tuple[Terms, ...]]:
    """The history of every claim that was ever measured, withdrawn ones included, oldest first."""
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
    history = read(results, bed, id)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for claim in known.technique(id).claims:
        entries = history.get(claim.id, ())
        if claim.untested is None and bed in claim.beds and (not entries or entries[-1].terms != terms_of(claim)):
            history[claim.id] = (*entries, Terms(terms_of(claim), commit(), now))
    if history:
        write_json(path_of(results, bed, id), {claim: [asdict(entry) for entry in history[claim]] for claim in history})
