"""Keep results over a change of code that moves no number, and say which ones it does move.

    python -m flows.revalidate 1a2b3c4d             against the commit whose code made the results
    python -m flows.revalidate 1a2b3c4d --bed digits

A verdict is stale as soon as any code behind it changes, however little. Here a small version of every stale cell
(`flows.probe`: twenty iterations of training, 96 samples, every score and count) runs under the code of that commit and
under the code that is checked out. Where both give the same bytes, the record takes the fingerprints of today, and
notes beside it which commits were compared; what differs stays stale and is to be measured again. Weights and samples
that lie in `work` are kept in the same way, so that they need not be made again.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import cyclopts
from safetensors import safe_open
from safetensors.torch import save

import catalog
from catalog import Catalog, CatalogError
from flows import probe
from flows.agenda import Errand, Item, agenda_of, spec_of
from flows.cell import metadata, target
from flows.home import HOME, RESULTS, WORK
from flows.ledger import Record, Stale, read_floors, read_records, stale
from flows.records import commit, provenance, read_json, write_bytes, write_json
from flows.study import FULL, main, spec_hash, study, techniques_on

Outcome = Literal["same", "moved", "made by other code", "cannot run"]
KEPT = ("methods", "steps", "trained", "seeds", "budget", "fidelity")
"""What a probe must know of a recorded cell."""


@dataclass(frozen=True)
class Answer:
    """What became of a stale cell, and the fingerprints it has today if it may keep its numbers."""

    outcome: Outcome
    fingerprints: dict[str, str]
    reason: str = ""


def stale_cells(records: Mapping[str, Mapping[str, Record]], old: Stale) -> dict[str, dict[str, Any]]:
    """By bed and name: every cell whose fingerprint is not today's."""
    found: dict[str, dict[str, Any]] = {}
    for bed, known in records.items():
        for id, record in known.items():
            for name in old[bed][id]:
                found.setdefault(bed, {})[name] = {
                    key: value for key, value in record["cells"][name].items() if key in KEPT
                }
    return found


def stale_files(known: Catalog, bed: str, errand: Errand) -> dict[Path, Item]:
    """The files of weights and samples of a bed's cells that were not made by the code of today."""
    studies = [study(known, bed, id) for id in techniques_on(known, bed)]
    found: dict[Path, Item] = {}
    for item in agenda_of(studies):
        if item.step in ("train", "compress", "sample"):
            path, wanted = target(spec_of(item, FULL), item.step, errand.place, item.seed, item.block)
            if metadata(path).get("fingerprint", wanted) != wanted:
                found[path] = item
    return found


def cell_of(item: Item) -> dict[str, Any]:
    """What a probe must know of the cell of an item."""
    spec = spec_of(item, FULL)
    seeds = {"train": [seed for seed, _ in spec.blocks], "sample": [block for _, block in spec.blocks]}
    return {**spec.cell.model_dump(), "seeds": seeds, "budget": spec.budget, "fidelity": spec.fidelity}


def keep_files(files: Iterable[Path], before: Mapping[str, Any], now: Mapping[str, Any], since: str) -> int:
    """Give files of cells that did not move the fingerprints of today; returns how many."""
    same = [name for name in before if "digest" in before[name] and before[name]["digest"] == now[name].get("digest")]
    today = {old: now[name]["files"][key] for name in same for key, old in before[name]["files"].items()}
    kept = [path for path in files if metadata(path)["fingerprint"] in today]
    for path in kept:
        with safe_open(path, "pt") as file:
            tensors, note = {name: file.get_tensor(name) for name in file.keys()}, metadata(path)  # noqa: SIM118
        note |= {"fingerprint": today[note["fingerprint"]], "revalidated": since}
        write_bytes(path, save(tensors, {"note": json.dumps(note, sort_keys=True)}))
    return len(kept)


