"""Looks at every part that running the Atlas needs, and says in words what was found and what to do about it.

A check is a function that yields findings. One that breaks is itself a finding, and does not stop the others.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import httpx
import yaml
from rich.console import Console
from rich.markup import escape

from flows.home import HOME
from flows.operate import (
    MLFLOW,
    POOLS,
    PREFECT_YAML,
    SITE,
    answers,
    api,
    automations,
    client,
    cuda_devices,
    keeper,
    programs,
    same,
)

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

Level = Literal["ok", "warning", "problem"]
COLOURS: dict[Level, str] = {"ok": "green", "warning": "yellow", "problem": "red"}
LOCKED = ("prefect", "mlflow", "dvc", "torch")
NEWEST_FASTAPI = (0, 140)
LITTLE_SPACE, NO_SPACE = 5e9, 0.5e9
"""Bytes."""
UP = "run `make up`"
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Finding:
    """What a look at one part found, and what to do if it is not well."""

    level: Level
    part: str
    found: str
    remedy: str = ""


def examine(console: Console) -> bool:
    """Print every finding; whether there is no problem."""
    levels: list[Level] = []
    for finding in findings():
        levels.append(finding.level)
        remedy = f": {finding.remedy}" if finding.remedy else ""
        colour = COLOURS[finding.level]
        console.print(
            f"[{colour}]{finding.level:8}[/{colour}] {finding.part:12} {escape(finding.found + remedy)}",
            highlight=False,
            soft_wrap=True,
        )
    return "problem" not in levels


def findings() -> Iterator[Finding]:
    """Everything there is to say, one part after another."""
    for check in HERE:
        yield from attempted(check)
    if not answers(f"{api()}/health"):
        yield Finding("problem", "server", f"no Prefect server answers at {api()}", f"{UP}, or set PREFECT_API_URL")
        yield Finding("warning", "server", "without it pools, forms and automations are not known")
        return
    with client() as server:
        for check in AT_SERVER:
            yield from attempted(check, server)


def attempted(check: Callable[..., Iterable[Finding]], *given: Any) -> Iterator[Finding]:
    """The findings of a check, or that it could not be made."""
    try:
        yield from check(*given)
    except Exception as error:
        yield Finding("problem", check.__name__, f"cannot be checked ({type(error).__name__}: {error})")


def python() -> Iterator[Finding]:
    """The lock file is made for one Python."""
    here = ".".join(str(number) for number in sys.version_info[:3])
    if sys.version_info[:2] == (3, 11):
        yield Finding("ok", "python", here)
    else:
        yield Finding("warning", "python", here, "requirements.lock is made for Python 3.11")


def versions() -> Iterator[Finding]:
    """Versions that were tested together."""
    locked = dict(line.split("==") for line in lock_lines() if "==" in line)
    yield fastapi_finding(version("fastapi"), locked["fastapi"])
    for name in LOCKED:
        yield version_finding(name, version(name), locked[name])


def lock_lines() -> list[str]:
    return (HOME / "requirements.lock").read_text().splitlines()


def version_finding(name: str, here: str, locked: str) -> Finding:
    """A package beside the lock file. What torch calls +cpu or +cu130 is a build, not a version."""
    if here.split("+")[0] == locked:
        return Finding("ok", name, here)
    return Finding("warning", name, f"{here}, while requirements.lock has {locked}", f"pip install {name}=={locked}")


def fastapi_finding(here: str, locked: str) -> Finding:
    """The Prefect server needs an old one, and pip does not know."""
    if tuple(int(number) for number in here.split(".")[:2]) >= NEWEST_FASTAPI:
        why = "from 0.140 on, Prefect's server refuses what its client sends, or does not start"
        return Finding("problem", "fastapi", f"{here}; {why}", f"pip install fastapi=={locked}")
    return version_finding("fastapi", here, locked)


def processes() -> Iterator[Finding]:
    """What supervisord keeps here; nothing is a finding of other checks."""
    found = keeper()
    for name, info in programs(found).items() if found else ():
        if info["statename"] in ("RUNNING", "STARTING"):
            continue
        yield Finding("problem", name, f"its process is {info['statename'].lower()}", f"see {info['stdout_logfile']}")


def mlflow() -> Iterator[Finding]:
    """The mirror of what ran."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", MLFLOW.url)
    if not uri.startswith("http"):
        yield Finding("ok", "mlflow", f"runs are mirrored into {uri}, without a server")
    elif answers(uri + MLFLOW.health):
        yield Finding("ok", "mlflow", f"its server answers at {uri}")
    else:
        yield Finding("problem", "mlflow", f"no MLflow server answers at {uri}", UP)


def site() -> Iterator[Finding]:
    """The pages."""
    if answers(SITE.url + SITE.health):
        yield Finding("ok", "site", SITE.url)
    else:
        yield Finding("problem", "site", f"it is not served at {SITE.url}", f"{UP}, or `make site` for the files alone")


