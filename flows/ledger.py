"""The ledger: every claim of the catalog beside what was measured, and what may be said of it.

Verdicts are computed here from the records, each time, and stored nowhere: there is no place to type one.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from catalog import Catalog, CatalogError, Cell, Claim, Scale, Seeds, Technique, cell_name
from flows import history
from flows.cell import Spec
from flows.history import Histories, Terms
from flows.records import read_json
from flows.score import identity
from methods.core.recipe import Conflict
from methods.measure.activation import fired
from methods.measure.statistics import benjamini_hochberg
from methods.measure.verdict import Values, Verdict, verdict

Status = Literal["supported", "not supported", "inconclusive", "not tested"]
Record = dict[str, Any]
Stale = Mapping[str, Mapping[str, Mapping[str, str]]]
"""By bed, record and cell: why a number is no longer what code and catalog would give."""

STATUSES: tuple[Status, ...] = get_args(Status)
FALSE_DISCOVERIES = 0.05
"""The share of wrong decisions among all decisions of the ledger that is accepted."""
NO_RESULT = "no result yet"
EXACT_UNITS = {
    "evaluations": "evaluations per sample",
    "sequential_calls": "calls one after another",
    "macs": "multiply-accumulates per sample",
    "parameters": "parameters",
    "active_parameters": "parameters",
    "bytes": "bytes",
    "training_images": "images",
    "training_macs": "multiply-accumulates",
    "one_off_images": "images",
    "one_off_macs": "multiply-accumulates",
}
"""Units of the exact numbers under `cost`, which records leave out."""
BESIDE = (".cost.json", ".claims.json")
"""What lies beside a record: numbers of one machine, and the terms of its claims."""
OF_BED = ("floor.json", "solvers.json", "composition.json", "gradients.json", "reconstruction.json")
"""What is measured of a bed as a whole, and is no technique's record."""
EFFORT = ("seeds", "n", "budget")
"""What two cells must share for their numbers to be compared."""


class Untestable(Exception):
    """Why a claim gets no verdict, in a few words."""


@dataclass(frozen=True)
class Judged:
    """A claim on a bed with its verdict.

    `verdict` is None exactly when the status is `not tested`, and then `reason` says why. `arm` and `control` are names
    of cells; `train` and `sample` the seeds behind each of them, `n` the samples of one block, `budget` the share of
    the bed's training they had. `adjusted` is the p-value after controlling the false-discovery rate over the whole
    ledger, None for exact numbers. `stale` says what changed since the numbers were made, None where nothing did;
    `terms` is the history of the claim on this bed, oldest first. A claim that nothing here can test has no bed.
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
    stale: str | None = None
    terms: tuple[Terms, ...] = ()


def read_records(results: Path) -> dict[str, dict[str, Record]]:
    """The records of every bed by id; what is a bed's or a machine's is left out. Raises Damaged."""
    folders = sorted(path for path in results.glob("*") if path.is_dir())
    return {folder.name: {path.stem: read_json(path) for path in record_files(folder)} for folder in folders}


def record_files(folder: Path) -> list[Path]:
    """The deterministic records of a bed's folder, in order."""
    paths = sorted(folder.glob("[!.]*.json"))
    return [path for path in paths if path.name not in OF_BED and not path.name.endswith(BESIDE)]


def judge(catalog: Catalog, results: Path) -> list[Judged]:
    """Every claim of every technique on each of its beds, in the catalog's order. Raises Damaged."""
    records = read_records(results)
    old = stale(catalog, records, read_floors(results))
    return judge_records(catalog, records, old, history.read_all(results))


def judge_records(
    catalog: Catalog,
    records: Mapping[str, Mapping[str, Record]],
    old: Stale | None = None,
    histories: Histories | None = None,
) -> list[Judged]:
    """As `judge`, from records already read; `old` are the numbers known to be stale."""
    judged = [
        _judge(catalog, technique, claim, bed, records.get(bed or "", {}).get(technique.id))
        for technique in catalog.techniques.values()
        for claim in technique.claims
        for bed in (claim.beds or (None,))
    ]
    uncertain = [index for index, each in enumerate(judged) if each.verdict and each.verdict.interval.n > 1]
    adjusted = benjamini_hochberg([verdict.p for index in uncertain if (verdict := judged[index].verdict)])
    for index, p in zip(uncertain, adjusted, strict=True):
        judged[index] = _held_back(judged[index], p, len(uncertain))
    past = histories or {}
    return [
        replace(
            each,
            stale=_why_stale(each, old or {}),
            terms=past.get((each.bed or "", each.technique), {}).get(each.claim.id, ()),
        )
        for each in judged
    ]


