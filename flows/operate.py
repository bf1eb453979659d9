"""Start, watch over and stop what runs beside the measurements: servers, workers and the site.

    python -m flows.operate up        start what is not running yet, and put the flows' forms on the server
    python -m flows.operate doctor    check every part, and say what to do

supervisord keeps the processes listed in flows/supervisord.conf and starts again what dies. Its files and logs lie in
work/operate, Prefect's state in work/prefect.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import cyclopts
import httpx
import psutil
import yaml
from rich.console import Console
from rich.table import Table
from supervisor.xmlrpc import SupervisorTransport

from flows.home import HOME, SETTINGS, TRIES, WORK, without_password

if TYPE_CHECKING:  # Prefect and torch take seconds to import, and not every command needs them
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

Pool = Literal["control", "cpu", "gpu"]
POOLS: tuple[Pool, ...] = get_args(Pool)
"""Flow runs that mostly wait for others; that compute on one core each; that have a CUDA device to themselves."""
OPERATE = WORK / "operate"
CONFIGURATION = Path(__file__).with_name("supervisord.conf")
PREFECT_YAML = HOME / "prefect.yaml"
LONGEST_SOCKET = 90
"""Bytes of a socket's path: systems allow about 104, and supervisord adds its process id for a moment."""
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
START_S, STOP_S = 180.0, 120.0
BEAT_S = 30
"""Seconds between two signs of life of a flow run, the shortest that Prefect takes."""
MEMORY = "P90D"
"""How long the server remembers whose sign of life it waits for, also while it is down: 90 days, as ISO 8601."""

console = Console()


@dataclass(frozen=True)
class Server:
    """A program that answers at an address; `port` is the setting with its port."""

    program: str
    title: str
    url: str
    health: str
    port: str


PREFECT = Server("prefect", "Prefect", SETTINGS.prefect_api.removesuffix("/api"), "/api/health", "prefect_port")
MLFLOW = Server("mlflow", "MLflow", SETTINGS.mlflow_uri, "/health", "mlflow_port")
SITE = Server("site", "The site", SETTINGS.site_url, "/index.html", "site_port")
SERVERS = (PREFECT, MLFLOW, SITE)


def api() -> str:
    """The Prefect server that is asked: another machine's if PREFECT_API_URL says so."""
    return os.environ.get("PREFECT_API_URL", SETTINGS.prefect_api)


def client() -> "SyncPrefectClient":
    """A client of that server."""
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(api())


def answers(url: str) -> bool:
    """Whether a server is there and well."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def cuda_devices() -> list[str]:
    """The CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return allowed.split(",")[:count] if allowed else [str(index) for index in range(count)]


def socket_path() -> Path:
    """Where supervisord listens: in the project, or, if that path is too long for a socket, in the temporary folder."""
    path = OPERATE / "supervisor.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        return path
    return Path(tempfile.gettempdir()) / f"atlas-{sha256(os.fsencode(HOME)).hexdigest()[:16]}.sock"


def environment(devices: int) -> dict[str, str]:
    """What supervisord, and all that it starts, are told. ATLAS_SOCKET marks them as this checkout's."""
    return os.environ | {
        "ATLAS_HOME": str(HOME), "ATLAS_HOST": SETTINGS.host, "ATLAS_JOBS": str(SETTINGS.jobs),
        "ATLAS_PREFECT_PORT": str(SETTINGS.prefect_port), "ATLAS_MLFLOW_PORT": str(SETTINGS.mlflow_port),
        "ATLAS_SITE_PORT": str(SETTINGS.site_port), "ATLAS_PYTHON": sys.executable, "ATLAS_OPERATE": str(OPERATE),
        "ATLAS_SOCKET": str(socket_path()), "ATLAS_DEVICES": str(devices), "ATLAS_IDENTITY": identity(devices),
        "PREFECT_HOME": str(WORK / "prefect"), "PREFECT_API_URL": SETTINGS.prefect_api,
        "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": MEMORY,
        "MLFLOW_TRACKING_URI": SETTINGS.mlflow_uri, "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def identity(devices: int) -> str:
    """The settings that take effect only at a start."""
    ports = ", ".join(str(getattr(SETTINGS, server.port)) for server in SERVERS)
    files, database = (
        without_password(url) if url else "of its own" for url in (SETTINGS.store, os.environ.get(DATABASE))
    )
    return (
        f"host {SETTINGS.host}, ports {ports}, {SETTINGS.jobs} jobs, {devices} CUDA devices, store {files},"
        f" database {database}"
    )


def keeper() -> Any | None:
    """supervisord's interface, None if it does not run."""
    transport = SupervisorTransport(serverurl=f"unix://{socket_path()}")
    found = xmlrpc.client.ServerProxy("http://localhost", transport).supervisor
    try:
        found.getState()
    except (OSError, xmlrpc.client.Fault):
        return None
    return found


def programs(keeper: Any) -> dict[str, dict[str, Any]]:
    """What supervisord knows of its programs, by name."""
    order = [*(server.program for server in SERVERS), *POOLS]
    infos = {info["name"]: info for info in keeper.getAllProcessInfo()}
    return {name: infos[name] for name in sorted(infos, key=lambda name: (order.index(name.split("-")[0]), name))}


def start_keeper(devices: int) -> Any:
    """Start supervisord, which goes into the background."""
    OPERATE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(CONFIGURATION)]
    done = subprocess.run(command, env=environment(devices), cwd=HOME, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"supervisord does not start: {(done.stdout + done.stderr).strip()}")
    wait_for("supervisord", lambda: keeper() is not None, OPERATE / "supervisord.log")
    return keeper()


