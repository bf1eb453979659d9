"""Requests and frames that share calls of the network get what they would get alone, in fewer calls."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from catalog import load
from methods.baseline import baseline
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.denoiser import NULL, Denoiser, Labels, Network, clip
from methods.core.fit import Fit
from methods.core.recipe import Recipe, compose
from methods.core.sampling import SampleNoise, transfer
from methods.deployment.serving._residual import ResidualGuided
from methods.deployment.serving._server import Server
from methods.deployment.serving.dynamic_batching import Admission, Queued, RequestLevel
from methods.deployment.serving.streamdiffusion import SimilarityFilter, Stream, translate
from methods.inference.ode_solver.ddim import DDIM
from methods.nets.unet import UNetConfig
from methods.training.guidance.classifier_free_guidance import Guided

TECHNIQUES = load().techniques
BASE = baseline(UNetConfig(8), Fit(2, batch=8, learning_rate=1e-2, warmup=1, ema=0.5))
SHAPE, CLASSES = (1, 8, 8), 3
STEPS = 6
TIMES = BASE.grid(BASE.process, STEPS)


def network(dtype: torch.dtype = torch.float64) -> Network:
    """A network none of whose layers is silent, as those that start at zero are.

    In double precision, for sampling enlarges roundings, which differ with the size of a call and the processor.
    """
    model = models.build(BASE, SHAPE, CLASSES)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return models.network(BASE, model.to(dtype).eval().requires_grad_(False))


def given(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=rng, dtype=torch.float64), torch.arange(n) % CLASSES


class Listening(Denoiser):
    """Notes the times of the rows of every call."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process, self.bounds = inner, inner.process, inner.bounds
        self.heard: list[list[float]] = []

    def __call__(self, x_t: Tensor, t: Tensor, labels: Labels = None) -> Tensor:
        self.heard.append(t.expand(len(x_t)).tolist())
        return self.inner(x_t, t, labels)

    def reset(self) -> None:
        self.inner.reset()


def sampled(sampler: Callable[..., Tensor], denoiser: Denoiser, n: int) -> Tensor:
    x, labels = given(n)
    return sampler(denoiser, x, TIMES, labels, SampleNoise(range(n)))


# Dynamic batching -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline", [0.0, 2.5])
@pytest.mark.parametrize("kind", [Admission, RequestLevel])
@pytest.mark.parametrize("capacity", [1, 3])
def test_whoever_shares_a_call_samples_stay_the_same(kind: type[Admission], capacity: int, deadline: float) -> None:
    net = network()
    heard = Listening(net)
    answered = sampled(Queued(kind(capacity, deadline), load=2.0), heard, 7)
    assert torch.allclose(answered, sampled(DDIM(), net, 7), atol=1e-5)
    assert max(map(len, heard.heard)) <= capacity
    assert sorted(t for call in heard.heard for t in call) == sorted(TIMES[:-1].tolist() * 7)


def test_requests_join_between_steps_or_wait_for_a_whole_batch() -> None:
    heard = {}
    for kind in (Admission, RequestLevel):
        heard[kind] = Listening(network())
        with tallied() as counters:
            sampled(Queued(kind(4, 0.0), load=3.0), heard[kind], 12)
        assert (counters["rows_at_other_steps"] > 0) == (kind is Admission)
    assert any(len(set(call)) > 1 for call in heard[Admission].heard)
    assert all(len(set(call)) == 1 for call in heard[RequestLevel].heard)


def test_all_at_once_take_a_full_batch_after_the_other() -> None:
    """12 requests, 4 at a time."""
    for kind, capacity, rounds in ((Admission, 4, 3), (RequestLevel, 4, 3), (Admission, 1, 12)):
        heard = Listening(network())
        sampled(Queued(kind(capacity, 0.0), load=1e9), heard, 12)
        assert abs(len(heard.heard) - rounds * STEPS) <= STEPS  # the first arrives a moment before the others
        assert max(map(len, heard.heard)) == capacity


