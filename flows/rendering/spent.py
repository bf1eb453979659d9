"""Where the time of a survey went: by step, and by what it was spent on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catalog import Bed
from flows.rendering.numbers import Number

STEPS = {
    "train": "Training", "compress": "Distilling, pruning, quantizing", "sample": "Sampling", "score": "Scoring",
    "record": "Records", "timing": "Timing",
}  # fmt: skip
"""The steps of a survey in their order; scoring counts the costs too."""


@dataclass(frozen=True)
class Spent:
    """Seconds of one survey of a bed. `steps` are totals; `table` has a row for each cell or record, longest first."""

    bed: Bed
    path: str
    steps: dict[str, Number]
    table: list[tuple[str, dict[str, Number], Number]]
    total: Number
    wall: Number
    content: dict[str, Any]
    made: int
    """How many of the bed's records are as this survey left them."""
    there: int

    def share(self, seconds: Number) -> float:
        """A part of the total."""
        return seconds.value / self.total.value if self.total.value else 0.0


def view(bed: Bed, content: dict[str, Any], when: Mapping[str, str]) -> Spent:
    """What `survey.cost.json` holds, as numbers with their parents.

    `when` says of each record that the bed has now when it was put beside its seconds.
    """
    path, rows = f"data/{bed.name}/survey.cost.json", content["rows"]

    def seconds(of: str, values: list[float]) -> Number:
        return Number(round(math.fsum(values), 1), -math.inf, math.inf, 1, None, "seconds", bed.name, of, path)

    present = {row["step"] for row in rows}
    steps = [step for step in STEPS if step in present] + sorted(present - STEPS.keys())
    ids = dict.fromkeys(row["id"] for row in rows)
    spent = {id: {row["step"]: row["seconds"] for row in rows if row["id"] == id} for id in ids}
    table = [
        (id, {step: seconds(id, [value]) for step, value in each.items()}, seconds(id, list(each.values())))
        for id, each in spent.items()
    ]
    return Spent(
        bed,
        path,
        {step: seconds(step, [row["seconds"] for row in rows if row["step"] == step]) for step in steps},
        sorted(table, key=lambda row: (-row[2].value, row[0])),
        seconds("all processes together", [row["seconds"] for row in rows]),
        seconds("by the clock", [content["wall_seconds"]]),
        content,
        sum(row["step"] == "record" and "" < when.get(row["id"], "") <= content["when"] for row in rows),
        len(when),
    )


def step_title(step: str) -> str:
    """The name of a step."""
    return STEPS.get(step, step)
