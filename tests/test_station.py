"""Servers and workers for real: surveys that run on them, and what happens when parts of them are killed.

Slow: everything of `make up` runs in a checkout of its own, on ports of its own.
"""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from station import OVER, Station, new_checkout, operated, processes

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
    batch = station.computing()
    for process in (batch, *batch.children(recursive=True)):
        process.send_signal(signal.SIGKILL)
    station.complete(id)
    assert max(batch["run_count"] for batch in station.runs("batch")) == 2
    assert {path: station.files()[path] for path in first} == first, "what was finished is not made again"
    assert (station.results / "v_prediction.json").exists()
    assert not list((station.home / "work").rglob(".*.safetensors.*")), "and nothing is left half written"


def test_a_worker_that_dies_with_its_run_is_replaced(station: Station) -> None:
    id = station.survey("min_snr_weighting", budget=0.3)
    begun = station.progressed("train min_snr_weighting")
    batch, workers = station.carrying_out({begun}), station.program("worker", "--pool", "cpu")
    assert batch is not None and workers
    for process in (batch, *batch.children(recursive=True), *workers):
        process.send_signal(signal.SIGKILL)
    station.complete(id, limit=600)
    tries = [run["run_count"] for run in station.runs("batch") if run["name"].startswith("train min_snr_weighting")]
    assert tries == [2] and "CRASHED" in station.states(begun), "it was marked crashed, and tried again"
    assert (station.results / "min_snr_weighting.json").exists()
    keys = station.mirrored()
    assert any("min_snr_weighting" in key for key in keys) and len(keys) == len(set(keys))


def test_workers_survive_the_server(station: Station) -> None:
    id = station.survey("ddim", budget=0.03)
    station.computing()
    servers, workers = station.program("server", "start", "prefect"), station.program("worker", "--pool")
    assert servers and workers
    for process in servers:
        process.send_signal(signal.SIGKILL)
    station.complete(id, limit=600)
    assert set(station.program("worker", "--pool")) == set(workers), "none was started again"
    assert (station.results / "ddim.json").exists()


def test_two_surveys_at_once_count_everything_once(station: Station) -> None:
    before, written = station.files(), dict[Path, set[int]]()
    both = [station.survey("flow_matching"), station.survey("flow_matching")]
    until = time.monotonic() + 400
    while any(station.run(id)["state_type"] not in OVER for id in both):
        assert time.monotonic() < until
        for path, when in station.files().items():
            written.setdefault(path, set()).add(when)
        time.sleep(0.2)
    for id in both:
        station.complete(id)
    made = {path: times - {before.get(path)} for path, times in written.items()}  # others had another budget
    assert any("flow_matching" in path.parts for path in made) and max(map(len, made.values())) == 1, made
    assert (station.results / "flow_matching.json").exists()
    keys = station.mirrored()
    assert any("flow_matching" in key for key in keys) and len(keys) == len(set(keys))


def test_a_survey_goes_on_without_mlflow_and_is_mirrored_later_once(station: Station) -> None:
    silent = station.program("uvicorn", "mlflow.server.fastapi_app:app")
    assert silent
    for process in silent:
        process.suspend()
    try:
        station.complete(station.survey("karras_rho_schedule"))
    finally:
        for process in silent:
            process.resume()
    assert (station.results / "karras_rho_schedule.json").exists()
    assert not any("karras_rho_schedule" in key for key in station.mirrored())
    for _ in range(2):
        station.sync()
        keys = station.mirrored()
        assert any("karras_rho_schedule" in key for key in keys) and len(keys) == len(set(keys))


def test_a_catalog_edited_meanwhile_ends_a_survey_in_a_sentence_and_nothing_is_lost(station: Station) -> None:
    entry = station.home / "catalog/inference/feature_caching/deepcache.yaml"
    before, known = entry.read_text(), station.files()
    id = station.survey("v_prediction", budget=0.04)
    until = time.monotonic() + 200
    while not (made := station.files().items() - known.items()):
        assert time.monotonic() < until
        time.sleep(0.2)
    entry.write_text(before.replace("default: 3", "default: 4", 1))
    try:
        run = station.wait(id)
    finally:
        entry.write_text(before)
    assert run["state_type"] == "FAILED" and "edited while the survey ran" in run["state"]["message"]
    assert "\n" not in run["state"]["message"]
    station.complete(station.survey("v_prediction", budget=0.04))
    assert made <= station.files().items(), "what was finished is found again"


@pytest.mark.browser
def test_a_survey_from_the_ui(station: Station, browser: Browser) -> None:
    """Fill the form, start the survey, see it complete, and see its numbers and samples."""
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.set_default_timeout(60_000)
    page.goto(f"{station.prefect}/deployments/deployment/{station.deployment('survey', 'control')}")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_text("Custom run").click()
    page.get_by_text("No items selected").first.wait_for()
    page.locator(".schema-form-property__fields").nth(1).locator("button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.type("deepcache")
    page.locator(".p-select-option", has_text=re.compile("^deepcache$")).click()
    page.keyboard.press("Escape")
    page.locator("input[type=number]").first.fill("0.01")
    page.get_by_text("int", exact=True).click()
    page.locator("input[type=number]").nth(1).fill("1")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("survey deepcache on digits").first.wait_for()
    (id,) = [run["id"] for run in station.runs("survey") if run["parameters"]["methods"] == ["deepcache"]]
    page.goto(f"{station.prefect}/runs/flow-run/{id}")
    page.get_by_text("Completed").first.wait_for(timeout=400_000)
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("What may be said of each claim").first.wait_for()
    record = next(run for run in station.runs("batch") if "record" in run["name"])
    page.goto(f"{station.prefect}/runs/flow-run/{record['id']}")
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("Samples of deepcache on digits").first.click()
    grid = page.locator("img[src^='data:image/png']").first
    grid.wait_for()
    assert grid.evaluate("image => image.naturalWidth") > 200
    asked = {"flow_run_id": {"any_": [record["id"]]}, "type": {"any_": ["markdown"]}}
    (links,) = station.ask("/artifacts/filter", artifacts=asked)
    assert f"{station.mlflow}/#/experiments/" in links["data"]
