"""Results in the format of real ones, the same every time, for the tests of the site; no number of them was measured.

On digits every technique has a record but one, and one of them failed; on mnist and in the plane there are two each.
"""

import hashlib
import json
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from catalog import Catalog, Cell, Seeds, Technique, cell_name
from flows import gradients, reconstruction
from flows.cell import Spec
from flows.floors import entry
from flows.history import terms_of
from flows.records import write_json
from flows.score import identity
from methods.measure.gradients import EDGES
from methods.measure.reference import UNITS
from methods.measure.statistics import Interval

SHA, DATA, T = "ab12", "made-up data", 2.776445105197793
FEATURES = {"sha256": SHA, "accuracy": 0.98, "dimensions": 64}
PLANE = {"w2": 1.0, "sliced_w2": 0.7, "mmd": 1e-4, "coverage": 0.9, "off_manifold": 0.1, "fidelity": 0.05}
IMAGES = {"fd": 1.0, "kid": 1e-3, "accuracy": 0.97, "recall": 0.8, "nearest": 1.1, "fidelity": 0.05}
FAILED, MISSING, SILENT, STALE = "diff_pruning", "immiscible_diffusion", "deepcache", "min_snr_weighting"
"""Techniques whose run failed, that have no record, that did not fire, and whose code has changed since."""
FIRST = {"commit": "1111111111111111", "when": "2026-01-01T00:00:00Z"}
HOST = {"cpu": "a processor", "cores": 2, "threads": 1, "load": 0.5, "system": "Linux x86_64"}
MADE = {
    "commit": "c0ffee",
    "dirty": False,
    "when": "2026-01-02T03:04:05Z",
    "versions": {"torch": "2.13.0"},
    "host": HOST,
}
TIMING = {
    "start": {"seconds": {"subject": 3.0, "control": 0.5}},
    "latency": {"batch": 1, "seconds": {"subject": 0.2, "control": 0.4},
                "ratio": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 6}},
    "throughput": {"batch": 64, "samples_per_second": {"subject": 200.0, "control": 100.0},
                   "ratio": {"mean": 0.51, "low": 0.45, "high": 0.58, "n": 6}},
    "memory": {"batch": 64, "bytes": {"subject": 300_000_000, "control": 200_000_000, "idle": 150_000_000}},
}  # fmt: skip


def everything(known: Catalog, root: Path) -> Path:
    """Results on three beds."""
    ids = [id for id, technique in known.techniques.items() if id != MISSING and "digits" in technique.beds]
    bed(known, root, "digits", ids)
    bed(known, root, "mnist", ["deepcache"])
    bed(known, root, "mixture", ["ddim"])
    rows = [{"step": "train", "id": "baseline", "seconds": 60.0}, {"step": "record", "id": "ddim", "seconds": 20.0}]
    write_json(root / "digits" / "survey.cost.json", {**MADE, "jobs": 2, "wall_seconds": 45.0, "rows": rows})
    noise_levels(known, root, "digits", [id for id in ids if id != STALE])
    codecs(known, root, "digits")
    return root


def codecs(known: Catalog, root: Path, bed: str) -> None:
    """What the spaces of techniques lose by themselves."""
    cells = {}
    for id, spec in reconstruction.specs(known, bed):
        scores, made_from = {"fd": [0.5, 0.75]}, reconstruction.made_from(spec, DATA)
        cells[id] = {"methods": {}, "seeds": [0, 1], "n": 9, "scores": scores, "fingerprint": made_from}
    head = {"schema": 2, "bed": bed, "id": "reconstruction", "data": DATA}
    write_json(root / bed / reconstruction.FILE, {**head, "cells": cells})


def noise_levels(known: Catalog, root: Path, bed: str, ids: Iterable[str]) -> None:
    """Shares of the gradient of the baseline and of those techniques whose losses are compared; one is stale."""
    shares = [0.05, 0.05, 0.1, 0.1, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02]
    cells = {}
    for id, spec in gradients.specs(known, bed):
        if id in ("baseline", STALE, *ids):
            seeds = [[share * (1 + 0.01 * seed) for share in shares] for seed in spec.train_seeds]
            made_from = "something else" if id == STALE else gradients.made_from(spec, DATA)
            cells[id] = {"methods": {}, "seeds": [*spec.train_seeds], "fingerprint": made_from}
            cells[id]["shares"] = dict.fromkeys(gradients.SHARES, seeds)
    head = {"schema": 2, "bed": bed, "id": "gradients", "data": DATA, "edges": EDGES, "steps": 12}
    write_json(root / bed / gradients.FILE, {**head, "cells": cells})


