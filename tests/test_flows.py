"""The drivers: steps resume and never half-write, bad input is one sentence, and every flow runs end to end."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowFilter, FlowFilterName
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import FailedRun
from prefect.states import Crashed, Running
from prefect.utilities.callables import parameter_schema

from catalog import Cell
from flows import (
    agenda,
    artifacts,
    cell,
    compress,
    evaluate,
    fan_out,
    forms,
    home,
    plan,
    pool,
    publish,
    records,
    reproduce,
    sample,
    score,
    study,
    survey,
    tracking,
    train,
)
from flows.agenda import Errand, Item, Row
from flows.cell import Spec, Workplace, training_set
from flows.records import Damaged, read_json
from flows.scale import Resting, pages
from flows.score import identity
from flows.study import Effort
from methods.core.errors import Conflict, Unavailable
from methods.core.identity import training_fingerprint
from methods.training.objective.v_prediction import Velocity

pytestmark = pytest.mark.filterwarnings("default")
KNOWN = forms.KNOWN
TINY = Effort(budget=0.005, blocks=2)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 100 samples and a hurried feature network: these tests are about files and flows, not numbers."""
    digits = KNOWN.beds["digits"]
    assert digits.features is not None
    monkeypatch.setitem(
        KNOWN.beds,
        "digits",
        digits.model_copy(update={"n": 100, "features": digits.features.model_copy(update={"epochs": 1})}),
    )


def tiny(methods: dict[str, dict[str, float]], steps: int | None = 4) -> Spec:
    asked = KNOWN.canonical(Cell(methods=methods, steps=steps), "digits")
    return Spec(KNOWN, KNOWN.bed("digits"), asked, ((0, 0), (0, 1)), budget=0.005, fidelity=False)


def test_where_a_bed_flips_training_sees_mirror_images_and_weights_say_so() -> None:
    plain = KNOWN.bed("digits")
    assert plain.augment is not None
    flipping = plain.model_copy(update={"augment": plain.augment.model_copy(update={"flip": True})})
    one, both = training_set(plain), training_set(flipping)
    assert torch.equal(both.images, torch.cat([one.images, one.images.flip(3)]))
    assert torch.equal(both.labels, torch.cat([one.labels, one.labels]))
    specs = [Spec(KNOWN, bed, Cell(methods={}), ((0, 0),)) for bed in (plain, flipping)]
    assert len({training_fingerprint(each.recipe, each.context(0)) for each in specs}) == 2
    assert len({identity(each, "data", "extractor") for each in specs}) == 2


@pytest.mark.parametrize("id", [id for id, entry in KNOWN.techniques.items() if "digits" in entry.beds])
def test_what_fidelity_is_measured_against_can_be_run(id: str) -> None:
    """Of every technique with a compression on top: weights trained for a sampler of their own have no other flow."""
    builds: dict[str, dict[str, float]] = {key: {} for key in (*KNOWN.technique(id).builds_on, id, "int8_dynamic")}
    try:
        spec = replace(tiny(builds), fidelity=True)
        spec.recipe  # noqa: B018
    except Conflict:
        return
    if score.has_fidelity(spec):
        assert score.many_steps(spec).recipe.steps == score.reference_steps(spec)


@pytest.mark.parametrize("id", KNOWN.techniques)
def test_the_catalog_knows_how_many_steps_a_cell_takes(id: str) -> None:
    for bed in KNOWN.technique(id).beds:
        for each in KNOWN.cells(id, bed).values():
            assert Spec(KNOWN, KNOWN.bed(bed), each, ((0, 0),)).recipe.steps == KNOWN.steps(each, bed)


@pytest.mark.parametrize("id", KNOWN.techniques)
def test_what_a_claim_of_fidelity_compares_aims_at_the_same_end_points(id: str) -> None:
    for claim in KNOWN.technique(id).claims:
        if claim.metric == "fidelity":
            for bed in map(KNOWN.bed, claim.beds):
                cells = [KNOWN.canonical(each, bed.name) for each in claim.cells]
                specs = [Spec(KNOWN, bed, each, bed.seeds.blocks) for each in cells]
                assert all(map(score.has_fidelity, specs))
                assert len({score.many_steps(spec).name for spec in specs}) == 1


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "work")


def test_a_step_that_is_done_is_not_done_again(place: Workplace) -> None:
    path = cell.train(tiny({}), 0, place)
    before = path.stat().st_mtime_ns
    assert cell.train(tiny({"deepcache": {}}), 0, place) == path, "sampling methods share the training"
    assert path.stat().st_mtime_ns == before
    assert cell.train(tiny({"v_prediction": {}}), 0, place) != path


