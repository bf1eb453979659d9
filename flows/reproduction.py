"""What a reproduction found: fresh records beside the committed ones, field by field, and which verdicts moved.

Every record claims to be deterministic: on the same kind of machine, with the same versions and code, it is the same
bytes. Another processor rounds the last bits another way; there its numbers are to lie within the committed intervals,
and exact costs are to be equal all the same.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from flows.ledger import EXACT_UNITS, Judged, Record

Kind = Literal["missing", "field", "cost", "outside", "within", "counter", "code"]
OUTCOMES: dict[Kind, str] = {
    "missing": "on one side only",
    "field": "another content",
    "cost": "another exact cost",
    "outside": "outside the interval",
    "within": "within the interval",
    "counter": "another count",
    "code": "made by other code",
}
"""Every way in which two records differ, the worst first."""
PROBLEMS: tuple[Kind, ...] = ("missing", "field", "cost", "outside")
"""What a reproduction must not find. Counters may move with the last bits; where that matters, a verdict moves."""
SAME = "the same numbers"
COLUMNS = ("record", "cell", "outcome", "field", "committed", "fresh", "unit")
SIDE = frozenset({"spec_hash", "cells"})
PARTS = frozenset({"metrics", "cost", "counters", "fingerprints"})
"""What is looked at apart: in a record, and in a cell."""
MACHINE = ("cpu", "system", "threads")
"""What of a host makes its kind, besides versions; how many cores it has, or how busy it was, moves no number."""


@dataclass(frozen=True)
class Difference:
    """A field that differs. `cell` is empty for the record as a whole; the interval is the committed one."""

    cell: str
    kind: Kind
    name: str
    committed: Any
    fresh: Any
    interval: tuple[float, float] | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Compared:
    """A record made again. `machine` says what distinguishes this machine from the one the committed numbers were made
    on: nothing for one of the same kind, None where that is not known."""

    id: str
    cells: tuple[str, ...]
    identical: bool
    machine: tuple[str, ...] | None
    differences: tuple[Difference, ...]

    @property
    def expects_bytes(self) -> bool:
        """Whether the two files should be identical: the same kind of machine, and the same code."""
        return self.machine == () and not any(each.kind == "code" for each in self.differences)

    @property
    def moved(self) -> bool:
        """Whether the bytes differ where they should not."""
        return self.expects_bytes and not self.identical

    @property
    def absent(self) -> bool:
        """Whether the record could not be made again."""
        return any(not each.cell and each.name == "record" for each in self.differences)

    @property
    def problems(self) -> list[Difference]:
        return [each for each in self.differences if each.kind in PROBLEMS]


@dataclass(frozen=True)
class Changed:
    """A claim with its committed verdict and the one that fresh numbers give."""

    technique: str
    claim: str
    bed: str | None
    committed: str
    fresh: str


@dataclass(frozen=True)
class Reproduction:
    """What was made again from a commit, and how it compares."""

    bed: str
    commit: str
    records: tuple[Compared, ...]
    verdicts: tuple[Changed, ...]

    @property
    def failed(self) -> list[str]:
        """The records that were not reproduced."""
        return [each.id for each in self.records if each.problems or each.moved]

    @property
    def ok(self) -> bool:
        return not self.failed and not self.verdicts

    def __str__(self) -> str:
        same = sum(each.identical for each in self.records)
        held = [each for each in self.records if not each.identical and not each.problems]
        moved = [each.id for each in held if each.moved]
        parts = [f"{same} of {counted(len(self.records), 'record')} of {self.bed} came out as the same bytes"]
        if held:
            parts.append(f"the numbers of {len(held)} are equal or within their intervals")
        if moved:
            parts.append(f"nothing says why {', '.join(moved)} moved at all")
        if self.failed:
            parts.append(f"not reproduced: {', '.join(self.failed)}")
        parts.append(f"{counted(len(self.verdicts), 'verdict') if self.verdicts else 'no verdict'} changed")
        return f"{'; '.join(parts)}."


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def compare(committed: Record, fresh: Record | None) -> tuple[Difference, ...]:
    """Everything in which a fresh record differs from the committed one; None is one that was not made."""
    if fresh is None:
        return (Difference("", "missing", "record", "there", None),)
    found = list(fields("", "field", without(committed, SIDE), without(fresh, SIDE)))
    for name in union(committed["cells"], fresh["cells"]):
        found += cell(name, committed["cells"].get(name), fresh["cells"].get(name))
    return tuple(found)


def cell(name: str, committed: Record | None, fresh: Record | None) -> Iterator[Difference]:
    """In what a cell differs."""
    if committed is None or fresh is None:
        yield Difference(name, "missing", "cell", there(committed), there(fresh))
        return
    yield from fields(name, "field", without(committed, PARTS), without(fresh, PARTS))
    yield from fields(name, "cost", committed["cost"], fresh["cost"])
    yield from metrics(name, committed["metrics"], fresh["metrics"])
    yield from fields(name, "counter", committed["counters"], fresh["counters"])
    yield from fields(name, "code", committed["fingerprints"], fresh["fingerprints"])


def fields(cell: str, kind: Kind, committed: Record, fresh: Record) -> Iterator[Difference]:
    """The keys at which two mappings differ."""
    for key in union(committed, fresh):
        a, b = committed.get(key), fresh.get(key)
        if a != b:
            yield Difference(cell, kind, key, a, b, unit=EXACT_UNITS.get(key) if kind == "cost" else None)


def metrics(cell: str, committed: Record, fresh: Record) -> Iterator[Difference]:
    """The metrics that differ, by where the fresh mean lies; one block has no interval, and must be met exactly."""
    for key in union(committed, fresh):
        a, b = committed.get(key), fresh.get(key)
        if a is None or b is None:
            yield Difference(cell, "missing", key, there(a), there(b))
        elif (a["unit"], a["blocks"]) != (b["unit"], b["blocks"]):
            yield Difference(cell, "field", key, f"{a['blocks']} x {a['unit']}", f"{b['blocks']} x {b['unit']}")
        elif a != b:
            low, high = (a["mean"] if a[end] is None else a[end] for end in ("low", "high"))
            kind: Kind = "within" if low <= b["mean"] <= high else "outside"
            yield Difference(cell, kind, key, a["mean"], b["mean"], (low, high), a["unit"])


def union(a: Iterable[str], b: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*a, *b]))


def without(record: Record, keys: frozenset[str]) -> Record:
    return {key: value for key, value in record.items() if key not in keys}


def there(part: object) -> str | None:
    return None if part is None else "there"


def unlike(committed: Record | None, now: Record) -> tuple[str, ...] | None:
    """What distinguishes two machines, from what lies beside a record: kind of processor, threads, versions."""
    if committed is None or "host" not in committed:
        return None
    then, today = ({key: each["host"][key] for key in MACHINE} | each["versions"] for each in (committed, now))
    return tuple(
        f"{key} {then.get(key)} then, {today.get(key)} now"
        for key in union(then, today)
        if then.get(key) != today.get(key)
    )


def changed(committed: Sequence[Judged], fresh: Sequence[Judged]) -> tuple[Changed, ...]:
    """The claims whose verdict is another one, from two ledgers over the same catalog."""
    return tuple(
        Changed(a.technique, a.claim.id, a.bed, a.status, b.status)
        for a, b in zip(committed, fresh, strict=True)
        if a.status != b.status
    )


def rows(found: Reproduction) -> list[dict[str, str]]:
    """The lines of all records, the worst of a cell first; one line for a record whose cells all say the same."""
    return [line for each in found.records for line in together(each, in_record(each))]


def in_record(each: Compared) -> list[dict[str, str]]:
    """The lines of every cell of a record."""
    if each.identical:
        return [line(each.id, name, "identical bytes") for name in each.cells]
    if each.absent:
        return in_cell(each.id, "", each.differences)
    names = union(("", *each.cells), (d.cell for d in each.differences))
    found = {name: [d for d in each.differences if d.cell == name] for name in names}
    return [text for name in names if name or found[""] for text in in_cell(each.id, name, found[name])]


def together(each: Compared, lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """The lines of a record, or one where they differ in nothing but the cell."""
    alike = {tuple(value for key, value in text.items() if key != "cell") for text in lines}
    whole = len(alike) == 1 and [text["cell"] for text in lines] == list(each.cells)
    return [{**lines[0], "cell": f"all {len(lines)}"}] if whole else lines


def in_cell(id: str, name: str, found: Sequence[Difference]) -> list[dict[str, str]]:
    """The lines of a cell: one for each field that is a problem, one for all fields of a kind that is none."""
    lines: list[dict[str, str]] = []
    for kind, outcome in OUTCOMES.items():
        of_kind = [each for each in found if each.kind == kind]
        if kind in PROBLEMS:
            lines += [line(id, name, outcome, d.name, shown(d.committed, d.interval), shown(d.fresh), d.unit or "")
                      for d in of_kind]  # fmt: skip
        elif of_kind:
            told = outcome if lines or kind != "code" else f"{SAME}, {outcome}"
            lines.append(line(id, name, told, "" if kind == "code" else ", ".join(each.name for each in of_kind)))
    return lines or [line(id, name, SAME)]


def line(
    id: str, cell: str, outcome: str, field: str = "", committed: str = "", fresh: str = "", unit: str = ""
) -> dict[str, str]:
    """A line of the table, by its columns."""
    values = (id, cell or "(record)", outcome, field, committed, fresh, unit)
    return dict(zip(COLUMNS, values, strict=True))


def shown(value: Any, interval: tuple[float, float] | None = None) -> str:
    """A value for people, with its interval."""
    text = f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
    return f"{text} [{interval[0]:.6g}, {interval[1]:.6g}]" if interval else text


def machines(found: Reproduction) -> list[str]:
    """On what kind of machine the committed records were made, seen from this one, and what is therefore expected."""
    by_kind: dict[tuple[str, ...] | None, list[str]] = {}
    for each in found.records:
        by_kind.setdefault(each.machine, []).append(each.id)
    return [f"{expectation(kind)}: {', '.join(ids)}." for kind, ids in by_kind.items()]


def expectation(kind: tuple[str, ...] | None) -> str:
    if kind is None:
        return "Made on a machine that is not on record, numbers within intervals are expected"
    if kind:
        return f"Made on another kind of machine ({'; '.join(kind)}), numbers within intervals are expected"
    return "Made on the same kind of machine with the same versions, the same bytes are expected from the same code"


def verdict_lines(found: Reproduction) -> list[str]:
    return [
        f"{each.technique}, {each.claim} on {each.bed}: {each.committed} before, {each.fresh} now."
        for each in found.verdicts
    ]


def as_table(found: Reproduction) -> Table:
    """The lines of a reproduction for a terminal."""
    title = f"{found.bed} made again from {found.commit[:12]}"
    table = Table(*COLUMNS, title=title, caption="in brackets: the committed 95 % interval")
    for each in rows(found):
        table.add_row(*map(escape, each.values()))
    return table


def as_markdown(found: Reproduction) -> str:
    """The summary of a reproduction for the page of its run."""
    points = [*machines(found), *(f"Verdict changed: {text}" for text in verdict_lines(found))]
    listed = "\n".join(f"- {text}" for text in points)
    return f"## {found.bed}, made again from `{found.commit[:12]}`\n\n{found}\n\n{listed}\n"


def as_json(found: Reproduction) -> Mapping[str, Any]:
    """The whole of a reproduction, every difference included."""
    expected = {each.id: each.expects_bytes for each in found.records}
    content = asdict(found)
    for each in content["records"]:
        each["expected"] = "identical bytes" if expected[each["id"]] else "numbers within intervals"
    return {**content, "ok": found.ok, "summary": str(found)}
