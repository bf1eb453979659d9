"""The mirror in MLflow: what a reader finds there, that it is there exactly once, and that nobody waits for it."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from safetensors.torch import save_file

import catalog
from flows import tracking
from flows.cell import Workplace
from flows.records import read_json, write_json

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
KNOWN = catalog.load()
BLOCKS = 2
CELLS, SEEDS = "atlas", "atlas/seeds"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it, which takes it seconds."""
    folder = tmp_path_factory.mktemp("database")
    tracking.client(folder).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def place(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A work folder with a mirror in which nothing is yet."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "work").mkdir()
    shutil.copy(database, tmp_path / "work" / "mlflow.db")
    return Workplace(tmp_path / "work", None)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two pages in the plane, of two cells and two blocks each."""
    root = tmp_path / "results"
    made_up.bed(KNOWN, root, "mixture", ["ddim"])
    for id in ("baseline", "ddim"):
        write_json(root / "mixture" / f"{id}.json", smaller(read_json(root / "mixture" / f"{id}.json")))
    return root


def smaller(record: dict[str, Any]) -> dict[str, Any]:
    """The first blocks of a page's subject and of another cell."""
    kept = [record["default"], next(name for name in record["cells"] if name != record["default"])]
    for cell in record["cells"].values():
        cell["seeds"] = {what: seeds[:BLOCKS] for what, seeds in cell["seeds"].items()}
        cell["metrics"] = {key: {**m, "values": m["values"][:BLOCKS]} for key, m in cell["metrics"].items()}
    return record | {"cells": {name: record["cells"][name] for name in kept}}


def page(results: Path, id: str = "ddim", bed: str = "mixture") -> dict[str, Any]:
    return read_json(results / bed / f"{id}.json")


def runs(place: Workplace, *names: str) -> list[Run]:
    """What the mirror has in these experiments, in the order of its UI."""
    to = tracking.client(place.root)
    known = [to.get_experiment_by_name(name) for name in names or (CELLS, SEEDS)]
    return list(to.search_runs([each.experiment_id for each in known if each], order_by=["attributes.start_time DESC"]))


def named(found: list[Run]) -> list[str]:
    return [run.info.run_name or "" for run in found]


def every_key_once(found: list[Run], expected: int) -> bool:
    """Whether there are so many runs, each finished, no two of the same."""
    keys = {run.data.tags["key"] for run in found}
    return len(found) == len(keys) == expected and all(run.info.status == "FINISHED" for run in found)


def made_up_when() -> int:
    return int(datetime.fromisoformat(made_up.MADE["when"]).timestamp() * 1000)


def test_a_reader_finds_cells_and_seeds(place: Workplace, results: Path) -> None:
    assert tracking.mirror(page(results), results, place, "a flow run") == 6
    cells, seeds = runs(place, CELLS), runs(place, SEEDS)
    assert named(cells)[0] == "ddim on mixture"
    assert named(seeds)[:2] == ["ddim on mixture, seed 0", "ddim on mixture, seed 1"]
    assert named(seeds)[2].endswith(" on mixture, seed 0, beside ddim")
    tags = seeds[1].data.tags
    asked = ("kind", "bed", "technique", "cell", "role", "seed", "sampling_seed", "git_sha", "prefect_run")
    assert [tags[key] for key in asked] == [
        "block", "mixture", "ddim", "ddim", "subject", "0", "1", "c0ffee", "a flow run",
    ]  # fmt: skip
    cell = page(results)["cells"]["ddim"]
    assert tags["fingerprint"] == cell["fingerprints"]["cell"] and tags["spec_hash"] and tags["superseded"] == "false"
    assert seeds[1].info.start_time == made_up_when() - 2, "when the record was written; then the order of the runs"


def test_values_are_those_of_the_record(place: Workplace, results: Path) -> None:
    tracking.mirror(page(results), results, place)
    cell = page(results)["cells"]["ddim"]
    whole, block = runs(place, CELLS)[0].data.metrics, runs(place, SEEDS)[1].data.metrics
    for key, metric in cell["metrics"].items():
        assert whole[f"quality/{key}"] == metric["mean"] and whole[f"range/{key}.low"] == metric["low"]
        assert block[f"quality/{key}"] == metric["values"][1]
    assert whole["resource_cost/evaluations"] == block["resource_cost/evaluations"] == cell["cost"]["evaluations"]
    assert {key.partition("/")[2] for key in whole if key.startswith("signs_it_fired/")} == cell["counters"].keys()


def test_every_run_of_an_experiment_has_the_same_axes(place: Workplace, results: Path) -> None:
    for id in ("baseline", "ddim"):
        tracking.mirror(page(results, id), results, place)
    for experiment in (CELLS, SEEDS):
        axes = [{key for key in run.data.params if "." not in key} for run in runs(place, experiment)]
        assert all(each == axes[0] for each in axes) and {"bed", "technique", "cell", "steps"} <= axes[0]
    for run in runs(place, SEEDS):
        numbers = {**run.data.params}
        assert float(numbers["steps"]) and float(numbers["seed"]) == 0 and int(numbers["sampling_seed"]) in (0, 1)
    subject = next(run.data.params for run in runs(place, SEEDS) if run.data.params["cell"] == "ddim")
    given = page(results)["cells"]["ddim"]["methods"]["ddim"]
    assert given and {f"ddim.{key}": str(value) for key, value in given.items()}.items() <= subject.items()


def test_losses_and_picture(place: Workplace, tmp_path: Path) -> None:
    results = tmp_path / "digits"
    made_up.bed(KNOWN, results, "digits", ["min_snr_weighting"])
    record = smaller(page(results, "min_snr_weighting", "digits"))
    for seed in (0, 1):
        path = place.root / "digits" / "train" / record["default"] / f"{seed}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        note = {"fingerprint": "bb" if seed == 0 else "of its own", "curve": [["a network", 50, 0.5 - seed / 10]]}
        save_file({"weight": torch.zeros(1)}, path, {"note": json.dumps(note)})
    assert tracking.mirror(record, results, place) == 6
    assert [run.data.metrics.get("training_loss/a_network") for run in runs(place, SEEDS)] == [0.5, 0.4, None, None]
    subject = runs(place, CELLS)[0]
    (picture,) = tracking.client(place.root).list_artifacts(subject.info.run_id)
    assert picture.path == "min_snr_weighting.png"


def test_quality_on_the_way_through_training_is_a_curve_of_the_cell(place: Workplace, tmp_path: Path) -> None:
    results = tmp_path / "digits"
    made_up.bed(KNOWN, results, "digits", ["min_snr_weighting"])
    record = page(results, "min_snr_weighting", "digits")
    way = {name: cell for name, cell in record["cells"].items() if name.partition("~")[0] == record["default"]}
    tracking.mirror({**smaller(record), "cells": way}, results, place)
    found = {run.data.params["cell"]: run.info.run_id for run in runs(place, CELLS)}
    assert {*found} == {*way} and len(way) == 4
    history = tracking.client(place.root).get_metric_history(found[record["default"]], "quality_on_the_way/fd")
    expected = sorted((cell["cost"]["training_images"], cell["metrics"]["fd"]["mean"]) for cell in way.values())
    assert [(point.step, point.value) for point in history] == expected
    half = tracking.client(place.root).get_run(found[f"{record['default']}~0.5"])
    assert half.data.params["trained"] == "0.5" and "quality_on_the_way/fd" not in half.data.metrics


def test_twice_is_once(place: Workplace, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sync", "--results", str(results), "--work", str(place.root)]
    for says in ("12 runs mirrored", "0 runs mirrored"):
        with pytest.raises(SystemExit) as ended:
            tracking.main(tracking.app, command)
        assert ended.value.code == 0
        assert capsys.readouterr().out.strip().startswith(says)
    assert tracking.mirror(page(results), results, place) == 0
    assert every_key_once(runs(place), 12)


def test_two_processes_at_once_and_no_database_yet(tmp_path: Path, results: Path) -> None:
    place = Workplace(tmp_path / "fresh", None)
    both = [tracking.Page(page(results), results, place)] * 2
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert sorted(pool.map(tracking._mirror, both, chunksize=1)) == [0, 6]
    assert every_key_once(runs(place), 6)


def test_a_cell_that_a_page_names_twice_is_there_under_both_names(place: Workplace, results: Path) -> None:
    record = page(results)
    record["cells"]["baseline@20"] = record["cells"]["ddim"]
    assert [tracking.mirror(record, results, place) for _ in range(2)] == [9, 0]
    assert every_key_once(runs(place), 9)


@pytest.mark.parametrize("broken", ["log_batch", "set_terminated"])
def test_died_half_way(place: Workplace, results: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, broken, dying(getattr(MlflowClient, broken), after=3))
        assert tracking.mirror(page(results), results, place) == 0
    begun = runs(place)
    assert [run.info.status for run in begun].count("FINISHED") == 3 and len(begun) == 4
    assert tracking.mirror(page(results), results, place) == 3
    assert every_key_once(runs(place), 6)
    to = tracking.client(place.root)
    assert all(len(to.get_metric_history(run.info.run_id, "quality/w2")) == 1 for run in runs(place))


def dying(method: Any, after: int) -> Any:
    """The method, which kills what calls it once it was called so often."""
    calls = 0

    def call(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise MlflowException("killed")
        return method(*args, **named)

    return call


def test_of_two_machines_one_run_is_kept(
    place: Workplace, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a server and no lock: neither saw what the other had begun."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.root / 'mlflow.db'}")
    assert tracking.mirror(page(results), results, place) == 6
    first = {run.info.run_id for run in runs(place)}
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_runs", lambda *_: [])
        assert tracking.mirror(page(results), results, Workplace(tmp_path / "elsewhere", None)) == 6
    both = runs(place)
    assert len(both) == 12
    assert tracking.mirror(page(results), results, place) == 0
    kept = runs(place)
    assert every_key_once(kept, 6)
    for run in kept:
        rivals = [each.info.run_id for each in both if each.data.tags["key"] == run.data.tags["key"]]
        assert run.info.run_id == min(rivals) and set(rivals) & first


def test_a_changed_record_is_a_new_run(place: Workplace, results: Path) -> None:
    old, new = page(results), page(results)
    tracking.mirror(old, results, place)
    new["cells"]["ddim"]["fingerprints"]["cell"] = "changed"
    assert tracking.mirror(new, results, place) == 3
    superseded = {run.data.tags["fingerprint"]: run.data.tags["superseded"] for run in runs(place)}
    before = old["cells"]["ddim"]["fingerprints"]["cell"]
    assert len(runs(place)) == 9 and superseded.pop(before) == "true" and set(superseded.values()) == {"false"}
    assert tracking.mirror(old, results, place) == 0
    superseded = {run.data.tags["fingerprint"]: run.data.tags["superseded"] for run in runs(place)}
    assert superseded.pop("changed") == "true" and set(superseded.values()) == {"false"}


def test_quick_looks_and_failures_are_no_results(place: Workplace, results: Path) -> None:
    tracking.mirror(page(results), results, place)
    quick = page(results)
    for cell in quick["cells"].values():
        cell["fidelity"], cell["fingerprints"]["cell"] = False, cell["fingerprints"]["cell"] + "quick"
    assert tracking.mirror(quick, results, place) == 6
    assert tracking.mirror(page(results) | {"cells": {}, "status": "failed"}, results, place) == 0
    assert len(runs(place, "atlas/quick")) == 2 and len(runs(place, "atlas/quick/seeds")) == 4
    assert {run.data.tags["superseded"] for run in runs(place)} == {"false"}


@pytest.fixture(params=["refuses", "is silent"])
def deaf(request: pytest.FixtureRequest, place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that is not there, or that accepts and never answers."""
    for name in tracking.HASTE:
        monkeypatch.setenv(name, "")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "is silent":
            listening.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:secret@127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(tracking, "GIVEN", frozenset())
        monkeypatch.setattr(tracking, "HASTE", {**tracking.HASTE, "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
        yield


def test_nobody_waits_for_mlflow(
    deaf: None, place: Workplace, results: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    assert tracking.mirror(page(results), results, place) == 0
    assert tracking.run_url(page(results)) is None
    told = [record.getMessage() for record in caplog.records if record.name == tracking.__name__]
    assert len(told) == 2 and told[0].startswith("ddim is not in MLflow yet") and "\n" not in told[0]
    with pytest.raises(SystemExit) as ended:
        tracking.main(tracking.app, ["sync", "--results", str(results), "--work", str(place.root)])
    assert ended.value.code == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot be reached" in sentence and "0 of 2 records" in sentence
    assert time.monotonic() - started < 8 and "secret" not in sentence + told[0]


def test_waits_are_seconds_and_the_users_if_given(monkeypatch: pytest.MonkeyPatch) -> None:
    timeout, retries = tracking.HASTE
    assert int(tracking.HASTE[timeout]) * (1 + int(tracking.HASTE[retries])) <= 5
    monkeypatch.setenv(retries, "")
    monkeypatch.setenv(timeout, "17")
    monkeypatch.setattr(tracking, "GIVEN", frozenset({timeout}))
    tracking.wait(tracking.HASTE)
    assert (os.environ[timeout], os.environ[retries]) == ("17", "0")


def test_without_a_server_there_is_no_address(place: Workplace, results: Path) -> None:
    assert tracking.run_url(page(results)) is None


@pytest.fixture
def server(tmp_path: Path, database: Path) -> Iterator[str]:
    """A server of MLflow's own, as `mlflow server` starts it."""
    shutil.copy(database, tmp_path / "server.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stored = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/files"]
    with subprocess.Popen([*command, *stored], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until_open(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def until_open(port: int) -> None:
    for _ in range(600):
        with socket.socket() as asking:
            if asking.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError("the server did not start")


@pytest.mark.slow
def test_two_machines_at_once_on_a_server(
    server: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setattr(tracking, "GIVEN", frozenset(tracking.HASTE))
    sync = [sys.executable, "-m", "flows.tracking", "sync", "--results", str(results), "--work"]
    both = [subprocess.Popen([*sync, str(tmp_path / machine)]) for machine in ("one", "another")]
    assert [each.wait(300) for each in both] == [0, 0]
    place = Workplace(tmp_path / "one", None)
    assert every_key_once(runs(place), 12)
    assert tracking.mirror(page(results), results, place) == 0
    address = tracking.run_url(page(results))
    assert address and address.startswith(f"{server}/#/experiments/")
    assert tracking.client().get_run(address.rpartition("/")[2]).info.run_name == "ddim on mixture"