def bed(known: Catalog, root: Path, name: str, ids: Iterable[str]) -> None:
    """The baseline, techniques and the floor of a bed."""
    folder = root / name
    curve = [known.canonical(Cell(methods={}, steps=n), name) for n in (known.baseline.steps, *known.baseline.curve)]
    record(known, folder, "baseline", curve)
    for id in ids:
        record(known, folder, id, list(known.cells(id, name).values()))
        terms = {c.id: [{"terms": terms_of(c), **FIRST}] for c in known.technique(id).claims if name in c.beds}
        if (id, name) == ("ddim", "digits"):
            claim, (first,) = next(iter(terms.items()))
            terms[claim] = [{**first, "terms": {**first["terms"], "tolerance": 7.25}}, {**first, "commit": "22" * 8}]
            terms["gone"] = [first]
        write_json(folder / f"{id}.claims.json", terms)
    held_out = {key: floor_of(0.7, 360, key) for key in (PLANE if name == "mixture" else IMAGES)}
    del held_out["fidelity"]
    biases = {"bias_at_held_out": floor_of(0.6, 360, "fd"), "bias_at_n": floor_of(0.21, 1437, "fd")}
    fd = None if name == "mixture" else biases
    features = None if name == "mixture" else FEATURES
    head = {"schema": 2, "bed": name, "id": "floor", "data": DATA}
    write_json(folder / "floor.json", {**head, "features": features, "held_out": held_out, "fd": fd})


def floor_of(value: float, n: int, key: str) -> dict[str, Any]:
    """A number of a floor with its interval."""
    return entry(Interval(value, value - 0.15, value + 0.15, 1), key, n)


def record(known: Catalog, folder: Path, id: str, cells: Sequence[Cell]) -> None:
    """One record with its picture and its machine-scoped file."""
    bed, names = folder.name, [cell_name(cell, known, folder.name) for cell in cells]
    subject, control = names[0], names[0 if id == "baseline" else 1]
    failed = id == FAILED
    made = {} if failed else {name: made_cell(known, bed, cell, id) for name, cell in zip(names, cells, strict=True)}
    content = {
        "schema": 2, "bed": bed, "id": id, "data": DATA, "status": "failed" if failed else "ok",
        "reason": f"{subject}: the gradient was not finite" if failed else None, "default": subject, "control": control,
        "features": None if bed == "mixture" else FEATURES, "spec_hash": "0123456789abcdef", "cells": made,
        "equal_evaluations": equal(known, bed, made, subject, cells[1], "evaluations", id),
        "equal_macs": equal(known, bed, made, subject, cells[1], "macs", id),
    }  # fmt: skip
    write_json(folder / f"{id}.json", content)
    timing = None if id == "baseline" else {"against": control, **TIMING}
    write_json(
        folder / f"{id}.cost.json",
        {**MADE, "spec_hash": content["spec_hash"], "seconds": {"train": 71.2, "sample": 9}, "timing": timing},
    )
    if bed != "mixture":
        Image.frombytes("L", (89, 71), random.Random(id).randbytes(89 * 71)).save(folder / f"{id}.png")


def equal(known: Catalog, bed: str, made: dict[str, Any], subject: str, held: Cell, axis: str, id: str) -> Any:
    """The control at equal cost, measured if it is not there yet."""
    if not made or id == "baseline":
        return {"cell": None, "reason": "left out of a quick look"}
    if axis == "macs" and (bed == "mixture" or made[subject]["cost"]["uncounted_ops"]):
        return {"cell": None, "reason": "the count leaves out aten._int_mm"}
    control = made[cell_name(held, known, bed)]
    steps = round(made[subject]["cost"][axis] / control["cost"][axis] * control["steps"])
    cell = known.canonical(Cell(methods=held.methods, steps=steps), bed)
    name = cell_name(cell, known, bed)
    made[name] = made.get(name) or made_cell(known, bed, cell, id)
    return {"cell": name, "reason": None}


