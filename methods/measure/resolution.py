"""The smallest difference a bed can resolve: what is below it may be there, and cannot be seen.

A difference of exactly this size is told from zero about half the time; certainty takes about twice as much.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import numpy as np
from scipy import stats

from methods.measure.statistics import Interval, paired


def neighbours(points: Sequence[Sequence[float]], level: float = 0.95) -> list[Interval]:
    """The paired interval of each point of a curve minus the next; a point is one value per block.

    Raises ValueError where blocks cannot be paired, or where there is only one.
    """
    return [paired(first, second, level) for first, second in pairwise(points)]


def between_samplers(points: Sequence[Sequence[float]], level: float = 0.95) -> float:
    """What two samplers of the same weights, with the same noise, must differ by to be told apart.

    The median over neighbouring points of a curve of the half-width of their paired interval: neighbours are about as
    alike as techniques that have to be told apart. Two points at least (ValueError).
    """
    if len(points) < 2:
        raise ValueError(f"A curve of {len(points)} points has no neighbours.")
    return median((found.high - found.low) / 2 for found in neighbours(points, level))


def between_trainings(values: Sequence[float], level: float = 0.95) -> float:
    """What two trainings of b seeds each must differ by to be told apart: t sd sqrt(2 / b), t with b - 1 degrees.

    `values` are those of one method, one per training seed, two at least (ValueError). It is the half-width of a
    paired interval whose pairs share nothing; equal order of data and equal noise can only narrow it.
    """
    seeds = len(values)
    if seeds < 2:
        raise ValueError(f"{seeds} training seed does not show how much trainings vary.")
    quantile = float(stats.t.ppf((1 + level) / 2, seeds - 1))
    return quantile * float(np.std(values, ddof=1)) * math.sqrt(2 / seeds)
