"""Make committed records again, from nothing, and compare the fresh numbers with the committed ones.

    python -m flows.reproduce --bed digits --methods deepcache ddim    these, and what they need
    python -m flows.reproduce --bed mixture                            every record of a bed

DVC runs the stages in a checkout of its own of the commit that is checked out here, with none of the weights, samples
or records that are there already; only data and the frozen feature network are given. It fails if bytes differ
that should be the same, an exact cost differs, a number leaves its interval, or a verdict changes.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed
from rich.console import Console

import catalog
from catalog import CatalogError
from flows import forms
from flows.artifacts import Progress, pages, show_links
from flows.forms import KNOWN, Bed, form
from flows.home import HOME, WORK
from flows.ledger import judge_records, read_records
from flows.records import provenance, read_json, write_json
from flows.reproduction import (
    Compared,
    Reproduction,
    as_json,
    as_markdown,
    as_table,
    changed,
    compare,
    machines,
    rows,
    unlike,
    verdict_lines,
)
from flows.stages import alone, follow, reason, tell
from flows.study import BASELINE, main, techniques_on
from methods.core.errors import Unavailable

FROZEN = "features.safetensors"
"""What of a bed's results is an input: two machines do not train the same bits."""
Note = Callable[[str, int, int], None]
"""Told of every stage that begins: its name, and which of how many it is."""

if TYPE_CHECKING:
    Techniques = list[str]
else:
    Techniques = Annotated[
        list[forms.TechniqueId],
        forms.asks("Whose records are made again; none is all of the bed."),
    ]


@dataclass(frozen=True)
class Room:
    """A commit checked out anew, in a folder of its own, beside its committed results and what DVC says."""

    commit: str

    @property
    def folder(self) -> Path:
        return WORK / "reproduce" / self.commit[:12]

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    @property
    def committed(self) -> Path:
        return self.folder / "committed"

    @property
    def fresh(self) -> Path:
        return self.checkout / "results"

    @property
    def log(self) -> Path:
        return self.folder / "dvc.log"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    def env(self) -> dict[str, str]:
        """This environment for the other checkout: its code and work folder, the data of here, no shared store."""
        own = {"PYTHONPATH": self.checkout, "ATLAS_HOME": self.checkout, "DVC_SITE_CACHE_DIR": self.folder / "dvc"}
        given = {"ATLAS_DATA": str(HOME / "data"), **os.environ, **{key: str(path) for key, path in own.items()}}
        return {key: value for key, value in given.items() if key != "ATLAS_STORE"}


def reproduced(bed: str, methods: Sequence[str], note: Note, say: Callable[[str], None]) -> Reproduction:
    """Make records again, and compare. Raises CatalogError for what is not committed, and Unavailable."""
    room = Room(git("rev-parse", "HEAD"))
    ids = wanted(bed, methods, room.commit)
    with alone("reproduction", say):
        enter(room, bed)
        say(f"What the stages say is kept in {room.log}.")
        if git("status", "--porcelain", "--untracked-files=no"):
            say(f"Changes that are not committed take no part: this is {room.commit[:12]}.")
        found = compared(room, bed, rebuild(room, bed, ids, note))
        write_json(room.report, as_json(found))
    return found


def wanted(bed: str, methods: Sequence[str], commit: str) -> list[str]:
    """The ids of the records to make again. Raises CatalogError for one that is not committed."""
    KNOWN.bed(bed)
    for id in set(methods) - {BASELINE}:
        KNOWN.technique(id)
    there = {Path(path).name for path in git("ls-tree", "--name-only", commit, f"results/{bed}/").splitlines()}
    ids = [id for id in techniques_on(KNOWN, bed) if f"{id}.json" in there and (not methods or id in methods)]
    if not ids or set(methods) - set(ids):
        absent = ", ".join(id for id in methods if id not in ids) or "any technique"
        raise CatalogError(f"No record of {absent} on {bed} is committed: there is nothing to compare with.")
    return ids


