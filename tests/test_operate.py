"""Starting, stopping and checking: decisions as plain functions, and once, slowly, the whole thing."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import yaml
from station import new_checkout, operated, processes
from supervisor.options import ServerOptions
from watchfiles import Change

from flows import doctor, home, operate, publish
from flows.records import Damaged

ROOT = Path(__file__).parents[1]
STATED = yaml.safe_load((ROOT / "prefect.yaml").read_text())


def programs_of(devices: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What supervisord makes of its configuration, by process."""
    for name, value in operate.environment(devices).items():
        monkeypatch.setenv(name, value)
    options = ServerOptions()
    options.realize(["-c", str(operate.CONFIGURATION)], doc="")
    return {process.name: process for group in options.process_group_configs for process in group.process_configs}


def test_supervisord_keeps_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "OPERATE", tmp_path)
    programs = programs_of(2, monkeypatch)
    assert set(programs) == {"prefect", "mlflow", "site", "control", "cpu", "gpu-0", "gpu-1"}
    for process in programs.values():
        assert not process.autostart and process.autorestart and process.stdout_logfile.endswith(f"{process.name}.log")
    assert programs["gpu-1"].command.endswith("worker --pool gpu --device 1")
    assert str(operate.SETTINGS.prefect_port) in programs["prefect"].command
    assert {"gpu-0", "gpu-1"}.isdisjoint(programs_of(0, monkeypatch))


