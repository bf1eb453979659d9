"""Caches that forecast, propagate, add deviations or follow a measured schedule, against what their papers write."""

from dataclasses import replace
from itertools import pairwise
from math import comb, factorial
from pathlib import Path

import pytest
import torch
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from small import BASE, CLASSES, SHAPE, images, recipe_of
from torch import Tensor, nn

from methods.core import learning, models, run
from methods.core.activation import tallied
from methods.core.denoiser import Network
from methods.core.errors import NothingMatched
from methods.deployment.quantization._calibration import asked_while_sampling
from methods.inference.feature_caching.block_caching import CALLS, BlockCached, BlockCaching, Watch, schedule
from methods.inference.feature_caching.delta_dit import DeltaCached, DeltaDiT
from methods.inference.feature_caching.faster_diffusion import KEY_STEPS, EncoderPropagation, is_key
from methods.inference.feature_caching.fora import FORA
from methods.inference.feature_caching.taylorseer import Forecast, TaylorSeer
from methods.nets.dit import DiT, DiTConfig
from methods.nets.unet import Below, Level, ResidualBlock, UNet, UNetConfig


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


# Faster Diffusion -----------------------------------------------------------------------------------------------------


def unet(blocks: int = 2) -> UNet:
    net = shaken(UNetConfig(8, (1, 2), blocks).build(SHAPE, CLASSES))
    assert isinstance(net, UNet)
    return net


def split(net: UNet) -> tuple[list[nn.Module], list[nn.Module]]:
    """The parts of the encoder, bottleneck included, and those of the decoder."""
    levels = [part for part in net.modules() if isinstance(part, Level)]
    ways = [part for part in net.modules() if isinstance(part, Below)]
    middle = [level.below for level in levels if not isinstance(level.below, Below)]
    down = [block for level in levels for block in level.down]
    up = [block for level in levels for block in level.up]
    return [net.stem, *down, *(way.down for way in ways), *middle], [*up, *(way.up for way in ways), net.head]


def test_a_network_with_key_steps_alone_is_the_plain_one() -> None:
    net = unet()
    cached = EncoderPropagation(stride=1)(net)
    with tallied() as counters:
        assert all(torch.equal(cached(*given(i)), net(*given(i))) for i in range(5))
    assert counters["encoder_calls_skipped"] == 0


def test_the_papers_key_steps_run_the_encoder_and_every_step_the_decoder() -> None:
    """t = {50, 49, 48, 47, 45, 40, 35, 25, 15} of section 3.3, counted from the first; modules are counted."""
    cached = EncoderPropagation(stride=0)(unet())
    assert isinstance(cached, UNet)
    paper = {50, 49, 48, 47, 45, 40, 35, 25, 15}
    assert {50 - step for step in KEY_STEPS} == paper == {50 - step for step in range(50) if is_key(step, 0)}
    encoder, decoder = split(cached)
    calls = dict.fromkeys([*encoder, *decoder], 0)
    for part in calls:
        inner = part.get_submodule("inner") if part in encoder else part

        def called(module: nn.Module, inputs: tuple[Tensor, ...], part: nn.Module = part) -> None:
            calls[part] += 1

        inner.register_forward_pre_hook(called)
    for step in range(50):
        before = dict(calls)
        with tallied() as counters:
            cached(*given(step))
        whole = 50 - step in paper
        assert all(calls[part] - before[part] == whole for part in encoder)
        assert all(calls[part] - before[part] == 1 for part in decoder)
        assert counters["encoder_calls_skipped"] == (0 if whole else len(encoder))


def test_uniform_key_steps_are_those_of_the_ablation() -> None:
    """Table 5, uniform II: as many as the paper's own."""
    uniform = [50 - step for step in range(50) if is_key(step, 6)]
    assert uniform == [50, 44, 38, 32, 26, 20, 14, 8, 2] and len(uniform) == len(KEY_STEPS)


