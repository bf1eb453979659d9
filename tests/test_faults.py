"""What goes wrong while something runs: nothing is lost, nothing is half written, and the answer is one sentence."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_store import tiny

import catalog
from flows import agenda, cell, score, study
from flows.agenda import Errand, Item
from flows.cell import Workplace
from flows.records import Unwritten, partial, read_json, write_json
from flows.study import Effort
from methods.core import models, run


def no_room(path: Path) -> None:
    """A device that is full takes what this process is going to write for a file: the system refuses it for real."""
    partial(path).parent.mkdir(parents=True, exist_ok=True)
    partial(path).symlink_to("/dev/full")


def test_a_full_disk_is_one_sentence_and_earlier_records_stand(tmp_path: Path) -> None:
    earlier = tmp_path / "mixture" / "floor.json"
    write_json(earlier, {"earlier": True})
    asked = [sys.executable, "-m", "flows.study", "floor", "--bed", "mixture", "--results", str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, preexec_fn=lambda: no_room(earlier), check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "floor.json could not be written (No space left on device)" in done.stderr
    assert [path.name for path in earlier.parent.iterdir()] == ["floor.json"] and read_json(earlier) == {
        "earlier": True
    }


def test_a_disk_that_is_full_for_a_technique_leaves_its_earlier_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    beds = catalog.load().beds
    monkeypatch.setitem(beds, "mixture", beds["mixture"].model_copy(update={"n": 100}))
    monkeypatch.setattr(score, "EXACT_REFERENCE_STEPS", 32)
    earlier = tmp_path / "results" / "mixture" / "ddim.json"
    write_json(earlier, {"earlier": True})
    no_room(earlier)
    asked = ["run", "ddim", "--bed", "mixture", "--work", str(tmp_path), "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit) as stop:
        study.main(study.app, asked)
    assert stop.value.code == 2
    assert "ddim.json could not be written (No space left on device)" in capsys.readouterr().err.splitlines()[-1]
    assert read_json(earlier) == {"earlier": True} and [path.name for path in earlier.parent.iterdir()] == ["ddim.json"]


@pytest.mark.parametrize("part", ["mkdir", "lock"])
def test_no_room_for_a_folder_or_a_lock_is_one_sentence(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((cell.Path, "mkdir") if part == "mkdir" else (cell.FileLock, "acquire")), full)
    with pytest.raises(Unwritten, match=r"safetensors could not be written \(No space left on device\)"):
        cell.train(tiny({}), 0, Workplace(tmp_path))


def test_weights_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object, path: Path, *_: object) -> None:
        partial(path).parent.mkdir(parents=True)
        partial(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "save", fail)
    with pytest.raises(Unwritten, match="No space left on device"):
        cell.train(tiny({}), 0, Workplace(tmp_path))
    assert not [path for path in (tmp_path / "digits" / "train").rglob("*") if path.is_file()]


def test_what_fails_while_a_file_is_made_is_not_blamed_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError("the data are not there")

    monkeypatch.setattr(cell, "training_set", fail)
    with pytest.raises(FileNotFoundError, match="the data are not there"):
        cell.train(tiny({}), 0, Workplace(tmp_path))


def test_a_catalog_that_was_edited_meanwhile_stops_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a record under one catalog and half under another would be counted as one."""
    item = Item("train", "digits", "baseline", '{"methods": {}}')
    errand = Errand(Effort(0.005, 1), tmp_path, tmp_path, agenda.known().digest)
    baseline = agenda.known().baseline
    monkeypatch.setattr(run, "train", lambda *given: pytest.fail("it was to stop"))
    monkeypatch.setitem(vars(agenda.known()), "baseline", baseline.model_copy(update={"steps": baseline.steps + 1}))
    assert "edited while the survey ran" in agenda.make(item, errand)["reason"]


def test_a_survey_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    asked = ["-m", "flows.study", "all", "--budget", "0.5", "--work", str(tmp_path), "--results", str(tmp_path)]
    survey = psutil.Popen([sys.executable, *asked], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (children := [each for each in survey.children(recursive=True) if "spawn_main" in str(each.cmdline())]):
        assert survey.is_running() and time.monotonic() < until
        time.sleep(0.2)
    time.sleep(5)
    survey.kill()
    survey.wait()
    assert psutil.wait_procs(children, timeout=60)[1] == []
