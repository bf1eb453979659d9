"""What a space loses by itself: measured on the codec that its training leaves, and shown while it is current."""

from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from small import SHAPE, images, recipe_of, standing

import catalog
from flows import reconstruction
from flows.ledger import read_records
from flows.records import read_json, write_json
from flows.rendering.measured import Measured
from methods.core import run
from methods.core.data import TrainingSet

KNOWN = catalog.load()
SPACES = [id for id, technique in KNOWN.techniques.items() if "space" in technique.changes]


@pytest.mark.parametrize("id", SPACES)
def test_the_codec_is_that_of_the_training(id: str) -> None:
    recipe = recipe_of(*standing(id))
    trained = run.train(recipe, images(), 3)[0].codec.state_dict()
    alone = reconstruction.fitted(recipe, images(), 3).state_dict()
    assert trained.keys() == alone.keys() and all(torch.equal(trained[key], alone[key]) for key in trained)


def test_every_space_of_its_own_is_measured() -> None:
    found = dict(reconstruction.specs(KNOWN, "digits"))
    assert {*found} == {id for id in SPACES if "digits" in KNOWN.techniques[id].beds} and "latent_diffusion" in found
    assert not [*reconstruction.specs(KNOWN, "mixture")]


class Ruler:
    """Scores nothing but how far the images are from those of a training set."""

    def __init__(self, data: TrainingSet) -> None:
        self.data, self.values = data, {}

    def score(self, decoded: torch.Tensor, labels: torch.Tensor) -> "Ruler":
        assert torch.equal(labels, self.data.labels) and decoded.shape == self.data.images.shape
        self.values = {"fd": (decoded - self.data.images).abs().max().item()}
        return self


def test_what_loses_nothing_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = TrainingSet(torch.rand(12, *SHAPE) * 2 - 1, torch.arange(12) % 3, 3)
    monkeypatch.setattr(reconstruction, "training_set", lambda bed: data)
    spec = dict(reconstruction.specs(KNOWN, "digits"))["patched_pixel_diffusion"]
    cell = reconstruction.measured(spec, Ruler(data))  # pyright: ignore[reportArgumentType]
    assert max(cell["scores"]["fd"] + cell["scores"][reconstruction.RMSE]) < 1e-6
    assert cell["n"] == 12 and len(cell["scores"]["fd"]) == len(cell["seeds"]) == 5


def test_a_number_is_shown_while_it_is_current(tmp_path: Path) -> None:
    specs = dict(reconstruction.specs(KNOWN, "digits"))

    def cell(id: str, fingerprint: str | None = None) -> dict[str, Any]:
        made_from = fingerprint or reconstruction.made_from(specs[id], made_up.DATA)
        return {"n": 9, "scores": {"fd": [1.0, 2.0, 3.0]}, "fingerprint": made_from}

    cells = {"latent_diffusion": cell("latent_diffusion"), "wavelet_diffusion": cell("wavelet_diffusion", "older")}
    path = tmp_path / "digits" / reconstruction.FILE
    write_json(path, {"schema": 2, "bed": "digits", "id": "reconstruction", "data": made_up.DATA, "cells": cells})
    measured, bed = Measured(KNOWN, tmp_path), KNOWN.bed("digits")
    number = measured.codec(bed, "latent_diffusion", "fd")
    assert number is not None and (number.value, number.n, number.samples) == (2.0, 3, 9)
    assert number.bounded and number.low is not None and number.low < 1
    assert measured.codec(bed, "wavelet_diffusion", "fd") is None and measured.codec(bed, "ddim", "fd") is None
    assert measured.codec(bed, "latent_diffusion", "w2") is None
    assert read_records(tmp_path)["digits"] == {} and read_json(path)["cells"].keys() == cells.keys()
