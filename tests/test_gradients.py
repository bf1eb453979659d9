"""The variance of the gradient by noise level: against closed forms, and what is shown of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
import torch
from jaxtyping import Float
from small import images, method, recipe_of
from torch import Tensor, nn

from catalog import CatalogError, load
from flows import gradients
from flows.records import read_json
from flows.rendering import render
from flows.rendering.gradients import names, on_bed
from flows.rendering.measured import Measured
from methods.core import models, run
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.objective import Objective
from methods.measure.gradients import EDGES, by_noise_level
from methods.training.noise_process.learned_schedule_vdm import Steadied
from methods.training.objective.loss_aware_timestep_sampling import Bound, LossAware

KNOWN = load()


class Scale(nn.Module):
    """F = w, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return self.w.expand(len(x), 1)


@dataclass(frozen=True)
class TwoLevels(Objective):
    """a (w z)^2 with z standard normal: at much noise with probability p and weight a, else at little with weight 1."""

    p: float
    a: float

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        noisy = torch.rand(len(x0), generator=rng) < self.p
        lam = torch.where(noisy, -1.5, 1.5).double()
        z = torch.randn(len(x0), generator=rng)
        f = student.predict(x0, student.process.time(lam), labels)[:, 0]
        return torch.where(noisy, self.a, 1.0) * (f * z).square()


def split(p: float, a: float) -> tuple[float, float, float]:
    """What theory gives for the noisy level: its share of samples, of the loss, and of the gradient's variance.

    A sample's gradient is 2 a z^2 there, whose mean is 2 a and mean square 12 a^2, with probability p.
    """
    parts = [q * b * b * 12 - (q * b * 2) ** 2 for q, b in ((p, a), (1 - p, 1.0))]
    return p, p * a / (p * a + 1 - p), parts[0] / sum(parts)


@pytest.mark.parametrize(("p", "a"), [(2 / 3, 1.0), (1 / 2, 2.0), (1 / 5, 8.0)])
def test_shares_are_those_of_theory(p: float, a: float) -> None:
    """Three ways to weigh one level twice as much as the other: one loss, and three variances."""
    recipe = recipe_of()
    network = Network(Scale(), recipe.process, recipe.parameterization, None)
    found = by_noise_level(TwoLevels(p, a), network, torch.zeros(50, 1), None, 64, 1500, seed=0)
    noisy, clean = np.searchsorted(EDGES, -1.5), np.searchsorted(EDGES, 1.5)
    for shares, expected in zip((found.samples, found.loss, found.variance), split(p, a), strict=True):
        assert shares[noisy] == pytest.approx(expected, abs=0.03)
        assert shares[noisy] + shares[clean] == pytest.approx(1)
    assert split(p, a)[1] == pytest.approx(2 / 3)


def profile(recipe: Any, seed: int = 0) -> Any:
    model, _ = run.train(recipe, images(), 0)
    x0, labels = models.encode(model, images())
    return by_noise_level(recipe.objective, models.network(recipe, model), x0, labels, 64, 4, seed)


def test_a_density_moves_samples_and_a_weight_does_not() -> None:
    plain, weighed, denser = (
        profile(recipe_of(*ids)) for ids in ((), ("min_snr_weighting",), ("logit_normal_timesteps",))
    )
    assert weighed.samples == plain.samples and weighed.loss != plain.loss
    assert denser.samples != plain.samples
    assert all(sum(shares) == pytest.approx(1) for shares in (plain.samples, plain.loss, plain.variance))


