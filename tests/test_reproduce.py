"""Reproductions: differences are found and weighed, nothing committed passes for a result, DVC is told the truth."""

import json
import os
import subprocess
import sys
import threading
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
import yaml
from safetensors.torch import save_file

import catalog
from catalog import Catalog, CatalogError
from flows import records, reproduce, stages, study
from flows.cell import Workplace
from flows.home import HOME, RESULTS
from flows.ledger import judge_records, read_records, record_files
from flows.records import provenance, read_json, write_json
from flows.reproduction import (
    Compared,
    Kind,
    Reproduction,
    as_json,
    as_markdown,
    as_table,
    changed,
    compare,
    machines,
    rows,
    unlike,
)
from methods.core.identity import training_fingerprint

pytestmark = pytest.mark.filterwarnings("default")
SUBJECT = "deepcache"


@pytest.fixture(scope="module")
def known() -> Catalog:
    return catalog.load()


@pytest.fixture(scope="module")
def results(known: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.everything(known, tmp_path_factory.mktemp("results"))


@pytest.fixture
def committed(results: Path) -> dict[str, Any]:
    return read_json(results / "digits" / f"{SUBJECT}.json")


def beside(committed: dict[str, Any], fresh: dict[str, Any] | None, machine: tuple[str, ...] | None = ()) -> Compared:
    return Compared(
        committed["id"], tuple(committed["cells"]), committed == fresh, machine, compare(committed, fresh)
    )  # fmt: skip


def whole(*records: Compared) -> Reproduction:
    return Reproduction("digits", "c0ffee", records, ())


def kinds(found: Compared) -> set[tuple[Kind, str]]:
    return {(each.kind, each.name) for each in found.differences}


def test_the_same_record_differs_in_nothing(committed: dict[str, Any]) -> None:
    found = beside(committed, deepcopy(committed))
    assert found.identical and not found.differences and whole(found).ok
    assert rows(whole(found))[0]["outcome"] == "identical bytes" and len(rows(whole(found))) == 1
    assert "1 of 1 record of digits came out as the same bytes; no verdict changed." in str(whole(found))


@pytest.mark.parametrize(("share", "kind", "ok"), [(0.5, "within", True), (1.5, "outside", False)])
def test_a_mean_is_looked_for_in_the_committed_interval(
    committed: dict[str, Any], share: float, kind: Kind, ok: bool
) -> None:
    fresh = deepcopy(committed)
    fd = fresh["cells"][SUBJECT]["metrics"]["fd"]
    fd["mean"] += share * (fd["high"] - fd["mean"])
    found = beside(committed, fresh, ("cpu another then, one now",))
    assert kinds(found) == {(kind, "fd")} and whole(found).ok == ok
    (difference,) = found.differences
    before = committed["cells"][SUBJECT]["metrics"]["fd"]
    assert difference.interval == (before["low"], before["high"]) and difference.unit == before["unit"]
    assert (difference.committed, difference.fresh) == (before["mean"], fd["mean"])


def test_a_single_block_must_be_met_exactly(committed: dict[str, Any]) -> None:
    fd = committed["cells"][SUBJECT]["metrics"]["fd"]
    fd.update(low=None, high=None, blocks=1)
    fresh = deepcopy(committed)
    fresh["cells"][SUBJECT]["metrics"]["fd"]["mean"] += 1e-9
    assert kinds(beside(committed, fresh)) == {("outside", "fd")}


def test_an_exact_cost_that_moves_is_a_problem_and_a_counter_is_not(committed: dict[str, Any]) -> None:
    fresh = deepcopy(committed)
    fresh["cells"][SUBJECT]["cost"]["macs"] += 1
    assert kinds(beside(committed, fresh)) == {("cost", "macs")} and not whole(beside(committed, fresh)).ok
    fresh = deepcopy(committed)
    counter = next(iter(fresh["cells"][SUBJECT]["counters"]))
    fresh["cells"][SUBJECT]["counters"][counter] += 1
    elsewhere = beside(committed, fresh, ("cpu another then, one now",))
    assert kinds(elsewhere) == {("counter", counter)} and whole(elsewhere).ok


def test_what_is_on_one_side_only_is_a_problem(committed: dict[str, Any]) -> None:
    fresh = deepcopy(committed)
    del fresh["cells"][SUBJECT]
    del fresh["cells"]["baseline"]["metrics"]["fd"]
    found = beside(committed, fresh)
    assert kinds(found) == {("missing", "cell"), ("missing", "fd")}
    assert kinds(beside(fresh, committed)) == {("missing", "cell"), ("missing", "fd")}
    absent = beside(committed, None)
    assert kinds(absent) == {("missing", "record")} and whole(absent).failed == [SUBJECT]
    assert "not reproduced: deepcache" in str(whole(absent))
    assert [(line["cell"], line["outcome"]) for line in rows(whole(absent))] == [("(record)", "on one side only")]


def test_other_settings_and_a_failed_run_are_problems(committed: dict[str, Any]) -> None:
    fresh = deepcopy(committed) | {"status": "failed", "reason": "not finite"}
    fresh["cells"][SUBJECT]["seeds"] = {"train": [7], "sample": [7]}
    found = beside(committed, fresh)
    assert kinds(found) == {("field", "status"), ("field", "reason"), ("field", "seeds")} and found.problems


def test_numbers_made_by_other_code_may_be_the_same_numbers(committed: dict[str, Any]) -> None:
    fresh = deepcopy(committed)
    fresh["spec_hash"] = "another"
    for cell in fresh["cells"].values():
        cell["fingerprints"]["cell"] = "another"
    found = beside(committed, fresh)
    assert kinds(found) == {("code", "cell")} and whole(found).ok and not found.expects_bytes
    (line,) = rows(whole(found))
    assert line["outcome"] == "the same numbers, made by other code" and line["cell"] == f"all {len(fresh['cells'])}"


def test_what_makes_a_machine_another_kind() -> None:
    then = {**made_up.MADE, "versions": {"torch": "2.13.0", "numpy": "2.4.6"}}
    busy = {**then, "host": {**then["host"], "load": 9.0, "cores": 64}}
    assert unlike(then, busy) == ()
    other = {**then, "host": {**then["host"], "cpu": "another"}, "versions": {"torch": "2.14.0", "numpy": "2.4.6"}}
    assert unlike(then, other) == ("cpu a processor then, another now", "torch 2.13.0 then, 2.14.0 now")
    assert unlike(None, then) is None
    assert unlike(provenance(), provenance()) == ()


def test_processors_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights came out otherwise on another processor that a virtual machine called the same."""

    def named(model: int) -> dict[str, Any]:
        said = ["processor : 0", "cpu family\t: 25", f"model\t\t: {model}", "model name\t: AMD EPYC", "flags : a b:c"]
        monkeypatch.setattr(records, "_lines", lambda path: said)
        return provenance()

    one, other = named(1), named(17)
    assert one["host"]["cpu"] == "AMD EPYC (family 25, model 1)"
    assert unlike(one, other) and "model 17" in " ".join(unlike(one, other) or ())


def test_bytes_are_expected_only_from_the_same_kind_of_machine(committed: dict[str, Any]) -> None:
    fresh = deepcopy(committed)
    fd = fresh["cells"][SUBJECT]["metrics"]["fd"]
    fd["mean"] = (fd["mean"] + fd["high"]) / 2
    same, other, unknown = (beside(committed, fresh, machine) for machine in ((), ("cpu a then, b now",), None))
    assert same.expects_bytes and not other.expects_bytes and not unknown.expects_bytes
    assert whole(same).failed == [SUBJECT] and not whole(same).ok and whole(other).ok and whole(unknown).ok
    assert "nothing says why deepcache moved" in str(whole(same)) and "nothing says" not in str(whole(other))
    assert as_json(whole(same))["ok"] is False
    told = machines(whole(same, replace(other, id="a"), replace(unknown, id="b")))
    assert [text.split(",")[0].split("(")[0].strip() for text in told] == [
        "Made on the same kind of machine with the same versions",
        "Made on another kind of machine",
        "Made on a machine that is not on record",
    ]


def test_bytes_that_should_be_the_same_and_are_not_fail_the_command(
    committed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = deepcopy(committed)
    counter = next(iter(fresh["cells"][SUBJECT]["counters"]))
    fresh["cells"][SUBJECT]["counters"][counter] += 1
    monkeypatch.setattr(reproduce.signal, "signal", lambda *given: None)
    monkeypatch.setattr(reproduce, "reproduced", lambda *given: whole(beside(committed, fresh)))
    with pytest.raises(SystemExit, match="nothing says why deepcache moved at all; not reproduced: deepcache"):
        study.main(reproduce.app, ["--methods", SUBJECT])


def test_a_verdict_that_changes_is_named(known: Catalog, results: Path) -> None:
    before = read_records(results)
    after = deepcopy(before)
    for cell in after["digits"]["ddim"]["cells"].values():
        cell["counters"] = dict.fromkeys(cell["counters"], 0)
    moved = changed(judge_records(known, before), judge_records(known, after))
    assert moved and {(each.technique, each.bed, each.fresh) for each in moved} == {("ddim", "digits", "not tested")}
    found = Reproduction("digits", "c0ffee", (), moved)
    assert not found.ok and f"{len(moved)} verdict" in str(found)
    assert f"Verdict changed: ddim, {moved[0].claim} on digits: {moved[0].committed} before" in as_markdown(found)


def test_a_report_is_a_table_and_json(committed: dict[str, Any]) -> None:
    fresh = deepcopy(committed)
    fresh["cells"][SUBJECT]["cost"]["macs"] += 1
    fd = fresh["cells"][SUBJECT]["metrics"]["fd"]
    fd["mean"] = (fd["mean"] + fd["high"]) / 2
    found = whole(beside(committed, fresh))
    lines = [line for line in rows(found) if line["cell"] == SUBJECT]
    assert [line["outcome"] for line in lines] == ["another exact cost", "within the interval"]
    assert lines[0]["unit"] == "multiply-accumulates per sample" and as_table(found).row_count == len(rows(found))
    content = json.loads(json.dumps(as_json(found)))
    assert content["ok"] is False and content["records"][0]["expected"] == "identical bytes"
    assert {each["kind"] for each in content["records"][0]["differences"]} == {"cost", "within"}


@pytest.mark.parametrize(
    ("bed", "methods", "sentence"),
    [
        ("digits", ["deepcash"], "did you mean deepcache"),
        ("digits", ["--all-pipelines"], "There is no technique"),
        ("mixture", ["deepcache"], "No record of deepcache on mixture is committed"),
        ("digitz", [], "did you mean digits"),
    ],
)
def test_bad_input_is_one_sentence(bed: str, methods: list[str], sentence: str) -> None:
    with pytest.raises(CatalogError, match=sentence):
        reproduce.wanted(bed, methods, "HEAD")


def test_none_chosen_is_every_committed_record() -> None:
    names = reproduce.git("ls-tree", "--name-only", "HEAD", "results/mixture/").split()
    committed = {path.stem for path in record_files(RESULTS / "mixture")}
    assert committed <= {Path(name).stem for name in names}
    found = reproduce.wanted("mixture", [], "HEAD")
    assert found[0] == "baseline" and set(found) == committed and len(found) == len(committed)


def test_forms_offer_what_the_catalog_has(known: Catalog) -> None:
    from prefect.utilities.callables import parameter_schema

    schema = parameter_schema(reproduce.reproduce.fn).model_dump()
    assert schema["definitions"]["TechniqueId"]["enum"] == list(known.techniques)
    assert "made again" in schema["properties"]["methods"]["description"]


def test_a_fresh_checkout_knows_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "WORK", tmp_path)
    monkeypatch.setenv("ATLAS_STORE", "file:///somewhere")
    room = reproduce.Room(reproduce.git("rev-parse", "HEAD"))
    for _ in range(2):
        reproduce.enter(room, "digits")
        assert [path.name for path in (room.fresh / "digits").iterdir()] == [reproduce.FROZEN]
        assert not (room.checkout / "work").exists() and not (room.checkout / ".dvc" / "cache").exists()
        (room.checkout / "work").mkdir()
    assert (room.committed / "digits" / "baseline.json").exists()
    assert "ATLAS_STORE" not in room.env() and room.env()["ATLAS_HOME"] == str(room.checkout)


def test_whoever_comes_second_waits_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "WORK", tmp_path)
    said, told = [], threading.Event()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    def second() -> None:
        with stages.alone("reproduction", say):
            said.append("done")

    with stages.alone("reproduction", pytest.fail):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(10) and len(said) == 1 and "waits until it is done" in said[0]
    thread.join(10)
    assert said[1:] == ["done"]


def test_only_what_is_whole_and_current_is_told_to_dvc(
    known: Catalog, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "WORK", tmp_path)
    monkeypatch.setattr(stages, "RESULTS", results)
    assert stages.stages_made(["ddim"], "mixture") == ["mixture@ddim"]
    assert stages.stages_made(["ddim", "deepcache"], "digits") == [], "no weights are there"
    spec, place = study.trainings(known, "digits")["baseline"], Workplace(tmp_path)
    for seed in spec.train_seeds:
        assert stages.stages_made(["ddim"], "digits") == [], f"the weights of seed {seed} are missing"
        note = json.dumps({"fingerprint": training_fingerprint(spec.recipe, spec.context(seed))})
        path = place.path(spec, "train", seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.zeros(1)}, path, {"note": note})
    whole = path.read_bytes()
    path.write_bytes(b"not weights")
    assert stages.stages_made(["ddim"], "digits") == [], "damaged weights are no weights"
    path.write_bytes(whole)
    monkeypatch.setattr(stages, "HOME", shadow(tmp_path / "home", tmp_path, results))
    asked = ["ddim", made_up.FAILED, made_up.MISSING, made_up.STALE, "ddim+deepcache"]
    assert stages.stages_made(asked, "digits") == ["digits-train@baseline", "digits@ddim"]


def shadow(home: Path, work: Path, results: Path) -> Path:
    """The checkout with another work folder and other results."""
    home.mkdir()
    for name in ("catalog", "methods", "params.yaml"):
        (home / name).symlink_to(HOME / name)
    (home / "work").symlink_to(work)
    (home / "results").symlink_to(results)
    return home


def test_without_dvc_nothing_is_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "HOME", tmp_path)
    assert stages.settle(["ddim"], "mixture") == []


def ask(*command: str, folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder), "ATLAS_HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as committed, in a folder of its own."""
    home = tmp_path / "home"
    ask("git", "clone", "--quiet", str(HOME), str(home), folder=tmp_path)
    (home / ".venv").symlink_to(sys.prefix)
    for module in (reproduce, stages):
        monkeypatch.setattr(module, "HOME", home)
        monkeypatch.setattr(module, "WORK", home / "work")
    monkeypatch.setattr(stages, "RESULTS", home / "results")
    load = catalog.load
    monkeypatch.setattr(catalog, "load", lambda root=None: load(root or home / "catalog"))
    return home


def shrink(home: Path, bed: str, **smaller: Any) -> None:
    """Make a bed small, and forget what was measured on it."""
    path = home / "catalog" / "beds" / f"{bed}.yaml"
    given = yaml.safe_load(path.read_text())
    for key, value in smaller.items():
        given[key] = {**given[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(given))
    for path in (home / "results" / bed).iterdir():
        if path.name != "features.safetensors":
            path.unlink()


@pytest.fixture
def small(clone: Path) -> Path:
    """A clone with a small bed, whose results were made without DVC and committed."""
    shrink(clone, "mixture", n=100, batch=100)
    ask(sys.executable, "-m", "flows.study", "floor", "--bed", "mixture", folder=clone)
    for id in ("baseline", "ddim"):
        ask(sys.executable, "-m", "flows.study", "run", id, "--bed", "mixture", folder=clone)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    ask("git", *author, "commit", "--quiet", "--no-verify", "--all", "--message=small", folder=clone)
    return clone


@pytest.mark.slow
def test_dvc_takes_note_of_the_trainings_of_a_survey(clone: Path) -> None:
    """Two records and the weights that they share, made by two processes and without DVC."""
    shrink(clone, "digits", n=60, seeds={"train": [0, 1], "sample": [0, 1]}, fit={"iterations": 12, "warmup": 2})
    ask(sys.executable, "-m", "flows.study", "floor", "--bed", "digits", folder=clone)
    survey = ["-m", "flows.study", "all", "--bed", "digits", "--jobs", "2", "--methods", "baseline", "ddim"]
    ask(sys.executable, *survey, folder=clone)
    made = stages.settle(["baseline", "ddim"], "digits")
    assert made == ["digits-train@baseline", "digits@baseline", "digits@ddim"]
    first = read_json(clone / "results" / "digits" / "ddim.cost.json")["timing"]["start"]["seconds"]
    assert all(0 < seconds < 60 for seconds in first.values())
    assert "up to date" in ask(sys.executable, "-m", "dvc", "status", *made, folder=clone)
    for path in (clone / "work" / "digits" / "train" / "baseline").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "modified" in ask(sys.executable, "-m", "dvc", "status", *made, folder=clone), "DVC reads the weights"


@pytest.mark.slow
def test_dvc_takes_note_of_a_survey_and_makes_the_same_bytes_again(small: Path) -> None:
    from prefect.testing.utilities import prefect_test_harness

    assert stages.settle(["baseline", "ddim"], "mixture") == ["mixture@baseline", "mixture@ddim"]
    assert "up to date" in ask(sys.executable, "-m", "dvc", "status", "mixture@baseline", "mixture@ddim", folder=small)
    with prefect_test_harness(server_startup_timeout=180):
        assert "2 of 2 records of mixture came out as the same bytes" in reproduce.reproduce("mixture", ["ddim"])
    room = reproduce.Room(reproduce.git("rev-parse", "HEAD"))
    begun = stages.STAGE.findall(room.log.read_text())
    assert begun == 2 * ["mixture-floor", "mixture@baseline", "mixture@ddim"], "once planned, once run"
    content = read_json(room.folder / "report.json")
    assert content["ok"] and not content["verdicts"]
    for each in content["records"]:
        assert each["identical"] and each["machine"] == [] and not each["differences"]
    moved = read_json(room.committed / "mixture" / "ddim.json")
    moved["cells"]["ddim"]["cost"]["evaluations"] += 1
    write_json(room.committed / "mixture" / "ddim.json", moved)
    assert reproduce.compared(room, "mixture", ["ddim"]).failed == ["ddim"]
