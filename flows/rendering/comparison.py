"""A technique beside what it is held against: paired differences, and what they let one say."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from flows.rendering.charts import Mark
from flows.rendering.numbers import Number, Record, cost, difference, quality, quotient, within
from flows.rendering.quantities import METRICS

Word = Literal["better", "worse", "higher", "lower", "not told apart"]
AXES = ("evaluations", "macs")
"""The costs at which a control is measured once more."""
AXIS_WORDS = {"evaluations": "evaluations", "macs": "MACs"}
ROUNDING = 1e-4
"""A difference of a smaller share of either side is one of rounding: another order of the same sums leaves as much."""


@dataclass(frozen=True)
class Difference:
    """A paired difference of a metric, and the word for it."""

    key: str
    number: Number
    scale: float
    """The larger of the two sides."""

    @property
    def word(self) -> Word:
        """Better or worse only where the interval excludes zero and the difference is more than rounding."""
        low, high, better = self.number.low, self.number.high, METRICS[self.key].better
        if not self.number.bounded or low is None or high is None or low <= 0 <= high:
            return "not told apart"
        if abs(self.number.value) < ROUNDING * self.scale:
            return "not told apart"
        found = "lower" if high < 0 else "higher"
        if better is None:
            return found
        return "better" if found == better else "worse"

    @property
    def mark(self) -> Mark:
        """How a chart shows it."""
        return "better" if self.word == "better" else "worse" if self.word == "worse" else "same"


def compare(record: Record, cell: str, other: str | None, key: str, path: str) -> Difference | None:
    """How a cell differs from another by a metric; None where either lacks it, or where they are one."""
    gap, sides = (
        difference(record, cell, other, key, path),
        [quality(record, each, key, path) for each in (cell, other)],
    )
    return Difference(key, gap, max(abs(side.value) for side in sides if side)) if gap else None


def along_curve(record: Record, curve: Sequence[str], key: str, path: str) -> list[tuple[tuple[int, int], Difference]]:
    """How neighbouring cells of a curve differ by a metric: the steps of both, and the first minus the second."""
    steps = {name: record["cells"][name]["steps"] for name in curve}
    points = [name for name in curve if key in record["cells"][name]["metrics"]]
    gaps = [((steps[a], steps[b]), compare(record, a, b, key, path)) for a, b in pairwise(points)]
    return [(pair, gap) for pair, gap in gaps if gap]


@dataclass(frozen=True)
class Opponent:
    """A row of the table at equal cost: the subject, its control, or the control given as much of a cost.

    Without numbers `reason` says why: it was not measured, or it is a row that is there already. `share` is what the
    control spends of that cost over what the subject spends.
    """

    role: str
    cell: str | None
    reason: str | None
    costs: dict[str, Number | None]
    qualities: dict[str, Number | None]
    differences: dict[str, Difference]
    share: Number | None

    @property
    def equal(self) -> bool:
        """Whether the cost is the subject's to the last digit."""
        return self.share is not None and self.share.value == 1


@dataclass(frozen=True)
class Score:
    """A metric of subject and control side by side."""

    key: str
    subject: Number | None
    control: Number | None
    difference: Difference | None
    within: tuple[Number | None, Number | None]


def against(record: Record, key: str, path: str, beside: tuple[str, ...] = ("fidelity",)) -> list[Opponent]:
    """Subject, control, and the control at equal evaluations and at equal MACs; empty without a control.

    They are compared by a metric and by those `beside` it.
    """
    subject, control = record["default"], record["control"]
    if subject == control or not {subject, control} <= record["cells"].keys():
        return []
    keys = tuple(dict.fromkeys((key, *beside)))
    rows = [_opponent(record, "subject", subject, keys, path), _opponent(record, "control", control, keys, path)]
    for axis in AXES:
        rows.append(_at_equal(record, axis, keys, path, {row.cell: row.role for row in rows}))
    return rows


def at_equal(record: Record, axis: str, key: str, path: str) -> Difference | None:
    """The subject minus its control at equal cost, the control itself included; None where nobody could measure it."""
    return compare(record, record["default"], record[f"equal_{axis}"]["cell"], key, path)


def _at_equal(record: Record, axis: str, keys: tuple[str, ...], path: str, taken: dict[str | None, str]) -> Opponent:
    role, cell = f"control at equal {AXIS_WORDS[axis]}", record[f"equal_{axis}"]["cell"]
    if cell is None:
        return Opponent(role, None, record[f"equal_{axis}"]["reason"], {}, {}, {}, None)
    if cell not in record["cells"]:
        return Opponent(role, None, f"{cell} could not be measured", {}, {}, {}, None)
    share = quotient(cost(record, cell, axis, path), cost(record, record["default"], axis, path))
    if cell in taken:
        same = "the control itself" if taken[cell] == "control" else f"the same cell as the {taken[cell]}"
        return Opponent(role, None, same, {}, {}, {}, share)
    found = _opponent(record, role, cell, keys, path)
    return Opponent(role, cell, None, found.costs, found.qualities, found.differences, share)


def _opponent(record: Record, role: str, cell: str, keys: tuple[str, ...], path: str) -> Opponent:
    gaps = {key: compare(record, record["default"], cell, key, path) for key in keys}
    return Opponent(
        role,
        cell,
        None,
        {axis: cost(record, cell, axis, path) for axis in AXES},
        {key: quality(record, cell, key, path) for key in keys},
        {key: gap for key, gap in gaps.items() if gap},
        None,
    )


def scores(record: Record, path: str, ignored: tuple[str, ...] = ()) -> list[Score]:
    """Every metric that the subject or its control has but for those `ignored`, in the order of their explanation."""
    subject, control = record["default"], record["control"]
    found = []
    for key in [key for key in metrics(record) if key not in ignored]:
        gap = compare(record, subject, control, key, path)
        pair = quality(record, subject, key, path), quality(record, control, key, path)
        if any(pair):
            errors = tuple(within(record, cell, key, path) for cell in (subject, control))
            found.append(Score(key, *pair, gap, (errors[0], errors[1])))
    return found


def metrics(record: Record) -> list[str]:
    """The metrics that any cell of the record has, in the order in which they are explained."""
    present = {key for cell in record["cells"].values() for key in cell["metrics"]}
    return [key for key in METRICS if key in present]
