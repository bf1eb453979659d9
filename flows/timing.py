"""What is true of one machine only: seconds and memory of a technique beside its control, measured in turns.

    python -m flows.timing deepcache --bed digits        measure again, on a machine that does nothing else

Everything else of a record is the same on every run; these stand apart, with the machine they belong to.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cyclopts
import torch

import catalog
from catalog import Cell
from flows.cell import Spec, Workplace, deployed, seconds, wanted_images
from flows.home import RESULTS, WORK
from flows.records import provenance, read_json, write_json
from methods.core import run
from methods.measure import cost
from methods.measure.statistics import Interval

if TYPE_CHECKING:
    from flows.study import Study

ROUNDS = 6
"""Interleaved rounds: the fewest that bound a median."""


def write(this: "Study", spec_hash: str, place: Workplace, results: Path, *, memory: bool = True) -> None:
    """Measure a study and write `<id>.cost.json` beside its record, unless that record was measured before."""
    path = results / this.subject.bed.name / f"{this.id}.cost.json"
    if path.exists() and read_json(path).get("spec_hash") == spec_hash:
        return
    write_json(
        path,
        {
            "spec_hash": spec_hash,
            **provenance(),
            "seconds": spent(this.subject, place),
            "timing": compare(this, place, memory=memory),
        },
    )


def spent(spec: Spec, place: Workplace) -> dict[str, float]:
    """Seconds that each step of a cell took, over all its seeds."""
    folder = place.root / spec.bed.name
    named = {"train": spec.training.name if spec.bed.network else "", "ship": spec.name, "sample": spec.name}
    files = {step: (folder / step / name).glob("*.safetensors") for step, name in named.items()}
    return {step: round(sum(map(seconds, paths)), 2) for step, paths in files.items()}


def compare(this: "Study", place: Workplace, *, memory: bool) -> dict[str, Any] | None:
    """Latency, throughput and memory of the subject against its control; None if there is nothing to compare."""
    subject, control = this.subject, this.specs.get(this.control)
    if control is None or subject == control:
        return None
    batch = subject.bed.batch
    draw(control, place, 1)()  # what a process does at its first sample is nobody's
    (theirs, their_start), (ours, our_start) = begin(control, place), begin(subject, place)
    one = cost.interleaved(ours, theirs, ROUNDS)
    many = cost.interleaved(draw(subject, place, batch), draw(control, place, batch), ROUNDS)
    return {
        "against": this.control,
        "start": {"seconds": {"subject": our_start, "control": their_start}},
        "latency": {
            "batch": 1, "seconds": {"subject": one.a.mean, "control": one.b.mean}, "ratio": as_json(one.ratio),
        },
        "throughput": {
            "batch": batch,
            "samples_per_second": {"subject": batch / many.a.mean, "control": batch / many.b.mean},
            "ratio": as_json(many.ratio),
        },
        "memory": peaks(subject, control, place) if memory else None,
    }  # fmt: skip


def begin(spec: Spec, place: Workplace) -> tuple[Callable[[], object], float]:
    """A call that draws one sample, and the seconds from the files to its first: reading, exporting, compiling."""
    started = time.perf_counter()
    call = draw(spec, place, 1)
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return call, time.perf_counter() - started


def draw(spec: Spec, place: Workplace, batch: int) -> Callable[[], object]:
    """A call that samples a batch."""
    ready = deployed(spec, spec.train_seeds[0], place)
    labels = torch.arange(batch) % max(spec.bed.classes, 1)
    wanted = wanted_images(spec, labels)
    return lambda: run.generate(spec.recipe, ready, labels, range(batch), wanted)


def as_json(interval: Interval) -> dict[str, float]:
    """A median with its interval."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def peaks(subject: Spec, control: Spec, place: Workplace) -> dict[str, Any]:
    """Peak bytes of sampling a batch, and of only loading the model."""
    batch = subject.bed.batch
    asked = {"subject": (subject, batch), "control": (control, batch), "idle": (subject, 0)}
    return {"batch": batch, "bytes": {who: peak(spec, size, place) for who, (spec, size) in asked.items()}}


def peak(spec: Spec, batch: int, place: Workplace) -> int:
    """Peak bytes that sampling one batch takes, from files that are there: of a fresh process, or of a CUDA device."""
    if torch.cuda.is_available():
        return peak_on_device(spec, batch, place)
    cell = spec.cell.model_dump_json()
    asked = ["--bed", spec.bed.name, "--batch", str(batch), "--work", str(place.root)]
    return cost.peak_memory([sys.executable, "-m", "flows.timing", "draw", cell, *asked])


def peak_on_device(spec: Spec, batch: int, place: Workplace) -> int:
    """Peak bytes that were allocated on the device beyond what is there now; freed memory is seen to be free there."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call = draw(spec, place, max(batch, 1))
    if batch:
        call()
    return torch.cuda.max_memory_allocated() - before


app = cyclopts.App(name="python -m flows.timing", help=__doc__, help_format="plaintext")


@app.default
def again(id: str, *, bed: str = "digits", work: Path = WORK, results: Path = RESULTS) -> None:
    """Measure seconds and memory of a technique that has a record, on this machine, now."""
    from flows.study import study

    record = results / bed / f"{id}.json"
    if not record.exists():
        raise catalog.CatalogError(f"{record} is not there: run `python -m flows.study run {id} --bed {bed}` first.")
    record.with_name(f"{id}.cost.json").unlink(missing_ok=True)
    write(study(catalog.load(), bed, id), read_json(record)["spec_hash"], Workplace(work), results)


@app.command(name="draw", show=False)
def draw_once(cell: str, *, bed: str, batch: int, work: Path) -> None:
    """Sample one batch of a cell (JSON): the process whose memory is measured."""
    known = catalog.load()
    spec = Spec(known, known.bed(bed), Cell.model_validate_json(cell), known.bed(bed).seeds.blocks)
    call = draw(spec, Workplace(work), max(batch, 1))
    if batch:
        call()


if __name__ == "__main__":
    from flows.study import main

    try:
        main(app)
    except subprocess.CalledProcessError as error:
        sys.exit(f"A process that was to be measured failed: {error}")
