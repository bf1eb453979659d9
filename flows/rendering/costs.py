"""What a technique costs beside its control: the exact vector, when it pays back, and what one machine took."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.rendering.numbers import Number, Record, cost, quotient
from flows.rendering.quantities import COSTS, WIDEST
from methods.measure.cost import break_even

PER_SAMPLE = ("evaluations", "macs")
"""What can pay a preparation back in MACs."""
ONCE = ("start", "memory")
"""What is taken once and has no interval."""
NEVER = "never: a sample costs no fewer MACs"


@dataclass(frozen=True)
class Spending:
    """An exact cost of subject and control side by side."""

    key: str
    subject: Number | None
    control: Number | None
    ratio: Number | None


@dataclass(frozen=True)
class PaysBack:
    """After how many samples a technique has paid back its preparation: words, and the number where there is one."""

    words: str
    samples: Number | None = None


@dataclass(frozen=True)
class Timed:
    """A quantity of one machine, of subject and control: `each` names what a value is, `ratio` has the interval."""

    key: str
    batch: int
    subject: Number
    control: Number
    ratio: Number
    idle: Number | None = None
    above: Number | None = None
    """The ratio of what either needs above the subject loaded and idle."""

    @property
    def wide(self) -> bool:
        """Whether the ratio of times has no interval, or one of which an end is many times the other."""
        low, high = self.ratio.low, self.ratio.high
        if self.key in ONCE:
            return False
        return not self.ratio.bounded or low is None or high is None or high > WIDEST * low


@dataclass(frozen=True)
class Provenance:
    """The machine-scoped file of a record."""

    commit: str | None
    dirty: bool
    when: str
    host: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, Number]
    timed: list[Timed]
    path: str
    revalidated: list[dict[str, str]]
    """Commits whose code gave the same bytes later, each with the commit it was compared with."""

    @property
    def busy(self) -> bool:
        """Whether the machine had more to do than it has cores."""
        return self.host["load"] > self.host["cores"]

    @property
    def wide(self) -> bool:
        """Whether the interval of some ratio of times is too wide for the ratio to say much."""
        return any(timed.wide for timed in self.timed)

    def steady(self, timed: Timed) -> bool:
        """Whether a ratio may be put beside those of others: memory always, times only from a machine that had room."""
        return timed.key == "memory" or not (self.busy or timed.wide)

    @property
    def latency(self) -> Number | None:
        """The ratio of latencies where it is steady."""
        return next((timed.ratio for timed in self.timed if timed.key == "latency" and self.steady(timed)), None)


def vector(record: Record, path: str) -> list[Spending]:
    """Every exact cost of the subject and its control."""
    rows = []
    for key in COSTS:
        subject, control = (cost(record, record[role], key, path) for role in ("default", "control"))
        rows.append(Spending(key, subject, control, quotient(subject, control)))
    return rows


def uncounted(record: Record) -> dict[str, list[str]]:
    """The operations that the count of subject or control leaves out, by cell, where there are any."""
    names = dict.fromkeys((record["default"], record["control"]))
    found = {name: record["cells"][name]["cost"]["uncounted_ops"] for name in names if name in record["cells"]}
    return {name: operations for name, operations in found.items() if operations}


def pays_back(record: Record, path: str, saves: Sequence[str] = PER_SAMPLE) -> PaysBack | None:
    """Break-even in MACs; None where there is no control, or no network to count.

    What is not meant to save any per sample, by what it `saves`, is not told that it does not.
    """
    names = record["default"], record["control"]
    if names[0] == names[1] or not set(names) <= record["cells"].keys():
        return None
    subject, control = (record["cells"][name]["cost"] for name in names)
    if not subject["macs"] or not control["macs"]:
        return None
    if uncounted(record):
        return PaysBack("not known: not all operations of a sample could be counted")
    parts = [[each[key] for key in ("training_macs", "one_off_macs", "macs")] for each in (subject, control)]
    if any(part is None for each in parts for part in each):
        return PaysBack("not known: the preparation could not be counted")
    (own_once, own_each), (their_once, their_each) = ((each[0] + each[1], each[2]) for each in parts)
    unit = Number(0, None, None, 1, None, "samples, from exact counts of MACs", record["bed"], names[0], path)
    found = _words(own_once, own_each, their_once, their_each, unit)
    if found.words == NEVER and not {*PER_SAMPLE} & {*saves}:
        return PaysBack(f"not asked: meant to save {', '.join(saves)}")
    return found


def _words(own_once: float, own_each: float, their_once: float, their_each: float, unit: Number) -> PaysBack:
    if (own_once, own_each) == (their_once, their_each):
        return PaysBack("nothing to pay back: it costs the same MACs, beforehand and per sample")
    found = break_even(own_once, own_each, their_once, their_each)
    if found == 0:
        return PaysBack("at once, since it costs no more beforehand and no more per sample")
    if found is not None:
        return PaysBack("pays back after", unit.but(math.ceil(found), None, None))
    ahead = break_even(their_once, their_each, own_once, own_each)
    if ahead:
        return PaysBack("cheaper beforehand and dearer per sample: ahead only up to", unit.but(int(ahead), None, None))
    return PaysBack(NEVER)


def provenance(content: dict[str, Any], bed: str, id: str) -> Provenance:
    """What `<id>.cost.json` holds, as numbers with their parents."""
    path = f"data/{bed}/{id}.cost.json"
    once = {
        step: Number(value, -math.inf, math.inf, 1, None, "seconds", bed, step, path)
        for step, value in content["seconds"].items()
        if value  # else nothing was noted
    }
    timed = list(_timed(content["timing"], bed, id, path)) if content["timing"] else []
    host, versions = content["host"], content["versions"]
    again = content.get("revalidated", [])
    return Provenance(content["commit"], content["dirty"], content["when"], host, versions, once, timed, path, again)


def _timed(timing: dict[str, Any], bed: str, id: str, path: str) -> list[Timed]:
    against = timing["against"]

    def number(value: float, unit: str, cell: str, n: int = 1) -> Number:
        return Number(value, -math.inf, math.inf, n, None, unit, bed, cell, path)

    def pair(found: dict[str, Any], unit: str, n: int) -> tuple[Number, Number]:
        return number(found["subject"], unit, id, n), number(found["control"], unit, against, n)

    rows = []
    for key, each, unit in (
        ("latency", "seconds", "seconds, median"), ("throughput", "samples_per_second", "samples per second, median"),
    ):  # fmt: skip
        found = timing[key]
        ratio = found["ratio"]
        subject, control = pair(found[each], unit, ratio["n"])
        own = number(ratio["mean"], "seconds over those of the control, median", f"{id} / {against}", ratio["n"])
        rows.append(Timed(key, found["batch"], subject, control, own.but(own.value, ratio["low"], ratio["high"])))
    if "start" in timing:
        subject, control = pair(timing["start"]["seconds"], "seconds to the first sample", 1)
        ratio = number(subject.value / control.value, "ratio of seconds", f"{id} / {against}")
        rows.append(Timed("start", 1, subject, control, ratio))
    if timing["memory"]:
        found = timing["memory"]["bytes"]
        subject, control = pair(found, "bytes resident at the peak", 1)
        ratio = number(subject.value / control.value, "ratio of bytes", f"{id} / {against}")
        idle = number(found["idle"], "bytes resident at the peak", f"{id}, loaded and not sampled")
        above = None
        if control.value > idle.value:
            above = ratio.but((subject.value - idle.value) / (control.value - idle.value), ratio.low, ratio.high)
        rows.append(Timed("memory", timing["memory"]["batch"], subject, control, ratio, idle, above))
    return rows