def _held_back(judged: Judged, adjusted: float, tests: int) -> Judged:
    """The claim with its adjusted p-value; a decision that does not stand among so many tests is taken back."""
    reached = judged.verdict
    assert reached is not None
    if reached.status == "inconclusive" or adjusted <= FALSE_DISCOVERIES:
        return replace(judged, adjusted=adjusted)
    text = f"{reached.text} Inconclusive among {tests} tests: adjusted p = {adjusted:.3f}."
    return replace(
        judged, status="inconclusive", adjusted=adjusted, verdict=replace(reached, status="inconclusive", text=text)
    )


def _why_stale(judged: Judged, old: Stale) -> str | None:
    """What changed since the numbers behind a verdict were made."""
    cells = old.get(judged.bed or "", {}).get(judged.technique, {})
    found = [cells[name] for name in (judged.arm, judged.control) if name and name in cells]
    return found[0] if found and judged.verdict else None


def read_floors(results: Path) -> dict[str, Record]:
    """The floor of every bed that has one. Raises Damaged."""
    return {path.parent.name: read_json(path) for path in sorted(results.glob("*/floor.json"))}


def stale(catalog: Catalog, records: Mapping[str, Mapping[str, Record]], floors: Mapping[str, Record]) -> Stale:
    """Every cell whose recorded fingerprint is not the one that code and catalog give it now."""
    return {
        bed: {id: _stale_cells(catalog, bed, record, floors.get(bed)) for id, record in known.items()}
        for bed, known in records.items()
    }


def _stale_cells(catalog: Catalog, bed: str, record: Record, floor: Record | None) -> dict[str, str]:
    extractor = (record["features"] or {}).get("sha256", "")
    if floor and floor["features"] and floor["features"]["sha256"] != extractor:
        return dict.fromkeys(record["cells"], "the bed's feature network is another one now")
    found = {name: _changed(catalog, bed, cell, record["data"], extractor) for name, cell in record["cells"].items()}
    return {name: f"{why} since {name} was measured" for name, why in found.items() if why}


def _changed(catalog: Catalog, bed: str, cell: Record, data: str, extractor: str) -> str | None:
    """What changed since a cell was measured, if anything."""
    seeds = Seeds(train=tuple(cell["seeds"]["train"]), sample=tuple(cell["seeds"]["sample"]))
    asked = Cell(methods=cell["methods"], steps=cell["steps"], trained=cell.get("trained", 1.0))
    try:
        spec = Spec(catalog, catalog.bed(bed), asked, seeds.blocks, cell["budget"], cell["fidelity"])
        same = identity(spec, data, extractor) == cell["fingerprints"]["cell"]
    except (CatalogError, Conflict):
        return "the catalog has changed"
    return None if same else "code, parameters or test bed have changed"


def tally(judged: Iterable[Judged]) -> dict[Status, int]:
    """How many claims have each status, all four present."""
    counts = Counter(each.status for each in judged)
    return {status: counts[status] for status in STATUSES}


def _judge(catalog: Catalog, technique: Technique, claim: Claim, bed: str | None, record: Record | None) -> Judged:
    blank = Judged(technique.id, claim, bed, catalog.beds[bed].scale if bed else None, "not tested")
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
        values = _values(arm, claim.metric), None if control is None else _values(control, claim.metric)
        if (
            claim.kind == "ordering"
            and claim.metric in arm["metrics"]
            and not claim.tolerance
            and values[0] == values[1]
        ):
            raise Untestable("what arm and control differ in did nothing: their numbers are the same")
        reached = verdict(
            claim.kind, claim.statistic, *values, claim.expect.model_dump(exclude_unset=True), claim.tolerance
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
        if metric not in cell["metrics"] and cell["cost"].get(metric) is None:
            raise Untestable(f"{metric} was not measured")
        if metric == "macs" and cell["cost"]["uncounted_ops"]:
            raise Untestable(f"the count leaves out {', '.join(cell['cost']['uncounted_ops'])}")
        if any(cell[key] != arm[key] for key in EFFORT):
            raise Untestable("arm and control differ in seeds, samples or training budget")


def _values(cell: Record, metric: str) -> Values:
    """An exact number, or one value per block."""
    return float(cell["cost"][metric]) if metric in cell["cost"] else cell["metrics"][metric]["values"]


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
        "stale": judged.stale,
        "terms": [asdict(entry) for entry in judged.terms],
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
