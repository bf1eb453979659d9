"""What DVC is asked to do, one process at a time: to make records again, and to take note of those a survey made.

A survey makes the files of many stages without DVC, which would call them changed. `settle` names them to DVC, where
they are whole and current, so that `dvc status` is clean.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

import catalog
from catalog import Catalog
from flows.cell import Workplace, metadata
from flows.home import HOME, RESULTS, WORK
from flows.ledger import read_floors, stale
from flows.records import FileProblem, read_json
from flows.study import trainings
from methods.core.identity import training_fingerprint

DVC = (sys.executable, "-m", "dvc")
STAGE = re.compile(r"Running stage '(.+)':")


def tell(text: str) -> None:
    """Say something on the terminal, apart from results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def alone(what: str, say: Callable[[str], None] = tell) -> Iterator[None]:
    """One at a time in this checkout; whoever comes second says that it waits, and waits."""
    path = WORK / "locks" / f"{what}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"DVC is busy here with another {what}; this one waits until it is done.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def follow(
    arguments: Sequence[str], checkout: Path, env: Mapping[str, str], log: Path, begun: Callable[[str], None]
) -> int:
    """Run DVC, keep what it says, and say which stage begins; returns its exit status. Leaves no process behind."""
    with (
        log.open("a") as kept,
        subprocess.Popen(
            [*DVC, *arguments], cwd=checkout, env=env, start_new_session=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as process,
    ):  # fmt: skip
        try:
            for line in process.stdout or ():
                kept.write(line)
                kept.flush()
                if found := STAGE.match(line):
                    begun(found[1])
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
    return process.returncode


def settle(ids: Sequence[str], bed: str, say: Callable[[str], None] = tell) -> list[str]:
    """Tell DVC that records of a bed, and the weights they start from, have just been made; returns the stages.

    Does nothing where DVC is not set up. If DVC refuses, that is said, and the results stand all the same.
    """
    if not (HOME / ".dvc").is_dir() or not (HOME / ".git").exists():
        return []
    made = stages_made(ids, bed)
    if made:
        with alone("commit", say):
            done = subprocess.run(
                [*DVC, "commit", "--force", *made], cwd=HOME, capture_output=True, text=True, check=False
            )
        if done.returncode:
            say(f"DVC did not take note of {' '.join(made)} ({reason(done.stderr)}); later, `dvc commit` will.")
            return []
    return made


def expansion(bed: str) -> dict[str, Any]:
    """The trainings and records of a bed that stages are expanded over."""
    return yaml.safe_load((HOME / "params.yaml").read_text()).get(bed, {"trainings": {}, "records": {}})


def reason(said: str) -> str:
    """Why DVC stopped, in its own words."""
    lines = [line for line in said.splitlines() if line.strip()] or ["it does not say why"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines)[0].rstrip(".")


def stages_made(ids: Sequence[str], bed: str) -> list[str]:
    """The stages whose outputs are there, whole and current: of records, and of the weights they start from."""
    known = catalog.load()
    expanded = expansion(bed)
    asked = {id: expanded["records"][id] for id in ids if id in expanded["records"]}
    weights = {item.get("weights") for item in asked.values()}
    trained = {
        id: item["weights"]
        for id, item in expanded["trainings"].items()
        if item["weights"] in weights and is_trained(known, bed, id)
    }
    return [f"{bed}-train@{id}" for id in trained] + [
        f"{bed}@{id}"
        for id, item in asked.items()
        if item.get("weights") in {None, *trained.values()} and is_recorded(known, bed, id, item)
    ]


def is_trained(known: Catalog, bed: str, id: str) -> bool:
    """Whether the folder of a training holds the weights of every seed, as code and catalog give them now."""
    spec, place = trainings(known, bed)[id], Workplace(WORK)
    try:
        return all(
            metadata(place.path(spec, "train", seed)).get("fingerprint")
            == training_fingerprint(spec.recipe, spec.context(seed))
            for seed in spec.train_seeds
        )
    except FileProblem:
        return False


def is_recorded(known: Catalog, bed: str, id: str, needs: Mapping[str, str]) -> bool:
    """Whether a record is there with its picture and all it is made from, and none of its numbers is stale."""
    path = RESULTS / bed / f"{id}.json"
    outputs = [path] if known.bed(bed).network is None else [path, path.with_suffix(".png")]
    if not all(each.exists() for each in (*outputs, *(HOME / need for need in needs.values()))):
        return False
    try:
        record: dict[str, Any] = read_json(path)
    except FileProblem:
        return False
    return record["status"] == "ok" and not stale(known, {bed: {id: record}}, read_floors(RESULTS))[bed][id]