def test_between_key_steps_the_decoder_sees_old_features_and_its_own_noise_level() -> None:
    """Written out for two levels of one block: skips and bottleneck of the key step, the condition of now."""
    net = unet(blocks=1)
    cached = EncoderPropagation(stride=2)(net)
    x, u, labels = given(0)
    assert torch.equal(cached(x, u, labels), net(x, u, labels))
    top, below = net.level, net.level.get_submodule("below")
    low = below.get_submodule("level")
    assert isinstance(top, Level) and isinstance(below, Below) and isinstance(low, Level)
    then = net.conditioning(u, labels)
    first = top.down[0](net.stem(x), then)
    second = low.down[0](below.down(first), then)
    bottleneck = low.below(second, then)
    other, now, labels = given(1)
    condition = net.conditioning(now, labels)
    h = low.up[0](torch.cat([second, bottleneck], dim=1), condition)
    h = below.up(nn.functional.interpolate(h, size=first.shape[2:], mode="nearest"))
    h = top.up[0](torch.cat([first, h], dim=1), condition)
    expected = net.head(nn.functional.silu(net.norm(h)))
    answer = cached(other, now, labels)
    assert torch.allclose(answer, expected, atol=1e-5)
    assert not torch.allclose(answer, net(other, now, labels), atol=1e-3)


def test_steps_after_a_key_step_do_not_depend_on_what_they_are_shown() -> None:
    """Which is why the paper can decode them all at once."""
    cached = EncoderPropagation(stride=3)(unet())
    x, u, labels = given(0)
    cached(x, u, labels)
    later = cached(x, u, labels), cached(torch.zeros_like(x), u, labels)
    assert torch.equal(*later)


def test_an_encoder_is_forgotten_between_images_and_with_another_batch() -> None:
    net = unet()
    cached = EncoderPropagation(stride=0)(net)
    first = [cached(*given(i, 3)) for i in range(8)]
    forget(cached)
    assert all(torch.equal(cached(*given(i, 3)), first[i]) for i in range(8))
    assert torch.equal(cached(*given(8, 2)), net(*given(8, 2))), "another batch, although no key step"
    with pytest.raises(NothingMatched, match="holds no Level"):
        EncoderPropagation(stride=0)(nn.Sequential(ResidualBlock(8, 8, 8)))


# Delta-DiT ------------------------------------------------------------------------------------------------------------