def test_joining_between_steps_waits_less_than_whole_batches_and_these_less_than_one_alone() -> None:
    waited, calls = [], []
    for admission in (Admission(8, 0.0), RequestLevel(8, 0.0), RequestLevel(1, 0.0)):
        heard = Listening(network())
        with tallied() as counters:
            sampled(Queued(admission, load=4.0), heard, 24)
        waited.append(counters["calls_waited"])
        calls.append(len(heard.heard))
    assert waited[0] < waited[1] < waited[2] and waited[0] <= 24  # no more than the rest of a call each
    assert calls[0] < calls[2] / 2 and calls[2] == 24 * STEPS


def test_an_idle_server_waits_for_its_batch_to_fill_but_not_for_ever() -> None:
    for deadline, first in ((0.0, 1), (1e9, 3)):
        heard = Listening(network())
        sampled(Queued(RequestLevel(3, deadline), load=0.5), heard, 6)
        assert len(heard.heard[0]) == first
    heard = Listening(network())
    sampled(Queued(RequestLevel(4, 1e3), load=0.5), heard, 6)  # the last two fill no batch
    assert [len(call) for call in heard.heard] == [4] * STEPS + [2] * STEPS


def test_requests_arrive_as_a_poisson_process() -> None:
    gaps = Queued(Admission(1, 0.0), load=5.0).arrivals(20_000, steps=10).diff()
    assert abs(gaps.mean() - 2) < 0.06 and abs(gaps.std() / gaps.mean() - 1) < 0.03


@pytest.mark.parametrize("kind", [Admission, RequestLevel])
def test_a_server_answers_requests_that_come_in_real_time(kind: type[Admission]) -> None:
    """Twelve, at random moments, by a loop and a thread: the samples of each alone."""
    net = network()
    heard, (x, labels) = Listening(net), given(12)

    async def client(server: Server, i: int, moment: float) -> Tensor:
        await asyncio.sleep(moment)
        return await server.ask(x[i : i + 1], labels[i : i + 1])

    async def day() -> list[Tensor]:
        server, rng, moment = Server(heard, TIMES, kind(4, 0.001)), random.Random(0), 0.0
        work = asyncio.create_task(server.serve())
        asked = [client(server, i, moment := moment + rng.expovariate(200)) for i in range(12)]
        answers = await asyncio.gather(*asked)
        work.cancel()
        return answers

    answers = asyncio.run(asyncio.wait_for(day(), 60))
    assert (torch.stack(answers) - sampled(DDIM(), net, 12)).abs().max() < 1e-4
    assert max(map(len, heard.heard)) <= 4


class Bringing(Listening):
    """Brings requests 2 and 3 while the network is asked for the third time."""

    def __call__(self, x_t: Tensor, t: Tensor, labels: Labels = None) -> Tensor:
        if len(self.heard) == 2:
            asyncio.run_coroutine_threadsafe(self.bring(), self.loop).result(timeout=30)
        return super().__call__(x_t, t, labels)

    async def bring(self) -> None:
        self.brought = [asyncio.create_task(self.ask(i)) for i in (2, 3)]
        await asyncio.sleep(0)  # until both have asked

    async def ask(self, i: int) -> Tensor:
        x, labels = given(4)
        return await self.server.ask(x[i : i + 1], labels[i : i + 1])

    async def day(self, admission: Admission) -> list[Tensor]:
        self.loop, self.server = asyncio.get_running_loop(), Server(self, TIMES, admission)
        work = asyncio.create_task(self.server.serve())
        first = await asyncio.gather(self.ask(0), self.ask(1))
        answers = [*first, *await asyncio.gather(*self.brought)]
        work.cancel()
        return answers


