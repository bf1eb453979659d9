"""What a run shows of itself in the Prefect UI: progress with the time left, numbers, verdicts, samples and links."""

import base64
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from catalog import Catalog
from flows.home import RESULTS, SETTINGS
from flows.ledger import Record, judge_records
from flows.progress import shown
from flows.records import readable
from flows.study import BASELINE
from methods.core.calibration import Report

EVERY = 5.0
"""Seconds between updates of a progress artifact."""
LARGER = 3
"""How much larger a sample grid is shown than it is stored."""


class Progress:
    """A progress artifact that also says how long is left, updated now and then."""

    def __init__(self, title: str) -> None:
        self.title, self.started, self.spoken = title, time.monotonic(), 0.0
        self.artifact = create_progress_artifact(progress=0.0, description=title)

    def __call__(self, done: float, what: str = "") -> None:
        """Show that a share `done` of the whole, in [0, 1], is finished."""
        now = time.monotonic()
        if now - self.spoken < EVERY and done < 1:
            return
        self.spoken = now
        left = f", {duration((now - self.started) * (1 / done - 1))} left" if 0 < done < 1 else ""
        text = f"{self.title}{left}{what and ': '}{what}"
        with suppress(httpx.HTTPError):  # a server that is away loses a line, not a run
            update_progress_artifact(self.artifact, progress=100.0 * done, description=text)  # pyright: ignore[reportArgumentType]

    def part(self, first: float, last: float) -> Report:
        """Shows how far a part of the whole is, which goes from one share of it to another."""

        def report(what: str, done: int, total: int, loss: float) -> None:
            self(first + (last - first) * done / total, f"{what}, loss {loss:.3f}" if loss else what)

        return report


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


@contextmanager
def progress(title: str, units: float) -> Iterator[Report]:
    """Shows progress on the terminal and on the page of the run."""
    page = Progress(title)
    whole = page.part(0.0, 1.0)
    with shown(title, units) as inner:

        def report(what: str, done: int, total: int, loss: float) -> None:
            inner(what, done, total, loss)
            whole(what, done, total, loss)

        yield report
    page(1.0)


def show_record(known: Catalog, written: Record, results: Path) -> None:
    """The numbers of a record, its verdicts, its samples, and where to read on."""
    id, bed = written["id"], written["bed"]
    create_table_artifact(table=numbers(written), description=f"{id} on {bed}, and what it is held against")
    verdicts = table_of_verdicts(known, written)
    if verdicts:
        create_table_artifact(
            table=verdicts, description=f"Claims of {id} on {bed}, before correction for the whole ledger"
        )
    grid = results / bed / f"{id}.png"
    if grid.exists():
        show_picture(grid.read_bytes(), id, bed)
    show_links(links(known, id, bed, results))


def show_picture(png: bytes, id: str, bed: str) -> None:
    """A sample grid."""
    create_image_artifact(image_url=inline(png), description=f"Samples of {id} on {bed}, a class per column")


def show_links(found: Iterable[str]) -> None:
    """Where to read on, as a list."""
    create_markdown_artifact(markdown="\n".join(f"- {each}" for each in found), description="Where to read on")


def numbers(written: Record) -> list[dict[str, Any]]:
    """The cells of a record as lines of a table: means with their 95 % intervals, and what a sample costs."""
    return [
        {
            "cell": name,
            **{f"{key} ({value['unit']})": with_interval(value) for key, value in cell["metrics"].items()},
            **{key: cell["cost"][key] for key in ("evaluations", "macs", "parameters", "bytes")},
            "fired": ", ".join(f"{key} {value:,}" for key, value in cell["counters"].items()),
        }
        for name, cell in written["cells"].items()
    ]


def with_interval(value: dict[str, Any]) -> str:
    """A mean and its interval, where one block does not leave it unknown."""
    text = f"{value['mean']:.4g}"
    return text if value["low"] is None else f"{text} [{value['low']:.4g}, {value['high']:.4g}]"


def table_of_verdicts(known: Catalog, written: Record) -> list[dict[str, Any]]:
    """What may be said of each claim of the record's technique on its bed."""
    judged = judge_records(known, {written["bed"]: {written["id"]: written}})
    return [
        {
            "claim": each.claim.says,
            "verdict": each.status,
            "scale": each.scale,
            "why": each.verdict.text if each.verdict else each.reason,
        }
        for each in judged
        if each.technique == written["id"] and each.bed == written["bed"]
    ]


def inline(png: bytes) -> str:
    """A picture as a data URL, enlarged without smoothing: the page of a run needs no other server for it."""
    with Image.open(io.BytesIO(png)) as small:
        grid = small.resize((small.width * LARGER, small.height * LARGER), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    grid.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def links(known: Catalog, id: str, bed: str, results: Path, made: Sequence[str] = ()) -> list[str]:
    """What a run made, and where the record, the page and the run in MLflow are of what it is about."""
    from flows.tracking import run_url  # MLflow takes seconds to import, and a training shows progress before

    path = results / bed / f"{id}.json"
    written = readable(path)
    found = [f"made: `{each}`" for each in made] + ([f"record: `{path}`"] if written else [])
    if results == RESULTS:
        found.append(f"page: {SETTINGS.site_url}/{page_of(known, id)}")
    address = run_url(written) if written else None
    return [*found, f"MLflow: {address}"] if address else found


def pages(known: Catalog, ids: Iterable[str]) -> list[str]:
    """Where `make up` shows each of several records."""
    return [f"{id}: {SETTINGS.site_url}/{page_of(known, id)}" for id in ids]


def page_of(known: Catalog, id: str) -> str:
    """The page of the site that shows a record."""
    if id in known.techniques:
        return f"t/{id}.html"
    return "index.html" if id == BASELINE else "composition.html"
