"""Caches that forecast, propagate, add deviations or follow a measured schedule, against what their papers write."""

from math import comb, factorial

import pytest
import torch
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from small import BASE, CLASSES, SHAPE
from torch import Tensor, nn

from methods.core.activation import tallied
from methods.core.denoiser import Network
from methods.inference.feature_caching.fora import FORA
from methods.inference.feature_caching.taylorseer import Forecast, TaylorSeer
from methods.nets.dit import DiT, DiTConfig


def shaken(net: nn.Module) -> nn.Module:
    """A network none of whose layers is silent, as those that start at zero are."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rng))
    return net.requires_grad_(False).eval()


def transformer(depth: int = 3) -> DiT:
    net = shaken(DiTConfig(width=16, depth=depth, heads=2).build(SHAPE, CLASSES))
    assert isinstance(net, DiT)
    return net


def given(seed: int, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=rng), torch.rand(n, generator=rng), torch.arange(n) % CLASSES


def forget(net: nn.Module) -> None:
    Network(net, BASE.process, BASE.parameterization, None).reset()


class Scripted(nn.Module):
    """Returns the values of a path, whatever it is given, at the times it is told; notes when it was asked."""

    def __init__(self, path: list[Tensor]) -> None:
        super().__init__()
        self.path, self.now, self.asked = path, 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(self.now)
        return self.path[self.now]


def follow(cache: nn.Module, script: Scripted) -> list[Tensor]:
    """What a cache around a script returns along its path."""
    answers = []
    for now in range(len(script.path)):
        script.now = now
        answers.append(cache(script.path[now]))
    return answers


# TaylorSeer -----------------------------------------------------------------------------------------------------------


def test_a_forecast_of_order_zero_is_fora() -> None:
    net = transformer()
    fora, taylor = FORA(period=3)(net), TaylorSeer(period=3, order=0, warmup=1)(net)
    for i in range(8):
        assert torch.equal(taylor(*given(i)), fora(*given(i)))


def test_a_forecast_of_period_one_is_the_plain_network() -> None:
    net = transformer()
    cached = TaylorSeer(period=1, order=3, warmup=1)(net)
    with tallied() as counters:
        assert all(torch.equal(cached(*given(i)), net(*given(i))) for i in range(5))
    assert counters["calls_forecast"] == 0


def test_whole_steps_are_those_of_the_official_schedule() -> None:
    """The first two, then one after every period."""
    script = Scripted([torch.randn(2, 3) for _ in range(14)])
    follow(Forecast(script, period=4, order=2, warmup=2), script)
    assert script.asked == [0, 1, 5, 9, 13]


def test_straight_paths_are_forecast_exactly_and_parabolas_as_far_off_as_the_paper_has_it() -> None:
    """Delta^1 / N of s^2 is 2 s - N, and Delta^2 / N^2 is 2: after k steps that is k N less than the truth."""
    period, at = 3, torch.arange(20.0, dtype=torch.float64)
    slope = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    for order in (1, 2, 3):
        script = Scripted([slope * s + 1 for s in at])
        answers = follow(Forecast(script, period, order, warmup=1), script)
        assert all(torch.allclose(a, b) for a, b in zip(answers[period:], script.path[period:], strict=True))
    script = Scripted([slope * s**2 for s in at])
    answers = follow(Forecast(script, period, 2, warmup=1), script)
    for now in range(2 * period, len(at)):
        assert torch.allclose(script.path[now] - answers[now], slope * (now % period) * period)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_forecast_is_the_papers_series_of_backward_differences(order: int) -> None:
    """Delta^i F = sum_j (-1)^j binom(i, j) F(t + j N), written out."""
    period, rng = 3, torch.Generator().manual_seed(0)
    script = Scripted([torch.randn(2, 5, generator=rng, dtype=torch.float64) for _ in range(18)])
    answers = follow(Forecast(script, period, order, warmup=1), script)
    for now in range(period * order, len(answers)):
        k, last = now % period, now - now % period
        expected = sum(
            sum((-1) ** j * comb(i, j) * script.path[last - j * period] for j in range(i + 1))
            * (k**i / (factorial(i) * period**i))
            for i in range(order + 1)
        )
        assert torch.allclose(answers[now], torch.as_tensor(expected))


@pytest.mark.parametrize(("period", "order", "warmup"), [(3, 3, 2), (4, 1, 3), (5, 4, 1)])
def test_forecasts_are_those_of_diffusers(period: int, order: int, warmup: int) -> None:
    rng = torch.Generator().manual_seed(1)
    script = Scripted([torch.randn(2, 5, generator=rng) for _ in range(17)])
    answers = follow(Forecast(script, period, order, warmup), script)
    state = TaylorSeerState(taylor_factors_dtype=torch.float32, max_order=order)
    for now, answer in enumerate(answers):
        state.current_step = now
        if now in script.asked:
            state.update((script.path[now],))
            assert torch.equal(answer, script.path[now])
        else:
            assert torch.allclose(answer, state.predict()[0], rtol=1e-4, atol=1e-5)


def test_a_forecast_forgets_between_images_and_keeps_rows_apart() -> None:
    net = transformer()
    cached = TaylorSeer(period=3, order=2, warmup=2)(net)
    first = [cached(*given(i, 3)) for i in range(6)]
    forget(cached)
    assert all(torch.equal(cached(*given(i, 3)), first[i]) for i in range(6))
    forget(cached)
    for i in range(6):
        x, u, labels = given(i, 3)
        assert torch.allclose(cached(x[1:], u[1:], labels[1:]), first[i][1:], atol=1e-5)
    assert torch.equal(cached(*given(9, 1)), net(*given(9, 1))), "another batch, and nothing known of it"
