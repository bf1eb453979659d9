"""A claim beside its verdict, the number it rests on, and every term under which it was ever measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from catalog import Claim, Technique
from flows.history import Terms
from flows.ledger import Judged, Status, tally
from flows.rendering.measured import Measured
from flows.rendering.numbers import MINUS, Number, exact
from flows.rendering.weak import caution as weak_caution

NOT_IN_PAPER = "not in the paper"
"""How the catalog begins to say where a claim stands that is a question of this survey."""
RELATIONS = {"at_most": "at most", "at_least": "at least", "equal": "equal to"}
SAMPLING_ONLY = "One training seed: the interval holds sampling noise only, not that of training."


@dataclass(frozen=True)
class Change:
    """A term that was changed after a run, in which commit and when."""

    field: str
    before: str
    after: str
    commit: str | None
    when: str


@dataclass(frozen=True)
class Withdrawn:
    """A claim that was measured once and is no longer in the catalog for its bed."""

    bed: str
    technique: str
    id: str
    last: list[tuple[str, str]]
    terms: Terms


@dataclass(frozen=True)
class Counts:
    """How many claims have each status, and at which scales those with a verdict were decided."""

    statuses: dict[Status, int]
    scales: list[str]

    @staticmethod
    def of(judged: Iterable[Judged]) -> "Counts":
        known = list(judged)
        return Counts(tally(known), list(dict.fromkeys(each.scale for each in known if each.verdict and each.scale)))


@dataclass(frozen=True)
class ClaimView:
    judged: Judged
    number: Number | None
    formula: str
    expectation: str
    caution: str | None
    changes: list[Change]
    late: str | None
    """When it was first noted, where that is after the technique's first measurement on the bed."""

    @property
    def claim(self) -> Claim:
        return self.judged.claim

    @property
    def ours(self) -> bool:
        """Whether it is a question of this survey rather than a sentence of the paper."""
        return self.claim.where.startswith(NOT_IN_PAPER)

    @property
    def scale(self) -> str | None:
        """The scale that stands beside a verdict."""
        if self.judged.verdict is None:
            return None
        return f"{self.judged.scale} scale" + (", quick look" if self.judged.budget < 1 else "")

    @property
    def anchor(self) -> str:
        return "-".join(filter(None, (self.judged.claim.id, self.judged.bed)))

    @property
    def first(self) -> Terms | None:
        """The oldest terms on record."""
        return self.judged.terms[0] if self.judged.terms else None


def view(measured: Measured, judged: Judged) -> ClaimView:
    """Everything a page shows of a claim."""
    number = statistic(judged, f"data/{judged.bed}/{judged.technique}.json")
    trained = measured.catalog.technique(judged.technique).retrains
    alone = trained and len(judged.train) == 1 and number is not None and not number.exact
    weak = None
    if judged.verdict and judged.bed and judged.claim.metric:
        weak = weak_caution(measured, measured.catalog.bed(judged.bed), judged.claim.metric)
    cautions = " ".join(filter(None, (SAMPLING_ONLY if alone else None, weak)))
    return ClaimView(
        judged, number, formula(judged), expectation(judged), cautions or None, changes(judged.terms),
        late(measured, judged),
    )  # fmt: skip


def late(measured: Measured, judged: Judged) -> str | None:
    """When a claim was first noted, None where no claim of its technique was noted on this bed before."""
    known = measured.histories.get((judged.bed or "", judged.technique), {})
    first = min((entries[0].when for entries in known.values()), default="")
    return judged.terms[0].when if judged.terms and judged.terms[0].when > first else None


def statistic(judged: Judged, path: str) -> Number | None:
    """What a claim's verdict rests on, None for a claim without one."""
    if judged.verdict is None or judged.bed is None:
        return None
    found = judged.verdict.interval
    known = judged.verdict.p in (0.0, 1.0) and found.n == 1 and found.low == found.high
    low, high = (None, None) if known else (found.low, found.high)
    level = 90 if judged.claim.expect and judged.claim.expect.equal is not None else 95
    cell = formula(judged)
    return Number(found.mean, low, high, found.n, judged.n, judged.unit or "", judged.bed, cell, path, level)


def formula(judged: Judged) -> str:
    """The statistic in terms of cells: `ddim@10 − baseline@10`."""
    if judged.control is None:
        return judged.arm or ""
    return f"{judged.arm} {'/' if judged.claim.statistic == 'ratio' else MINUS} {judged.control}"


def expectation(judged: Judged) -> str:
    """What the claim lets one expect: `at most 0, tolerance 0.1`."""
    expect = judged.claim.expect
    if expect is None:
        return ""
    tolerance = f", tolerance {exact(judged.claim.tolerance)}" if judged.claim.tolerance else ""
    return term(expect.model_dump(exclude_unset=True)) + tolerance


def changes(terms: tuple[Terms, ...]) -> list[Change]:
    """What was changed after a run, field by field, oldest first."""
    return [
        Change(field, term(before.terms.get(field)), term(after.terms.get(field)), after.commit, after.when)
        for before, after in pairwise(terms)
        for field in sorted(before.terms.keys() | after.terms.keys())
        if before.terms.get(field) != after.terms.get(field)
    ]


def term(value: Any) -> str:
    """A term in words: a number, a bound, or the cell that an arm or a control names."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and "methods" in value:
        methods = (
            id + (f"({','.join(f'{name}={given}' for name, given in sorted(params.items()))})" if params else "")
            for id, params in sorted(value["methods"].items())
        )
        share = f"~{value['trained']:g}" if value.get("trained", 1) < 1 else ""
        return ("+".join(methods) or "baseline") + (f"@{value['steps']}" if value.get("steps") else "") + share
    if isinstance(value, dict):
        return ", ".join(f"{RELATIONS[relation]} {exact(target)}" for relation, target in value.items())
    return exact(value)


def withdrawn(measured: Measured) -> list[Withdrawn]:
    """Claims that have a history and no place in the catalog."""
    return [
        Withdrawn(bed, id, claim, [(field, term(value)) for field, value in sorted(last.terms.items())], last)
        for (bed, id), known in measured.histories.items()
        for claim, (*_, last) in known.items()
        if claim not in kept(measured.catalog.techniques.get(id), bed)
    ]


def kept(technique: Technique | None, bed: str) -> set[str]:
    """The claims of a technique that are tested on a bed."""
    return {each.id for each in technique.claims if each.untested is None and bed in each.beds} if technique else set()
