"""The benchmark of the instrument compares what is equal, counts what it says, and prints it; no time is asserted."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from flows import bench
from flows.bench import PAIRS, Fixed, Pair
from flows.study import main
from methods.core.errors import Unavailable
from methods.core.sampling import SampleNoise
from methods.measure.statistics import Interval

SHAPE = (3, 1, 4, 4)
by_name = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)


class Shared(SampleNoise):
    """Noise for the whole batch from PyTorch's own generator, as diffusers draws it."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn((self.n, *shape))


@by_name
def test_both_sides_end_at_the_same_samples(pair: Pair) -> None:
    """Twice: a run leaves nothing behind that changes the next one."""
    x, prediction = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    net = Fixed(prediction)
    for _ in range(2):
        ends = []
        for call in (bench.ours(pair, net, x, Shared(len(x))), bench.theirs(pair, net, x)):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                call()
                torch.manual_seed(0)
                ends.append(call())
        assert torch.isfinite(ends[0]).all() and not torch.allclose(ends[0], x)
        assert (ends[0] - ends[1]).norm() <= 1e-3 * ends[1].norm()


@by_name
def test_both_sides_ask_the_network_as_often(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    forward = Fixed.forward
    monkeypatch.setattr(Fixed, "forward", lambda self, *args: asked.append(args[0]) or forward(self, *args))
    calls = []
    for side in bench.sides(pair, SHAPE):
        asked.clear()
        side()
        calls.append(len(asked))
    assert calls == [len(pair.ready().timesteps)] * 2


def test_a_step_passes_over_the_batch_no_more_often_than_diffusers() -> None:
    """But for flows, where diffusers' Euler step stays with the velocity; its DDPM draws no noise in the last step."""
    for pair in PAIRS:
        row = bench.operators(pair, SHAPE)
        assert row["ours"]["passes"] <= row["theirs"]["passes"] + 2 / bench.STEPS or pair.name == "Flow Euler"


def test_operators_are_counted() -> None:
    """Two passes and one small operator; a view is neither."""
    x, scale = torch.ones(4, 5), torch.tensor(2.0)
    assert bench.dispatched(lambda: (x.view(20) * (scale + 1)).exp(), 2) == {"passes": 1.0, "small": 0.5}


def test_time_in_the_network_is_told_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by one each time it is read: a second in each evaluation, one between any two."""
    ticks = count()
    monkeypatch.setattr(bench, "clock", lambda: float(next(ticks)))
    monkeypatch.setattr(bench, "STEPS", 3)
    net, call = bench.sampling(2, steps=3)
    forward = net.forward
    assert bench.watched(net, call) == (7.0, 3.0)
    assert net.forward == forward
    row = bench.loop(2, rounds=6)
    assert row["batch"] == 2 and row["judged"] == "over"
    assert row["share"]["mean"] == row["seconds"]["mean"] / row["network_seconds"]["mean"] - 1


def test_a_ratio_is_judged_by_its_interval() -> None:
    judged = [bench.judged(Interval(1.0, low, high, 6)) for low, high in ((0.8, 0.9), (0.9, 1.1), (1.1, 1.2))]
    assert judged == ["faster", "level", "slower"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A benchmark of seconds: few steps, one small shape, and processes that do next to nothing."""
    for name, value in {"STEPS": 3, "LARGE_BATCH": 2, "SHAPES": (SHAPE,), "STEP_ROUNDS": 1}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "PROCESSES", {"starts": "pass", "fills": "print(len(bytearray({batch} * 10**6)))"})
    yield


def test_the_command(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(bench, "Console", lambda: Console(width=200))
    with pytest.raises(SystemExit) as left:
        main(bench.app, ["--json", str(tmp_path / "bench.json")])
    assert not left.value.code
    written = json.loads((tmp_path / "bench.json").read_text())
    batch = bench.catalog.load().bed(bench.BED).batch
    assert [row["batch"] for row in written["loop"]] == [1, batch, 2]
    for part in ("steps", "operators"):
        assert [row["solver"] for row in written[part]] == [pair.name for pair in PAIRS]
    assert all(row["share"]["n"] == 6 and 0 < row["share"]["low"] <= row["share"]["high"] for row in written["loop"])
    assert all(set(row["microseconds"]) == {"ours", "theirs"} for row in written["steps"])
    peaks = written["memory"]["bytes"]
    assert peaks["fills"] - peaks["starts"] > 0.9e6 * batch
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed and "load average" in printed
    assert all(row["judged"] in printed for row in written["loop"] + written["steps"])
    assert all(pair.name in printed for pair in PAIRS) and "fills" in printed


def test_fewer_rounds_than_bound_a_median_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(bench.app, ["--rounds", "5"])
    assert left.value.code
    assert ">= 6" in capsys.readouterr().err


def test_without_diffusers_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="pip install"):
        bench.library()
    with pytest.raises(SystemExit) as left:
        main(bench.app, [])
    assert left.value.code == 2 and "diffusers" in capsys.readouterr().err
