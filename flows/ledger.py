"""The ledger: every claim of the catalog beside what was measured, and what may be said of it.

Verdicts are computed here from the records, each time, and stored nowhere: there is no place to type one.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from catalog import Catalog, Cell, Claim, Technique, cell_name
from flows.records import read_json
from methods.measure.activation import fired
from methods.measure.statistics import benjamini_hochberg
from methods.measure.verdict import Values, Verdict, verdict

Status = Literal["supported", "not supported", "inconclusive", "not tested"]
Scale = Literal["toy", "reduced"]
Record = dict[str, Any]

STATUSES: tuple[Status, ...] = get_args(Status)
SCALES: dict[str, Scale] = {"digits": "toy", "mixture": "toy", "mnist": "reduced", "cifar10": "reduced"}
NO_RESULT = "no result yet"
EXACT_UNITS = {
    "evaluations": "evaluations per sample",
    "sequential_calls": "calls one after another",
    "macs": "multiply-accumulates per sample",
    "parameters": "parameters",
    "bytes": "bytes",
    "training_images": "images",
    "one_off_images": "images",
}
"""Units of the exact numbers under `cost`, which records leave out."""
EFFORT = ("seeds", "n", "budget")
"""What two cells must share for their numbers to be compared."""


class Untestable(Exception):
    """Why a claim gets no verdict, in a few words."""


@dataclass(frozen=True)
class Judged:
    """A claim on a bed with its verdict.

    `verdict` is None exactly when the status is `not tested`, and then `reason` says why. `arm` and `control` are names
    of cells; `train` and `sample` the seeds behind each of them, `n` the samples of one seed, `budget` the share of
    the bed's training they had. `adjusted` is the p-value
    after controlling the false-discovery rate over the whole ledger, None for exact numbers. A claim that nothing here
    can test has no bed.
    """

    technique: str
    claim: Claim
    bed: str | None
    scale: Scale | None
    status: Status
    reason: str | None = None
    verdict: Verdict | None = None
    arm: str | None = None
    control: str | None = None
    unit: str | None = None
    train: tuple[int, ...] = ()
    sample: tuple[int, ...] = ()
    n: int | None = None
    budget: float = 1.0
    adjusted: float | None = None


def read_records(results: Path) -> dict[str, dict[str, Record]]:
    """The records of every bed by id, floors and machine-scoped files left out. Raises Damaged."""
    folders = sorted(path for path in results.glob("*") if path.is_dir())
    return {folder.name: {path.stem: read_json(path) for path in record_files(folder)} for folder in folders}


def record_files(folder: Path) -> list[Path]:
    """The deterministic records of a bed's folder, in order."""
    paths = sorted(folder.glob("[!.]*.json"))
    return [path for path in paths if path.name != "floor.json" and not path.name.endswith(".cost.json")]


def judge(catalog: Catalog, results: Path) -> list[Judged]:
    """Every claim of every technique on each of its beds, in the catalog's order. Raises Damaged."""
    return judge_records(catalog, read_records(results))


def judge_records(catalog: Catalog, records: Mapping[str, Mapping[str, Record]]) -> list[Judged]:
    """As `judge`, from records already read."""
    judged = [
        _judge(catalog, technique, claim, bed, records.get(bed or "", {}).get(technique.id))
        for technique in catalog.techniques.values()
        for claim in technique.claims
        for bed in (claim.beds or (None,))
    ]
    uncertain = [index for index, each in enumerate(judged) if each.verdict and each.verdict.interval.n > 1]
    adjusted = benjamini_hochberg([verdict.p for index in uncertain if (verdict := judged[index].verdict)])
    for index, p in zip(uncertain, adjusted, strict=True):
        judged[index] = replace(judged[index], adjusted=p)
    return judged


def tally(judged: Iterable[Judged]) -> dict[Status, int]:
    """How many claims have each status, all four present."""
    counts = Counter(each.status for each in judged)
    return {status: counts[status] for status in STATUSES}


