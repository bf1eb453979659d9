"""What may be said of a claim: computed from the interval of its statistic and a tolerance set beforehand.

Inside the expectation, widened by the tolerance: supported. Wholly outside: not supported. Else inconclusive.
Ordered expectations are read from the 95 % interval; `equal` from the 90 % one, which is two one-sided tests
at 5 % (a missing difference is no equivalence). Values are paired by seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from methods.measure.statistics import Interval, p_above, p_below, paired, ratio, t_interval

Status = Literal["supported", "not supported", "inconclusive"]
Values = float | Sequence[float]  # an exact number (a count of evaluations, bytes), or one value per seed


@dataclass(frozen=True)
class Verdict:
    """`low` and `high` bound the widened expectation, None where it is open.

    `p` is the p-value of the decision: the interval decides, for or against, exactly where it is at most 0.05.
    It is to be adjusted over all claims; 0 or 1 for exact numbers, and 1 where one value leaves nothing to test.
    """

    status: Status
    interval: Interval
    low: float | None
    high: float | None
    p: float
    text: str


def verdict(
    kind: str,
    statistic: str,
    arm_values: Values,
    control_values: Values | None,
    expect: Mapping[str, float],
    tolerance: float,
) -> Verdict:
    """Judge one claim.

    `kind`: ratio, ordering, equivalence, existence or absolute. `statistic`: difference (arm - control),
    ratio (arm / control, the control positive) or value (arm alone). `expect`: one of at_most, at_least and
    equal; `tolerance` is in the unit of the statistic. Raises ValueError where these do not fit together.
    """
    if len(expect) != 1 or not expect.keys() <= {"at_most", "at_least", "equal"}:
        raise ValueError(f"An expectation is one of at_most, at_least and equal, not {dict(expect)}.")
    if kind == "equivalence" and "equal" not in expect:
        raise ValueError("An equivalence is expected to be equal, within its tolerance.")
    (relation, target), *_ = expect.items()
    low = None if relation == "at_most" else target - tolerance
    high = None if relation == "at_least" else target + tolerance
    arm, control, exact = _aligned(statistic, arm_values, control_values)
    interval = _interval(statistic, arm, control, exact, 0.90 if relation == "equal" else 0.95)
    status = _status(interval, low, high)
    p = _p(statistic, arm, control, low, high, exact, interval)
    return Verdict(
        status, interval, low, high, p, _text(kind, statistic, interval, relation, target, tolerance, status)
    )


def _aligned(statistic: str, arm: Values, control: Values | None) -> tuple[list[float], list[float], bool]:
    """Both sides as lists of equal length, an exact number repeated, and whether everything was exact."""
    if statistic not in ("difference", "ratio", "value"):
        raise ValueError(f"A statistic is difference, ratio or value, not {statistic!r}.")
    if (control is None) != (statistic == "value"):
        raise ValueError(f"The statistic {statistic} {'needs a' if control is None else 'takes no'} control.")
    sides: list[Values] = [arm, 0.0 if control is None else control]
    lengths = {len(side) for side in sides if isinstance(side, Sequence)}
    if len(lengths) > 1:
        raise ValueError("Arm and control are compared seed by seed and have different numbers of values.")
    n = lengths.pop() if lengths else 1
    first, second = (list(side) if isinstance(side, Sequence) else [float(side)] * n for side in sides)
    return first, second, all(not isinstance(side, Sequence) for side in sides)


def _interval(statistic: str, arm: list[float], control: list[float], exact: bool, level: float) -> Interval:
    if len(arm) > 1:
        if statistic == "ratio":
            return ratio(arm, control, level)
        return t_interval(arm, level) if statistic == "value" else paired(arm, control, level)
    if statistic == "ratio" and control[0] == 0:
        raise ValueError("The control is zero: there is no ratio to it.")
    value = arm[0] / control[0] if statistic == "ratio" else arm[0] - control[0]
    return Interval(value, value, value, 1) if exact else Interval(value, -math.inf, math.inf, 1)


def _status(interval: Interval, low: float | None, high: float | None) -> Status:
    floor, ceiling = -math.inf if low is None else low, math.inf if high is None else high
    if math.isinf(interval.low) or math.isinf(interval.high):
        return "inconclusive"
    if floor <= interval.low and interval.high <= ceiling:
        return "supported"
    return "not supported" if interval.high < floor or interval.low > ceiling else "inconclusive"


def _p(
    statistic: str,
    arm: list[float],
    control: list[float],
    low: float | None,
    high: float | None,
    exact: bool,
    interval: Interval,
) -> float:
    if exact:
        return 1.0 if _status(interval, low, high) == "inconclusive" else 0.0
    if len(arm) < 2 or math.isinf(interval.low) or math.isinf(interval.high):
        return 1.0

    def beyond(bound: float) -> list[float]:
        """What is positive where the statistic exceeds the bound; Fieller's contrast for a ratio."""
        slope, offset = (bound, 0.0) if statistic == "ratio" else (1.0, bound)
        return [a - slope * c - offset for a, c in zip(arm, control, strict=True)]

    bounds = [(low, p_above, p_below), (high, p_below, p_above)]
    tests = [(into(beyond(at), 0.0), out(beyond(at), 0.0)) for at, into, out in bounds if at is not None]
    inside, outside = max(within for within, _ in tests), min(without for _, without in tests)
    # one bound is read from the 95 % interval, 2.5 % a side; two from the 90 % interval, 5 % a side
    return min(1.0, (2 if len(tests) == 1 else 1) * min(inside, outside))


def _text(
    kind: str, statistic: str, interval: Interval, relation: str, target: float, tolerance: float, status: str
) -> str:
    if interval.low == interval.high:
        found = f"{interval.mean:.4g} exactly"
    elif interval.n == 1:
        found = f"{interval.mean:.4g}, from one seed: no interval"
    else:
        level = 90 if relation == "equal" else 95
        bounds = f"{level} % interval {interval.low:.4g} to {interval.high:.4g}"
        found = f"{interval.mean:.4g} ({bounds}, n = {interval.n})"
    words = {"at_most": "at most", "at_least": "at least", "equal": "equal to"}[relation]
    expected = f"expected {words} {target:.4g}, tolerance {tolerance:.4g}"
    return f"{kind.capitalize()}, {statistic}: {found}; {expected}: {status}."