def wait_for(what: str, done: Callable[[], bool], log: Path, failed: Callable[[], bool] = lambda: False) -> None:
    """Ask until it is done; exits with a sentence that names the log when it failed or takes too long."""
    until = time.monotonic() + START_S
    with console.status(f"waiting for {what}"):
        while not done():
            if failed() or time.monotonic() > until:
                sys.exit(f"{what} does not start; its log is {log}.")
            time.sleep(0.5)


def start(keeper: Any, names: list[str]) -> None:
    """Start those of these programs that do not run."""
    for name in names:
        info = programs(keeper)[name]
        if info["statename"] not in ("STARTING", "RUNNING"):
            keeper.startProcess(f"{info['group']}:{name}", False)


def wait_until_up(keeper: Any, name: str, title: str, done: Callable[[], bool]) -> None:
    """Wait for a program of supervisord's."""

    def failed() -> bool:
        return programs(keeper)[name]["statename"] == "FATAL"

    wait_for(title, done, Path(programs(keeper)[name]["stdout_logfile"]), failed)


def require_ports(running: list[str]) -> None:
    """Exit with a sentence if a server that is to be started cannot listen where it should."""
    for server in SERVERS:
        if server.program in running:
            continue
        port, setting = getattr(SETTINGS, server.port), f"ATLAS_{server.port.upper()}"
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((SETTINGS.host, port))
            except OSError as error:
                sys.exit(
                    f"{server.title} cannot listen on {SETTINGS.host}, port {port} ({error.strerror}): choose another"
                    f" port with {setting}=..., or another address with ATLAS_HOST=..."
                )


def ours() -> list[psutil.Process]:
    """Every process of this checkout's supervisord, itself and flow runs included, whoever is their parent."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ATLAS_SOCKET") == str(socket_path()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


app = cyclopts.App(name="python -m flows.operate", help=__doc__, help_format="plaintext")


@app.command
def up() -> None:
    """Start what is not running yet: servers, workers, the site. Doing it again is harmless, and updates the forms."""
    os.environ["PREFECT_API_URL"] = SETTINGS.prefect_api
    devices = len(cuda_devices())
    found = keeper()
    if found is None and ours():
        sys.exit("Processes of an earlier start are left without their supervisord; `make down` ends them.")
    if found is not None and found.getIdentification() != identity(devices):
        sys.exit(f"It runs with other settings ({found.getIdentification()}); to change them, `make down` first.")
    require_ports([name for name, info in programs(found).items() if info["pid"]] if found else [])
    found = found or start_keeper(devices)
    start(found, [server.program for server in SERVERS])
    wait_until_up(found, "prefect", "The Prefect server", lambda: answers(PREFECT.url + PREFECT.health))
    deploy()
    take_up_crashed()
    start(found, list(programs(found)))
    for server in (MLFLOW, SITE):
        wait_until_up(found, server.program, server.title, lambda server=server: answers(server.url + server.health))
    with client() as asked:
        for name in list(programs(found))[len(SERVERS) :]:
            wait_until_up(found, name, f"Worker {name}", lambda name=name: works(name, found, asked))
    status()


def take_up_crashed() -> None:
    """Try runs again that the server found crashed when it started, before its automations listened."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import AwaitingRetry

    crashed = {"state": {"type": {"any_": ["CRASHED"]}}, "deployment_id": {"is_null_": False}}
    with client() as server:
        for run in server.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(crashed)):
            if 0 < run.run_count <= TRIES:
                server.set_flow_run_state(run.id, AwaitingRetry(message="It crashed."))


def works(name: str, keeper: Any, server: "SyncPrefectClient") -> bool:
    """Whether a worker of this machine stays up, and the server heard of it lately."""
    pool = name.split("-")[0]
    online = [worker.name for worker in server.read_workers_for_work_pool(pool) if worker.status == "ONLINE"]
    return worker_name(name) in online and programs(keeper)[name]["statename"] == "RUNNING"


