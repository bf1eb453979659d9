"""A checkout of its own in which servers and workers are started for real, for the slow tests."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
QUICK = {"budget": 0.01, "blocks": 1}
OVER = ("COMPLETED", "FAILED", "CANCELLED")
"""States that stay. A crashed run is tried again."""


def new_checkout(folder: Path) -> dict[str, str]:
    """The project copied into a folder; returns its environment, with ports that are free."""
    for name in ("catalog", "flows", "methods", "site", "results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        sockets = {"PREFECT": first, "MLFLOW": second, "SITE": third}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        ports = {f"ATLAS_{name}_PORT": str(each.getsockname()[1]) for name, each in sockets.items()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "ATLAS_"))}
    return kept | ports | {"ATLAS_HOME": str(folder), "PYTHONPATH": str(folder)}


def operated(environment: dict[str, str], command: str) -> "subprocess.CompletedProcess[str]":
    """`python -m flows.operate <command>` in a checkout."""
    return subprocess.run(
        [sys.executable, "-m", "flows.operate", command],
        env=environment, cwd=environment["ATLAS_HOME"], capture_output=True, text=True, check=False,
    )  # fmt: skip


def processes(home: str) -> set[int]:
    """The processes of a checkout, itself started or not."""
    found: set[int] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("ATLAS_OPERATE") == f"{home}/work/operate":
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


class Station:
    """A checkout in which `up` was said, and what its servers answer."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment, self.home = environment, Path(environment["ATLAS_HOME"])
        self.prefect = f"http://127.0.0.1:{environment['ATLAS_PREFECT_PORT']}"
        self.mlflow = f"http://127.0.0.1:{environment['ATLAS_MLFLOW_PORT']}"
        self.results = self.home / "work/quick/results/digits"

    def ask(self, path: str, **content: Any) -> Any:
        """Post to Prefect's API; a server that is starting again is waited for."""
        until = time.monotonic() + 120
        while True:
            try:
                answer = httpx.post(f"{self.prefect}/api{path}", json=content, timeout=30)
                answer.raise_for_status()
                return answer.json()
            except httpx.HTTPError:
                assert time.monotonic() < until, path
                time.sleep(1)

    def deployment(self, flow: str, pool: str) -> str:
        """The id of a deployment."""
        asked = {"deployments": {"name": {"any_": [pool]}}, "flows": {"name": {"any_": [flow]}}}
        (found,) = self.ask("/deployments/filter", **asked)
        return found["id"]

    def survey(self, *methods: str, **given: Any) -> str:
        """Start a quick survey; returns the id of its run."""
        parameters = {"methods": list(methods), **QUICK, **given}
        path = f"/deployments/{self.deployment('survey', 'control')}/create_flow_run"
        return self.ask(path, parameters=parameters)["id"]

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """The runs of a flow, newest first."""
        return self.ask("/flow_runs/filter", sort="EXPECTED_START_TIME_DESC", flows={"name": {"any_": [flow]}})

    def run(self, id: str) -> dict[str, Any]:
        """A run as it is now."""
        return self.ask("/flow_runs/filter", flow_runs={"id": {"any_": [id]}})[0]

    def wait(self, id: str, limit: float = 400) -> dict[str, Any]:
        """The run when it is over."""
        until = time.monotonic() + limit
        while (run := self.run(id))["state_type"] not in OVER:
            assert time.monotonic() < until, run["state"]
            time.sleep(1)
        return run

    def states(self, id: str) -> list[str]:
        """The types of all states that a run was in."""
        answer = httpx.get(f"{self.prefect}/api/flow_run_states/", params={"flow_run_id": id}, timeout=30)
        return [state["type"] for state in answer.raise_for_status().json()]

    def progressed(self, name: str) -> str:
        """The id of a batch under way whose name begins so, once it has shown progress."""
        until = time.monotonic() + 200
        while time.monotonic() < until:
            running = [run["id"] for run in self.runs("batch") if run["state_type"] == "RUNNING"
                       and run["name"].startswith(name)]  # fmt: skip
            asked = {"flow_run_id": {"any_": running}, "type": {"any_": ["progress"]}}
            for artifact in self.ask("/artifacts/filter", artifacts=asked) if running else []:
                if float(artifact["data"]) > 0:
                    return artifact["flow_run_id"]
            time.sleep(0.5)
        raise AssertionError(f"no {name} progressed")

    def complete(self, id: str, limit: float = 400) -> None:
        """Wait until the run is over, and ask that it went well."""
        run = self.wait(id, limit)
        assert run["state_type"] == "COMPLETED", run["state"]["message"]

    def computing(self) -> psutil.Process:
        """The process of a batch that is under way now."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            found = self.carrying_out({run["id"] for run in self.runs("batch") if run["state_type"] == "RUNNING"})
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError("no batch began")

    def carrying_out(self, runs: set[str]) -> psutil.Process | None:
        """The process of one of these runs, not one that it started in turn."""
        there = map(psutil.Process, processes(str(self.home)))
        found = [process for process in there if process.environ().get("PREFECT__FLOW_RUN_ID") in runs]
        return min(found, key=lambda process: process.create_time(), default=None)

    def program(self, *words: str) -> list[psutil.Process]:
        """The processes that `up` keeps whose command has these words."""
        found = [psutil.Process(pid) for pid in processes(str(self.home))]
        return [process for process in found if set(words) <= set(process.cmdline())]

    def files(self) -> dict[Path, int]:
        """The weights and samples there are, with when they were made."""
        made = (self.home / "work/quick").rglob("*.safetensors")
        return {path: path.stat().st_mtime_ns for path in made if not path.name.startswith(".")}

    def sync(self) -> None:
        """Mirror what is not in MLflow yet."""
        told = self.environment | {"MLFLOW_TRACKING_URI": self.mlflow}
        asked = ["sync", "--results", str(self.results.parent), "--work", str(self.home / "work/quick")]
        subprocess.run([sys.executable, "-m", "flows.tracking", *asked], env=told, cwd=self.home, check=True)

    def mirrored(self) -> list[str]:
        """The keys of all finished runs in MLflow."""
        api = f"{self.mlflow}/api/2.0/mlflow"
        known = httpx.get(f"{api}/experiments/search", params={"max_results": 100}).json()["experiments"]
        asked = {"experiment_ids": [each["experiment_id"] for each in known], "max_results": 5000}
        runs = httpx.post(f"{api}/runs/search", json=asked).json().get("runs", [])
        tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
        return [each["key"] for each in tags if "key" in each]
