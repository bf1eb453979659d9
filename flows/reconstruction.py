"""What a space loses before anything is diffused in it: training images, encoded and decoded again.

    python -m flows.reconstruction --bed digits

For every technique that diffuses in a space of its own: no sample of it can be expected to be better than that. A codec
that is fitted is fitted once for each training seed, exactly as in its training. What was measured before, and has not
changed since, is kept.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cyclopts
import torch
from rich.progress import track

import catalog
from catalog import Catalog
from flows.cell import Spec, Workplace, images, source, training_set
from flows.home import RESULTS, WORK
from flows.records import SCHEMA, read_json, write_json
from flows.score import feature_net
from flows.study import main
from methods.core.codec import Codec, Pixels
from methods.core.data import TrainingSet
from methods.core.identity import code_digest, training_fingerprint
from methods.core.learning import quiet
from methods.core.models import build, device
from methods.core.recipe import Recipe
from methods.measure import features
from methods.measure.reference import Reference

FILE = "reconstruction.json"
RMSE = "rmse"
"""Root of the mean squared difference of a pixel, of the range from -1 to 1."""


def specs(known: Catalog, bed: str) -> Iterator[tuple[str, Spec]]:
    """Every technique of the bed that does not diffuse pixels as they are."""
    for id, technique in known.techniques.items():
        if bed in technique.beds and "space" in technique.changes:
            spec = Spec(known, known.bed(bed), technique.default, known.bed(bed).seeds.blocks)
            if spec.recipe.space != Pixels():
                yield id, spec


def made_from(spec: Spec, data: str) -> str:
    """What names the codecs of all seeds, fitted to this data, together with the code that scores them."""
    code = code_digest(frozenset({"methods.measure.reference"}))[:16]
    return training_fingerprint(spec.recipe, f"{data} seeds {spec.train_seeds} {code}")


def current(known: Catalog, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells of a record that would be the same today, by technique."""
    now = {id: made_from(spec, record["data"]) for id, spec in specs(known, record["bed"])}
    return {id: cell for id, cell in record["cells"].items() if now.get(id) == cell["fingerprint"]}


def fitted(recipe: Recipe, data: TrainingSet, seed: int) -> Codec:
    """The codec that a training with this seed would leave."""
    codec, rng = build(recipe, data.shape, data.classes, seed).codec, torch.Generator(device()).manual_seed(seed)
    codec.fit(data.images.to(device()), data.labels.to(device()), recipe.fit.iterations, rng, quiet)
    return codec


def measured(spec: Spec, ruler: Reference) -> dict[str, Any]:
    """A cell of the record: what the decoded images score, and how far their pixels are off, for each training seed."""
    bed, data, scores = spec.bed, training_set(spec.bed).shown, []
    shown, labels = data.images.to(device()), data.labels.to(device())
    for seed in spec.train_seeds:
        codec = fitted(spec.recipe, data, seed)
        with torch.no_grad():
            decoded = codec.decode(codec.encode(shown, labels), labels).clamp(-1, 1)
        off = (decoded - shown).square().mean().sqrt().item()
        scores.append({**ruler.score(decoded.cpu(), data.labels).values, RMSE: off})
    return {
        "methods": spec.catalog.resolve(spec.cell, bed.name),
        "seeds": list(spec.train_seeds),
        "n": len(data.images),
        "scores": {key: [each[key] for each in scores] for key in scores[0]},
        "fingerprint": made_from(spec, source(bed.name)),
    }


app = cyclopts.App(name="python -m flows.reconstruction", help=__doc__, help_format="plaintext")


@app.default
def write(*, bed: str = "digits", work: Path = WORK, results: Path = RESULTS) -> None:
    """Measure them, and write the record.

    Parameters
    ----------
    bed: the test bed.
    work: where the feature network lies.
    results: where records are read and written.
    """
    known, path = catalog.load(), results / bed / FILE
    kept = current(known, read_json(path)) if path.exists() else {}
    net, _ = features.load(feature_net(known.bed(bed), Workplace(work)))
    ruler = Reference.of(images(bed), net, known.bed(bed).n)
    asked = track(dict(specs(known, bed)).items(), description="reconstruction")
    cells = {id: kept.get(id) or measured(spec, ruler) for id, spec in asked}
    write_json(path, {"schema": SCHEMA, "bed": bed, "id": Path(FILE).stem, "data": source(bed), "cells": cells})


if __name__ == "__main__":
    main(app)
