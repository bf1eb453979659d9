"""Charts of quality against cost: where things go. A template draws them, a style sheet colours them.

Both axes are logarithmic where the values allow it, and say so: halving the cost is the same distance everywhere.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

from flows.rendering.numbers import Number, exact

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Mark = Literal["better", "same", "worse", "control", "subject", "plain"]
GLYPH, LINE, NOTE = 6.6, 16, 106
"""Width of a letter, height of a line of labels and width of the note on the floor, in units of the drawing."""
MANY = 30
"""Beyond so many points only the leading ones are named."""
TOP, RIGHT, BOTTOM, LEFT = 14, 14, 46, 52
PHONE, FEW = 400, 8
"""A drawing of at most this width has room to name so many points."""


@dataclass(frozen=True)
class Datum:
    """A cell to draw: its cost, its quality, how it is marked, and whether it is named where room is scarce."""

    cost: Number
    quality: Number
    label: str
    mark: Mark
    href: str | None = None
    leads: bool = True


@dataclass(frozen=True)
class Placed:
    """A datum in the drawing; `low` and `high` are the ends of its error bar, the label sits at `tx`, `ty`."""

    datum: Datum
    x: float
    y: float
    low: float
    high: float
    text: str = ""
    tx: float = 0.0
    ty: float = 0.0
    anchor: str = "start"
    leader: bool = False


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A scale from values to the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        """Where a value lies; values off the scale lie at its end."""
        low, high = self._ends
        at = self._bend(min(max(value, self.low), self.high))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 2)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        return self._bend(self.low), self._bend(self.high)

    def _bend(self, value: float) -> float:
        return math.log(value) if self.log else value

    def named(self, title: str, note: str) -> str:
        """The title with what is in brackets behind it."""
        notes = ", ".join(filter(None, ("logarithmic" if self.log else "", note)))
        return f"{title} ({notes})" if notes else title

    def ticks(self) -> list[Tick]:
        """Round values along the scale, six or so."""
        return [Tick(self(value), exact(round(value, 9))) for value in self._round_values()]

    def _round_values(self) -> list[float]:
        if not self.log or self.high < 3 * self.low:
            raw = (self.high - self.low) / 5
            unit = 10 ** math.floor(math.log10(raw))
            step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= raw)
            return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for multiples in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            values = [m * 10.0**d for d in decades for m in multiples if self.low <= m * 10.0**d <= self.high]
            if len(values) <= 6:
                return values
        return values[:: len(values) // 6 + 1]


@dataclass(frozen=True)
class Chart:
    """A drawing of `width` by `height`, ready for the template."""

    width: int
    height: int
    title: str
    about: str
    x_title: str
    y_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curve: list[Placed]
    points: list[Placed]
    band: str
    floor: float | None
    frame: Box

    @property
    def broad(self) -> bool:
        """Whether it takes a desktop to read."""
        return self.width > 900

    @property
    def linked(self) -> bool:
        """Whether points lead somewhere."""
        return any(p.datum.href for p in self.points)

    @property
    def line(self) -> str:
        """The curve as the points of a polyline."""
        return " ".join(f"{p.x:g},{p.y:g}" for p in self.curve)


@dataclass(frozen=True)
class View:
    """The charts of one metric: a drawing for wide screens and one for narrow, for each cost."""

    key: str
    pairs: list[tuple[Chart, Chart]]


def chart(
    curve: Sequence[Datum],
    points: Sequence[Datum],
    floor: float | None,
    titles: tuple[tuple[str, str], tuple[str, str]],
    text: tuple[str, str],
    size: tuple[int, int],
) -> Chart:
    """Lay out a curve and points. `titles` of the axes with what to add to each; `text` is title and description."""
    width, height = size
    left, top, right, bottom = LEFT, TOP, width - RIGHT, height - BOTTOM
    x = scale([d.cost.value for d in (*curve, *points)], left + 8, right - 8)
    bounds = [v for d in (*curve, *points) for v in (d.quality.value, d.quality.low, d.quality.high) if v is not None]
    heights = [v for v in (*bounds, *([floor] if floor is not None else [])) if math.isfinite(v)]
    y = scale(heights, bottom - 6, top + 6)
    drawn = [place(d, x, y) for d in curve]
    scarce = len(points) > MANY or (width <= PHONE and len(points) > FEW)
    note = () if floor is None else ((left, y(floor) - LINE, left + NOTE, y(floor) + 2),)
    apart = beside([place(d, x, y) for d in points], width / 100)
    spots = label(apart, drawn, (left, top, right, bottom), scarce, note)
    edge = [*((p.x, p.low) for p in drawn), *((p.x, p.high) for p in reversed(drawn))]
    return Chart(
        width, height, *text, x.named(*titles[0]), y.named(*titles[1]), x.ticks(), y.ticks(), drawn, spots,
        band=" ".join(f"{a:g},{b:g}" for a, b in edge), floor=None if floor is None else y(floor),
        frame=(left, top, right, bottom),
    )  # fmt: skip


def scale(values: Iterable[float], start: float, end: float) -> Axis:
    """A logarithmic scale for positive values, a linear one otherwise, a little wider than they are."""
    low, high = min(values := list(values)), max(values)
    if low > 0:
        room = max((high / low) ** 0.06, 1.05)
        return Axis(low / room, high * room, start, end, log=True)
    room = max((high - low) * 0.06, 1e-6)
    return Axis(low - room, high + room, start, end, log=False)


def place(datum: Datum, x: Axis, y: Axis) -> Placed:
    """A datum and its error bar on the scales."""
    q = datum.quality
    low, high = (q.low, q.high) if q.bounded and q.low is not None and q.high is not None else (q.value, q.value)
    return Placed(datum, x(datum.cost.value), y(q.value), y(low), y(high))


def beside(points: Sequence[Placed], gap: float) -> list[Placed]:
    """Moves points of equal cost a little apart, so that their error bars can be told apart; more columns for many."""
    moved: list[Placed] = []
    for x in dict.fromkeys(p.x for p in points):
        column = sorted((p for p in points if p.x == x), key=lambda p: (p.y, p.datum.label))
        abreast = min(len(column), max(5, min(9, len(column) // 4)))
        for index, p in enumerate(column):
            shift = round((index % abreast - (abreast - 1) / 2) * gap, 2)
            moved.append(replace(p, x=p.x + shift))
    return moved


def label(
    points: Sequence[Placed], curve: Sequence[Placed], frame: Box, scarce: bool, kept: Sequence[Box]
) -> list[Placed]:
    """Puts each label at the nearest free spot beside its point, with a leader where that is not next to it.

    `kept` are boxes with words of their own. Where room is scarce, only leading points get one, and they are drawn
    above the others.
    """
    taken = [*kept, *((p.x - 6, p.y - 6, p.x + 6, p.y + 6) for p in points)]
    taken += [(p.x - 4, p.y - 4, p.x + 4, p.y + 4) for p in curve]
    drawn = [(p.x - 2, p.high - 2, p.x + 2, p.low + 2) for p in (*points, *curve)]
    drawn += [box for a, b in pairwise(curve) for box in _along(a, b)]
    result: list[Placed] = []
    for p in sorted(points, key=lambda p: (p.datum.leads, -p.x, p.y)):
        text = p.datum.label
        width = len(text) * GLYPH
        silent = scarce and not p.datum.leads
        spot = None if silent else _free(p, width, frame, [*taken, *drawn]) or _free(p, width, frame, taken)
        if spot is None:
            result.append(p)
            continue
        dx, dy, anchor, box = spot
        taken.append(box)
        tx = p.x + dx if anchor == "start" else p.x - dx
        apart = abs(dy) > 14 or dx > 14
        result.append(replace(p, text=text, tx=round(tx, 2), ty=round(p.y + dy, 2), anchor=anchor, leader=apart))
    return result


def _free(p: Placed, width: float, frame: Box, taken: Sequence[Box]) -> tuple[float, float, str, Box] | None:
    """The nearest offset, side and box where a label of this width meets nothing."""
    left, top, right, bottom = frame
    reach = (p.x - FAR[0] - width - 2, p.y - FAR[1] - LINE, p.x + FAR[0] + width + 2, p.y + FAR[1] + LINE)
    near = [other for other in taken if _overlap(reach, other)]
    for dx, dy in SPOTS:
        for anchor, x0 in (("start", p.x + dx), ("end", p.x - dx - width)):
            box = (x0 - 2, p.y + dy - LINE / 2, x0 + width + 2, p.y + dy + LINE / 2)
            inside = box[0] >= left and box[2] <= right and box[1] >= top - 8 and box[3] <= bottom
            if inside and not any(_overlap(box, other) for other in near):
                return dx, dy, anchor, box
    return None


def _along(a: Placed, b: Placed) -> list[Box]:
    """Small boxes along the line between two points."""
    spots = [(a.x + (b.x - a.x) * f, a.y + (b.y - a.y) * f) for f in (0.2, 0.4, 0.6, 0.8)]
    return [(x - 3, y - 3, x + 3, y + 3) for x, y in spots]


SPOTS = sorted(
    ((dx, dy) for dx in (9, 22, 40, 64, 96) for dy in range(-160, 161, 8)),
    key=lambda spot: (spot[0] ** 2 + (1.4 * spot[1]) ** 2, spot),
)
"""Where a label may go relative to its point, the nearest first."""

FAR = (max(dx for dx, _ in SPOTS), max(abs(dy) for _, dy in SPOTS))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