def test_a_technique_that_trains_the_same_way_finds_the_weights(place: Workplace) -> None:
    assert cell.train(tiny({"v_prediction": {}}), 0, place) == cell.train(
        tiny({"progressive_distillation": {}}), 0, place
    )


def test_another_budget_is_another_training(place: Workplace) -> None:
    path = cell.train(tiny({}), 0, place)
    before = cell.metadata(path)["fingerprint"]
    cell.train(replace(tiny({}), budget=0.01), 0, place)
    assert cell.metadata(path)["fingerprint"] != before


@pytest.mark.parametrize("damage", [lambda whole: b"not weights", lambda whole: whole[: len(whole) // 2]])
def test_damaged_weights_are_named_and_kept(place: Workplace, damage: Callable[[bytes], bytes]) -> None:
    """Whatever is asked of them: to be trained again, or to be sampled from."""
    path = cell.train(tiny({}), 0, place)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    for step in (lambda: cell.train(tiny({}), 0, place), lambda: cell.sample(tiny({}), 0, 0, place)):
        with pytest.raises(Damaged, match=path.name):
            step()
    assert path.read_bytes() == damaged


def flip_last_bit(path: Path) -> None:
    """Leave a file that is as long as before and whose header says what it said."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("methods", [{}, {"low_rank_svd": {}}], ids=["sampled", "compressed"])
def test_weights_that_lost_one_bit_are_not_used(methods: dict[str, Any], place: Workplace) -> None:
    flip_last_bit(cell.train(tiny({}), 0, place))
    with pytest.raises(Damaged):
        cell.sample(tiny(methods), 0, 0, place)


def test_samples_that_lost_one_bit_are_not_scored(place: Workplace) -> None:
    path = cell.sample(tiny({}), 0, 0, place)
    cell.read_samples(path)
    flip_last_bit(path)
    with pytest.raises(Damaged, match=path.name):
        cell.read_samples(path)


def test_one_damaged_file_stops_only_what_needs_it(place: Workplace) -> None:
    spec, errand = tiny({}), Errand(TINY, place.root, place.root)
    asked = [agenda.step("train", replace(tiny({}), bed=KNOWN.bed("digits")).training, 0)]
    asked.append(agenda.step("train", tiny({"v_prediction": {}}).training, 0))
    path = cell.train(spec, 0, place)
    path.write_bytes(b"not weights")
    rows = agenda.carry_out({item: set() for item in asked}, errand, pool.Here(errand))
    assert [(row["id"], bool(row["reason"])) for row in rows] == [("baseline", True), ("v_prediction", False)]
    assert f"{path.name} is damaged" in rows[0]["reason"] and path.read_bytes() == b"not weights"
    assert cell.train(tiny({"v_prediction": {}}), 0, place).exists()


@pytest.mark.parametrize("error", [ValueError("a"), AssertionError("b"), OSError(5, "c"), KeyError("d")])
def test_an_unexpected_error_is_a_reason_with_its_kind_and_the_log_says_where(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cell, "train", fail)
    row = agenda.make(Item("train", "digits", "baseline", '{"methods": {}}'), Errand(TINY, tmp_path, tmp_path))
    assert row["reason"] == f"baseline: {type(error).__name__}: {error}"
    assert "in fail" in caplog.text


def test_records_name_the_commit_wherever_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker starts its runs in temporary folders."""
    at_home = reproduce.git("rev-parse", "HEAD")
    monkeypatch.chdir(tmp_path)
    assert records.commit() == at_home
    changed = reproduce.git("status", "--porcelain", "--untracked-files=no", "--", "methods", "flows", "catalog")
    made = records.provenance()
    assert (made["commit"], made["dirty"]) == (at_home, bool(changed))


def test_damaged_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "deepcache.json"
    path.write_text('{"schema": 1, ')
    with pytest.raises(Damaged, match=r"deepcache\.json"):
        read_json(path)


def test_a_damaged_record_is_not_overwritten(place: Workplace, tmp_path: Path) -> None:
    path = tmp_path / "digits/deepcache.json"
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(Damaged, match=r"deepcache\.json"):
        study.record(study.study(KNOWN, "digits", "deepcache", TINY), place, tmp_path)
    assert path.read_text() == "{"


def test_what_is_left_to_do_shrinks_as_steps_finish(place: Workplace) -> None:
    from flows.progress import effort, share

    spec = tiny({})
    before, training = effort([spec, tiny({"deepcache": {}})], place), share(spec, place, "train", 0)
    cell.train(spec, 0, place)
    assert share(spec, place, "train", 0) == 0
    assert effort([spec, tiny({"deepcache": {}})], place) == pytest.approx(before - training)
    assert share(spec, place, "sample", 0, 1) == 4 * spec.bed.n


def test_the_same_cell_is_the_same_bytes(place: Workplace, tmp_path: Path) -> None:
    first = score.evaluate(tiny({"deepcache": {}}), place)
    second = score.evaluate(tiny({"deepcache": {}}), Workplace(tmp_path / "again"))
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert first["counters"]["calls_skipped"] > 0
    spent = first["cost"]
    assert spent["evaluations"] == 4 and spent["active_parameters"] < spent["parameters"]


def test_one_off_macs_are_those_of_the_whole_preparation(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extrapolated from two short runs, they are what a counted run of the real length takes."""
    monkeypatch.setattr(score, "SHORT", 2)
    spec = replace(tiny({"es_ddpm": {}}), budget=1.0)
    for iterations in (6, 9):
        longer = SimpleNamespace(recipe=replace(spec.recipe, fit=replace(spec.recipe.fit, iterations=iterations)))
        longer.bed, longer.name, longer.cell, longer.passed = spec.bed, f"es_ddpm-{iterations}", spec.cell, ""
        assert score.preparation_macs(longer, place) == score.short_run(spec, iterations)


def test_a_bed_with_an_exact_denoiser_trains_nothing(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KNOWN.beds, "mixture", KNOWN.beds["mixture"].model_copy(update={"n": 200}))
    monkeypatch.setattr(score, "EXACT_REFERENCE_STEPS", 128)
    this = study.study(KNOWN, "mixture", "dpm_solver_pp_2m")
    written = study.record(this, place, tmp_path / "results")
    subject = written["cells"][written["default"]]
    assert written["status"] == "ok" and subject["metrics"]["coverage"]["mean"] == 1
    assert subject["metrics"]["fidelity"]["mean"] < written["cells"]["baseline@10"]["metrics"]["fidelity"]["mean"]
    assert written["equal_evaluations"]["cell"] == "baseline@10"
    assert written["equal_macs"]["cell"] is None and "no network" in written["equal_macs"]["reason"]
    assert not list(place.root.rglob("train"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        study.main(study.app, ["run", "deepcache", "--bed", "mixture", "--work", str(place.root)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "exact denoiser" in error and error.count("\n") == 1


def test_kill_during_training_leaves_nothing_half_written(place: Workplace) -> None:
    script = (
        "import sys, catalog; from pathlib import Path; from flows.study import *; from flows.cell import *;"
        "train(study(catalog.load(), 'digits', 'baseline').subject, 0, Workplace(Path(sys.argv[1])),"
        " lambda *a: print('training', flush=True))"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(place.root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "training\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not list(place.root.rglob("*.safetensors"))
    assert cell.train(tiny({}), 0, place).exists(), "the next run completes"


def test_a_failing_cell_is_a_record_with_its_reason(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.core.errors import NothingMatched

    def fail(*_: object) -> None:
        raise NothingMatched("UNet holds no such part")

    monkeypatch.setattr(study, "evaluate", fail)
    this = study.study(KNOWN, "digits", "deepcache", TINY)
    monkeypatch.setattr(study, "feature_net", lambda *_: feature_file(tmp_path))
    written = study.record(this, place, tmp_path / "results")
    assert written["status"] == "failed" and "UNet holds no such part" in written["reason"]
    assert read_json(tmp_path / "results/digits/deepcache.json") == written


def feature_file(folder: Path) -> Path:
    from methods.measure import features
    from methods.nets.classifier import Classifier

    features.save(folder / "features.safetensors", Classifier(1, 8, 10), 0.5)
    return folder / "features.safetensors"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "deepcash"], "did you mean deepcache"),
        (
            ["--methods", "dit", "deepcache"],
            "deepcache and dit cannot be combined: deepcache needs a UNetConfig in `net`",
        ),
        (["--methods", "ddim", "edm_heun"], "ddim and edm_heun cannot be combined: both set `sampler`"),
        (["--methods", "deepcache(period=0)"], "deepcache.period"),
        (["--methods", "deepcache(speed=2)"], "There is no parameter of deepcache 'speed'"),
        (["--methods", "deepcache; rm"], "is not a technique"),
        (["--bed", "digitz"], "did you mean digits"),
        (["--areas", "inferense"], "did you mean inference"),
        (["--methods", "ddim", "--areas", "inference"], "Choose either techniques, which are composed, or areas"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        study.main(survey.app, arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in error and error.count("\n") == 1


def test_missing_data_says_where_to_put_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.data import MissingData, files, mnist

    def offline(*_: object, **__: object) -> None:
        raise TimeoutError("no network")

    monkeypatch.setattr(files, "folders", lambda name: [tmp_path / name])
    monkeypatch.setattr(files.urllib.request, "urlopen", offline)
    with pytest.raises(MissingData, match=rf"Put .*idx.* into {tmp_path / 'mnist'}"):
        mnist.load()


def test_a_survey_makes_every_file_once_and_shares_trainings() -> None:
    studies = [study.study(KNOWN, "digits", id) for id in study.techniques_on(KNOWN, "digits")]
    whole = agenda.agenda_of(studies)
    steps = {name: [item for item in whole if item.step == name] for name in ("train", "compress", "sample", "score")}
    specs = [spec for this in studies for spec in this.specs.values()]
    distinct = {(training_fingerprint(spec.recipe), share) for spec in specs for share in (spec.cell.trained, 1.0)}
    assert len(steps["train"]) == len(distinct) * len(KNOWN.beds["digits"].seeds.train)
    assert {item.what.split("@")[0] for item in steps["compress"]} >= {
        "diff_pruning",
        "progressive_distillation",
        "es_ddpm",
    }
    assert "dpm_solver_pp_2m@64" in {item.what for item in steps["sample"]}, "what fidelity is measured against"
    assert {item.what for item in steps["score"]} == {name for this in studies for name in this.specs}
    assert all(need in whole for needs in whole.values() for need in needs)


def test_an_item_that_cannot_be_made_is_a_reason_and_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = Cell(methods={"dit": {}, "deepcache": {}}).model_dump_json()
    row = agenda.make(agenda.Item("sample", "digits", "dit+deepcache", bad), agenda.Errand(TINY, tmp_path, tmp_path))
    assert "needs a UNetConfig" in row["reason"] and row["step"] == "sample"


class Notes:
    """Notes the batches it is asked to make, makes nothing, and fails at some."""

    room = 1

    def __init__(self, fails: str = "", length: float = 0.0) -> None:
        self.fails, self.batch, self.made = fails, length, list[list[agenda.Item]]()

    def length(self, waiting: float) -> float:
        return self.batch

    def submit(self, items: Sequence[agenda.Item]) -> Future[list[Row]]:
        self.made.append(list(items))
        future: Future[list[Row]] = Future()
        future.set_result([{"step": item.step, "id": item.what, "seconds": 1.0,
                            "reason": "no" if item.step == self.fails else None} for item in items])  # fmt: skip
        return future


@pytest.mark.parametrize("length", [0.0, 2e6, 1e12])
def test_an_agenda_is_carried_out_in_order_and_past_what_fails(tmp_path: Path, length: float) -> None:
    """Whatever the length of a batch: every item once, after what it needs; a long batch holds whole chains."""
    studies = [study.study(KNOWN, "digits", id) for id in ("baseline", "diff_pruning", "deepcache")]
    whole, crew = agenda.agenda_of(studies), Notes("compress", length)
    errand = agenda.Errand(Effort(), tmp_path, tmp_path)
    rows = agenda.carry_out(whole, errand, crew)
    flat = [item for batch in crew.made for item in batch]
    assert sorted(map(str, flat)) == sorted(map(str, whole)) and len(rows) == len(whole)
    place = {item: index for index, item in enumerate(flat)}
    assert all(place[need] < place[item] for item, needs in whole.items() for need in needs)
    assert all(len(batch) == 1 or sum(map(errand.weight, batch)) <= length for batch in crew.made)
    if length == 0:
        assert all(len(batch) == 1 for batch in crew.made)
    if length == 1e12:
        assert len(crew.made) == 1


@pytest.mark.parametrize("length", [0.0, 30.0])
def test_planning_takes_time_in_proportion(length: float, tmp_path: Path) -> None:
    """Counted, for a clock depends on what else runs: how often items are weighed and looked for."""

    class Counted(Resting):
        def weight(self, item: Item) -> float:
            counts[-1] += 1
            return super().weight(item)

        def found(self, item: Item) -> Row | None:
            counts[-1] += 1

    counts: list[int] = []
    for cells in (50, 100):
        counts.append(0)
        agenda.carry_out(pages(cells), Counted(TINY, tmp_path, tmp_path), Notes("", length))
    assert counts[1] < 2.2 * counts[0]


def test_a_batch_takes_what_still_fits_in_order(tmp_path: Path) -> None:
    asked = [Item("rest", "none", weight, weight) for weight in ("10", "6", "5", "4", "0")]
    crew = Notes("", 20.0)
    crew.room = 2
    agenda.carry_out({item: set() for item in asked}, Resting(TINY, tmp_path, tmp_path), crew)
    assert [[item.what for item in batch] for batch in crew.made] == [["10", "6", "4", "0"], ["5"]]


def test_samples_are_not_drawn_again_for_scores_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the reference is, for a cell that is still to be compared with it."""
    whole, crew = agenda.agenda_of([study.study(KNOWN, "digits", "deepcache")]), Notes()
    monkeypatch.setattr(agenda, "is_scored", lambda spec, place: spec.name != "deepcache")
    agenda.carry_out(whole, agenda.Errand(Effort(), tmp_path, tmp_path), crew)
    drawn = {item.what for [item] in crew.made if item.step == "sample"}
    assert drawn == {"deepcache", "dpm_solver_pp_2m@64"}
    assert {item.what for item in whole if item.step == "sample"} > drawn


def test_a_bed_s_baseline_has_what_the_bed_stands_on() -> None:
    bed = KNOWN.beds["mnist"]
    named = Spec(KNOWN, bed, Cell(methods={"v_prediction": {}}), bed.seeds.blocks)
    plain = replace(named, cell=Cell(methods={}))
    assert plain.recipe.parameterization == Velocity() and plain.recipe.net == named.recipe.net
    assert training_fingerprint(plain.recipe) == training_fingerprint(named.recipe)
    assert named.training.name == "baseline"


def test_dvc_knows_what_a_bed_s_baseline_stands_on() -> None:
    stages = yaml.safe_load((home.HOME / "dvc.yaml").read_text())["stages"]
    for bed in plan.BEDS:
        modules = {plan.files(KNOWN, id)["module"] for id in KNOWN.bed(bed).stands_on}
        for stage in (f"{bed}-train", bed) if modules else ():
            assert modules <= {*stages[stage]["do"]["deps"]}, stage


def test_a_survey_says_how_much_is_left_of_what_was_not_there_and_what_it_is_busy_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Notes):
        def submit(self, items: Sequence[Item]) -> Future[list[Row]]:
            later: Future[list[Row]] = Future()
            done = super().submit(items).result()
            Timer(0.3, later.set_result, [done]).start()
            return later

    class Partly(Resting):
        def found(self, item: Item) -> Row | None:
            return {"step": item.step, "id": item.what, "seconds": 0.0, "reason": None} if item.cell == "90" else None

    said = list[tuple[float, float, str]]()
    errand = Partly(TINY, tmp_path, tmp_path)
    monkeypatch.setattr(agenda, "SILENCE", 0.1)
    asked: agenda.Agenda = {Item("rest", "none", cell, cell): set() for cell in ("90", "6", "4")}
    watch = pool.Following(lambda *each: said.append(each), errand, {}, 100.0)
    agenda.carry_out(asked, errand, Slow("", 5.0), watch)
    assert {(done, whole) for done, whole, _ in said} == {(0.0, 10.0), (6.0, 10.0), (10.0, 10.0)}
    assert said[0][2] == "still at rest 6" and said[-1] == (10.0, 10.0, "rest 4")


def test_a_page_is_finished_before_the_next_is_begun(tmp_path: Path) -> None:
    ids = ("baseline", "v_prediction", "deepcache")
    whole, crew = agenda.agenda_of([study.study(KNOWN, "digits", id) for id in ids]), Notes()
    agenda.carry_out(whole, agenda.Errand(Effort(), tmp_path, tmp_path), crew)
    flat = [item for batch in crew.made for item in batch]
    steps = [item.step for item in flat]
    trainings = steps.count("train")
    assert set(steps[:trainings]) == {"train"}, "trainings first"
    done = {item.what: index for index, item in enumerate(flat) if item.step == "record"}
    assert list(done) == list(ids)
    assert not any("deepcache" in item.what for item in flat[: done["v_prediction"]]), "nothing of a later page"


@pytest.mark.parametrize("order", ["sorted", "in turns", "shuffled"])
def test_blocks_ask_for_every_class_by_its_share(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order of the data: a copy with its classes in turns once gave blocks of one class."""
    labels = torch.arange(10).repeat_interleave(torch.arange(60, 70) * 10)
    if order == "in turns":
        labels = torch.cat([torch.arange(10).repeat(600), labels[: len(labels) - 6000]])
    if order == "shuffled":
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    monkeypatch.setattr(cell, "images", lambda bed: SimpleNamespace(train_labels=labels))
    spec = replace(tiny({}), bed=KNOWN.beds["digits"].model_copy(update={"n": 1000}))
    share = labels.bincount() * 1000 / len(labels)
    assert (cell.block_labels(spec).bincount(minlength=10) - share).abs().max() <= 1
    whole = replace(tiny({}), bed=KNOWN.beds["digits"].model_copy(update={"n": len(labels)}))
    assert torch.equal(cell.block_labels(whole), labels)


def test_where_the_time_went_adds_up(tmp_path: Path) -> None:
    rows = [
        {"step": "sample", "id": "ddim", "seconds": 2.0},
        {"step": "sample", "id": "ddim", "seconds": 3.0},
        {"step": "record", "id": "ddim", "seconds": 1.0},
    ]
    pool.write_table("digits", rows, 2, 4.0, tmp_path)
    written = read_json(tmp_path / "digits" / "survey.cost.json")
    assert written["wall_seconds"] == 4.0 and written["jobs"] == 2
    assert {(row["step"], row["seconds"]) for row in written["rows"]} == {("sample", 5.0), ("record", 1.0)}


def test_a_control_at_equal_cost_spends_what_the_subject_does() -> None:
    this = study.study(KNOWN, "digits", "dpm_solver_pp_2m")
    spent = {"evaluations": 10.0, "macs": 1000, "uncounted_ops": []}
    known = {this.default: {"cost": spent}, this.control: {"cost": {**spent, "evaluations": 50.0, "macs": 5000}}}
    spec, why = study.equal_cost(this, known)["evaluations"]
    assert spec is not None and (spec.name, why) == ("baseline@10", None)
    known[this.default]["cost"] = {**spent, "macs": 2520, "uncounted_ops": []}
    spec, _ = study.equal_cost(this, known)["macs"]
    assert spec is not None and spec.name == "baseline@25"
    known[this.default]["cost"] = {**spent, "uncounted_ops": ["quantized.linear"]}
    assert study.equal_cost(this, known)["macs"] == (None, "the count leaves out quantized.linear")


def test_the_plan_matches_the_catalog() -> None:
    import yaml

    written = yaml.safe_load(Path("params.yaml").read_text())
    assert written == plan.plan(KNOWN)
    for bed in written.values():
        for item in [*bed["trainings"].values(), *bed["records"].values()]:
            assert Path(item["module"]).exists() and Path(item["entry"]).exists()


FLOWS = [
    publish.publish,
    survey.survey,
    train.train,
    compress.compress,
    sample.sample,
    evaluate.evaluate,
    reproduce.reproduce,
]


def test_forms_offer_what_the_catalog_has() -> None:
    offered = parameter_schema(survey.survey.fn).model_dump()["definitions"]
    assert offered["TechniqueId"]["enum"] == list(KNOWN.techniques)
    assert offered["BedName"]["enum"] == list(KNOWN.beds)
    assert offered["AreaName"]["enum"] == [area.id for area in KNOWN.taxonomy.areas]
    names = [label.split(" (")[0] for label in offered["ParameterName"]["enum"]]
    assert names == [f"{each.id}.{name}" for each in KNOWN.techniques.values() for name in each.parameters]
    assert "deepcache.period (steps, at least 1, 3 by default)" in offered["ParameterName"]["enum"]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_field_of_a_form_is_explained(flow: Flow[..., object]) -> None:
    schema = parameter_schema(flow.fn).model_dump()
    nested = [each["properties"] for each in schema["definitions"].values() if "properties" in each]
    for fields in (schema["properties"], *nested):
        assert fields and all(field.get("description") for field in fields.values()), fields
    assert nested or "parameters" not in schema["properties"]


def test_a_batch_shows_how_far_it_is_within_its_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item by its work: a training takes longer than its samples, and half of it is no more than that."""
    said: list[float] = []
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda **given: "id")
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda id, progress, description: said.append(progress))
    monkeypatch.setattr(artifacts, "EVERY", 0.0)
    asked = [Item("rest", "none", "a", "30"), Item("rest", "none", "b", "10")]
    for report in fan_out.parts(asked, Resting(study.FULL, tmp_path, tmp_path), artifacts.Progress("two")):
        for done in (1, 2):
            report("a network", done, 2, 0.5)
    assert said == [37.5, 75.0, 87.5, 100.0]


def test_a_pool_without_workers_or_device_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a survey on the cores of the worker that only waits for others."""
    monkeypatch.setattr(survey, "workers", lambda pool: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="No worker of the pool gpu is online, and torch sees no CUDA device"):
        survey.crew_of([forms.Request("digits")], "gpu")


def test_parameters_survive_a_form() -> None:
    given = {"deepcache": {"period": 5.0}, "paradigms": {"window": 4.0, "tolerance": 0.3}}
    assert forms.parameters_of(forms.settings(given)) == given


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


def left_by(flow: Flow[..., object]) -> list[str]:
    """The types of the artifacts on the page of a flow's latest run."""
    with get_client(sync_client=True) as client:
        named = FlowFilter(name=FlowFilterName(any_=[flow.name]))
        (run,) = client.read_flow_runs(flow_filter=named, sort=FlowRunSort.START_TIME_DESC, limit=1)
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        return sorted(str(each.type) for each in client.read_artifacts(artifact_filter=of_run))


@pytest.mark.parametrize(
    ("id", "page"), [("deepcache", "t/deepcache.html"), ("baseline", "index.html"), ("ddim+x", "composition.html")]
)
def test_links_lead_to_pages_that_are_there(
    id: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path)
    assert artifacts.links(KNOWN, id, "digits", tmp_path, ["a"]) == [
        "made: `a`",
        f"page: {home.SETTINGS.site_url}/{page}",
    ]
    assert artifacts.links(KNOWN, id, "digits", tmp_path / "quick") == []


def test_every_flow_end_to_end(prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "QUICK", tmp_path)
    monkeypatch.setattr(home.SETTINGS, "jobs", 1)
    asked = {"bed": "digits", "methods": ["diff_pruning"], "budget": TINY.budget, "blocks": TINY.blocks}
    (trained,), (shipped,) = train.train(**asked), compress.compress(**asked)
    assert Path(trained).parents[1].name == "train" and Path(shipped).parents[1].name == "ship"
    assert len(sample.sample(**asked)) == TINY.blocks
    assert evaluate.evaluate(**asked) == str(tmp_path / "results/digits/diff_pruning.json")
    (record,) = survey.survey(**asked)
    written = read_json(Path(record))
    assert written["status"] == "ok" and written["default"] == "diff_pruning" and "baseline" in written["cells"]
    assert (tmp_path / "results/digits/diff_pruning.png").exists()
    assert (tmp_path / "public/index.html").exists()
    to = tracking.client(tmp_path)
    within = to.get_experiment_by_name("atlas/quick")
    assert within is not None
    runs = {run.data.tags["cell"]: run for run in to.search_runs([within.experiment_id])}
    assert runs.keys() == {"diff_pruning", "baseline"}
    publish.publish(quick=True)
    assert {flow.name: left_by(flow) for flow in FLOWS if flow is not reproduce.reproduce} == {
        "train": ["markdown", "progress"],
        "compress": ["markdown", "progress"],
        "sample": ["image", "markdown", "progress", "progress"],
        "evaluate": ["image", "markdown", "progress", "table", "table"],
        "survey": ["markdown", "progress", "table", "table"],
        "publish": ["markdown"],
    }
    pruned, value = runs["diff_pruning"].data, written["cells"]["diff_pruning"]["metrics"]["fd"]["mean"]
    assert pruned.tags["technique"] == "diff_pruning" and pruned.metrics["quality/fd"] == pytest.approx(value)


def test_a_survey_that_fails_is_one_sentence_on_the_command_line(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "QUICK", tmp_path)
    failed = {"step": "record", "id": "ddim", "seconds": 0.0, "reason": "ddim: the gradient was not finite"}
    monkeypatch.setattr(survey, "measure", lambda *given: [failed])
    with pytest.raises(SystemExit) as stop:
        study.main(survey.app, ["--methods", "ddim", "--budget", "0.005", "--blocks", "1"])
    assert stop.value.code == "1 of 1 failed: ddim: the gradient was not finite"


@pytest.mark.parametrize("flow", [train.train, compress.compress], ids=lambda flow: flow.name)
def test_where_nothing_is_trained_a_training_is_answered_by_a_sentence(
    flow: Flow[..., object], prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "QUICK", tmp_path)
    with pytest.raises(FailedRun, match="On mixture nothing is trained"):
        flow(bed="mixture", methods=["ddim"], blocks=1)


def test_the_command_line_of_training_shares_it_out_and_that_of_sampling_does_not(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forms, "QUICK", tmp_path)
    asked = ["--budget", "0.005", "--blocks", "1", "--processes", "3"]
    with pytest.raises(SystemExit, match="A batch of 64 cannot be shared out over 3 processes"):
        study.main(forms.command_line(train.train, ""), asked)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        study.main(forms.command_line(sample.sample, ""), asked)
    assert "Unknown option: --processes" in "".join(capsys.readouterr())


def test_a_record_that_does_not_arrive_is_a_failure(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker made it, and its files lie where nobody looks."""
    monkeypatch.setattr(forms, "QUICK", tmp_path)
    made = {"step": "record", "id": "ddim", "seconds": 1.0, "reason": None}
    monkeypatch.setattr(survey, "measure", lambda *given: [made])
    with pytest.raises(FailedRun, match="1 of 1 failed: ddim: its record did not arrive"):
        survey.survey(bed="mixture", methods=["ddim"], blocks=1)


def test_a_request_that_cannot_be_done_fails_with_its_sentence(prefect_server: None) -> None:
    started = time.monotonic()
    with pytest.raises(Exception, match=r"needs a UNetConfig in `net`"):
        survey.survey(bed="digits", methods=["dit", "deepcache"])
    assert time.monotonic() - started < 60


def test_a_batch_that_crashes_before_it_begins_is_handed_out_again(prefect_server: None, tmp_path: Path) -> None:
    item = Item("train", "digits", "baseline")
    workers, future = fan_out.Workers("cpu", Errand(study.FULL, tmp_path, tmp_path, ""), 1.0), Future[list[Row]]()
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(fan_out.batch), "cpu")
        id = client.create_flow_run_from_deployment(deployment).id
        workers.underway[id] = fan_out.Underway([item], future)
        for _ in range(home.TRIES):
            client.set_flow_run_state(id, Crashed(message="Its worker was killed."), force=True)
            workers.look()
            state = client.read_flow_run(id).state
            assert state is not None and state.name == "AwaitingRetry" and not future.done()
        client.set_flow_run_state(id, Crashed(message="Its worker was killed."), force=True)
        workers.look()
    assert [row["reason"] for row in future.result(timeout=1)] == [f"{item}: Its worker was killed."]


def test_a_crash_that_the_server_lost_is_tried_again_by_the_survey(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its automation misses an event where SQLite is locked for a moment."""
    workers, future = fan_out.Workers("cpu", Errand(study.FULL, tmp_path, tmp_path, ""), 1.0), Future[list[Row]]()
    with get_client(sync_client=True) as client:

        def seen() -> str:
            workers.look()
            state = client.read_flow_run(id).state
            assert state is not None
            return str(state.name)

        deployment = client.create_deployment(client.create_flow(fan_out.batch), "cpu")
        id = client.create_flow_run_from_deployment(deployment).id
        workers.underway[id] = fan_out.Underway([Item("train", "digits", "baseline")], future)
        for _ in range(home.TRIES):
            client.set_flow_run_state(id, Running(), force=True)
            client.set_flow_run_state(id, Crashed(message="It gave no sign of life."), force=True)
            monkeypatch.setattr(fan_out, "PATIENCE", 60.0)
            assert seen() == "Crashed" and not future.done(), "the server is given time"
            monkeypatch.setattr(fan_out, "PATIENCE", -1.0)
            assert seen() == "AwaitingRetry" and not future.done()
        client.set_flow_run_state(id, Running(), force=True)
        client.set_flow_run_state(id, Crashed(message="It gave no sign of life."), force=True)
        assert seen() == "Crashed" and future.done()


@pytest.mark.parametrize(
    ("cells", "seconds", "workers", "length"),
    [(300, 1, 1, 300), (24, 10, 1, 240), (24, 10, 2, 120), (100, 60, 2, 750), (100, 600, 2, 900), (1, 5, 2, 2.5)],
)
def test_batches_are_long_enough_to_begin_and_short_enough_to_share(
    cells: int, seconds: int, workers: int, length: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fan_out, "workers", lambda pool: workers)
    monkeypatch.setattr(home.SETTINGS, "jobs", 1)
    assert fan_out.Workers("cpu", Resting(study.FULL, tmp_path, tmp_path), 1.0).length(cells * seconds) == length


def test_what_does_not_run_on_a_bed_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        study.main(study.app, ["all", "--bed", "mixture", "--methods", "ddim", "deepcache"])
    assert stop.value.code == 2
    assert "deepcache does not run on mixture; what does: baseline, " in capsys.readouterr().err