def test_a_worker_of_a_device_runs_one_flow_at_a_time_and_sees_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.delenv("PREFECT_WORKER_QUERY_SECONDS", raising=False)
    monkeypatch.setattr(operate, "require_server", lambda: None)
    monkeypatch.setattr(operate, "cuda_devices", lambda: ["4", "7"])
    monkeypatch.setattr(operate.os, "execve", lambda path, command, told: started.append((command, told)))
    operate.worker(pool="gpu", device=1)
    operate.worker(pool="cpu")
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "15")
    operate.worker(pool="control")
    (gpu, told), (cpu, none), (_, asked) = started
    assert [each["PREFECT_WORKER_QUERY_SECONDS"] for each in (told, none, asked)] == ["2", "2", "15"]
    assert gpu[-2:] == ["--limit", "1"] and told["CUDA_VISIBLE_DEVICES"] == "7"
    assert cpu[-2:] == ["--limit", str(operate.SETTINGS.jobs)] and none["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(SystemExit, match="no CUDA device 2 here: torch sees 2"):
        operate.worker(pool="gpu", device=2)


def test_what_is_running_names_its_store_and_database_without_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second `up` that asks for others is answered by the difference."""
    monkeypatch.setattr(operate, "OPERATE", tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", operate.SETTINGS.prefect_api)
    monkeypatch.delenv(operate.DATABASE, raising=False)
    plain = operate.identity(1)
    assert plain.endswith("store of its own, database of its own")
    shared = operate.SETTINGS.model_copy(update={"store": "sftp://me:secret@host/atlas"})
    monkeypatch.setattr(operate, "SETTINGS", shared)
    monkeypatch.setenv(operate.DATABASE, "postgresql+asyncpg://user:p%40ss@db:5432/prefect")
    assert operate.identity(1).endswith("store sftp://host/atlas, database postgresql+asyncpg://db:5432/prefect")
    assert programs_of(1, monkeypatch), "supervisord takes it as its name"
    told: Any = SimpleNamespace(getIdentification=lambda: plain)
    monkeypatch.setattr(operate, "keeper", lambda: told)
    monkeypatch.setattr(operate, "cuda_devices", lambda: ["0"])
    with pytest.raises(SystemExit, match=r"other settings \(.*store of its own"):
        operate.up()


def test_a_long_path_gets_a_short_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "OPERATE", Path("/a" * 60))
    assert len(os.fsencode(operate.socket_path())) <= operate.LONGEST_SOCKET


def test_a_taken_port_is_named_with_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((operate.SETTINGS.host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(operate, "SETTINGS", operate.SETTINGS.model_copy(update={"mlflow_port": port}))
        with pytest.raises(SystemExit, match=rf"MLflow cannot listen on .* port {port} .*ATLAS_MLFLOW_PORT"):
            operate.require_ports(["prefect", "site"])
        operate.require_ports(["prefect", "mlflow", "site"])


def test_deployments_are_named_after_their_pool() -> None:
    for one in STATED["deployments"]:
        assert one["name"] == one["work_pool"]["name"] in operate.POOLS
        assert one["description"].endswith(".") and one["tags"] == ["atlas"]
        module = one["entrypoint"].rsplit(".", 1)[0]
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_automations_are_what_prefect_takes_and_flows_expect() -> None:
    silence, again, unbegun = operate.automations()
    assert silence.trigger.within == timedelta(seconds=3 * operate.BEAT_S)  # pyright: ignore
    tries = [str(count) for count in range(1, home.TRIES + 1)]
    assert again.trigger.match["prefect.run-count"] == tries  # pyright: ignore
    assert operate.same(silence, operate.automations()[0]) and not operate.same(silence, unbegun)


def test_versions_are_held_against_the_lock() -> None:
    assert doctor.version_finding("torch", "2.13.0+cpu", "2.13.0").level == "ok"
    other = doctor.version_finding("dvc", "3.60.0", "3.67.1")
    assert other.level == "warning" and "3.67.1" in other.remedy
    assert doctor.fastapi_finding("0.155.2", "0.139.0").level == "problem"
    assert doctor.server_finding("3.8.8", "3.8.8").level == "ok"
    assert doctor.server_finding("3.9.0", "3.8.8").level == "problem"


def test_an_old_form_and_a_missing_limit_are_found() -> None:
    from prefect.utilities.callables import parameter_schema

    from flows.train import train

    schema = parameter_schema(train).model_dump_for_openapi()

    def found(schema: dict[str, Any], limit: int | None) -> list[str]:
        held = SimpleNamespace(limit=limit) if limit else None
        there: Any = SimpleNamespace(parameter_openapi_schema=schema, global_concurrency_limit=held)
        stated = {"concurrency_limit": {"limit": 1}}
        return [finding.part for finding in doctor.deployment_findings("train/cpu", stated, train, there)]

    assert found(schema, 1) == []
    assert found(schema, None) == ["limits"]
    fewer = {**schema["definitions"]["TechniqueId"], "enum": schema["definitions"]["TechniqueId"]["enum"][1:]}
    assert found({**schema, "definitions": {**schema["definitions"], "TechniqueId": fewer}}, 1) == ["forms"]


def test_a_pool_without_worker_says_since_when() -> None:
    seen = datetime.now(UTC) - timedelta(minutes=7)
    assert doctor.pool_finding("cpu", [("here-cpu", True, seen)]).level == "ok"
    gone = doctor.pool_finding("cpu", [("here-cpu", False, seen), ("there-cpu", False, None)])
    assert gone.level == "problem" and "here-cpu was there 7 minutes ago" in gone.found
    assert doctor.pool_finding("cpu", []).found == "has no worker"


def test_little_space_is_said() -> None:
    assert [doctor.space_finding(free).level for free in (50e9, 2e9, 0.1e9)] == ["ok", "warning", "problem"]


def test_without_a_browser_the_check_of_a_change_fails_in_a_sentence(tmp_path: Path) -> None:
    """Its tests would be left out, and the rest would pass."""
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    asked = [str(tmp_path / "bash"), str(ROOT / ".ci/run")]
    done = subprocess.run(asked, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "neither chromium nor google-chrome is on the PATH" in done.stderr


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken() -> Iterator[doctor.Finding]:
        yield doctor.Finding("ok", "first", "fine")
        raise KeyError("torch")

    assert [(one.level, one.part) for one in doctor.attempted(broken)] == [("ok", "first"), ("problem", "broken")]


def test_the_site_is_rendered_from_what_is_there_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogs: list[object] = []
    monkeypatch.setattr(publish, "render", lambda catalog, results, out: catalogs.append(catalog))
    assert publish.render_again(tmp_path, tmp_path).startswith("Rendered")
    assert publish.render_again(tmp_path, tmp_path).startswith("Rendered")
    assert catalogs[0] is not catalogs[1]

    def fails(*_: object) -> None:
        raise Damaged(tmp_path / "a.json", "measure again")

    monkeypatch.setattr(publish, "render", fails)
    assert publish.render_again(tmp_path, tmp_path).startswith("The site stays as it was: ")


def test_half_written_files_are_no_change() -> None:
    assert publish.visible(Change.added, "/results/digits/baseline.json")
    assert not publish.visible(Change.added, "/results/digits/.baseline.json.17")
    assert not publish.visible(Change.modified, "/catalog/__pycache__/index.cpython-311.pyc")


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a checkout of its own; everything in it is stopped afterwards."""
    environment = new_checkout(tmp_path)
    yield environment
    operated(environment, "down")


def listening(home: str) -> set[str]:
    """The addresses on which the processes of a checkout can be reached."""
    opened = [each for pid in processes(home) for each in psutil.Process(pid).net_connections("inet")]
    return {each.laddr.ip for each in opened if each.status == psutil.CONN_LISTEN}


def form(checkout: dict[str, str]) -> str:
    """The survey's form as the server has it."""
    api = f"http://127.0.0.1:{checkout['ATLAS_PREFECT_PORT']}/api"
    return httpx.get(f"{api}/deployments/name/survey/control").text


@pytest.mark.slow
def test_up_and_down(checkout: dict[str, str]) -> None:
    home = checkout["ATLAS_HOME"]
    assert operated(checkout, "doctor").returncode == 1
    up = operated(checkout, "up")
    assert up.returncode == 0, up.stdout + up.stderr
    doctor = operated(checkout, "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    running = processes(home)
    assert listening(home) == {"127.0.0.1"}
    assert operated(checkout, "up").returncode == 0 and processes(home) == running
    assert "steps, at least 1, 3 by default" in form(checkout)
    entry = Path(home) / "catalog/inference/feature_caching/deepcache.yaml"
    entry.write_text(entry.read_text().replace("default: 3", "default: 4", 1))
    assert operated(checkout, "doctor").returncode == 1, "the form is from before the change"
    assert operated(checkout, "up").returncode == 0
    assert "steps, at least 1, 4 by default" in form(checkout)
    page = f"http://127.0.0.1:{checkout['ATLAS_SITE_PORT']}/claims.html"
    before = httpx.get(page).text
    (Path(home) / "results/digits/deepcache.json").unlink()
    until = time.monotonic() + 120
    while httpx.get(page).text == before:
        assert time.monotonic() < until
        time.sleep(1)
    assert operated(checkout, "down").returncode == 0
    assert processes(home) == set()
    assert operated(checkout, "down").stdout.strip() == "Nothing was running."