@app.command
def down() -> None:
    """Stop everything, also flow runs that are under way. Doing it again is harmless."""
    found = keeper()
    if found is not None:
        pid = found.getPID()
        found.shutdown()
        with console.status("stopping workers, then servers"):
            psutil.wait_procs([process for process in ours() if process.pid == pid], timeout=STOP_S)
    left = ours()
    for process in left:
        process.terminate()
    for process in psutil.wait_procs(left, timeout=10)[1]:
        process.kill()
    print("Everything is stopped." if found or left else "Nothing was running.")


@app.command
def status() -> None:
    """Show what runs, where it answers, and where its log lies."""
    found = keeper()
    if found is None:
        print("Nothing is running; `make up` starts everything.")
        return
    rows = Table("what", "state", "address")
    rows.add_column("log", overflow="fold")
    urls = {server.program: server.url for server in SERVERS}
    for name, info in programs(found).items():
        log = os.path.relpath(info["stdout_logfile"])
        what = name if name in urls else f"worker {name}"
        rows.add_row(what, info["statename"].lower(), urls.get(name, ""), log)
    console.print(rows)


@app.command
def deploy() -> None:
    """Put the flows with their forms, the work pools and the automations on the server, new or as they are now."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    require_server()
    template = ProcessWorker.get_default_base_job_template()
    with client() as server, console.status("putting the flows on the server"):
        for pool in POOLS:
            try:
                server.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
            except ObjectAlreadyExists:
                continue
        for automation in automations():
            keep_automation(automation, server)
        deploy_flows(OPERATE / "deploy.log")


def deploy_flows(log: Path) -> None:
    """Put the deployments of prefect.yaml on the server; exits with a sentence if it cannot."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    told = os.environ | {"PREFECT_API_URL": api()}
    with log.open("w") as file:
        done = subprocess.run(command, cwd=HOME, env=told, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        sys.exit(f"The flows cannot be put on the server; why is in {log}.")


def require_server() -> None:
    """Exit with a sentence if the Prefect server does not answer."""
    if not answers(f"{api()}/health"):
        sys.exit(f"No Prefect server answers at {api()}; start it with `make up`, or set PREFECT_API_URL.")


def automations() -> "list[AutomationCore]":
    """What the server does by itself, as prefect.yaml has it."""
    from prefect.events.schemas.automations import AutomationCore

    return AutomationCore.model_validate_list(yaml.safe_load(PREFECT_YAML.read_text())["automations"])


def keep_automation(wanted: "AutomationCore", server: "SyncPrefectClient") -> None:
    """Create an automation, or change the one of this name; one that is as it should be keeps its running clocks."""
    known = server.read_automations_by_name(wanted.name)
    if not known:
        server.create_automation(wanted)
    elif not same(known[0], wanted):
        server.update_automation(known[0].id, wanted)


def same(known: "AutomationCore", wanted: "AutomationCore") -> bool:
    """Whether an automation says what another does, whatever the server has numbered."""

    def said(automation: "AutomationCore") -> dict[str, Any]:
        return automation.model_dump(include=set(type(wanted).model_fields), exclude={"trigger": {"id"}})

    return said(known) == said(wanted)


@app.command
def worker(*, pool: Pool, device: int = 0) -> None:
    """Carry out what the Prefect server of PREFECT_API_URL asks of a pool, until Ctrl-C: so another machine joins in.

    Parameters
    ----------
    pool: cpu runs ATLAS_JOBS flows at once, one core each; gpu one, on a CUDA device; control all that only wait
    device: which of the CUDA devices, for the gpu pool
    """
    require_server()
    limits = {"control": [], "cpu": ["--limit", str(SETTINGS.jobs)], "gpu": ["--limit", "1"]}
    name = worker_name(f"gpu-{device}" if pool == "gpu" else pool, kept="SUPERVISOR_ENABLED" in os.environ)
    told = {"PREFECT_WORKER_QUERY_SECONDS": "2"} | os.environ | {
        "ATLAS_HOME": str(HOME), "PREFECT_API_URL": api(), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": cuda_device(device) if pool == "gpu" else "",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(BEAT_S),
    }  # fmt: skip
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool, "--name", name]
    os.execve(sys.executable, [*command, *limits[pool]], told)


def worker_name(program: str, *, kept: bool = True) -> str:
    """What a worker is called: where it runs and, unless `up` keeps it, which process: one may start several."""
    return f"{socket.gethostname()}-{program}" + ("" if kept else f"-{os.getpid()}")


def cuda_device(index: int) -> str:
    """A CUDA device of this machine. Exits with a sentence if it is not there."""
    found = cuda_devices()
    if index >= len(found):
        sys.exit(f"There is no CUDA device {index} here: torch sees {len(found)}.")
    return found[index]


@app.command
def doctor() -> None:
    """Check every part, say what was found and what to do; exit code 1 if there is a problem."""
    from flows.doctor import examine

    sys.exit(0 if examine(console) else 1)


if __name__ == "__main__":
    app()