def made_cell(known: Catalog, bed: str, cell: Cell, id: str) -> dict[str, Any]:
    """Numbers that depend on nothing but the name of the cell."""
    name, steps, seeds = cell_name(cell, known, bed), known.steps(cell, bed), known.bed(bed).seeds
    rng = random.Random(int(hashlib.sha256(name.encode()).hexdigest(), 16))
    centre = 0.45 + 9 / steps**1.3 + (rng.uniform(-0.15, 0.5) if cell.methods else 0)
    plane, counters = bed == "mixture", () if id == "baseline" else known.technique(id).counters
    exact = dict.fromkeys(("macs", "parameters", "active_parameters", "bytes", "training_images", "training_macs"), 0)
    if not plane:
        exact |= {"macs": steps * (400_000 if SILENT in name else 912_345), "parameters": 352_111, "bytes": 1_408_444}
        exact |= {"active_parameters": 301_000, "training_images": round(99_840 * cell.trained)}
        exact |= {"training_macs": round(5_000_000_000_000 * cell.trained)}
    spent = {"evaluations": float(steps * (2 if "guidance" in name else 1)), "sequential_calls": float(steps)}
    once = {"one_off_images": 640, "one_off_macs": 900_000_000} if "distillation" in name else {}
    return {
        "methods": known.resolve(cell, bed), "steps": steps, "budget": 1.0, "fidelity": cell.trained == 1,
        **({"trained": cell.trained} if cell.trained < 1 else {}),
        "n": known.bed(bed).n, "seeds": {"train": list(seeds.train), "sample": list(seeds.sample)},
        "metrics": {key: metric(key, scale * centre, rng) for key, scale in (PLANE if plane else IMAGES).items()},
        "cost": {**exact, **spent, "one_off_images": 0, "one_off_macs": 0, **once,
                 "uncounted_ops": ["aten._int_mm"] if "int8" in name else []},
        "counters": {counter: 0 if id == SILENT else 1234 for counter in counters},
        "fingerprints": {"cell": fingerprint(known, bed, cell, seeds, id), "training": "bb", "shipped": "cc"},
    }  # fmt: skip


def fingerprint(known: Catalog, bed: str, cell: Cell, seeds: Seeds, id: str) -> str:
    """That of today's code and catalog."""
    spec = Spec(known, known.bed(bed), cell, seeds.blocks, 1.0, cell.trained == 1)
    return "another" if id == STALE else identity(spec, DATA, "" if bed == "mixture" else SHA)


def metric(key: str, mean: float, rng: random.Random) -> dict[str, Any]:
    """Five blocks that share most of their noise with those of other cells."""
    values = [mean * (1 + random.Random(i).gauss(0, 0.08) + rng.gauss(0, 0.03)) for i in range(5)]
    middle, half = statistics.fmean(values), T * statistics.stdev(values) / 5**0.5
    errors = {"errors": [abs(mean) / 10] * 5} if key in ("kid", "mmd") else {}
    interval = {"mean": middle, "low": middle - half, "high": middle + half}
    return {"values": values, **interval, "unit": UNITS[key], "blocks": 5, **errors}


class Twin(Technique):
    """A technique under another id, run by the same function."""

    @property
    def original(self) -> str:
        return self.id.rpartition("_twin")[0]

    @property
    def module(self) -> str:
        return f"methods.{self.area}.{self.family}.{self.original}"

    def call(self, params: dict[str, Any], bed: str | None = None) -> Any:
        return getattr(import_module(self.module), self.original)(**self.resolve(params, bed))


def crowd(known: Catalog, count: int) -> Catalog:
    """The catalog filled up to so many techniques with twins of those it has."""
    many = dict(known.techniques)
    for number in range(count):
        for id, technique in known.techniques.items():
            if len(many) < count:
                text = json.dumps(technique.model_dump(mode="json", by_alias=True, exclude_none=True))
                twin = Twin.model_validate(json.loads(text.replace(f'"{id}"', f'"{id}_twin{number}"')))
                many[twin.id] = twin
    return replace(known, techniques=many)
