"""The best that a sampler can score, and how well it is known."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import catalog
from flows.floors import GROUPS, held_out, jackknife, of_plane
from flows.records import read_json
from methods.data.digits import load
from methods.measure import features
from methods.measure.quality import Gaussian
from methods.measure.reference import Reference, floor
from methods.measure.statistics import Interval, t_interval

TRIALS = 1_000


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    x = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known, found = t_interval(x.tolist()), jackknife(float(x.mean()), [float((x.sum() - each) / 11) for each in x])
    assert (found.mean, found.low, found.high) == pytest.approx((known.mean, known.low, known.high))


def distance(x: Tensor, off: float = 0.0) -> float:
    """FD of draws from the standard normal distribution to one whose first mean is `off`."""
    dimensions = x.shape[1]
    mean, one = torch.zeros(dimensions, dtype=torch.float64), torch.eye(dimensions, dtype=torch.float64)
    mean[0] = off
    return Gaussian(mean, one).distance(Gaussian.of(x))


def coverage(estimate: Callable[[Tensor], float]) -> float:
    """How often the jackknife's interval holds what the estimate is expected to be, of 300 points in space."""
    rng, group, found = torch.Generator().manual_seed(1), torch.arange(300) % GROUPS, list[Interval]()
    for _ in range(TRIALS):
        x = torch.randn(300, 3, generator=rng, dtype=torch.float64)
        found.append(jackknife(estimate(x), [estimate(x[group != each]) for each in range(GROUPS)]))
    truth = sum(each.mean for each in found) / TRIALS
    return sum(each.low <= truth <= each.high for each in found) / TRIALS


@pytest.mark.parametrize("estimate", [
    lambda x: float(x.median()), lambda x: float((x > 1).double().mean()), partial(distance, off=0.5),
])  # fmt: skip
def test_the_jackknife_covers_as_often_as_it_says(estimate: Callable[[Tensor], float]) -> None:
    """A median, a share, and FD from another distribution."""
    assert 0.93 <= coverage(estimate) <= 0.97


def test_the_jackknife_of_fd_from_the_same_distribution_is_wider_than_need_be() -> None:
    """There FD is of second order in the sample's deviations, and what the jackknife takes for linear is not."""
    assert coverage(distance) > 0.97


def test_held_out_images_score_as_before_and_their_numbers_have_intervals() -> None:
    digits, (net, _) = load(), features.load(Path("results/digits/features.safetensors"))
    ruler = Reference.of(digits, net, len(digits.train))
    found = held_out(digits, ruler)
    assert {key: each.mean for key, each in found.items()} == floor(digits, ruler).scores
    assert all(each.low < each.mean < each.high for each in found.values())
    written = read_json(Path("results/digits/floor.json"))["held_out"]
    assert {key: each["mean"] for key, each in written.items()} == pytest.approx(
        {key: each.mean for key, each in found.items()}, abs=1e-6
    )


def test_draws_of_the_truth_have_intervals_over_blocks(tmp_path: Path) -> None:
    bed = catalog.load().bed("mixture")
    of_plane(bed, tmp_path)
    written, committed = (read_json(folder / "mixture/floor.json") for folder in (tmp_path, Path("results")))
    assert written["held_out"]["w2"]["blocks"] == len(bed.seeds.sample)
    assert written == committed
