"""The smallest difference a bed resolves is the one at which its intervals stop holding zero."""

import math
from statistics import fmean

import numpy as np
import pytest

from methods.measure.resolution import between_samplers, between_trainings, neighbours
from methods.measure.statistics import paired

NOISE = [0.3, -0.1, 0.05, 0.2, -0.45]
SHARED = [0.0, 1.0, -2.0, 0.5, 3.0]


def curve(scales: list[float]) -> list[list[float]]:
    """Points whose differences to the next vary by `scales` times NOISE around one, and share much else."""
    centred = [noise - fmean(NOISE) for noise in NOISE]
    points = [list(SHARED)]
    for scale in scales:
        points.append([value - 1 - scale * noise for value, noise in zip(points[-1], centred, strict=True)])
    return points


def test_the_median_neighbour_counts_and_what_blocks_share_does_not() -> None:
    half = paired(NOISE, [0.0] * 5).high - fmean(NOISE)
    assert between_samplers(curve([1.0, 2.0, 10.0])) == pytest.approx(2 * half)
    assert between_samplers(curve([1.0, 3.0])) == pytest.approx(2 * half)


def test_a_difference_of_that_size_lies_on_the_edge_of_being_seen() -> None:
    first, second = curve([1.0])
    least = between_samplers([first, second])
    for share, seen in ((0.99, False), (1.01, True)):
        moved = [value + 1 - share * least for value in second]
        assert (paired(first, moved).low > 0) is seen


def test_neighbours_are_each_point_minus_the_next() -> None:
    found = neighbours(curve([1.0, 2.0]))
    assert [interval.mean for interval in found] == [pytest.approx(1.0)] * 2
    assert found[1].high - found[1].low == pytest.approx(2 * (found[0].high - found[0].low))


def test_between_trainings_is_the_paired_half_width_of_pairs_that_share_nothing() -> None:
    rng = np.random.default_rng(0)
    halves, expected = [], []
    for _ in range(4000):
        a, b = rng.normal(size=5), rng.normal(size=5)
        interval = paired(a.tolist(), b.tolist())
        halves.append(((interval.high - interval.low) / 2) ** 2)
        expected.append(between_trainings(a.tolist()) ** 2)
    assert math.sqrt(fmean(expected)) == pytest.approx(math.sqrt(fmean(halves)), rel=0.05)


@pytest.mark.parametrize("wrong", [lambda: between_samplers([NOISE]), lambda: between_trainings([1.0])])
def test_one_of_anything_resolves_nothing(wrong) -> None:
    with pytest.raises(ValueError):
        wrong()
    with pytest.raises(ValueError):
        neighbours([[1.0], [2.0]])
