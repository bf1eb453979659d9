"""Intervals and tests. The unit of independence is a seed: one value per sampling (or training) seed.

A bootstrap of FD excludes its own point estimate, so uncertainty comes from independent blocks instead.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A point estimate, its confidence interval and the number of independent values behind it.

    The bounds may be infinite where the values do not bound the estimate.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests: `p` is the larger p-value, `interval` the one that must lie within the margin."""

    equivalent: bool
    interval: Interval
    p: float


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean of independent values, two at least (ValueError)."""
    mean, error, quantile = _mean_error(values, level)
    return Interval(mean, mean - quantile * error, mean + quantile * error, len(values))


def paired(arm_values: Sequence[float], control_values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean of arm - control, value by value (same seed, same noise)."""
    return t_interval(_differences(arm_values, control_values), level)


def ratio(arm_values: Sequence[float], control_values: Sequence[float], level: float = 0.95) -> Interval:
    """Fieller's interval of mean(arm) / mean(control) over pairs.

    It holds every r that a t test of arm - r control does not reject. Exact for normal pairs, whatever their
    correlation, and fit for values of either sign; unbounded where the control's mean is not distinguishable
    from zero. Source: Fieller 1954, J. R. Stat. Soc. B 16, 175.
    """
    arm, control = _pairs(arm_values, control_values)
    mean_a, error_a, quantile = _mean_error(arm, level)
    mean_c, error_c, _ = _mean_error(control, level)
    if mean_c == 0:
        raise ValueError("The control's mean is zero: there is no ratio to it.")
    covariance = float(np.cov(arm, control)[0, 1]) / len(arm)
    # the roots r of (mean_a - r mean_c)^2 = quantile^2 Var(mean_a - r mean_c)
    a = mean_c**2 - (quantile * error_c) ** 2
    b = mean_a * mean_c - quantile**2 * covariance
    c = mean_a**2 - (quantile * error_a) ** 2
    if a <= 0:
        return Interval(mean_a / mean_c, -math.inf, math.inf, len(arm))
    half = math.sqrt(max(b * b - a * c, 0.0))
    return Interval(mean_a / mean_c, (b - half) / a, (b + half) / a, len(arm))


def tost(
    arm_values: Sequence[float], control_values: Sequence[float], margin: float, size: float = 0.05
) -> Equivalence:
    """Are the paired means within `margin` of each other? Two one-sided t tests, each of the given size.

    Source: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657: the 1 - 2 size interval lies in the margin.
    """
    differences = _differences(arm_values, control_values)
    interval = t_interval(differences, 1 - 2 * size)
    p = max(p_above(differences, -margin), p_below(differences, margin))
    return Equivalence(-margin <= interval.low and interval.high <= margin, interval, p)


def p_below(values: Sequence[float], bound: float) -> float:
    """One-sided p-value for the mean lying below the bound (the null: it lies on or above it)."""
    mean, error, _ = _mean_error(values, 0.95)
    if error == 0:
        return 0.0 if mean <= bound else 1.0
    return float(stats.t.cdf((mean - bound) / error, len(values) - 1))


def p_above(values: Sequence[float], bound: float) -> float:
    """One-sided p-value for the mean lying above the bound (the null: it lies on or below it)."""
    return p_below([-value for value in values], -bound)


def kid_interval(value: float, variance: float, n: int, level: float = 0.95) -> Interval:
    """Normal interval of one kernel distance from the variance of its U-statistic over n samples."""
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return Interval(value, value - half, value + half, n)


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Median with the interval between two order statistics: no distribution assumed, fit for timings.

    `mean` holds the median. Six values at least for 95 % (ValueError).
    """
    ordered = sorted(values)
    n = len(ordered)
    rank = int(stats.binom.ppf((1 - level) / 2, n, 0.5))  # P(fewer than `rank` values below the median) <= 2.5 %
    if rank < 1:
        raise ValueError(f"{n} values do not bound a median at level {level}.")
    return Interval(float(np.median(ordered)), ordered[rank - 1], ordered[n - rank], n)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those under q keeps the expected share of false discoveries under q.

    Source: Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57, 289.
    """
    return [float(p) for p in stats.false_discovery_control(p_values, method="bh")] if p_values else []


def _mean_error(values: Sequence[float], level: float) -> tuple[float, float, float]:
    """Mean, its standard error, and the two-sided Student quantile."""
    n = len(values)
    if n < 2:
        raise ValueError(f"An interval takes two independent values at least, not {n}.")
    x = np.asarray(values, dtype=np.float64)
    # equal values have no spread, whatever rounding makes of their mean
    error = 0.0 if np.all(x == x[0]) else float(x.std(ddof=1)) / math.sqrt(n)
    return float(x[0] if error == 0 else x.mean()), error, _student((1 + level) / 2, n - 1)


@lru_cache
def _student(probability: float, freedom: int) -> float:
    return float(stats.t.ppf(probability, freedom))


def _pairs(arm: Sequence[float], control: Sequence[float]) -> tuple[list[float], list[float]]:
    if len(arm) != len(control):
        raise ValueError(f"Paired values come in equal numbers, not {len(arm)} and {len(control)}.")
    return list(arm), list(control)


def _differences(arm: Sequence[float], control: Sequence[float]) -> list[float]:
    return [a - c for a, c in zip(*_pairs(arm, control), strict=True)]