@pytest.mark.parametrize(("kind", "rows"), [(Admission, [2] * 3 + [3] * 3 + [2] * 3 + [1] * 3), (RequestLevel, None)])
def test_a_server_lets_requests_in_between_steps(kind: type[Admission], rows: list[int] | None) -> None:
    """Two are under way when two more come, of which there is room for one; or they wait until both are done."""
    net = network()
    heard = Bringing(net)
    answers = asyncio.run(asyncio.wait_for(heard.day(kind(3, 0.0)), 60))
    assert (torch.stack(answers) - sampled(DDIM(), net, 4)).abs().max() < 1e-4
    assert [len(call) for call in heard.heard] == (rows or [2] * 2 * STEPS)


# StreamDiffusion ------------------------------------------------------------------------------------------------------


def test_every_call_finishes_a_frame_once_the_stream_is_full() -> None:
    net = network()
    heard = Listening(net)
    streamed = sampled(Stream(together=STEPS), heard, 9)
    assert torch.allclose(streamed, sampled(DDIM(), net, 9), atol=1e-5)
    assert len(heard.heard) == 9 + STEPS - 1
    finishes = [call.count(TIMES[-2].item()) for call in heard.heard]
    assert finishes == [0] * (STEPS - 1) + [1] * 9
    alone = Listening(net)
    assert torch.allclose(sampled(Stream(together=1), alone, 9), streamed, atol=1e-5)
    assert len(alone.heard) == 9 * STEPS


def residual(net: Network, x: Tensor, labels: Tensor, scale: float, delta: float, negative: Tensor | None) -> Tensor:
    """eps = delta n + g (eps_c - delta n) for a row on its own; n leads to `negative`, else to the first step's."""
    process = net.process
    for t, s in pairwise(TIMES):
        alpha, sigma = process.alpha(t).float(), process.sigma(t).float()
        if negative is None:
            negative = net(x, t, torch.full_like(labels, NULL))
        n = (x - alpha * negative) / sigma
        eps_c = (x - alpha * net(x, t, labels)) / sigma
        eps = delta * n + (1 + scale) * (eps_c - delta * n)
        x = transfer(process, x, clip((x - sigma * eps) / alpha, net.bounds), t, s)
    return x


