"""Numbers as the site shows them: value, uncertainty, what they count and where they come from, never one alone."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import fmean
from typing import Any

from flows.ledger import EXACT_UNITS
from methods.measure.statistics import Interval, paired

Record = dict[str, Any]
MINUS, RAISED = "−", str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
OF_NETWORKS = ("macs", "parameters", "active_parameters", "bytes", "training_images", "training_macs")
"""Costs that a cell without a network does not have."""
SMALLEST = 0.0001
"""Below it numbers get an exponent; a p-value says no more, for its size hangs on tails that few values do not show."""


@dataclass(frozen=True)
class Number:
    """A measured number with its parents.

    `low` and `high` bound the interval of the given level (percent); both None for an exact number, infinite where the
    data do not bound it. `n` counts independent values, `samples` the samples behind each; `record` is the path of its
    record within the site, `cell` the run it belongs to.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    samples: int | None
    unit: str
    bed: str
    cell: str
    record: str
    level: int = 95

    def but(
        self, value: float, low: float | None, high: float | None, unit: str | None = None, cell: str | None = None
    ) -> "Number":
        """Another number from the same parents."""
        return replace(self, value=value, low=low, high=high, unit=unit or self.unit, cell=cell or self.cell)

    @property
    def exact(self) -> bool:
        return self.low is None

    @cached_property
    def bounded(self) -> bool:
        """Whether there is an interval to show."""
        return self.low is not None and self.high is not None and math.isfinite(self.low) and math.isfinite(self.high)

    @cached_property
    def places(self) -> int:
        """Decimals that the interval leaves meaningful: two digits of its half-width."""
        if not self.bounded:
            return 3
        assert self.low is not None and self.high is not None
        half = (self.high - self.low) / 2
        return min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3

    @cached_property
    def text(self) -> str:
        if not self.bounded or self.low == self.high:
            return exact(self.value, 4 if self.exact else 3)
        return fixed(self.value, self.places)

    @cached_property
    def interval(self) -> str | None:
        """`1.10 to 1.36`, or None for a number that has none."""
        if not self.bounded or self.low == self.high:
            return None
        assert self.low is not None and self.high is not None
        return f"{fixed(self.low, self.places)} to {fixed(self.high, self.places)}"

    @property
    def basis(self) -> str:
        """What stands behind the number, in words."""
        if self.exact:
            return f"{self.unit}, counted exactly; {self.cell} on {self.bed}"
        values = f"{self.n} value{'s' if self.n > 1 else ''}"
        of = f" of {grouped(self.samples)} samples each" if self.samples else ""
        if self.bounded:
            return f"{self.unit}; {self.level} % interval from {values}{of}; {self.cell} on {self.bed}"
        return f"{self.unit}; from {values}{of}, which give no interval; {self.cell} on {self.bed}"


def quality(record: Record, cell: str | None, key: str, path: str) -> Number | None:
    """A quality of a cell, None where it was not measured."""
    measured = record["cells"].get(cell)
    if measured is None or key not in measured["metrics"]:
        return None
    found = measured["metrics"][key]
    low, high = found.get("low"), found.get("high")  # neither with one block
    low, high = (-math.inf, math.inf) if low is None or high is None else (low, high)
    return Number(
        found["mean"], low, high, found["blocks"], measured["n"], found["unit"], record["bed"], str(cell), path
    )


def within(record: Record, cell: str, key: str, path: str) -> Number | None:
    """The standard error of a quality within a block, root mean square over blocks, where a U-statistic gives one."""
    found = quality(record, cell, key, path)
    if found is None or "errors" not in (measured := record["cells"][cell]["metrics"][key]):
        return None
    error = math.sqrt(fmean(error**2 for error in measured["errors"]))
    return found.but(error, -math.inf, math.inf, f"standard error of {found.unit}")