def gpu() -> Iterator[Finding]:
    """What torch can compute on."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(len(cuda_devices()))]
    if names:
        yield Finding("ok", "gpu", ", ".join(names))
    elif shutil.which("nvidia-smi"):
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        remedy = "install a torch for this driver, as the README says"
        yield Finding("warning", "gpu", f"there is a driver, but torch {torch.__version__}, {build}, sees none", remedy)
    else:
        yield Finding("ok", "gpu", "none: everything runs on the CPU")


def disk() -> Iterator[Finding]:
    """Room for weights and samples."""
    yield space_finding(shutil.disk_usage(HOME).free)


def space_finding(free: float) -> Finding:
    """`free` in bytes."""
    level: Level = "problem" if free < NO_SPACE else "warning" if free < LITTLE_SPACE else "ok"
    remedy = "" if level == "ok" else f"weights and samples fill {HOME / 'work'}; `make clean` forgets them"
    return Finding(level, "disk", f"{free / 1e9:.1f} GB are free in {HOME}", remedy)


def data() -> Iterator[Finding]:
    """The data sets that are not inside a package."""
    from methods.data import cifar10, mnist
    from methods.data.files import folders, locate

    for name, module in {"mnist": mnist, "cifar10": cifar10}.items():
        place = locate(name, module.complete)
        if place:
            yield Finding("ok", name, f"in {place}")
        else:
            remedy = f"put the files into {folders(name)[0]}, or let the first run download them"
            yield Finding("warning", name, "is not here", remedy)


def server(server: "SyncPrefectClient") -> Iterator[Finding]:
    """The server, and the client that asks it."""
    yield server_finding(httpx.get(f"{api()}/admin/version", timeout=10, trust_env=False).json(), version("prefect"))


def server_finding(there: str, here: str) -> Finding:
    """Prefect promises nothing between versions."""
    if there == here:
        return Finding("ok", "server", f"Prefect {there} answers at {api()}")
    return Finding(
        "problem", "server", f"it is Prefect {there}, and here is {here}", "install requirements.lock on both machines"
    )


def database(server: "SyncPrefectClient") -> Iterator[Finding]:
    """SQLite has one writer at a time."""
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    if url is None or url.get_secret_value().startswith("sqlite"):
        found = "SQLite: fine for one machine; for more, give PostgreSQL as PREFECT_SERVER_DATABASE_CONNECTION_URL"
        yield Finding("ok", "database", found)
    else:
        yield Finding("ok", "database", url.get_secret_value().split(":")[0])


def pools(server: "SyncPrefectClient") -> Iterator[Finding]:
    """Pools, and who works on them."""
    known = {pool.name: pool for pool in server.read_work_pools()}
    for pool in POOLS:
        if pool not in known:
            yield Finding("problem", f"pool {pool}", "is not on the server", UP)
            continue
        if known[pool].is_paused:
            yield Finding("warning", f"pool {pool}", "is paused", "resume it in the Prefect UI")
        workers = server.read_workers_for_work_pool(pool)
        yield pool_finding(pool, [(w.name, w.status == "ONLINE", w.last_heartbeat_time) for w in workers])


def pool_finding(pool: str, workers: list[tuple[str, bool, datetime | None]]) -> Finding:
    """`workers` are names, whether they are there, and when they were last heard of."""
    online = [name for name, is_online, _ in workers if is_online]
    if online:
        return Finding("ok", f"pool {pool}", f"workers {', '.join(sorted(online))}")
    if pool == "gpu" and not cuda_devices():
        return Finding("ok", "pool gpu", "no worker, and no CUDA device here")
    if not workers:
        return Finding("problem", f"pool {pool}", "has no worker", UP)
    seen, name = max((seen or NEVER, name) for name, _, seen in workers)
    minutes = (datetime.now(UTC) - seen).total_seconds() / 60
    return Finding("problem", f"pool {pool}", f"no worker; {name} was there {minutes:.0f} minutes ago", UP)


def forms(server: "SyncPrefectClient") -> Iterator[Finding]:
    """Deployments, limits, and the forms that the server shows for them."""
    from prefect.exceptions import ObjectNotFound
    from prefect.flows import load_flow_from_entrypoint

    stated = yaml.safe_load(PREFECT_YAML.read_text())["deployments"]
    wrong: list[Finding] = []
    for one in stated:
        flow = load_flow_from_entrypoint(one["entrypoint"])
        name = f"{flow.name}/{one['name']}"
        try:
            wrong += deployment_findings(name, one, flow, server.read_deployment_by_name(name))
        except ObjectNotFound:
            wrong.append(Finding("problem", "forms", f"{name} is not on the server", UP))
    yield from wrong or [
        Finding("ok", "forms", f"{len(stated)} deployments with their limits, as the flows and the catalog are now")
    ]


def deployment_findings(
    name: str, stated: dict[str, Any], flow: "Flow[..., Any]", there: "DeploymentResponse"
) -> Iterator[Finding]:
    """A deployment of prefect.yaml beside what the server has."""
    from prefect.utilities.callables import parameter_schema

    if filled(there.parameter_openapi_schema) != filled(parameter_schema(flow).model_dump_for_openapi()):
        yield Finding("problem", "forms", f"{name} shows a form from before the last change of flow or catalog", UP)
    wanted = stated.get("concurrency_limit", {}).get("limit")
    limit = there.global_concurrency_limit.limit if there.global_concurrency_limit else None
    if limit != wanted:
        yield Finding("problem", "limits", f"{name} may run {limit or 'any number of'} at once, not {wanted}", UP)


def filled(schema: dict[str, Any] | None) -> dict[str, Any]:
    """A schema without its empty parts, which the server leaves out."""
    return {key: value for key, value in (schema or {}).items() if value}


def reactions(server: "SyncPrefectClient") -> Iterator[Finding]:
    """What the server does by itself about runs that crash."""
    for wanted in automations():
        known = server.read_automations_by_name(wanted.name)
        if not known or not same(known[0], wanted):
            state = "is switched off" if known and not known[0].enabled else "is not on the server as it should be"
            yield Finding("problem", "automations", f"{wanted.name!r} {state}", UP)
        else:
            yield Finding("ok", "automations", wanted.name)


HERE = (python, versions, processes, mlflow, site, gpu, disk, data)
AT_SERVER = (server, database, pools, forms, reactions)
