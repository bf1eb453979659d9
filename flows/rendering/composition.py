"""The page of what goes together: every pair of techniques, and the measured gains of the most used ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal
from urllib.parse import quote

from catalog import Bed, Catalog, Technique, cell_name
from flows.composition import FILE, MOST_USED, Refusals, on_top, pair
from flows.rendering.measured import Measured
from flows.rendering.numbers import MINUS, Number, Record, cost, quality, quotient
from flows.rendering.quantities import main_metric
from methods.measure.statistics import t_interval

SIDE, LABELS = 10, 168
"""Of a square of the drawing, and the room for names beside and above it."""
GAINS = ("evaluations", "macs", "bytes")
"""The costs whose savings should multiply."""
WHOLE = 0.95
"""The share of the product of two savings from which they count as multiplied."""
Outcome = Literal["multiply", "saturate", "break", "nothing to save"]


@dataclass(frozen=True)
class Band:
    """The techniques of an area along a side of the drawing."""

    title: str
    first: int
    count: int


@dataclass(frozen=True)
class Partner:
    """A technique with those it cannot be combined with, by reason."""

    technique: Technique
    goes: int
    refused: dict[str, list[Technique]]

    @property
    def others(self) -> int:
        """How many techniques it could go with."""
        return self.goes + sum(map(len, self.refused.values()))


@dataclass(frozen=True)
class Whole:
    """Every pair of techniques of a bed."""

    bed: Bed
    techniques: list[Technique]
    bands: list[Band]
    refused: list[tuple[int, int]]
    partners: list[Partner]
    pairs: int

    room: int = LABELS
    side: int = SIDE

    @property
    def size(self) -> int:
        return self.room + self.side * len(self.techniques) + 1

    @property
    def path(self) -> str:
        """A square for every pair that is refused, on both sides of the diagonal."""
        both = sorted({(a, b) for pair in self.refused for a, b in (pair, pair[::-1])})
        return "".join(f"M{self.room + self.side * b} {self.room + self.side * a}h9v9h-9z" for a, b in both)


@dataclass(frozen=True)
class Joint:
    """A measured pair: what both save together, what the product of their savings is, and what it does to quality.

    `excess` is what the quality of both differs from the sum of what each changes, paired block by block.
    """

    outcome: Outcome
    savings: dict[str, tuple[Number, Number]]
    excess: Number
    path: str


@dataclass(frozen=True)
class Absent:
    """Why a pair has no measurement: in a word, and in a sentence."""

    word: str
    why: str


@dataclass(frozen=True)
class Measurement:
    """The most used techniques of a bed, pair by pair: a measurement, or why there is none."""

    bed: Bed
    metric: str
    techniques: list[Technique]
    cells: dict[tuple[str, str], Joint | Absent]
    measured: int


def whole(measured: Measured, bed: Bed) -> Whole | None:
    """Every pair of a bed, None where nobody wrote down what can be composed."""
    found = measured.file(bed.name, FILE)
    if found is None:
        return None
    known = measured.catalog.techniques
    techniques = [known[id] for id in found["techniques"] if id in known]
    refused = {(a, b): why for a, b, why in each(found["refused"]) if a in known and b in known}
    place = {technique.id: i for i, technique in enumerate(techniques)}
    n = len(techniques)
    return Whole(
        bed,
        techniques,
        list(bands(measured.catalog, techniques)),
        [(place[a], place[b]) for a, b in refused],
        [partner(t, known, refused, n) for t in techniques],
        n * (n - 1) // 2,
    )


def each(refusals: Refusals) -> Iterator[tuple[str, str, str]]:
    """The refused pairs with the reason."""
    return ((a, b, why) for a, others in refusals.items() for b, why in others.items())


def bands(catalog: Catalog, techniques: list[Technique]) -> Iterator[Band]:
    """The areas, in the order of the catalog."""
    first = 0
    for area, members in groupby(techniques, lambda technique: technique.area):
        count = len(list(members))
        yield Band(next(a.title for a in catalog.taxonomy.areas if a.id == area), first, count)
        first += count


def partner(technique: Technique, known: dict[str, Technique], refused: dict[tuple[str, str], str], n: int) -> Partner:
    """A technique with whom it refuses, or who refuses it."""
    reasons: dict[str, list[Technique]] = {}
    for (a, b), why in refused.items():
        if technique.id in (a, b):
            other = known[b if technique.id == a else a]
            reasons.setdefault(why.rstrip(".").rpartition(": ")[2], []).append(other)
    return Partner(technique, n - 1 - sum(map(len, reasons.values())), reasons)


def measurement(measured: Measured, bed: Bed) -> Measurement | None:
    """The most used techniques of a bed against each other, None where no pair was measured."""
    known = measured.catalog
    techniques = [known.techniques[id] for id in MOST_USED if bed.name in known.techniques[id].beds]
    refused = {(a, b): why for a, b, why in each((measured.file(bed.name, FILE) or {}).get("refused", {}))}
    cells: dict[tuple[str, str], Joint | Absent] = {}
    for i, first in enumerate(techniques):
        for second in techniques[i + 1 :]:
            a, b = first.id, second.id
            why = refused.get((a, b)) or refused.get((b, a))
            cells[a, b] = cells[b, a] = Absent("refused", why) if why else joint(measured, bed, a, b)
    count = sum(isinstance(cell, Joint) for cell in cells.values()) // 2
    return Measurement(bed, main_metric(bed), techniques, cells, count) if count else None


def joint(measured: Measured, bed: Bed, a: str, b: str) -> Joint | Absent:
    """A pair as its record has it."""
    known = measured.catalog
    if on_top(known, a, b):
        return Absent("on top", "one builds on the other")
    both = pair(known, bed.name, a, b)
    below = {id: params for id, params in both.methods.items() if id not in (a, b)}
    name = cell_name(both, known, bed.name)
    record = measured.record(bed.name, name)
    if record is None:
        return Absent("–", "not measured")
    if record["reason"]:
        return Absent("failed", record["reason"])
    parts = [{**below}, {**below, a: both.methods[a]}, {**below, b: both.methods[b]}]
    names = [cell_name(both.model_copy(update={"methods": methods}), known, bed.name) for methods in parts]
    return read(record, bed, name, names)


def read(record: Record, bed: Bed, name: str, parts: list[str]) -> Joint:
    """What a record of neither, either alone and both says of both."""
    path, key = quote(f"data/{bed.name}/{record['id']}.json"), main_metric(bed)
    neither, first, second = parts
    savings: dict[str, tuple[Number, Number]] = {}
    for axis in GAINS:
        costs = [cost(record, cell, axis, path) for cell in (neither, first, second, name)]
        left_out = axis == "macs" and any(record["cells"][cell]["cost"]["uncounted_ops"] for cell in (*parts, name))
        one, other, together = (quotient(costs[0], each) for each in costs[1:])
        if one and other and together and not left_out and {one.value, other.value, together.value} != {1.0}:
            product = one.but(one.value * other.value, None, None, cell=f"{one.cell}, times that of {second}")
            savings[axis] = (together, product)
    values = [record["cells"][cell]["metrics"][key]["values"] for cell in (name, *parts)]
    gaps = [ab - a - b + none for ab, none, a, b in zip(*values, strict=True)]
    shown = quality(record, name, key, path)
    assert shown is not None, f"{name} has no {key}"
    interval = t_interval(gaps)
    cell = f"{name} {MINUS} {first} {MINUS} {second} + {neither}"
    excess = shown.but(interval.mean, interval.low, interval.high, cell=cell)
    return Joint(outcome(savings, excess), savings, excess, path)


def outcome(savings: dict[str, tuple[Number, Number]], excess: Number) -> Outcome:
    """Quality that is lost beyond what each loses breaks the pair; else it is whether all savings multiply."""
    if excess.low is not None and excess.low > 0:
        return "break"
    if not savings:
        return "nothing to save"
    full = all(together.value >= WHOLE * product.value for together, product in savings.values())
    return "multiply" if full else "saturate"


def views(measured: Measured) -> list[tuple[Whole, Measurement | None]]:
    """What goes together on every bed of which it is known."""
    found = [(whole(measured, bed), measurement(measured, bed)) for bed in measured.catalog.beds.values()]
    return [(every, some) for every, some in found if every]
