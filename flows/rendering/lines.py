"""Drawings of several lines, such as errors against evaluations, with a label beside the end of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.rendering.charts import BOTTOM, GLYPH, LEFT, LINE, TOP, Box, Datum, Placed, Tick, place, scale

KEYS = 28
"""Room for labels to the right of the lines, where these are keys and not names."""
HUES = 5
"""Colours of lines, after which they begin again with another dash."""
DASHES = ("none", "6 4", "2 3")


@dataclass(frozen=True)
class Line:
    """Points of one name in a drawing, by rising cost; its label stands beside the last one."""

    points: list[Placed]
    label: str
    hue: int
    dashes: str
    tx: float
    ty: float

    @property
    def path(self) -> str:
        """The points of a polyline."""
        return " ".join(f"{p.x:g},{p.y:g}" for p in self.points)


@dataclass(frozen=True)
class Plot:
    """A drawing of several lines, ready for the template."""

    width: int
    height: int
    frame: Box
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


def plot(curves: dict[str, list[Datum]], size: tuple[int, int], keyed: bool) -> Plot:
    """Lay out the lines; labels, which keep apart from each other, are names, or `keyed` their numbers."""
    (width, height), room = size, KEYS if keyed else 12 + GLYPH * max(map(len, curves))
    left, top, right, bottom = LEFT, TOP, round(width - room), height - BOTTOM
    data = [datum for curve in curves.values() for datum in curve]
    x, y = scale([d.cost.value for d in data], left + 8, right - 8), scale([d.quality.value for d in data], bottom, top)
    drawn = [[place(datum, x, y) for datum in curve] for curve in curves.values()]
    heights = apart([points[-1].y for points in drawn], top, bottom)
    lines = [
        Line(points, str(i + 1) if keyed else name, i % HUES + 1, DASHES[i // HUES % len(DASHES)], right + 6, height)
        for i, (name, points, height) in enumerate(zip(curves, drawn, heights, strict=True))
    ]
    return Plot(width, height, (left, top, right, bottom), x.ticks(), y.ticks(), lines)


def apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights near the wanted ones, a line of text apart, and within the drawing if there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    found = dict.fromkeys(order, 0.0)
    above = top - LINE
    for i in order:
        above = found[i] = max(wanted[i], above + LINE)
    below = bottom + LINE
    for i in reversed(order):
        below = found[i] = min(found[i], below - LINE)
    return [round(found[i], 2) for i in range(len(wanted))]
