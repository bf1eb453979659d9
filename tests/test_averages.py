"""Averages of weights: against closed forms, and against averages that were taken directly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import BASE, images, method
from torch import Tensor, nn

from methods.core import models, run
from methods.core.average import ExponentialAveraging
from methods.core.errors import NothingMatched
from methods.core.identity import training_fingerprint
from methods.core.recipe import Recipe
from methods.training.cost_reduction import post_hoc_ema as module
from methods.training.cost_reduction._profiles import coefficients, exponent

LONG = replace(BASE, fit=replace(BASE.fit, iterations=48, ema=0.9))


def weights(recipe: Recipe) -> Tensor:
    """What ships, in one row."""
    model, _ = run.train(recipe, images(), 0)
    model, *_ = run.compress(recipe, model, images(), 0)
    return torch.cat([p.flatten() for p in model.net.parameters()])


def test_an_exponential_average_is_the_sum_it_stands_for() -> None:
    net = nn.Linear(1, 1, bias=False)
    averaging, seen = ExponentialAveraging(net, 0.5), [0.3, -1.0, 2.0, 5.0, 4.0, -3.0, 1.0, 0.5, 2.5, 3.0]
    expected = net.weight.item()
    for i, value in enumerate(seen):
        net.weight.data.fill_(value)
        averaging.update()
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * value
        assert averaging.net.get_parameter("weight").item() == pytest.approx(expected, abs=1e-5)
    assert min(0.5, (1 + 9) / (10 + 9)) == 0.5, "the warm-up is over"


def test_without_an_average_the_last_weights_ship() -> None:
    raw, averaged, base = (weights(recipe) for recipe in (
        method("ema_weights", decay=0.0)(LONG), method("ema_weights", decay=0.5)(LONG), LONG
    ))  # fmt: skip
    shorter = replace(LONG, fit=replace(LONG.fit, ema=0.0))
    assert torch.equal(raw, weights(shorter)) and not torch.equal(raw, base)
    assert (raw - averaged).norm() < (raw - base).norm(), "a short average is nearer to the end than a long one"


def test_exponents_are_those_of_the_official_code() -> None:
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01) and exponent(0.10) == pytest.approx(6.94, abs=0.01)
    gamma = exponent(0.17)
    assert (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5) == pytest.approx(0.17)


@pytest.mark.parametrize("length", [0.07, 0.13, 0.18])
def test_a_profile_is_put_together_by_least_squares(length: float) -> None:
    """No other combination of the kept ones comes closer to it, and theirs comes close, and is an average."""
    times, gammas = np.repeat(np.arange(1, 17) / 16, 2), np.tile([exponent(0.05), exponent(0.10)], 16)
    tau = (np.arange(20_000) + 0.5) / 20_000

    def profile(t: float, g: float) -> np.ndarray:
        return np.where(tau <= t, (g + 1) * (tau / t) ** g / t, 0.0)

    kept, wanted = np.stack([profile(t, g) for t, g in zip(times, gammas, strict=True)]), profile(1.0, exponent(length))
    found = coefficients(times, gammas, 1.0, exponent(length))
    best, *_ = np.linalg.lstsq(kept.T, wanted, rcond=None)
    error = np.linalg.norm(found @ kept - wanted) / np.linalg.norm(wanted)
    assert error == pytest.approx(np.linalg.norm(best @ kept - wanted) / np.linalg.norm(wanted), abs=1e-3)
    assert error < 0.08 and found.sum() == pytest.approx(1)


def test_a_kept_length_comes_back_as_it_was() -> None:
    times, gammas = np.repeat(np.arange(1, 9) / 8, 2), np.tile([exponent(0.05), exponent(0.10)], 8)
    found = coefficients(times, gammas, 1.0, exponent(0.10))
    assert found == pytest.approx([0.0] * 15 + [1.0], abs=1e-9)


def test_a_length_chosen_afterwards_is_the_one_taken_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    later = weights(method("post_hoc_ema", length=0.15)(LONG))
    tracked = weights(method("post_hoc_ema", length=0.05)(LONG))
    monkeypatch.setattr(module, "TRACKED", (0.15, 0.10))
    direct = weights(method("post_hoc_ema", length=0.15)(LONG))
    assert (later - direct).norm() < 0.1 * (tracked - direct).norm()


def test_lengths_share_a_training_and_snapshots_do_not_ship() -> None:
    one, other = (method("post_hoc_ema", length=length)(LONG) for length in (0.05, 0.2))
    assert training_fingerprint(one) == training_fingerprint(other)
    model, _ = run.train(one, images(), 0)
    assert len([*model.history.buffers()]) > 1
    shipped, *_ = run.compress(one, model, images(), 0)
    assert {*shipped.state_dict()} == {*models.build(LONG, images().shape, images().classes).state_dict()}


def test_weights_on_the_way_bring_their_own_snapshots() -> None:
    """In parts of what has passed, so that half of a training has the averages of one half as long."""
    found: list[Tensor] = []

    def keep(model: models.Model, seen: int) -> None:
        history = model.history
        assert isinstance(history, module.Snapshots)
        found.append(history.times[history.times > 0].clone())

    run.train(method("post_hoc_ema", snapshots=4)(LONG), images(), 0, keep={0.5: keep, 0.6: keep})
    assert [each.tolist() for each in found] == [[12, 24], [12, 24, 29]]


def test_there_is_nothing_to_choose_from_without_snapshots() -> None:
    model, _ = run.train(BASE, images(), 0)
    with pytest.raises(NothingMatched, match="base training kept none"):
        module.Reconstruct(0.1)(BASE, model, images(), 0, lambda *_: None)
