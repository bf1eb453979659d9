"""A small version of a cell, through the same code as the whole: its digest says whether a change moved any number.

    python flows/probe.py CELLS.json OUT.json       with the checkout on PYTHONPATH whose code is asked

Twenty iterations of training, one block of 96 samples in two batches, every score and every count; on a bed that trains
with larger batches than those, a fifth of it.
`flows.revalidate` runs this file against two checkouts; it therefore uses little of them.
"""

import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import catalog
from catalog import Bed, Catalog, Cell, Seeds
from flows import score
from flows.cell import Spec, Workplace, source, target
from flows.records import write_json
from flows.score import evaluate, feature_net, identity
from methods.core.identity import shipped_fingerprint, training_fingerprint
from methods.measure import features

ITERATIONS, SAMPLES, BATCH, LESS = 20, 96, 64, 5
"""What is asked of a bed, and how many times less of one that trains with larger batches than `BATCH`."""
COUNTED = 4, 8
"""In place of `score.SHORT` and `score.SHORT_IN_EIGHTHS`: counting an iteration takes longer than training with it."""


def probe(known: Catalog, bed_name: str, cell: dict[str, Any], place: Workplace) -> dict[str, Any]:
    """The fingerprints that a recorded cell has under this code, and the digest of its small version."""
    bed = known.bed(bed_name)
    seeds = Seeds(train=tuple(cell["seeds"]["train"]), sample=tuple(cell["seeds"]["sample"]))
    asked = known.canonical(
        Cell(**{key: cell[key] for key in ("methods", "steps", "trained") if key in cell}), bed_name
    )
    spec = Spec(known, bed, asked, seeds.blocks, cell["budget"], cell["fidelity"])
    extractor = features.digest(features.load(feature_net(bed, place))[0]) if bed.features else ""
    context = spec.context(spec.train_seeds[0])
    bed, share = smaller(bed)
    small = replace(spec, bed=bed, blocks=seeds.blocks[:1], budget=share)
    measured = {key: value for key, value in evaluate(small, place).items() if key != "fingerprints"}
    return {
        "fingerprints": {
            "cell": identity(spec, source(bed_name), extractor),
            "training": training_fingerprint(spec.recipe, context),
            "shipped": shipped_fingerprint(spec.recipe, context),
        },
        "files": files(spec),
        "digest": hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest(),
    }


def smaller(bed: Bed) -> tuple[Bed, float]:
    """The bed with as many samples, batches as small and the share of a training that is asked of it."""
    if bed.fit is None:
        return bed.model_copy(update={"n": SAMPLES, "batch": BATCH}), 1.0
    less = LESS if bed.fit.batch > BATCH else 1
    fit = bed.fit.model_copy(update={"batch": min(BATCH, bed.fit.batch) // less})
    return (
        bed.model_copy(update={"n": SAMPLES // less, "batch": BATCH // less, "fit": fit}),
        min(1.0, ITERATIONS / less / bed.fit.iterations),
    )


def files(spec: Spec) -> dict[str, str]:
    """The fingerprint of every file of weights and samples of a cell, by step and seeds."""
    found: dict[str, str] = {}
    for seed, block in spec.blocks:
        for step, part in (("train", (seed,)), ("compress", (seed,)), ("sample", (seed, block))):
            found[" ".join(map(str, (step, *part)))] = target(spec, step, Workplace(), *part)[1]
    return found


def main(cells: Path, out: Path) -> None:
    """Probe every cell of {bed: {name: cell}}; one that this code cannot run gets its reason."""
    torch.set_num_threads(1)
    score.SHORT, score.SHORT_IN_EIGHTHS = COUNTED
    known = catalog.load()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        for bed, by_name in json.loads(cells.read_text()).items():
            for name, cell in by_name.items():
                try:
                    found.setdefault(bed, {})[name] = probe(known, bed, cell, Workplace(Path(work)))
                except Exception as error:  # whatever it is, it is the answer for this cell
                    found.setdefault(bed, {})[name] = {"error": f"{type(error).__name__}: {error}"}
                print(f"{bed}: {name}", file=sys.stderr, flush=True)
    write_json(out, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
