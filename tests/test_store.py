"""Machines that share a store make every file once between them; processes that share a folder do so too."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from catalog import Cell
from flows import agenda, cell, fan_out, pool
from flows.agenda import Errand, Item, Row
from flows.cell import Spec, Workplace
from flows.forms import KNOWN
from flows.records import write_json
from flows.store import Store
from flows.study import Effort, study
from methods.core import run
from methods.core.errors import Unavailable


def tiny(methods: dict[str, dict[str, float]]) -> Spec:
    bed = KNOWN.bed("digits").model_copy(update={"n": 100})
    asked = KNOWN.canonical(Cell(methods=methods, steps=4), "digits")
    return Spec(KNOWN, bed, asked, ((0, 0),), budget=0.005, fidelity=False)


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("this machine was to find it")


def test_files_come_back_whole(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path / 'store'}")
    (tmp_path / "a").write_bytes(b"1")
    store.push(tmp_path / "a", "bed/train/ff.safetensors")
    (tmp_path / "a").write_bytes(b"22")
    store.push(tmp_path / "a", "bed/train/ff.safetensors")
    assert store.list("bed/train") == ["ff.safetensors"] and store.list("nowhere") == []
    assert store.fetch("bed/train/ff.safetensors", tmp_path / "b/c") and (tmp_path / "b/c").read_bytes() == b"22"
    assert not store.fetch("bed/train/00.safetensors", tmp_path / "d") and not (tmp_path / "d").exists()


def test_a_second_machine_makes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"file://{tmp_path / 'store'}")
    first, second = (Workplace(tmp_path / name, store) for name in ("first", "second"))
    spec = tiny({"diff_pruning": {}})
    made = cell.sample(spec, 0, 0, first)
    monkeypatch.setattr(run, "train", never)
    monkeypatch.setattr(run, "compress", never)
    monkeypatch.setattr(run, "generate", never)
    found = cell.sample(spec, 0, 0, second)
    assert found != made and found.read_bytes() == made.read_bytes()
    assert cell.seconds(found) == cell.seconds(made) > 0
    assert cell.compress(spec, 0, second).exists() and cell.train(spec, 0, second).exists()


def test_records_travel_with_what_lies_beside_them(tmp_path: Path) -> None:
    first, second = (There(Effort(0.1, 1), tmp_path / name, tmp_path / name / "results") for name in ("one", "two"))
    for name in ("ddim.json", "ddim.cost.json", "ddim_other.json"):
        write_json(first.results / "digits" / name, {"name": name})
    agenda.push_record(first, "digits", "ddim")
    agenda.push_record(first, "digits", "ddim_other")
    agenda.fetch_record(second, "digits", "ddim")
    assert sorted(path.name for path in (second.results / "digits").iterdir()) == ["ddim.cost.json", "ddim.json"]


class Remembers(LocalFileSystem):
    """Files whose folders are listed once, as s3fs does it, until it is told to forget."""

    protocol = "remembers"
    listed: ClassVar[dict[str, list[str]]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("remembers://")

    def ls(self, path: str, detail: bool = False, **given: Any) -> list[str]:
        return self.listed.setdefault(path, [str(each) for each in super().ls(path, detail=False, **given)])

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listed.clear()


def test_what_others_put_there_meanwhile_is_listed(tmp_path: Path) -> None:
    fsspec.register_implementation("remembers", Remembers, clobber=True)
    store = Store(f"remembers://{tmp_path}")
    for name in ("a", "b"):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / name).write_bytes(b"1")
        assert name in store.list("results")


class There(Errand):
    """The errand of a machine that shares a store."""

    @property
    def place(self) -> Workplace:
        return Workplace(self.work, Store(f"file://{self.work.parent / 'store'}"))


def test_a_record_is_fetched_as_it_arrives(tmp_path: Path) -> None:
    """Not only at the end: the site shows each result when it is there."""
    here, there = (There(Effort(0.1, 1), tmp_path / name, tmp_path / name / "results") for name in ("one", "two"))
    seen: list[bool] = []

    class Elsewhere:
        room = 1

        def length(self, waiting: float) -> float:
            return 0.0

        def submit(self, items: Sequence[Item]) -> Future[list[Row]]:
            (item,) = items
            if item.step == "record":
                write_json(there.results / item.bed / f"{item.what}.json", {"id": item.what})
                agenda.push_record(there, item.bed, item.what)
            future: Future[list[Row]] = Future()
            future.set_result([{"step": item.step, "id": item.what, "seconds": 1.0, "reason": None}])
            return future

    def follow(done: float, whole: float, text: str) -> None:
        if text.startswith("record"):
            seen.append((here.results / "mixture" / f"{text.removeprefix('record ')}.json").exists())

    pool.measure([study(KNOWN, "mixture", id, here.spend) for id in ("baseline", "ddim")], here, Elsewhere(), follow)
    assert seen == [True, True]


def test_a_worker_with_another_store_refuses_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records would lie where nobody looks."""
    monkeypatch.setattr(fan_out.SETTINGS, "store", None)
    fan_out.require_same_store("")
    with pytest.raises(
        Unavailable, match=r"through s3://bucket/atlas, and this worker within its own machine: .*ATLAS_STORE"
    ):
        fan_out.require_same_store("s3://bucket/atlas")
    monkeypatch.setattr(fan_out.SETTINGS, "store", "sftp://me:secret@host/atlas")
    fan_out.require_same_store("sftp://host/atlas")
    with pytest.raises(Unavailable, match="within its own machine, and this worker through sftp://host/atlas"):
        fan_out.require_same_store("")


WANTS = """
import sys
from pathlib import Path
from flows import cell
from flows.cell import Workplace
from methods.core import run
from test_store import tiny
real = run.train
run.train = lambda *given: (print("trained", flush=True), real(*given))[1]
print(cell.train(tiny({}), 0, Workplace(Path(sys.argv[1]))).exists(), flush=True)
"""


def test_two_that_want_the_same_weights_wait_for_one_training(tmp_path: Path) -> None:
    asked = [sys.executable, "-c", WANTS, str(tmp_path)]
    both = [subprocess.Popen(asked, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(word for words in said for word in words) == ["True", "True", "trained"]


def test_an_item_says_what_it_is() -> None:
    assert str(Item("train", "digits", "dit", seed=3)) == "train dit, seed 3"
    assert str(Item("record", "digits", "ddim")) == "record ddim"