def judge(recorded: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Answer:
    """What the probes of two commits say of a cell with a recorded fingerprint."""
    for answer in (before, now):
        if "error" in answer:
            return Answer("cannot run", {}, answer["error"])
    if before["fingerprints"]["cell"] != recorded:
        return Answer("made by other code", {})
    return Answer("same" if before["digest"] == now["digest"] else "moved", now["fingerprints"])


def probe_both(cells: Mapping[str, Any], since: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Probe cells under the code of a commit and under the code that is checked out, side by side."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        asked = room / "cells.json"
        write_json(asked, cells)
        checkout(since, room / "before")
        outs = [room / "before.json", room / "now.json"]
        running = [
            subprocess.Popen(
                [sys.executable, probe.__file__, str(asked), str(out)],
                cwd=code,
                env={**os.environ, "PYTHONPATH": str(code), "ATLAS_HOME": str(code), "OMP_NUM_THREADS": "1"},
            )
            for code, out in zip((room / "before", HOME), outs, strict=True)
        ]
        if any([process.wait() for process in running]):
            raise CatalogError(f"The code of {since} could not be asked; its results have to be measured again.")
        before, now = (read_json(out) for out in outs)
        return before, now


def checkout(since: str, folder: Path) -> None:
    """The files of a commit in a folder. Raises CatalogError."""
    done = subprocess.run(["git", "-C", str(HOME), "archive", since], capture_output=True, check=False)
    if done.returncode:
        raise CatalogError(f"There is no commit {since} here.")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def keep(path: Path, answers: Mapping[str, Answer], since: str) -> None:
    """Give the cells of a record that did not move the fingerprints of today, and note it beside the record."""
    content = read_json(path)
    kept = {name: answers[name] for name in content["cells"] if name in answers and answers[name].outcome == "same"}
    for name, answer in kept.items():
        content["cells"][name]["fingerprints"] = answer.fingerprints
    before, content["spec_hash"] = content["spec_hash"], spec_hash(content)
    if before == content["spec_hash"]:
        return
    write_json(path, content)
    beside = path.with_name(f"{path.stem}.cost.json")
    if beside.exists() and (machine := read_json(beside)).get("spec_hash") == before:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        note = {"since": since, "commit": commit(), "when": now}
        write_json(
            beside,
            {**machine, "spec_hash": content["spec_hash"], "revalidated": [*machine.get("revalidated", []), note]},
        )


app = cyclopts.App(name="python -m flows.revalidate", help=__doc__, help_format="plaintext")


@app.default
def revalidate(since: str, *, bed: str | None = None, work: Path = WORK, results: Path = RESULTS) -> None:
    """Compare the code of `since` with the code that is checked out, on every stale cell of `bed`, or of all beds."""
    if provenance()["dirty"]:
        raise CatalogError("There are changes that are not committed: results are kept from commit to commit.")
    known, errand = catalog.load(), Errand(FULL, work, results)
    records = read_records(results)
    old = stale(known, records, read_floors(results))
    cells = stale_cells(records, old)
    beds = [bed] if bed else list(known.beds)
    files = {
        name: stale_files(known, name, errand) for name in beds if (work / name).is_dir() and known.bed(name).network
    }
    asked = {
        name: {item.what: cell_of(item) for item in files.get(name, {}).values()} | cells.get(name, {}) for name in beds
    }
    before, now = probe_both(asked, since) if any(asked.values()) else ({}, {})
    for name in filter(asked.get, beds):
        found = records.get(name, {})
        recorded = {
            cell: record["cells"][cell]["fingerprints"]["cell"]
            for id, record in found.items()
            for cell in old[name][id]
        }
        answers = {cell: judge(recorded[cell], before[name][cell], now[name][cell]) for cell in cells.get(name, {})}
        for id in found:
            keep(results / name / f"{id}.json", answers, since)
        report(name, found, answers)
        if files.get(name):
            count = keep_files(files[name], before[name], now[name], since)
            print(f"{name}: {count} of {len(files[name])} files of weights and samples are kept.")


def report(bed: str, records: Mapping[str, Record], answers: Mapping[str, Answer]) -> None:
    """Print what became of every cell, and which records are to be measured again."""
    for name, answer in sorted(answers.items()):
        if answer.outcome != "same":
            print(f"{bed}: {name}: {answer.outcome}{answer.reason and ': '}{answer.reason}")
    lost = {name for name, answer in answers.items() if answer.outcome != "same"}
    again = [id for id, record in records.items() if lost & record["cells"].keys()]
    print(f"{bed}: {len(answers) - len(lost)} of {len(answers)} stale cells gave the same bytes.")
    if again:
        print(f"{bed}: measure again: {' '.join(again)}")


if __name__ == "__main__":
    main(app)
