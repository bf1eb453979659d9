"""Which noise levels a training looks at, and which of them its gradient's noise comes from.

    python -m flows.gradients --bed digits

For every technique of the families of losses that leaves the network as it is: at the weights that its training ends
at, once for each training seed. What was measured before, and has not changed since, is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from rich.progress import track

import catalog
from catalog import Catalog, CatalogError, Cell
from flows.cell import Spec, Workplace, source, train, training_set
from flows.home import RESULTS, WORK
from flows.records import SCHEMA, read_json, write_json
from flows.study import BASELINE, main
from methods.core import models
from methods.core.identity import code_digest, training_fingerprint
from methods.core.recipe import Recipe
from methods.measure.gradients import EDGES, Profile, by_noise_level

FILE = "gradients.json"
FAMILIES = ("noise_process", "objective", "flow")
"""Those whose techniques change what training minimises, whatever the network."""
SLOTS = ("process", "parameterization", "times", "weight", "coupling", "loss")
"""What makes up the loss."""
STEPS = 12
"""Batches whose gradients are compared, for each training seed."""
SHARES = tuple(field.name for field in fields(Profile))


def alters_the_loss(recipe: Recipe, base: Recipe) -> bool:
    """Whether a recipe minimises something else with the network of the base."""
    same = all(getattr(recipe, slot) == getattr(base, slot) for slot in ("net", "space"))
    return same and any(getattr(recipe, slot) != getattr(base, slot) for slot in SLOTS)


def specs(known: Catalog, bed: str) -> Iterator[tuple[str, Spec]]:
    """The baseline, and every technique of the bed that alters the loss."""
    blocks = known.bed(bed).seeds.blocks
    base = Spec(known, known.bed(bed), Cell(methods={}), blocks)
    yield BASELINE, base
    for id, technique in known.techniques.items():
        if bed in technique.beds and technique.family in FAMILIES and {*technique.changes} & {*SLOTS}:
            spec = base.of(technique.default)
            if alters_the_loss(spec.recipe, base.recipe):
                yield id, spec.training


def made_from(spec: Spec, data: str) -> str:
    """What names the weights of all seeds, trained on this data, together with the code that measures them."""
    code = code_digest(frozenset({"methods.measure.gradients"}))[:16]
    context = f"{data} seeds {spec.train_seeds} steps {STEPS} {EDGES} {code}"
    return training_fingerprint(spec.recipe, context)


def measured(spec: Spec, place: Workplace) -> dict[str, Any]:
    """A cell of the record: the shares of each noise level, a list for each training seed."""
    bed, data = spec.bed, training_set(spec.bed)
    profiles = []
    for seed in spec.train_seeds:
        model = models.load(spec.recipe, train(spec, seed, place), bed.shape, bed.classes, shipped=False)
        x0, labels = models.encode(model, data)
        network, batch = models.network(spec.recipe, model), spec.recipe.fit.batch
        profiles.append(by_noise_level(spec.recipe.objective, network, x0, labels, batch, STEPS, seed))
    return {
        "methods": spec.catalog.resolve(spec.cell, bed.name),
        "seeds": list(spec.train_seeds),
        "shares": {key: [asdict(profile)[key] for profile in profiles] for key in SHARES},
        "fingerprint": made_from(spec, source(bed.name)),
    }


app = cyclopts.App(name="python -m flows.gradients", help=__doc__, help_format="plaintext")


@app.default
def write(
    *,
    bed: str = "digits",
    methods: Annotated[Sequence[str] | None, cyclopts.Parameter(consume_multiple=True)] = None,
    work: Path = WORK,
    results: Path = RESULTS,
) -> None:
    """Measure them, and write the record.

    Parameters
    ----------
    bed: the test bed.
    methods: ids of techniques beside the baseline; by default all.
    work: where weights lie; those that are not there are trained.
    results: where records are read and written.
    """
    known, path = catalog.load(), results / bed / FILE
    before = read_json(path)["cells"] if path.exists() else {}
    compared = dict(specs(known, known.bed(bed).name))
    asked = {BASELINE, *(methods or compared)}
    if strangers := asked - compared.keys():
        raise CatalogError(f"{', '.join(sorted(strangers))}: no loss that {bed} could compare with the baseline's.")
    cells: dict[str, Any] = {}
    for id, spec in track(compared.items(), description="gradients"):
        if id in before and before[id]["fingerprint"] == made_from(spec, source(bed)):
            cells[id] = before[id]
        elif id in asked:
            cells[id] = measured(spec, Workplace(work))
        elif id in before:  # and stale, which its page says
            cells[id] = before[id]
    write_json(
        path,
        {
            "schema": SCHEMA, "bed": bed, "id": Path(FILE).stem, "data": source(bed), "edges": EDGES, "steps": STEPS,
            "cells": cells,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main(app)