def difference(record: Record, cell: str, other: str | None, key: str, path: str) -> Number | None:
    """A cell minus another, paired block by block; None where either lacks the quality, or where they are one."""
    ours, theirs = quality(record, cell, key, path), quality(record, other, key, path)
    if ours is None or theirs is None or cell == other:
        return None
    first, second = (tuple(record["cells"][name]["metrics"][key]["values"]) for name in (cell, other))
    if len(first) == 1:
        return ours.but(first[0] - second[0], -math.inf, math.inf, cell=f"{cell} {MINUS} {other}")
    gap = _paired(first, second)
    return ours.but(gap.mean, gap.low, gap.high, cell=f"{cell} {MINUS} {other}")


@cache
def _paired(first: tuple[float, ...], second: tuple[float, ...]) -> Interval:
    """Many pages show the same pair."""
    return paired(first, second)


def excess(found: Number | None, floor: Number | None) -> Number | None:
    """What a quality lies above that of a perfect sampler, taken as known; None where either is not."""
    if found is None or floor is None:
        return None
    low, high = ((end if end is None else end - floor.value) for end in (found.low, found.high))
    return found.but(found.value - floor.value, low, high, cell=f"{found.cell} {MINUS} a perfect sampler")


def cost(record: Record, cell: str | None, key: str, path: str) -> Number | None:
    """An exact cost of a cell, None where it was not counted."""
    measured = record["cells"].get(cell)
    found = None if measured is None else counted(measured["cost"], key)
    if found is None:
        return None
    return Number(found, None, None, 1, None, EXACT_UNITS[key], record["bed"], str(cell), path)


def counted(costs: Mapping[str, Any], key: str) -> float | None:
    """An exact cost; None where it was not counted, or where no network was there to count: that is no zero."""
    return None if key in OF_NETWORKS and not costs.get("parameters", 1) else costs.get(key)


def quotient(first: Number | None, second: Number | None) -> Number | None:
    """The ratio of two exact numbers, None where there is none."""
    if first is None or second is None or not second.value:
        return None
    return first.but(first.value / second.value, None, None, "ratio", f"{first.cell} / {second.cell}")


def fixed(value: float, places: int) -> str:
    """With a number of decimals, grouped thousands and a true minus; never a negative zero."""
    text = f"{value:,.{places}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def exact(value: float, digits: int = 4) -> str:
    """A counted number: whole up to a hundred thousand, then with a prefix; so many digits for fractions."""
    if abs(value) >= 1e5:
        power = min(5, int(math.log10(abs(value) * 1.0005) // 3))
        return f"{value / 1000**power:.3g} {' kMGTP'[power]}".replace("-", MINUS)
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{round(value):,}".replace("-", MINUS)
    if abs(value) < SMALLEST:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{float(mantissa):g} · 10{str(int(power)).translate(RAISED)}".replace("-", MINUS)
    return f"{value:.{digits}g}".replace("-", MINUS)


def grouped(value: float | None) -> str:
    """A whole number with grouped thousands."""
    return "" if value is None else f"{value:,}"


def percent(share: float) -> str:
    """`5 %`."""
    return f"{100 * share:.3g} %"


def probability(p: float) -> str:
    """A p-value: `= 0.034`, or below the smallest that is worth telling."""
    return f"< {SMALLEST:g}" if p < SMALLEST else f"= {p:.2g}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 claim`, `2 claims`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def singular(unit: str, value: float) -> str:
    """A unit beside a value: `1 step`, `2 steps`."""
    head, of, rest = unit.partition(" of ")
    if value != 1 or not head.endswith("s"):
        return {"strata": "stratum"}.get(unit, unit) if value == 1 else unit
    return head.removesuffix("es" if head.endswith(("ches", "sses")) else "s") + of + rest


def short(commit: str | None) -> str:
    """A commit as people name it."""
    return commit[:10] if commit else "unknown"


def day(when: str) -> str:
    """The day of a moment in ISO 8601."""
    return when.partition("T")[0]


def sentence(text: str, ids: Collection[str]) -> str:
    """The text as a sentence begins, unless it begins with one of the ids, which stay as they are."""
    return text if text.split()[0] in ids else capital(text)


def capital(text: str) -> str:
    """The text with its first letter in upper case, and the others as they are."""
    return text[:1].upper() + text[1:]