def at(level: float, seed: int, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs at one noise level."""
    x, _, labels = given(seed, n)
    return x, torch.full((n,), level), labels


def states(net: DiT, x: Tensor, u: Tensor, labels: Tensor) -> list[Tensor]:
    """The tokens before the first block, and after each."""
    condition = net.conditioning(u, labels)
    found = [net.tokens(x).flatten(2).transpose(1, 2) + net.position]
    for block in net.blocks:
        found.append(block(found[-1], condition))
    return found


def finished(net: DiT, h: Tensor, u: Tensor, labels: Tensor) -> Tensor:
    """What the head makes of tokens."""
    pixels = net.head(h, net.conditioning(u, labels)).transpose(1, 2)
    return nn.functional.pixel_shuffle(pixels.unflatten(2, net.grid), net.patch)


@pytest.mark.parametrize(("level", "rear"), [(0.7, True), (0.5, False)])
def test_early_the_rear_blocks_and_late_the_front_ones_are_replaced_by_their_deviation(
    level: float, rear: bool
) -> None:
    """Written out for 3 of 4 blocks: the deviation of the whole step, and not its feature, meets the input of now."""
    net = transformer(depth=4)
    cached = DeltaDiT(period=2, share=0.75, boundary=0.6)(net)
    then, (x, u, labels) = states(net, *at(level, 0)), at(level, 1)
    assert torch.equal(cached(*at(level, 0)), net(*at(level, 0)))
    now, condition = states(net, x, u, labels), net.conditioning(u, labels)
    if rear:
        h, feature = now[1] + (then[4] - then[1]), then[4]
    else:
        h = net.blocks[3](now[0] + (then[3] - then[0]), condition)
        feature = net.blocks[3](then[3], condition)
    with tallied() as counters:
        answer = cached(x, u, labels)
    assert counters["blocks_skipped"] == 3
    assert torch.allclose(answer, finished(net, h, u, labels), atol=1e-5)
    assert not torch.allclose(answer, finished(net, feature, u, labels), atol=1e-2)
    assert torch.equal(cached(*at(level, 2)), net(*at(level, 2))), "the third call is whole again"


def test_a_deviation_is_exact_where_nothing_has_changed() -> None:
    cached = DeltaDiT(period=9, share=0.5, boundary=0.6)(transformer(depth=4))
    for level in (0.8, 0.3):
        forget(cached)
        first = cached(*at(level, 0))
        assert torch.allclose(cached(*at(level, 0)), first, atol=1e-4)


def test_blocks_that_are_skipped_are_not_called() -> None:
    cached = DeltaDiT(period=2, share=0.5, boundary=0.6)(transformer(depth=4))
    cache = cached.get_submodule("blocks.0")
    assert isinstance(cache, DeltaCached)
    called: list[int] = []
    for i, block in enumerate(cache.inner):
        block.register_forward_pre_hook(lambda module, inputs, i=i: called.append(i))
    for level in (0.9, 0.9, 0.4, 0.4):
        cached(*at(level, 0))
    assert called == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3]


def test_a_deviation_is_chosen_by_row_and_forgotten_between_images() -> None:
    net = transformer(depth=4)
    cached = DeltaDiT(period=3, share=0.5, boundary=0.6)(net)
    levels = torch.tensor([0.9, 0.2, 0.7])

    def walk(rows: list[int]) -> list[Tensor]:
        forget(cached)
        found = []
        for i in range(5):
            x, _, labels = given(i, 3)
            found.append(cached(x[rows], levels[rows] - 0.01 * i, labels[rows]))
        return found

    together = walk([0, 1, 2])
    assert all(torch.equal(a, b) for a, b in zip(walk([0, 1, 2]), together, strict=True))
    for row in range(3):
        assert all(torch.allclose(a[0], b[row], atol=1e-5) for a, b in zip(walk([row]), together, strict=True))
    whole = DeltaDiT(period=1, share=0.5, boundary=0.6)(net)
    assert all(torch.equal(whole(*given(i)), net(*given(i))) for i in range(3))


# Block caching --------------------------------------------------------------------------------------------------------


def caches(net: nn.Module) -> list[BlockCached]:
    return [part for part in net.modules() if isinstance(part, BlockCached)]


def test_a_block_runs_when_its_changes_since_it_last_ran_exceed_the_threshold() -> None:
    def runs(changes: list[float], threshold: float) -> list[int]:
        return schedule(changes, threshold)[: len(changes) + 1].nonzero()[:, 0].tolist()

    assert runs([0.3] * 7, 0.5) == [0, 2, 4, 6]
    assert runs([0.25] * 7, 0.5) == [0, 3, 6], "a sum that equals the threshold does not exceed it"
    assert runs([0.1, 0.1, 0.9, 0.1, 0.1, 0.1], 0.5) == [0, 3]
    assert runs([0.1] * 5, 0.0) == [0, 1, 2, 3, 4, 5]
    assert runs([0.1, float("inf"), 0.1], 0.5) == [0, 2]
    assert runs([0.1, float("nan"), 0.1, 0.1], 0.5) == [0, 2], "what adds nothing has no relative change"
    assert len(schedule([0.1], 1.0)) == CALLS and schedule([0.1], 1.0)[2:].all(), "what was not measured runs"


def test_a_block_is_watched_for_the_relative_change_of_what_it_adds() -> None:
    """L1_rel of eq. 6, averaged over images, of C = B(x) - x."""
    net, watches = transformer(), []
    for block in net.blocks:
        watches.append(Watch())
        block.register_forward_hook(watches[-1])
    for i in range(3):
        net(*given(i))
    walked = [states(net, *given(i)) for i in range(3)]
    for b, watch in enumerate(watches):
        added = [h[b + 1] - h[b] for h in walked]
        expected = [
            torch.stack([(new[r] - old[r]).abs().sum() / old[r].abs().sum() for r in range(2)]).mean().item()
            for old, new in pairwise(added)
        ]
        assert watch.changes[:2] == pytest.approx(expected, rel=1e-4)


def test_each_block_follows_its_own_schedule_and_adds_what_it_added_to_its_new_input() -> None:
    net = transformer()
    cached = BlockCaching(0.5)(net)
    first, second, third = caches(cached)
    first.whole[1] = third.whole[1] = False
    then, (x, u, labels) = states(net, *given(0)), given(1)
    assert torch.equal(cached(*given(0)), net(*given(0)))
    now, condition = states(net, x, u, labels), net.conditioning(u, labels)
    h = now[0] + (then[1] - then[0])
    h = net.blocks[1](h, condition)
    h = h + (then[3] - then[2])
    with tallied() as counters:
        answer = cached(x, u, labels)
    assert counters["blocks_reused"] == 2
    assert torch.allclose(answer, finished(net, h, u, labels), atol=1e-5)
    assert torch.equal(cached(*given(2)), net(*given(2))), "the third call is whole again"
    assert second.whole.all()


def test_a_schedule_is_fitted_along_the_networks_own_samples(tmp_path: Path) -> None:
    """Found again from what the network is asked, and read back from a file."""
    recipe = replace(recipe_of("dit", "block_caching"), steps=12, transforms=(BlockCaching(2.0),))
    model = models.build(recipe, SHAPE, CLASSES, 0)
    net = model.net = shaken(model.net)
    assert isinstance(net, DiT)
    asked = asked_while_sampling(recipe, net, model, images(), 0)
    walked = [states(net, *part) for part in zip(*(x.chunk(12) for x in asked[:3]), strict=True)]
    model, seen, shapes = run.compress(recipe, model, images(), 0)
    assert seen == len(asked.x) and not any(block._forward_hooks for block in net.blocks)
    fitted = [cache.whole.clone() for cache in caches(model.net)]
    for b, whole in enumerate(fitted):
        added, drift, expected = [h[b + 1] - h[b] for h in walked], 0.0, [True]
        for old, new in pairwise(added):
            drift += ((new - old).abs().flatten(1).sum(1) / old.abs().flatten(1).sum(1)).mean().item()
            expected.append(drift > 2.0)
            drift = 0.0 if expected[-1] else drift
        assert whole[:12].tolist() == expected and whole[12:].all()
    assert not all(whole.all() for whole in fitted) and any(whole[1:12].any() for whole in fitted)
    models.save(model, tmp_path / "model", {}, shapes)
    loaded = models.load(recipe, tmp_path / "model", SHAPE, CLASSES, shipped=True)
    assert all(torch.equal(c.whole, whole) for c, whole in zip(caches(loaded.net), fitted, strict=True))
    one, two = (run.generate(recipe, run.deploy(recipe, m), torch.tensor([0, 1]), [0, 1]) for m in (model, loaded))
    assert torch.equal(one, two)


def test_a_threshold_of_zero_is_the_plain_network_and_rows_are_kept_apart() -> None:
    recipe = replace(recipe_of("dit"), steps=4)
    model = models.build(recipe, SHAPE, CLASSES, 0)
    net = model.net = shaken(model.net)
    plain = run.generate(recipe, run.deploy(recipe, model), torch.tensor([0, 1, 2]), [0, 1, 2])
    transform = BlockCaching(0.0)
    model.net = transform(net)
    transform.fit(recipe, net, model, images(), 0, learning.quiet)
    with tallied() as counters:
        assert torch.equal(run.generate(recipe, run.deploy(recipe, model), torch.tensor([0, 1, 2]), [0, 1, 2]), plain)
    assert counters["blocks_reused"] == 0
    for cache in caches(model.net):
        cache.whole[1::2] = False
    cached = [model.net(*given(i, 3)) for i in range(4)]
    forget(model.net)
    assert all(torch.equal(model.net(*given(i, 3)), cached[i]) for i in range(4))
    forget(model.net)
    for i in range(4):
        assert torch.allclose(model.net(*(part[1:] for part in given(i, 3))), cached[i][1:], atol=1e-5)