def enter(room: Room, bed: str) -> None:
    """Check the commit out anew, and take away whatever was measured on the bed. Raises Unavailable."""
    if room.folder.exists():
        shutil.rmtree(room.folder)
    room.folder.mkdir(parents=True)
    git("clone", "--quiet", "--no-checkout", str(HOME), str(room.checkout))
    git("-C", str(room.checkout), "checkout", "--quiet", "--detach", room.commit)
    (room.checkout / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    shutil.copytree(room.fresh, room.committed)
    for path in (room.fresh / bed).iterdir():
        if path.name != FROZEN:
            path.unlink()


def git(*arguments: str) -> str:
    """What git answers about this checkout. Raises Unavailable."""
    done = subprocess.run(["git", "-C", str(HOME), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise Unavailable(f"Results are made again from a commit, and git refuses: {said}")
    return done.stdout.strip()


def rebuild(room: Room, bed: str, ids: Iterable[str], note: Note) -> list[str]:
    """Run the stages of records and of what they need, the same ones for all; returns the ids of all that were run.

    A stage that fails stops only what needs it. Raises Unavailable.
    """
    asked = ["repro", "--force", "--no-commit", "--keep-going", *(f"{bed}@{id}" for id in ids)]
    planned: list[str] = []
    if follow([*asked, "--dry"], room.checkout, room.env(), room.log, planned.append):
        raise Unavailable(f"DVC cannot plan this: {reason(room.log.read_text())}.")
    begun: list[str] = []

    def begin(stage: str) -> None:
        begun.append(stage)
        note(stage, len(begun), len(planned))

    follow(asked, room.checkout, room.env(), room.log, begin)
    return [stage.partition("@")[2] for stage in planned if stage.startswith(f"{bed}@")]


def compared(room: Room, bed: str, ids: Iterable[str]) -> Reproduction:
    """Every record that was made again beside the committed one, and every verdict with them in place."""
    committed, fresh = (read_records(results) for results in (room.committed, room.fresh))
    made = {id: fresh[bed][id] for id in ids if id in fresh[bed]}
    now, known = provenance(), catalog.load(room.checkout / "catalog")
    records = [beside(room, bed, id, now) for id in ids if id in committed[bed]]
    before, after = committed, {**committed, bed: {**committed[bed], **made}}
    verdicts = changed(judge_records(known, before), judge_records(known, after))
    return Reproduction(bed, room.commit, tuple(records), verdicts)


def beside(room: Room, bed: str, id: str, now: dict[str, object]) -> Compared:
    """One record beside the committed one; `now` is this machine."""
    old, new = (results / bed / f"{id}.json" for results in (room.committed, room.fresh))
    cost = old.with_name(f"{id}.cost.json")
    content = read_json(old)
    return Compared(
        id,
        tuple(content["cells"]),
        identical=new.exists() and old.read_bytes() == new.read_bytes(),
        machine=unlike(read_json(cost) if cost.exists() else None, now),
        differences=compare(content, read_json(new) if new.exists() else None),
    )


def title() -> str:
    """Names a run of the flow."""
    given = flow_run.parameters
    chosen = ", ".join(str(id) for id in given.get("methods") or []) or "every record"
    return f"reproduce {chosen} on {given['bed']}"


@flow(name="reproduce", flow_run_name=title)
@form
def reproduce(bed: Bed = "digits", methods: Techniques = []) -> str | State:
    """Make committed records again from nothing, and compare: bytes, numbers, costs, verdicts."""
    logger, progress = get_run_logger(), Progress("stages that have begun")

    def note(stage: str, number: int, total: int) -> None:
        logger.info("%d of %d: %s", number, total, stage)
        progress((number - 1) / total, stage)

    found = reproduced(str(bed), [str(id) for id in methods], note, logger.info)
    progress(1.0)
    create_table_artifact(rows(found), description=f"{found.bed}, made again from {found.commit[:12]}")
    create_markdown_artifact(as_markdown(found), description="What came out")
    show_links(where_to_read(found))
    return str(found) if found.ok else Failed(message=str(found))


def where_to_read(found: Reproduction) -> list[str]:
    """The report as JSON, what the stages said, and the page of every record that was made again."""
    room = Room(found.commit)
    shown = pages(KNOWN, (each.id for each in found.records))
    return [f"report: `{room.report}`", f"log of the stages: `{room.log}`", *shown]


app = cyclopts.App(name="python -m flows.reproduce", help=__doc__, help_format="plaintext")


@app.default
def run(
    *,
    bed: str = "digits",
    methods: Annotated[list[str], Parameter(consume_multiple=True)] = [],
    report: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Make records again and compare; needs no server.

    Parameters
    ----------
    bed: test bed
    methods: techniques (or `baseline`) whose records are made again, with what they need; none is all of the bed
    report: also write the comparison here, as JSON
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that DVC is ended with it
    found = reproduced(bed, methods, lambda stage, number, total: tell(f"{number} of {total}: {stage}"), tell)
    console = Console()
    console.print(as_table(found))
    for text in (*machines(found), *verdict_lines(found)):
        console.print(text, highlight=False, markup=False)
    if report:
        write_json(report, as_json(found))
    if not found.ok:
        sys.exit(str(found))
    console.print(str(found), highlight=False, markup=False)


if __name__ == "__main__":
    main(app)
