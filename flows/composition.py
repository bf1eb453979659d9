"""Which techniques go together, and what the most used ones gain together.

    python -m flows.composition which                     every pair: it can be composed, or why not
    python -m flows.composition measure --bed digits      the most used ones, pair by pair

What one of a pair builds on is part of both sides of every comparison: an accelerated transformer is held against the
transformer.
"""

import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import cyclopts

import catalog
from catalog import Catalog, Cell, cell_name
from flows.cell import Spec
from flows.home import RESULTS, WORK
from flows.records import SCHEMA, write_json
from flows.study import FULL, Study, composed, main
from methods.core.errors import Conflict

MOST_USED = (
    "ddim", "dpm_solver_pp_2m", "karras_rho_schedule", "classifier_free_guidance", "guidance_interval", "deepcache",
    "tome_sd", "int8_dynamic", "bf16_amp", "diff_pruning", "min_snr_weighting", "v_prediction",
)  # fmt: skip
"""What libraries offer as a switch or an option, so that people combine it; chosen before any pair was measured."""
FILE = "composition.json"

Refusals = dict[str, dict[str, str]]
"""Why two techniques cannot be combined, by the one and the other, in the order of the catalog."""


def pair(known: Catalog, bed: str, a: str, b: str) -> Cell:
    """Two techniques with what they build on, as their own pages have them; without it if only so they go together."""
    first, second = (known.technique(id).default.methods for id in (a, b))
    whole = Cell(methods={id: first.get(id, {}) | second.get(id, {}) for id in {**first, **second}})
    bare = Cell(methods={id: whole.methods[id] for id in (a, b)})
    return bare if refusal(known, bed, whole) and not refusal(known, bed, bare) else whole


def refusal(known: Catalog, bed: str, cell: Cell) -> str | None:
    """Why techniques cannot be combined, None if they can."""
    try:
        Spec(known, known.bed(bed), cell, ()).recipe  # noqa: B018 - composing it is the question
    except Conflict as why:
        return str(why)
    return None


def refusals(known: Catalog, bed: str) -> Refusals:
    """All pairs of techniques that cannot be combined, on the network of a bed."""
    found: Refusals = {}
    for a, b in combinations(known.techniques, 2):
        if why := refusal(known, bed, pair(known, bed, a, b)):
            found.setdefault(a, {})[b] = why
    return found


def pairs(known: Catalog, bed: str) -> Iterator[tuple[str, str]]:
    """The pairs of the most used techniques that can be composed, but for one that builds on the other."""
    for a, b in combinations([id for id in MOST_USED if bed in known.technique(id).beds], 2):
        if not on_top(known, a, b) and refusal(known, bed, pair(known, bed, a, b)) is None:
            yield a, b


def on_top(known: Catalog, a: str, b: str) -> bool:
    """Whether one builds on the other."""
    return a in known.technique(b).builds_on or b in known.technique(a).builds_on


def study_of(known: Catalog, bed: str, a: str, b: str) -> Study:
    """The study of a pair."""
    return composed(known, bed, pair(known, bed, a, b).methods)


def names(known: Catalog, bed: str) -> set[str]:
    """The records of the pairs that are measured."""
    return {cell_name(pair(known, bed, a, b), known, bed) for a, b in pairs(known, bed)}


app = cyclopts.App(name="python -m flows.composition", help=__doc__, help_format="plaintext")


@app.command
def which(*, bed: str = "digits", results: Path = RESULTS) -> None:
    """Compose every pair of techniques, which trains nothing, and write down who refuses whom, and why."""
    known = catalog.load()
    techniques = list(known.techniques)
    found = refusals(known, known.bed(bed).name)
    write_json(
        results / bed / FILE,
        {"schema": SCHEMA, "bed": bed, "id": Path(FILE).stem, "techniques": techniques, "refused": found},
    )
    refused, all_pairs = sum(map(len, found.values())), len(techniques) * (len(techniques) - 1) // 2
    print(f"{all_pairs - refused} of {all_pairs} pairs can be composed.")


@app.command
def measure(*, bed: str = "digits", jobs: int = 2, work: Path = WORK, results: Path = RESULTS) -> None:
    """Measure the most used techniques pair by pair: neither, either alone, and both."""
    from flows.pool import survey  # which is made of studies

    known = catalog.load()
    studies = [study_of(known, known.bed(bed).name, a, b) for a, b in pairs(known, bed)]
    if failed := survey(studies, FULL, jobs, work, results):
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main(app)