def _judge(catalog: Catalog, technique: Technique, claim: Claim, bed: str | None, record: Record | None) -> Judged:
    blank = Judged(technique.id, claim, bed, SCALES.get(bed or ""), "not tested")
    if claim.untested is not None or bed is None:
        return replace(blank, reason=claim.untested)
    assert claim.arm and claim.metric and claim.statistic and claim.expect
    named = replace(
        blank,
        arm=cell_name(claim.arm, catalog, bed),
        control=cell_name(claim.control, catalog, bed) if claim.control else None,
    )
    try:
        if record is None:
            raise Untestable(NO_RESULT)
        arm, control = _cell(record, named.arm), _cell(record, named.control)
        assert arm is not None
        _require_comparable(technique, claim.arm, claim.metric, arm, control)
        reached = verdict(
            claim.kind,
            claim.statistic,
            _values(arm, claim.metric),
            None if control is None else _values(control, claim.metric),
            claim.expect.model_dump(exclude_unset=True),
            claim.tolerance,
        )
    except (Untestable, ValueError) as why:
        return replace(named, reason=str(why))
    return replace(
        named,
        status=reached.status,
        verdict=reached,
        unit="ratio" if claim.statistic == "ratio" else unit_of(arm, claim.metric),
        train=tuple(arm["seeds"]["train"]),
        sample=tuple(arm["seeds"]["sample"]),
        n=arm["n"],
        budget=arm["budget"],
    )


def _cell(record: Record, name: str | None) -> Record | None:
    """The cell of this name, None for no name."""
    if name is None:
        return None
    if name not in record["cells"]:
        raise Untestable(record["reason"] if record["status"] == "failed" else f"{NO_RESULT} for {name}")
    return record["cells"][name]


def _require_comparable(technique: Technique, named: Cell, metric: str, arm: Record, control: Record | None) -> None:
    """Raise Untestable where numbers are missing, were made differently, or are of nothing."""
    if technique.id in named.methods and not fired(arm["counters"], technique.counters):
        raise Untestable("the technique did not fire")
    for cell in (arm, control):
        if cell is None:
            continue
        if metric not in cell["metrics"] and metric not in cell["cost"]:
            raise Untestable(f"{metric} was not measured")
        if metric == "macs" and cell["cost"]["uncounted_ops"]:
            raise Untestable(f"the count leaves out {', '.join(cell['cost']['uncounted_ops'])}")
        if any(cell[key] != arm[key] for key in EFFORT):
            raise Untestable("arm and control differ in seeds, samples or training budget")


def _values(cell: Record, metric: str) -> Values:
    """An exact number; one value per training seed where there are several; else one per block of samples."""
    if metric in cell["cost"]:
        return float(cell["cost"][metric])
    values = cell["metrics"][metric]["values"]
    if len(cell["seeds"]["train"]) == 1:
        return values
    blocks = len(cell["seeds"]["sample"])
    return [fmean(values[first : first + blocks]) for first in range(0, len(values), blocks)]


def unit_of(cell: Record, metric: str) -> str:
    """The unit in which a cell holds a metric or a cost."""
    return EXACT_UNITS[metric] if metric in cell["cost"] else cell["metrics"][metric]["unit"]


def as_json(judged: Judged) -> dict[str, Any]:
    """A judged claim as JSON has it: open and infinite bounds are null."""
    reached = judged.verdict
    return {
        "technique": judged.technique,
        "claim": judged.claim.model_dump(mode="json", exclude_none=True),
        "bed": judged.bed,
        "scale": judged.scale,
        "status": judged.status,
        "reason": judged.reason,
        "arm": judged.arm,
        "control": judged.control,
        "unit": judged.unit,
        "seeds": {"train": list(judged.train), "sample": list(judged.sample)},
        "n": judged.n,
        "budget": judged.budget,
        "verdict": None
        if reached is None
        else {
            "statistic": reached.interval.mean,
            "low": _finite(reached.interval.low),
            "high": _finite(reached.interval.high),
            "values": reached.interval.n,
            "p": reached.p,
            "adjusted": judged.adjusted,
            "text": reached.text,
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
