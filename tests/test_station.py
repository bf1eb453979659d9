"""Servers and workers for real: surveys that run on them, and what happens when parts of them are killed.

Slow: everything of `make up` runs in a checkout of its own, on ports of its own.
"""

import signal
import time
from collections.abc import Iterator

import pytest
from station import Station, new_checkout, operated, processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    environment = new_checkout(tmp_path_factory.mktemp("station"))
    up = operated(environment, "up")
    assert up.returncode == 0, up.stdout + up.stderr
    try:
        yield Station(environment)
    finally:
        operated(environment, "down")
    assert processes(environment["ATLAS_HOME"]) == set()


def test_what_is_impossible_is_answered_in_seconds_by_one_sentence(station: Station) -> None:
    started = time.monotonic()
    run = station.wait(station.survey("dit", "deepcache"))
    assert run["state_type"] == "FAILED" and "needs a UNetConfig in `net`" in run["state"]["message"]
    assert "Traceback" not in run["state"]["message"] and "\n" not in run["state"]["message"]
    assert time.monotonic() - started < 60


def test_a_killed_batch_is_tried_again_and_goes_on_from_the_last_finished_step(station: Station) -> None:
    id = station.survey("v_prediction", budget=0.05)
    until = time.monotonic() + 200
    while not station.files():
        assert time.monotonic() < until
        time.sleep(0.2)
    first = station.files()
    station.computing().send_signal(signal.SIGKILL)
    run = station.wait(id)
    assert run["state_type"] == "COMPLETED", run["state"]
    assert max(batch["run_count"] for batch in station.runs("batch")) == 2
    assert {path: station.files()[path] for path in first} == first, "what was finished is not made again"
    assert (station.results / "v_prediction.json").exists()
    assert not list((station.home / "work").rglob(".*.safetensors.*")), "and nothing is left half written"


def test_a_worker_that_dies_with_its_run_is_replaced(station: Station) -> None:
    id = station.survey("min_snr_weighting", budget=0.05)
    for process in (station.computing(), *station.program("worker", "--pool", "cpu")):
        process.send_signal(signal.SIGKILL)
    assert station.wait(id, limit=600)["state_type"] == "COMPLETED"
    assert (station.results / "min_snr_weighting.json").exists()


def test_workers_survive_the_server(station: Station) -> None:
    id = station.survey("ddim", budget=0.03)
    station.computing()
    for process in station.program("server", "start", "prefect"):
        process.send_signal(signal.SIGKILL)
    assert station.wait(id, limit=600)["state_type"] == "COMPLETED"
    assert (station.results / "ddim.json").exists()


def test_two_surveys_at_once_count_everything_once(station: Station) -> None:
    both = [station.survey("flow_matching"), station.survey("flow_matching")]
    assert [station.wait(id)["state_type"] for id in both] == ["COMPLETED", "COMPLETED"]
    assert (station.results / "flow_matching.json").exists()
    keys = station.mirrored()
    assert any("flow_matching" in key for key in keys) and len(keys) == len(set(keys))
