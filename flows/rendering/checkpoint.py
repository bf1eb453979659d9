"""The page of a model that somebody already has: every record of it, with the parts that techniques' pages have."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from urllib.parse import quote

from catalog import Bed, Catalog, Technique
from flows.ledger import record_files
from flows.records import read_json, write_bytes
from flows.rendering import static, technique, templates
from flows.rendering.claims import Counts
from flows.rendering.measured import BASELINE, GRID, Measured, Picture
from flows.rendering.numbers import Record, grouped, plural
from flows.rendering.technique import Counter, OnBed

METRIC = "fidelity"
MANY_STEPS = "many_steps"


@dataclass(frozen=True)
class Entry:
    """A record of the model: the techniques that were composed, and what is shown of it."""

    id: str
    techniques: tuple[Technique, ...]
    on: OnBed

    @property
    def fired(self) -> bool:
        """Whether every technique did something."""
        return all(counter.fired for counter in self.on.counters)


class Shown(Measured):
    """A model's records in the place of the catalog's results.

    `facts` say what it was read as, `refused` by technique why it cannot be applied.
    """

    quick: tuple[str, ...] = ()

    def __init__(self, known: Catalog, bed: Bed, facts: dict[str, str], refused: dict[str, str], results: Path) -> None:
        self.catalog, self.bed, self.facts, self.refused, self.results = known, bed, facts, refused, results
        self.records = {bed.name: {path.stem: read_json(path) for path in record_files(results / bed.name)}}
        self.floors, self.stale = {}, {}
        self.curve = cache(self._curve)

    def seeds(self, bed: Bed) -> str:
        """What stands behind a quality."""
        cells = [cell for record in self.records[self.bed.name].values() for cell in record["cells"].values()]
        blocks, n = (len(cells[0]["seeds"]["sample"]), cells[0]["n"]) if cells else (len(bed.seeds.sample), bed.n)
        return f"{plural(blocks, 'block')} of {grouped(n)} samples, each with its own sampling seed"

    def drawn(self, name: str, of: str) -> Picture | None:
        """The samples of a cell's first block, None where they are no images."""
        path = self.results / self.bed.name / f"{name}.png"
        if not path.exists():
            return None
        width, height = struct.unpack(">II", path.read_bytes()[16:24])  # the header chunk of a PNG
        times = max(1, round(GRID / width))
        alt = f"Samples of {of}, an image for each seed"
        return Picture(quote(f"data/{self.bed.name}/{name}.png"), times * width, times * height, alt)

    def entries(self) -> list[Entry]:
        """Every record but the baseline's own."""
        return [self.entry(record) for id, record in self.records[self.bed.name].items() if id != BASELINE]

    def entry(self, record: Record) -> Entry:
        """A record as the page shows it. Its parts are told apart by the name of their bed, which is in their ids."""
        id = record["id"]
        methods = record["cells"].get(record["default"], {}).get("methods") or self.named(id)
        known = tuple(self.catalog.techniques[each] for each in methods)
        name = " + ".join(each.name for each in known)
        counters = tuple(dict.fromkeys(counter for each in known for counter in each.counters))
        together = known[0].model_copy(update={"id": id, "name": name, "counters": counters})
        blank = OnBed(
            self.bed, Counts.of([]), METRIC, None, "none", None, record["default"], record["control"],
            [Counter(counter, None) for counter in counters], [], [], [], [], [], None, None, {}, None, [], [], {},
            None, None, None, {}, {}, None,
        )  # fmt: skip
        found = technique.filled(blank, self, together, record)
        part = self.bed.model_copy(
            update={
                "name": f"{self.bed.name}-{_slug(id)}",
                "title": f"{self.bed.title} with {name}",
                "scale": "its own",
            }
        )
        pictures = [
            (name, self.drawn(id, name)),
            ("Baseline", self.drawn(BASELINE, "the baseline")),
            ("The model in many steps", self.drawn(MANY_STEPS, "the model in many steps")),
        ]
        pictures = [(title, picture) for title, picture in pictures if picture]
        return Entry(
            id, known,
            replace(
                found, bed=part, charts=[], faith=None, pays_back=None, pictures=pictures, path=quote(found.path or ""),
                seeds={kind: seeds for kind, seeds in found.seeds.items() if seeds},
            ),
        )  # fmt: skip

    def named(self, id: str) -> list[str]:
        """The techniques in the id of a record that has no numbers."""
        return [part.partition("(")[0] for part in id.split("+")]


def _slug(id: str) -> str:
    """An id that may stand in a link's fragment."""
    return "".join(letter if letter.isalnum() else "-" for letter in id)


def publish(shown: Shown, out: Path) -> Path:
    """Write the model's page, and what it links to, into a site; returns the page."""
    page = out / "model" / f"{shown.bed.name}.html"
    for name, content in [*static(), *copies(shown), (f"model/{page.name}", render(shown, f"model/{page.name}"))]:
        path = out / name
        if not path.exists() or path.read_bytes() != content:
            write_bytes(path, content)
    return page


def render(shown: Shown, path: str) -> bytes:
    """The page itself."""
    template = templates().get_template("model.html.j2")
    return template.render(atlas=shown, root="../", here=path, entries=shown.entries(), metric=METRIC).encode()


def copies(shown: Shown) -> Iterator[tuple[str, bytes]]:
    """Records and pictures as they are."""
    folder = shown.results / shown.bed.name
    for path in sorted([*folder.glob("[!.]*.json"), *folder.glob("[!.]*.png")]):
        yield f"data/{shown.bed.name}/{path.name}", path.read_bytes()
