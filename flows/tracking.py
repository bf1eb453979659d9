"""The MLflow mirror: what was run, when, and how it went. Never the truth: that is `results/`.

Two experiments, both flat: `atlas` has a run per cell (means over its blocks), `atlas/seeds` one per block (its own
values and losses), so that in each all runs have the same axes, and grouping by seed, bed or cell averages no mean
twice. A technique's parameters are only on runs that use it: the charts leave out runs without a chosen parameter, but
where a filler text meets numbers they leave out whichever are fewer. Quick looks are apart, in `atlas/quick`.

Exactly once: a run says by its tag `key` what it mirrors, and only a finished one counts. One that was begun and not
finished is completed, whoever began it: all write the same values. On one machine a lock makes mirrors take turns; if
two machines were at it at once, each afterwards deletes the same one of two finished runs, the one whose id is greater.
A run whose cell is no longer in the record stays, tagged `superseded`.
"""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cyclopts
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from rich.console import Console
from rich.progress import track

from flows.cell import Workplace, find, metadata
from flows.home import RESULTS, WORK, without_password
from flows.ledger import read_records
from flows.records import on_the_way, read_json, share_of
from flows.study import main

Record = Mapping[str, Any]
Kind = Literal["cell", "block"]

EXPERIMENTS: dict[Kind, str] = {"cell": "", "block": "/seeds"}
ABOUT: dict[Kind, str] = {
    "cell": "A run per cell of a technique's page: means over its blocks. Seeds are told apart in `atlas/seeds`.",
    "block": "A run per block of a cell: one training seed, one sampling seed. Group by `cell`, `seed` or `bed`.",
}
OTHER = "other"
ROLES = ("subject", "control", "equal evaluations", "equal macs", OTHER)
"""What a cell can be on a page, in the order in which MLflow lists the runs."""
QUALITY, RANGE, COST, FIRED, LOSS = "quality", "range", "resource_cost", "signs_it_fired", "training_loss"
"""Sections of charts: a metric stands in that which its name begins with, and they stand in the alphabet's order."""
ALONG = "quality_on_the_way"
"""The section of qualities before the end of training, by images seen."""
SEARCH = "\n\nOne technique: `tags.technique = 'deepcache' and tags.superseded = 'false'`. The truth is `results/`."
HASTE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""How long a measurement waits for MLflow, whose own defaults are minutes."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""How long `sync` does, once it has reached it."""
GIVEN = frozenset(os.environ)
"""What the user set, which nothing here changes."""
SAID = 90
"""Letters of both ends of a long error."""
TURN = 60.0
"""Seconds that a mirror waits for its turn, which is one record long."""
MOST_METRICS, MOST_RUNS = 800, 50_000
"""Of one request: a batch holds a thousand entries with its parameters, a search this many runs."""

log = logging.getLogger(__name__)
for chatty in ("mlflow.store.db.utils", "alembic"):  # they tell every table of a new database
    logging.getLogger(chatty).setLevel(logging.WARNING)


def client(work: Path = WORK) -> MlflowClient:
    """The server of MLFLOW_TRACKING_URI, else SQLite in the work folder."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if not (uri := os.environ.get("MLFLOW_TRACKING_URI")):
        work.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{work.resolve() / 'mlflow.db'}"
    return MlflowClient(uri)


def mirror(record: Record, results: Path, place: Workplace, prefect_run: str = "") -> int:
    """Mirror the cells of a record that are not there yet; returns how many runs that made.

    Nothing that is wrong with MLflow concerns the measurement: it costs seconds, one line says so, and 0 is returned.
    """
    try:
        wait(HASTE)
        return _mirror(Page(record, results, place, prefect_run))
    except Exception as error:
        log.warning("%s is not in MLflow yet; `sync` will mirror it (%s).", record["id"], reason(error))
        return 0


def run_url(record: Record) -> str | None:
    """Where the run of a record's subject is seen in MLflow's UI; None without a server, or if it is not there."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")) or record["default"] not in record["cells"]:
        return None
    try:
        wait(HASTE)
        to = client()
        within = to.get_experiment_by_name(experiment(record, "cell"))
        asked = f"tags.key = '{key(record, record['default'])}'"
        runs = to.search_runs([within.experiment_id], asked) if within else []
    except Exception as error:
        log.warning("MLflow does not say where %s is (%s).", record["id"], reason(error))
        return None
    found = min((run.info for run in runs if is_finished(run)), key=lambda info: info.run_id, default=None)
    at = without_password(uri).rstrip("/")
    return f"{at}/#/experiments/{found.experiment_id}/runs/{found.run_id}" if found else None


def wait(limits: Mapping[str, str]) -> None:
    """Have MLflow's client wait no longer for an answer, unless the environment says how long."""
    os.environ.update({name: value for name, value in limits.items() if name not in GIVEN})


