"""Writes `params.yaml`, from which `dvc.yaml` expands a stage for every training and every record.

    python -m flows.plan            after a change of the catalog
    python -m flows.plan --check    fails if it is out of date

A record depends on its module, its catalog entry, the weights it starts from, and the record it is held against. What
two techniques share reaches the second through one of the last two.
"""

import sys
from pathlib import Path
from typing import Any

import cyclopts
import yaml

import catalog
from catalog import Catalog
from flows.cell import Spec, Workplace
from flows.study import BASELINE, main, study, techniques_on, trainings
from methods.core.identity import training_fingerprint

BEDS = ("digits", "mnist", "mixture", "adaptation")
"""The beds whose results DVC makes."""
HEADER = "# Written by `python -m flows.plan` from the catalog; dvc.yaml expands its stages from it.\n"
BASELINE_FILES = {"module": "methods/inference/ode_solver/ddim.py", "entry": "catalog/baseline.yaml"}


def plan(known: Catalog) -> dict[str, Any]:
    """What dvc.yaml is expanded over: {bed: {trainings: {...}, records: {...}}}."""
    return {
        bed: {
            "trainings": {
                id: {**files(known, id), "weights": weights(spec)} for id, spec in trainings(known, bed).items()
            },
            "records": {id: record(known, bed, id) for id in techniques_on(known, bed)},
        }
        for bed in BEDS
    }


def record(known: Catalog, bed: str, id: str) -> dict[str, str]:
    """The files a record is made from, besides what all records are made from."""
    found = {**files(known, id), "against": f"results/{bed}/{against(known, bed, id)}.json"}
    if known.bed(bed).network is None:
        return found
    starts = {training_fingerprint(other.recipe): other for other in trainings(known, bed).values()}
    start = starts[training_fingerprint(study(known, bed, id).subject.recipe)]
    return found | {"weights": weights(start)}


def files(known: Catalog, id: str) -> dict[str, str]:
    """The module and the catalog entry of a technique."""
    if id == BASELINE:
        return BASELINE_FILES
    path = known.technique(id).module.removeprefix("methods.").replace(".", "/")
    return {"module": f"methods/{path}.py", "entry": f"catalog/{path}.yaml"}


def against(known: Catalog, bed: str, id: str) -> str:
    """The record to compare with: of the last technique it builds on, else the baseline's, which has the floor's."""
    if id == BASELINE:
        return "floor"
    measured = [other for other in known.technique(id).control.methods if bed in known.technique(other).beds]
    return [BASELINE, *measured][-1]


def weights(spec: Spec) -> str:
    """The folder in which a training leaves its weights, a file for every seed."""
    return str(Workplace().path(spec, "train", 0).parent)


app = cyclopts.App(name="python -m flows.plan", help=__doc__, help_format="plaintext")


@app.default
def write(*, check: bool = False, path: Path = Path("params.yaml")) -> None:
    """Write the plan, or with --check only compare it."""
    text = HEADER + yaml.safe_dump(plan(catalog.load()), sort_keys=False, width=120)
    if check and (not path.exists() or path.read_text() != text):
        sys.exit(f"{path} does not match the catalog; run `python -m flows.plan`.")
    if not check:
        path.write_text(text)


if __name__ == "__main__":
    main(app)
