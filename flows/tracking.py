"""The MLflow mirror: what was run, when, and how it went. Never the truth: that is `results/`.

    python -m flows.tracking        mirror every record that is not there yet

A run per cell, flat, found again by its tags. If MLflow cannot be reached the record still stands, and is mirrored
later.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import cyclopts
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from flows.cell import Workplace, metadata
from flows.home import RESULTS, WORK
from flows.ledger import read_records
from flows.records import read_json
from flows.study import main

log = logging.getLogger(__name__)


def client(work: Path = WORK) -> MlflowClient:
    """The server of MLFLOW_TRACKING_URI, else SQLite in the work folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        work.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{work / 'mlflow.db'}"
    return MlflowClient(uri)


def mirror(record: dict[str, Any], results: Path, place: Workplace, prefect_run: str = "") -> int:
    """Mirror the cells of a record that are not there yet; returns how many, 0 also if MLflow cannot be reached."""
    try:
        to = client(place.root)
        experiment = _experiment(to, f"atlas/{record['bed']}", place)
        return sum(_mirror_cell(to, experiment, record, name, results, place, prefect_run) for name in record["cells"])
    except (MlflowException, OSError) as error:
        log.warning("MLflow could not be reached; %s will be mirrored later (%s).", record["id"], error)
        return 0


def _experiment(to: MlflowClient, name: str, place: Workplace) -> str:
    known = to.get_experiment_by_name(name)
    if known is not None:
        return known.experiment_id
    local = None if "MLFLOW_TRACKING_URI" in os.environ else (place.root / "mlartifacts").resolve().as_uri()
    return to.create_experiment(name, artifact_location=local)


def _mirror_cell(
    to: MlflowClient,
    experiment: str,
    record: dict[str, Any],
    name: str,
    results: Path,
    place: Workplace,
    prefect_run: str,
) -> int:
    cell = record["cells"][name]
    fingerprint = cell["fingerprints"]["cell"]
    if to.search_runs([experiment], f"tags.fingerprint = '{fingerprint}' and tags.technique = '{record['id']}'"):
        return 0
    machine = results / record["bed"] / f"{record['id']}.cost.json"
    commit = (read_json(machine)["commit"] if machine.exists() else None) or "unknown"
    tags = {
        "bed": record["bed"], "technique": record["id"], "seed": json.dumps(cell["seeds"]), "fingerprint": fingerprint,
        "spec_hash": record["spec_hash"], "git_sha": commit, "prefect_run": prefect_run,
    }  # fmt: skip
    run = to.create_run(experiment, run_name=name, tags=tags).info.run_id
    params = {f"{id}.{key}": value for id, given in cell["methods"].items() for key, value in given.items()}
    params |= {"methods": "+".join(cell["methods"]) or "baseline", "steps": cell["steps"], "budget": cell["budget"]}
    values = {key: value["mean"] for key, value in cell["metrics"].items()}
    values |= {f"cost.{key}": value for key, value in cell["cost"].items() if isinstance(value, (int, float))}
    values |= {f"fired.{key}": value for key, value in cell["counters"].items()}
    metrics = [Metric(key, float(value), 0, 0) for key, value in values.items()] + _curve(name, record["bed"], place)
    for first in range(0, len(metrics), 1000):
        to.log_batch(run, metrics=metrics[first : first + 1000])
    to.log_batch(
        run, params=[Param(k, str(v)) for k, v in params.items()], tags=[RunTag("mlflow.source.name", "atlas")]
    )
    picture = results / record["bed"] / f"{record['id']}.png"
    if name == record["default"] and picture.exists():
        to.log_artifact(run, str(picture))
    to.set_terminated(run)
    return 1


def _curve(name: str, bed: str, place: Workplace) -> list[Metric]:
    """The training losses of a cell, if its weights were trained here."""
    found = [path for step in ("train", "ship") for path in (place.root / bed / step / name).glob("*.safetensors")]
    return [
        Metric(f"loss.{what}".replace(" ", "_"), float(loss), 0, int(step))
        for path in found
        for what, step, loss in metadata(path)["curve"]
    ]


app = cyclopts.App(name="python -m flows.tracking", help=__doc__, help_format="plaintext")


@app.default
def everything(*, results: Path = RESULTS, work: Path = WORK) -> None:
    """Mirror every record of the results folder that is not mirrored yet."""
    records = [record for bed in read_records(results).values() for record in bed.values()]
    mirrored = sum(mirror(record, results, Workplace(work)) for record in records)
    print(f"{mirrored} cells mirrored to {client(work).tracking_uri}.")


if __name__ == "__main__":
    main(app)