def reason(error: Exception) -> str:
    """What went wrong, in a line: MLflow says at the beginning what it did, and at the end why that failed."""
    text = without_password(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 2 * SAID else f"{text[:SAID]} ... {text[-SAID:]}"


def experiment(record: Record, kind: Kind) -> str:
    """Where the runs of a record are found; quick looks never stand among the results."""
    quick = not all(cell["fidelity"] for cell in record["cells"].values() if share_of(cell) == 1)
    return f"atlas{'/quick' if quick else ''}{EXPERIMENTS[kind]}"


def key(record: Record, name: str, seeds: tuple[int, int] | None = None) -> str:
    """What a run mirrors: a cell as it stands on a page, or a block of it. One page may name the same cell twice."""
    cell = f"{record['bed']}/{record['id']}/{name}/{record['cells'][name]['fingerprints']['cell']}"
    return f"{cell}/{seeds[0]}-{seeds[1]}" if seeds else cell


def is_finished(run: Run) -> bool:
    """Whether a run holds everything."""
    return run.info.status == "FINISHED"


@dataclass(frozen=True)
class Entry:
    """A run as it is to be. `seed` is that of the training whose losses belong to it."""

    kind: Kind
    name: str
    cell: str
    tags: dict[str, str]
    params: dict[str, Any]
    values: dict[str, float]
    seed: int | None = None

    @property
    def key(self) -> str:
        return self.tags["key"]


@dataclass(frozen=True)
class Page:
    """A record and what lies around it."""

    record: Record
    results: Path
    place: Workplace
    prefect_run: str = ""

    @property
    def id(self) -> str:
        return self.record["id"]

    @property
    def bed(self) -> str:
        return self.record["bed"]

    @cached_property
    def machine(self) -> dict[str, Any]:
        """The part of the record that belongs to the machine; empty if it is not there."""
        path = self.results / self.bed / f"{self.id}.cost.json"
        return read_json(path) if path.exists() else {}

    @property
    def when(self) -> int:
        """When the record was written, in milliseconds; 0 if nothing says so."""
        written = self.machine.get("when")
        return int(datetime.fromisoformat(written).timestamp() * 1000) if written else 0

    @property
    def picture(self) -> Path:
        """The samples of the page's subject."""
        return self.results / self.bed / f"{self.id}.png"

    def role(self, name: str) -> str:
        """What a cell is on the page."""
        record = self.record
        roles = {record[f"equal_{cost}"]["cell"]: f"equal {cost}" for cost in ("macs", "evaluations")}
        return (roles | {record["control"]: "control", record["default"]: "subject"}).get(name, OTHER)

    def entries(self) -> list[Entry]:
        """Every run of the page, its subject first: of a cell, then of its blocks."""
        cells = sorted(self.record["cells"].items(), key=lambda item: ROLES.index(self.role(item[0])))
        return [entry for name, cell in cells for entry in self._cell(name, cell)]

    def _cell(self, name: str, cell: dict[str, Any]) -> list[Entry]:
        return [self._whole(name, cell), *(self._block(name, cell, i) for i in range(len(cell["seeds"]["sample"])))]

    def _whole(self, name: str, cell: dict[str, Any]) -> Entry:
        values = {f"{QUALITY}/{key}": metric["mean"] for key, metric in cell["metrics"].items()}
        for end in ("low", "high"):
            values |= {f"{RANGE}/{key}.{end}": metric[end] for key, metric in cell["metrics"].items()}
        values |= {f"{FIRED}/{key}": count for key, count in cell["counters"].items()}
        train, sample = (" ".join(map(str, cell["seeds"][of])) for of in ("train", "sample"))
        tags = self._tags("cell", name) | {"key": key(self.record, name), "seed": train, "sampling_seed": sample}
        params = self._params(name, cell) | {"blocks": len(cell["seeds"]["sample"])}
        return Entry("cell", self._name(name), name, tags, params, values | spent(cell))

    def _block(self, name: str, cell: dict[str, Any], index: int) -> Entry:
        seeds = cell["seeds"]
        seed, sampling = seeds["train"][index if len(seeds["train"]) > 1 else 0], seeds["sample"][index]
        values = {f"{QUALITY}/{key}": metric["values"][index] for key, metric in cell["metrics"].items()}
        both = {"seed": seed, "sampling_seed": sampling}
        tags = self._tags("block", name) | {"key": key(self.record, name, (seed, sampling))}
        tags |= {what: str(number) for what, number in both.items()}
        one = seed == sampling or len(seeds["train"]) == 1
        says = f", seed {sampling}" if one else f", seeds {seed} and {sampling}"
        title, params = self._name(name, says), self._params(name, cell) | both
        return Entry("block", title, name, tags, params, values | spent(cell), seed)

    def _name(self, name: str, says: str = "") -> str:
        """What a reader sees first, and in a narrow column only: so what tells runs apart comes first."""
        return f"{name} on {self.bed}{says}" + ("" if self.role(name) == "subject" else f", beside {self.id}")

    def _tags(self, kind: Kind, name: str) -> dict[str, str]:
        return {
            "kind": kind, "bed": self.bed, "technique": self.id, "cell": name, "role": self.role(name),
            "fingerprint": self.record["cells"][name]["fingerprints"]["cell"], "spec_hash": self.record["spec_hash"],
            "git_sha": self.machine.get("commit") or "unknown", "prefect_run": self.prefect_run,
            "superseded": "false", "mlflow.source.name": "atlas",
            "mlflow.note.content": f"From `results/{self.bed}/{self.id}.json`.",
        }  # fmt: skip

    def _params(self, name: str, cell: dict[str, Any]) -> dict[str, Any]:
        given = {f"{id}.{key}": value for id, params in cell["methods"].items() for key, value in params.items()}
        return {
            "bed": self.bed, "technique": self.id, "cell": name, "role": self.role(name),
            "methods": "+".join(cell["methods"]) or "baseline", **{key: cell[key] for key in ("steps", "budget", "n")},
            "trained": share_of(cell),
        } | given  # fmt: skip

    def metrics(self, entry: Entry) -> list[Metric]:
        """The numbers of a run, with the losses of its training."""
        values = [Metric(key, float(value), self.when, 0) for key, value in entry.values.items() if value is not None]
        return values + (self._along(entry.cell) if entry.seed is None else self._curve(entry.cell, entry.seed))

    def _along(self, name: str) -> list[Metric]:
        """Qualities on the way through base training, by images seen, where the record has them."""
        cells = {share: self.record["cells"][cell] for share, cell in on_the_way(self.record, name).items()}
        whole = len(cells) > 1 and share_of(self.record["cells"][name]) == 1
        return [
            Metric(f"{ALONG}/{key}", metric["mean"], self.when, cell["cost"]["training_images"])
            for cell in (cells.values() if whole else ())
            for key, metric in cell["metrics"].items()
        ]

    def _curve(self, name: str, seed: int) -> list[Metric]:
        """The losses of a cell's own training, and of its compression, where the files they left are here."""
        cell, paths = self.record["cells"][name], []
        for step, what in (("train", "training"), ("ship", "shipped")):
            own = self.place.root / self.bed / step / name / f"{cell['seeds']['train'][0]}.safetensors"
            found = find(own, cell["fingerprints"][what])  # the first seed's is the fingerprint that is recorded
            if found and (found == own or step == "ship"):
                paths.append(found.with_name(f"{seed}.safetensors"))
        return [
            Metric(f"{LOSS}/{what}".replace(" ", "_"), float(loss), self.when, int(step))
            for path in paths
            for what, step, loss in metadata(path).get("curve", [])
        ]


def spent(cell: dict[str, Any]) -> dict[str, float]:
    """The cost vector of a cell as metrics."""
    return {f"{COST}/{key}": value for key, value in cell["cost"].items() if isinstance(value, (int, float))}


def _mirror(page: Page) -> int:
    """Complete the mirror of a page, in turns with others on this machine; returns how many runs that made."""
    if not page.record["cells"]:
        return 0
    page.place.root.mkdir(parents=True, exist_ok=True)
    with FileLock(page.place.root / "mlflow.lock", timeout=TURN):
        to = client(page.place.root)  # in the lock: two that make a new database at once break each other's
        ids: dict[Kind, str] = {kind: _experiment(to, kind, page) for kind in EXPERIMENTS}
        known = _runs(to, ids, page)
        finished = {run.data.tags["key"] for run in known if is_finished(run)}
        left = {order: entry for order, entry in enumerate(page.entries()) if entry.key not in finished}
        begun = _begun(to, known, {entry.key for entry in left.values()})
        for order, entry in left.items():
            at = page.when - order if page.when else None  # the newest run is listed first
            _write(to, page, entry, begun.get(entry.key) or _create(to, ids[entry.kind], entry, at), at)
        _tidy(to, _runs(to, ids, page) if left else known, page)
        return len(left)


def _experiment(to: MlflowClient, kind: Kind, page: Page) -> str:
    """The id of an experiment, which is made if need be, by whoever comes first."""
    name = experiment(page.record, kind)
    known = to.get_experiment_by_name(name)
    if known is None:
        tags = {"mlflow.note.content": ABOUT[kind] + SEARCH, "mlflow.experimentKind": "custom_model_development"}
        local = None if os.environ.get("MLFLOW_TRACKING_URI") else (page.place.root / "mlartifacts").resolve().as_uri()
        try:
            return to.create_experiment(name, artifact_location=local, tags=tags)
        except MlflowException as error:
            known = to.get_experiment_by_name(name)
            if known is None:
                raise error
    if known.lifecycle_stage != "active":
        to.restore_experiment(known.experiment_id)
    return known.experiment_id


def _runs(to: MlflowClient, ids: Mapping[Kind, str], page: Page) -> list[Run]:
    """What MLflow has of a page, whatever its record said then."""
    asked = f"tags.technique = '{page.id}' and tags.bed = '{page.bed}'"
    return [run for run in to.search_runs([*ids.values()], asked, max_results=MOST_RUNS) if "key" in run.data.tags]


def _begun(to: MlflowClient, known: list[Run], left: set[str]) -> dict[str, str]:
    """The runs to complete, by key. What was begun and is no longer wanted goes."""
    begun: dict[str, str] = {}
    for run in known:
        if not is_finished(run):
            if run.data.tags["key"] in left:
                begun.setdefault(run.data.tags["key"], run.info.run_id)
            else:
                to.delete_run(run.info.run_id)
    return begun


def _create(to: MlflowClient, experiment: str, entry: Entry, at: int | None) -> str:
    return to.create_run(experiment, start_time=at, tags=entry.tags, run_name=entry.name).info.run_id


def _write(to: MlflowClient, page: Page, entry: Entry, run: str, at: int | None) -> None:
    """Write everything a run holds and finish it. Doing this twice changes nothing."""
    metrics, params = page.metrics(entry), [Param(key, str(value)) for key, value in entry.params.items()]
    _log(to, run, metrics[:MOST_METRICS], params)
    for first in range(MOST_METRICS, len(metrics), MOST_METRICS):
        _log(to, run, metrics[first : first + MOST_METRICS], [])
    if entry.kind == "cell" and entry.cell == page.record["default"] and page.picture.exists():
        to.log_artifact(run, str(page.picture))
    to.set_terminated(run, end_time=at)


def _log(to: MlflowClient, run: str, metrics: list[Metric], params: list[Param]) -> None:
    try:
        to.log_batch(run, metrics, params)
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        to.log_batch(run, metrics, params)  # another machine wrote the same at the same moment: now it is there


def _tidy(to: MlflowClient, known: list[Run], page: Page) -> None:
    """Of finished runs with one key delete all but the one that everybody keeps; tag what is superseded."""
    current = {entry.key for entry in page.entries()}
    kept: set[str] = set()
    for run in sorted(filter(is_finished, known), key=lambda run: run.info.run_id):
        tags = run.data.tags
        superseded = str(tags["key"] not in current).lower()
        if tags["key"] in kept:
            to.delete_run(run.info.run_id)
        elif tags["superseded"] != superseded:
            to.set_tag(run.info.run_id, "superseded", superseded)
        kept.add(tags["key"])


HELP = """The MLflow mirror of the records: techniques over seeds and beds, in its UI.

What Prefect measures is mirrored at once, if MLflow can be reached; `sync` does
what is left. To look, open the server of MLFLOW_TRACKING_URI, or start one with
  mlflow ui --backend-store-uri sqlite:///work/mlflow.db
The experiment `atlas` has a run per cell, `atlas/seeds` one per seed; search for
  tags.technique = 'deepcache' and tags.superseded = 'false'"""
app = cyclopts.App(name="python -m flows.tracking", help=HELP, help_format="plaintext")


@app.command
def sync(*, results: Path = RESULTS, work: Path = WORK) -> None:
    """Mirror every record that is not in MLflow yet.

    MLFLOW_TRACKING_URI says where; without it that is mlflow.db in the work folder.
    Doing it twice, or twice at once, changes nothing. Exit code 2 if MLflow cannot
    be reached: what is there by then stays, do it again later.

    Parameters
    ----------
    results
        where the records lie
    work
        where weights, their losses and mlflow.db lie
    """
    records = [record for bed in read_records(results).values() for record in bed.values()]
    made = done = 0
    wait(HASTE)
    try:
        for record in track(records, "records to MLflow", console=Console(stderr=True)):
            made += _mirror(Page(record, results, Workplace(work)))
            done += 1
            wait(PATIENCE)
    except (MlflowException, OSError) as error:
        why = f"MLflow cannot be reached, or refused ({reason(error)})"
        print(f"{why}; it has {done} of {len(records)} records: sync the rest later.", file=sys.stderr)
        sys.exit(2)
    print(f"{made} runs mirrored to {without_password(client(work).tracking_uri)}; all {done} records are there.")


if __name__ == "__main__":
    main(app)
