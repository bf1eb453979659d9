"""Two processes that share the work of a training give what one gives."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file

import catalog
from catalog import Cell
from flows import cell, parallel
from flows.cell import Spec, Workplace, metadata
from methods.core.errors import Conflict, Unavailable


@pytest.mark.parametrize("methods", [{}, {"immiscible_diffusion": {}}], ids=["independent", "coupled over the batch"])
def test_two_processes_train_as_one(
    tmp_path: Path, methods: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses along the way, and weights within what another order of summation does to float32: 5e-6 here.

    What torch is about to take away fails in the processes too.
    """
    monkeypatch.setenv("PYTHONWARNINGS", "error::FutureWarning")
    known = catalog.load()
    spec = Spec(known, known.bed("digits"), Cell(methods=methods), ((0, 0),), budget=0.05)
    alone = cell.train(spec, 0, Workplace(tmp_path / "alone"))
    together = parallel.train(spec, 0, Workplace(tmp_path / "together"), processes=2)
    assert metadata(together)["images"] == metadata(alone)["images"]
    assert metadata(together)["counters"] == metadata(alone)["counters"]
    curves = [torch.tensor([loss for _, _, loss in metadata(path)["curve"]]) for path in (alone, together)]
    assert len(curves[0]) > 1 and torch.allclose(curves[1], curves[0], rtol=1e-5)
    first, second = load_file(alone), load_file(together)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(second[name], tensor, atol=1e-4), name


def test_a_batch_that_cannot_be_shared_out_is_one_sentence(tmp_path: Path) -> None:
    known = catalog.load()
    spec = Spec(known, known.bed("digits"), Cell(methods={}), ((0, 0),))
    with pytest.raises(Conflict, match="batch of 64 cannot be shared out over 3 processes"):
        parallel.train(spec, 0, Workplace(tmp_path), processes=3)


def small() -> Spec:
    known = catalog.load()
    return Spec(known, known.bed("digits"), Cell(methods={}), ((0, 0),), budget=0.005)


def test_more_processes_than_devices_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(parallel, "together", lambda *given: pytest.fail("nothing is to start"))
    with pytest.raises(Unavailable, match="Each of 4 processes needs a CUDA device, and torch sees 2"):
        parallel.train(small(), 0, Workplace(tmp_path), processes=4)


def test_a_group_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.subprocess, "run", lambda command, **given: CompletedProcess(command, 1))
    with pytest.raises(Unavailable, match=r"2 processes did not train baseline, seed 0, together: .* status 1"):
        parallel.train(small(), 0, Workplace(tmp_path), processes=2)


def test_two_that_want_the_same_weights_wait_for_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def train(command: list[str], **given: object) -> CompletedProcess[str]:
        started.append(command)
        cell.train(small(), 0, Workplace(tmp_path))
        return CompletedProcess(command, 0)

    monkeypatch.setattr(parallel.subprocess, "run", train)
    with ThreadPoolExecutor(2) as both:
        found = list(both.map(lambda _: parallel.train(small(), 0, Workplace(tmp_path), processes=2), range(2)))
    assert len(started) == 1 and found[0] == found[1] and found[0].exists()
