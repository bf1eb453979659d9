"""Beds on which the baseline is too poor for its quality to say much of a technique, and the words for it."""

from catalog import Bed
from flows.rendering.comparison import along_curve
from flows.rendering.measured import BASELINE, COST, Measured
from flows.rendering.numbers import percent
from flows.rendering.quantities import METRICS, main_metric, title

FIDELITY = "fidelity"
LEAST = 0.5
"""The share of the classifier's accuracy on real images that the baseline's images have to reach."""


def weak(measured: Measured, bed: Bed) -> str | None:
    """Why what a bed says of quality is to be read with care, None where nothing speaks against it."""
    return caution(measured, bed, main_metric(bed))


def caution(measured: Measured, bed: Bed, metric: str) -> str | None:
    """As far as it touches a metric: fidelity and costs it does not.

    Classes that nobody recognises touch every quality, a curve that runs backward the metric by which it does.
    """
    if metric == FIDELITY or metric not in METRICS:
        return None
    return " ".join(filter(None, (unrecognised(measured, bed), backward(measured, bed, metric)))) or None


def unrecognised(measured: Measured, bed: Bed) -> str | None:
    """That the bed's classifier does not recognise what the baseline draws."""
    record = measured.record(bed.name, BASELINE)
    cell = record["cells"].get(record["default"]) if record else None
    if not record or not cell or not record["features"] or "accuracy" not in cell["metrics"]:
        return None
    drawn, real = cell["metrics"]["accuracy"]["mean"], record["features"]["accuracy"]
    if drawn >= LEAST * real:
        return None
    return (
        f"Images of the baseline are recognised in {percent(drawn)} of cases here, real ones in {percent(real)}: "
        f"{title(main_metric(bed))} says little of what a technique breaks on this bed; read {title(FIDELITY).lower()}."
    )


def backward(measured: Measured, bed: Bed, key: str) -> str | None:
    """That the baseline gets worse with more steps by a metric."""
    record = measured.record(bed.name, BASELINE)
    if record is None or METRICS[key].better is None:
        return None
    curve = sorted(record["cells"], key=lambda name: record["cells"][name]["cost"][COST])
    worse = [f"{a} to {b}" for (a, b), gap in along_curve(record, curve, key, "") if gap.word == "better"]
    if not worse:
        return None
    return (
        f"By {title(key)} the baseline gets worse with more steps here, from {' and from '.join(worse)}: "
        f"it does not measure what steps do; read {title(FIDELITY).lower()}."
    )
