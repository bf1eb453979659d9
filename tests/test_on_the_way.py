"""Quality on the way through a training: weights are those of a shorter one, and nothing is trained twice for them."""

from dataclasses import replace
from pathlib import Path

import made_up
import pytest
import torch
from safetensors.torch import load_file
from small import images, recipe_of
from test_store import tiny

from catalog import ON_THE_WAY, Cell, cell_name, load
from flows import cell, score
from flows.agenda import agenda_of
from flows.cell import Workplace, metadata
from flows.records import read_json
from flows.rendering import few_steps
from flows.rendering.measured import Measured
from flows.rendering.technique import cell_points
from flows.rendering.training import along
from flows.score import evaluate
from flows.study import study
from methods.core import run
from methods.core.models import Model

KNOWN = load()


@pytest.mark.parametrize("id", ["min_snr_weighting", "self_conditioning"])
def test_weights_on_the_way_are_those_of_a_shorter_training(id: str) -> None:
    """In which nothing but the number of updates is another; and whoever looks changes nothing."""
    recipe = recipe_of(id)
    recipe = replace(recipe, fit=replace(recipe.fit, iterations=8))
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def keep(model: Model, shown: int) -> None:
        seen[shown] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    watched, _ = run.train(recipe, images(), 0, keep={0.25: keep, 0.5: keep})
    alone, _ = run.train(recipe, images(), 0)
    assert [*seen] == [2 * recipe.fit.batch, 4 * recipe.fit.batch]
    for name, tensor in watched.state_dict().items():
        assert torch.equal(tensor, alone.state_dict()[name]), name
    for updates, states in zip((2, 4), seen.values(), strict=True):
        shorter, shown = run.train(replace(recipe, fit=replace(recipe.fit, iterations=updates)), images(), 0)
        assert shown == updates * recipe.fit.batch
        assert {*states} == {*shorter.state_dict()}
        assert all(torch.equal(states[name], tensor) for name, tensor in shorter.state_dict().items())


def test_a_training_leaves_what_lies_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, place = tiny({}), Workplace(tmp_path)
    whole = cell.train(spec, 0, place)
    monkeypatch.setattr(run, "train", lambda *given: pytest.fail("it was there"))
    for share in ON_THE_WAY:
        path = cell.train(spec.after(share), 0, place)
        updates = round(share * spec.recipe.fit.iterations)
        assert path != whole and metadata(path)["images"] == updates * spec.recipe.fit.batch
        assert any(not torch.equal(load_file(path)[name], tensor) for name, tensor in load_file(whole).items())


def test_what_lies_on_the_way_is_found_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Techniques that sample in other ways from the same weights do not each train them."""
    (one, other), place = (tiny({id: {}}) for id in ("guidance_interval", "streamdiffusion")), Workplace(tmp_path)
    assert one.training.name != other.training.name
    cell.train(one, 0, place)
    monkeypatch.setattr(run, "train", lambda *given: pytest.fail("it was there"))
    for share in ON_THE_WAY:
        assert cell.train(other.after(share), 0, place) == cell.train(one.after(share), 0, place)


def test_a_training_that_left_nothing_is_made_again_and_ends_the_same(tmp_path: Path) -> None:
    spec, place = tiny({}), Workplace(tmp_path)
    whole = cell.train(spec, 0, place)
    before = whole.read_bytes()
    for share in ON_THE_WAY:
        cell.train(spec.after(share), 0, place).unlink()
    path = cell.train(spec.after(0.5), 0, place)
    assert metadata(path)["images"] < metadata(whole)["images"] and whole.read_bytes() == before


def test_a_share_has_a_name_and_a_record_of_its_own(tmp_path: Path) -> None:
    spec, place = tiny({"min_snr_weighting": {}}), Workplace(tmp_path)
    half = replace(spec.after(0.5), fidelity=False)
    assert half.name == "min_snr_weighting@4~0.5"
    assert cell_name(Cell(methods={}, steps=8, trained=0.25), KNOWN) == "baseline@8~0.25"
    found, whole = evaluate(half, place), evaluate(replace(spec, fidelity=True), place)
    assert found["trained"] == 0.5 and "trained" not in whole and found["steps"] == whole["steps"]
    assert found["metrics"]["fd"]["values"] != whole["metrics"]["fd"]["values"]
    ratio = found["cost"]["training_images"] / whole["cost"]["training_images"]
    assert found["cost"]["training_macs"] / whole["cost"]["training_macs"] == pytest.approx(ratio, rel=1e-6)
    assert found["fingerprints"]["cell"] != whole["fingerprints"]["cell"]


def test_macs_on_the_way_are_those_that_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images are small at first, half of the updates are far less than half of the work."""
    monkeypatch.setattr(score, "SHORT", 5)
    monkeypatch.setattr(score, "SHORT_IN_EIGHTHS", 8)
    spec, place = replace(tiny({"progressive_resolution_training": {}}), budget=0.0257), Workplace(tmp_path)
    assert spec.recipe.fit.iterations == 40
    whole, half = (score.preparation_macs(each, place)[0] for each in (spec, spec.after(0.5)))
    assert whole == score.short_run(spec, 40)[0] and half == score.short_run(spec.after(0.5), 40)[0]
    assert half < 0.3 * whole


def test_what_changes_training_is_measured_on_the_way_with_its_control() -> None:
    this = study(KNOWN, "digits", "min_snr_weighting")
    assert {f"{name}~{share:g}" for share in ON_THE_WAY for name in (this.default, this.control)} <= {*this.specs}
    assert not any(spec.passed for spec in study(KNOWN, "digits", "deepcache").specs.values())
    assert not any(spec.passed for spec in study(KNOWN, "mixture", "ddim").specs.values())
    agenda = agenda_of([this])
    trained = {item for item in agenda if item.step == "train"}
    for item in trained:
        if "~" in item.what:
            (whole,) = agenda[item]
            assert whole in trained and whole.what == item.what.partition("~")[0] and whole.seed == item.seed


def test_the_page_draws_both_on_the_way(tmp_path: Path) -> None:
    measured = Measured(KNOWN, made_up.everything(KNOWN, tmp_path / "results"))
    record = read_json(tmp_path / "results/digits/v_prediction.json")
    found = along(record, KNOWN.bed("digits"), "v_prediction.json")
    assert found is not None and [point.share for point in found.points] == [*ON_THE_WAY, 1.0]
    for point, suffix in zip(found.points, ("~0.125", "~0.25", "~0.5", ""), strict=True):
        fd = [record["cells"][f"{name}{suffix}"]["metrics"]["fd"]["mean"] for name in ("v_prediction", "baseline")]
        assert [point.subject.value, point.control.value] == fd
        assert point.difference is not None and point.difference.number.value == pytest.approx(fd[0] - fd[1])
        assert point.images is not None and point.images.value == round(99_840 * point.share)
    assert [len(line.points) for pair in found.plots.values() for plot in pair for line in plot.lines] == [4] * 8
    assert along(read_json(tmp_path / "results/digits/deepcache.json"), KNOWN.bed("digits"), "") is None
    points = cell_points(KNOWN, KNOWN.technique("v_prediction"), record, "evaluations", "fd")
    assert points and not any("~" in point.label for point in points)
    rows = few_steps.on_bed(measured, KNOWN.bed("digits"))
    assert rows is not None and not any("~" in n.cell for row in rows.rows for n in row.qualities if n)