@pytest.mark.parametrize(("scale", "delta"), [(0.2, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("together", [1, 3, STEPS])
def test_residual_guidance_keeps_the_negative_of_each_frame(together: int, scale: float, delta: float) -> None:
    net = network()
    x, labels = given(7)
    expected = torch.cat([residual(net, x[i : i + 1], labels[i : i + 1], scale, delta, None) for i in range(7)])
    net.rows = net.calls = 0
    with tallied() as counters:
        streamed = sampled(Stream(together), ResidualGuided(net, scale, delta), 7)
    assert torch.allclose(streamed, expected, atol=1e-3)
    assert net.rows == 7 * (STEPS + 1) and counters["negatives_reused"] == 7 * (STEPS - 1)


def test_the_first_step_is_classifier_free_guidance() -> None:
    net, (x, labels) = network(), given(4)
    unbounded = Network(net.net, net.process, net.parameterization, None)
    full, residual = Guided(unbounded, 0.7), ResidualGuided(unbounded, 0.7, 1.0)
    t = TIMES[2]
    assert torch.allclose(residual(x, t, labels), full(x, t, labels), atol=1e-4)
    later = TIMES[3]
    assert not torch.allclose(residual(x, later, labels), full(x, later, labels), atol=1e-2)
    residual.reset()
    assert torch.allclose(residual(x, later, labels), full(x, later, labels), atol=1e-4)


def test_a_stream_costs_five_evaluations_a_frame_where_guidance_costs_eight() -> None:
    rows = {}
    for id, steps in (("streamdiffusion", 4), ("classifier_free_guidance", 4)):
        recipe: Recipe = replace(compose(BASE, replace(TECHNIQUES[id].call({}), name=id)), steps=steps)
        deployed = run.deploy(recipe, models.build(recipe, SHAPE, CLASSES))
        run.generate(recipe, deployed, torch.arange(6) % CLASSES, range(6))
        rows[id] = deployed.network.rows / 6
    assert rows == {"streamdiffusion": 5, "classifier_free_guidance": 8}


# From image to image --------------------------------------------------------------------------------------------------


def video(frames: int, cuts: tuple[int, ...] = ()) -> list[Tensor]:
    """A bright column that drifts by a hundredth of a pixel a frame; after a cut it stands elsewhere."""
    columns, shown, place = torch.arange(8.0), [], 2.0
    for i in range(frames):
        place += 3.0 if i in cuts else 0.01
        shown.append((torch.exp(-((columns - place) ** 2)).expand(*SHAPE) * 1.6 - 0.8).clone())
    return shown


def test_frames_are_skipped_with_the_probability_of_their_likeness() -> None:
    a = torch.tensor([1.0, 0.0])
    for angle, threshold in ((0.1, 0.98), (0.15, 0.98), (0.3, 0.98), (0.3, 0.9)):
        b = torch.tensor([angle, 0.0]).cos() * a + torch.tensor([0.0, 1.0]) * torch.tensor(angle).sin()
        expected = max(0.0, 1 - (1 - float(torch.tensor(angle).cos())) / (1 - threshold))
        skipped = 0
        for seed in range(2000):
            likeness = SimilarityFilter(threshold, longest=10, seed=seed)
            assert not likeness.skips(a), "the first frame is new"
            skipped += likeness.skips(b)
        assert abs(skipped / 2000 - expected) < 0.04, (angle, threshold)


def test_a_still_image_is_looked_at_now_and_then_and_a_cut_always() -> None:
    likeness, still = SimilarityFilter(longest=4), torch.ones(3)
    assert [likeness.skips(still) for _ in range(11)] == [False, *[True] * 4, False, *[True] * 4, False]
    likeness = SimilarityFilter(longest=1000)
    passed = [i for i, frame in enumerate(video(60, cuts=(20, 40))) if not likeness.skips(frame)]
    assert {0, 20, 40} <= set(passed) and len(passed) < 20


def test_a_slow_video_is_translated_in_fewer_calls_than_frames() -> None:
    """The frame itself is the negative, so guidance costs nothing; without a filter every frame makes a call."""
    net, times = network(torch.float32), BASE.grid(BASE.process, 8)[4:]
    frames, label = video(40, cuts=(20,)), torch.tensor([1])
    calls = {}
    for threshold in (1 - 1e-9, 0.98):
        net.rows = net.calls = 0
        with tallied() as counters:
            shown = list(
                translate(frames, ResidualGuided(net, 0.2, 1.0), times, label, SampleNoise([0]),
                          SimilarityFilter(threshold))
            )  # fmt: skip
        assert net.calls == 40 - counters["frames_skipped"] and len(shown) == 40
        assert shown[0] is None and shown[-1] is not None and shown[-1].isfinite().all()
        calls[threshold] = net.calls
    assert calls[1 - 1e-9] > 35 and calls[0.98] < 20


def test_what_is_translated_live_is_what_each_frame_gives_alone() -> None:
    net, label = network(torch.float32), torch.tensor([2])
    frames = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)).clamp(-1, 1) for i in range(10)]
    noise = SampleNoise([3])
    drawn = [noise(SHAPE) for _ in frames]
    shown = list(
        translate(frames, ResidualGuided(net, 0.5, 1.0), TIMES, label, SampleNoise([3]), SimilarityFilter(0.9999))
    )
    assert net.rows == sum(min(i + 1, STEPS) for i in range(10)), "no evaluation is spent on a negative"
    for i in range(10 - STEPS + 1):
        x = net.process.diffuse(frames[i][None], drawn[i], TIMES[0])
        expected = residual(net, x, label, 0.5, 1.0, frames[i][None])
        assert torch.allclose(shown[i + STEPS - 1], expected[0], atol=1e-3)