class Half(nn.Module):
    """Answers with half of its input, which errs the more the less noise there is."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return self.share * x


def test_objectives_have_learned_where_to_look_before_anything_is_compared() -> None:
    """Every stratum of the resampler is known by then, and a schedule that learns is no longer straight."""
    sampled, steadied = recipe_of("loss_aware_timestep_sampling"), recipe_of("learned_schedule_vdm")
    strata = replace(sampled, loss=LossAware(100, 10, 0.001)).objective
    assert isinstance(strata, Bound) and not strata.strata.known
    learning = steadied.objective
    assert isinstance(learning, Steadied)
    for recipe, objective in ((sampled, strata), (steadied, learning)):
        network = Network(Half(), recipe.process, recipe.parameterization, None)
        by_noise_level(objective, network, images().images, images().labels, 64, 2, seed=0)
        assert torch.equal(next(network.net.parameters()), torch.tensor(0.5)), "the network learns nothing from them"
    assert strata.strata.known
    schedule, u = learning.drawn.schedule, torch.linspace(0, 1, 11, dtype=torch.float64)
    assert schedule is not None and (schedule(u) - u).abs().max() > 0.05


def test_measuring_leaves_the_network_as_it_was() -> None:
    recipe = recipe_of()
    model, _ = run.train(recipe, images(), 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network, (x0, _) = models.network(recipe, model), models.encode(model, images())
    twice = [by_noise_level(recipe.objective, network, x0, images().labels, 16, 2, seed=3) for _ in range(2)]
    assert twice[0] == twice[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(p.requires_grad for p in model.net.parameters())
    with pytest.raises(ValueError, match="two steps"):
        by_noise_level(recipe.objective, network, x0, images().labels, 16, 1, seed=3)


def test_only_losses_are_compared_and_all_by_one_network() -> None:
    found = dict(gradients.specs(KNOWN, "digits"))
    base = found.pop("baseline").recipe
    assert {"min_snr_weighting", "logit_normal_timesteps", "v_prediction", "ot_cfm"} <= found.keys()
    assert not {"dit", "maskdit", "progressive_resolution_training", "ect", "ddim"} & found.keys()
    assert all(spec.recipe.net == base.net and spec.cell.trained == 1 for spec in found.values())
    assert gradients.alters_the_loss(replace(base, weight=method("min_snr_weighting").edits["weight"]), base)
    assert not gradients.alters_the_loss(base, base)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    ids = [made_up.STALE, "v_prediction", "flow_matching"]
    made_up.bed(KNOWN, tmp_path, "digits", ids)
    made_up.noise_levels(KNOWN, tmp_path, "digits", ids)
    return tmp_path


def test_pages_of_losses_show_them_and_say_which_are_stale(results: Path, tmp_path: Path) -> None:
    view = on_bed(Measured(KNOWN, results), KNOWN.bed("digits"))
    assert view is not None
    panels = {panel.id: panel for panel in view.of("objective")}
    assert [*panels] == ["baseline", made_up.STALE, "v_prediction"]
    assert [panel.stale is None for panel in panels.values()] == [True, False, True]
    number = panels["baseline"].shares["variance"][4]
    assert number.value == pytest.approx(0.3 * 1.02) and number.n == 5 and number.low is not None
    assert number.low < number.value < (number.high or 0)
    assert view.of("noise_process") == [], "none of it was measured"
    render(KNOWN, results, tmp_path / "site")
    page = (tmp_path / "site/family/training-objective.html").read_text()
    assert page.count("<polyline") >= 6 and 'class="variance"' in page and names(EDGES)[0] in page
    assert "levels-digits" not in (tmp_path / "site/family/training-noise_process.html").read_text()
    assert "baseline,below −4,samples" in (tmp_path / "site/data/gradients.csv").read_text()


def test_what_is_no_loss_is_refused_in_a_sentence(results: Path) -> None:
    before = (results / "digits" / gradients.FILE).read_bytes()
    with pytest.raises(
        CatalogError, match=r"^deepcache, dit: no loss that digits could compare with the baseline's\.$"
    ):
        gradients.write(bed="digits", methods=["dit", "v_prediction", "deepcache"], results=results)
    assert (results / "digits" / gradients.FILE).read_bytes() == before


def test_what_has_not_changed_is_not_measured_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measured(spec: Any, place: Any) -> dict[str, Any]:
        asked.append(spec.name)
        return {"fingerprint": gradients.made_from(spec, made_up.DATA)}

    monkeypatch.setattr(gradients, "measured", measured)
    monkeypatch.setattr(gradients, "source", lambda bed: made_up.DATA)
    stale = read_json(results / "digits" / gradients.FILE)["cells"][made_up.STALE]
    gradients.write(bed="digits", methods=["flow_matching", "cosine_schedule"], results=results)
    assert asked == ["cosine_schedule"]
    cells = read_json(results / "digits" / gradients.FILE)["cells"]
    assert [*cells] == ["baseline", "cosine_schedule", "flow_matching", "min_snr_weighting", "v_prediction"]
    assert cells[made_up.STALE] == stale, "nobody asked for it"
    gradients.write(bed="digits", results=results)
    kept = {"baseline", "v_prediction", "flow_matching"}
    assert {*asked} == {spec.name for id, spec in gradients.specs(KNOWN, "digits") if id not in kept}
