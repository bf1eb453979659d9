"""Numbers as the site shows them: value, uncertainty, what they count and where they come from, never one alone."""

import math
from dataclasses import dataclass

from flows.ledger import EXACT_UNITS, Judged, Record

MINUS = "−"


@dataclass(frozen=True)
class Metric:
    """How to read a quality number: `better` is the direction, None where neither is."""

    title: str
    better: str | None
    about: str


METRICS = {
    "fd": Metric(
        "FD",
        "lower",
        "FD-smallnet: the Fréchet distance between samples and training images in the features of one small frozen "
        "classifier. It is biased upwards by an amount that depends on the number of samples, so it is compared only "
        "between equal numbers of samples, and never with a published FID.",
    ),
    "kid": Metric(
        "KID",
        "lower",
        "Kernel distance: the unbiased squared mean discrepancy in the same features, scaled to unit size. It may be "
        "slightly negative.",
    ),
    "fidelity": Metric(
        "Fidelity error",
        "lower",
        "How far a sample lies from the one that a many-step solver makes of the same noise with the same weights. "
        "Only where a technique leaves the weights alone; it needs few samples and no reference images.",
    ),
    "accuracy": Metric(
        "Label accuracy", "higher", "The share of samples that the classifier takes for the class asked for."
    ),
    "precision": Metric("Precision", "higher", "The share of samples that lie within the manifold of the real images."),
    "recall": Metric("Recall", "higher", "The share of real images that lie within the manifold of the samples."),
    "density": Metric(
        "Density", "higher", "How many real neighbourhoods a sample falls in, relative to real images among themselves."
    ),
    "coverage": Metric(
        "Coverage", "higher", "The share of real images with a sample nearby; in the plane, the share of modes."
    ),
    "histogram": Metric(
        "Class histogram", "lower", "Total variation between the classes recognized in samples and in real images."
    ),
    "nearest": Metric(
        "Nearest training image",
        None,
        "The median distance to the nearest training image over that of held-out images; far below one means copying.",
    ),
    "w2": Metric("Wasserstein", "lower", "Exact optimal transport between samples and a fixed draw of the truth."),
    "sliced_w2": Metric(
        "Sliced Wasserstein", "lower", "The same distance, averaged over projections onto lines through the plane."
    ),
    "mmd": Metric("MMD", "lower", "Kernel mean discrepancy with a bandwidth fixed on the reference."),
    "off_manifold": Metric("Off the manifold", "lower", "The share of samples far from every mode."),
}

COSTS = {
    "evaluations": "Evaluations",
    "sequential_calls": "Sequential calls",
    "macs": "MACs",
    "parameters": "Parameters",
    "bytes": "Bytes",
    "training_images": "Training images",
    "one_off_images": "One-off images",
}


@dataclass(frozen=True)
class Number:
    """A measured number with its parents.

    `low` and `high` bound the interval of the given level (percent); both None for an exact number, infinite where the
    data do not bound it. `n` counts independent values, `samples` the samples behind each; `record` is the path of its
    record within the site, `cell` the run it belongs to.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    samples: int | None
    unit: str
    bed: str
    cell: str
    record: str
    level: int = 95

    @property
    def exact(self) -> bool:
        return self.low is None

    @property
    def bounded(self) -> bool:
        """Whether there is an interval to show."""
        return self.low is not None and self.high is not None and math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def places(self) -> int:
        """Decimals that the interval leaves meaningful: two digits of its half-width."""
        if not self.bounded:
            return 3
        assert self.low is not None and self.high is not None
        half = (self.high - self.low) / 2
        return min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3

    @property
    def text(self) -> str:
        if not self.bounded or self.low == self.high:
            return exact(self.value)
        return fixed(self.value, self.places)

    @property
    def interval(self) -> str | None:
        """`1.10 to 1.36`, or None for a number that has none."""
        if not self.bounded or self.low == self.high:
            return None
        assert self.low is not None and self.high is not None
        return f"{fixed(self.low, self.places)} to {fixed(self.high, self.places)}"

    @property
    def basis(self) -> str:
        """What stands behind the number, in words."""
        if self.exact:
            return f"{self.unit}, counted exactly; {self.cell} on {self.bed}"
        values = f"{self.n} value{'s' if self.n > 1 else ''}"
        of = f" of {grouped(self.samples)} samples each" if self.samples else ""
        if self.bounded:
            return f"{self.unit}; {self.level} % interval from {values}{of}; {self.cell} on {self.bed}"
        return f"{self.unit}; from {values}{of}, which give no interval; {self.cell} on {self.bed}"


def quality(record: Record, cell: str, key: str, path: str) -> Number | None:
    """A quality of a cell, None where it was not measured."""
    measured = record["cells"].get(cell)
    if measured is None or key not in measured["metrics"]:
        return None
    found = measured["metrics"][key]
    return Number(
        found["mean"], found["low"], found["high"], found["blocks"], measured["n"], found["unit"], record["bed"], cell,
        path,
    )  # fmt: skip


def cost(record: Record, cell: str, key: str, path: str) -> Number | None:
    """An exact cost of a cell, None where it was not counted."""
    measured = record["cells"].get(cell)
    if measured is None or key not in measured["cost"]:
        return None
    return Number(measured["cost"][key], None, None, 1, None, EXACT_UNITS[key], record["bed"], cell, path)


def statistic(judged: Judged, path: str) -> Number | None:
    """What a claim's verdict rests on, None for a claim without one."""
    if judged.verdict is None or judged.bed is None:
        return None
    found = judged.verdict.interval
    known = judged.verdict.p in (0.0, 1.0) and found.n == 1 and found.low == found.high
    low, high = (None, None) if known else (found.low, found.high)
    level = 90 if judged.claim.expect and judged.claim.expect.equal is not None else 95
    cell = formula(judged)
    return Number(found.mean, low, high, found.n, judged.n, judged.unit or "", judged.bed, cell, path, level)


def formula(judged: Judged) -> str:
    """The statistic in terms of cells: `ddim@10 − baseline@10`."""
    if judged.control is None:
        return judged.arm or ""
    return f"{judged.arm} {'/' if judged.claim.statistic == 'ratio' else MINUS} {judged.control}"


def expectation(judged: Judged) -> str:
    """What the claim lets one expect: `at most 0, tolerance 0.1`."""
    expect = judged.claim.expect
    if expect is None:
        return ""
    (relation, target), *_ = expect.model_dump(exclude_unset=True).items()
    words = {"at_most": "at most", "at_least": "at least", "equal": "equal to"}[relation]
    tolerance = f", tolerance {exact(judged.claim.tolerance)}" if judged.claim.tolerance else ""
    return f"{words} {exact(target)}{tolerance}"


def fixed(value: float, places: int) -> str:
    """With a number of decimals, grouped thousands and a true minus; never a negative zero."""
    text = f"{value:,.{places}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def exact(value: float) -> str:
    """A counted number: whole up to a hundred thousand, then with a prefix; four digits for fractions."""
    if abs(value) >= 1e5:
        power = min(5, int(math.log10(abs(value) * 1.0005) // 3))
        return f"{value / 1000**power:.3g} {' kMGTP'[power]}".replace("-", MINUS)
    if float(value).is_integer():
        return f"{int(value):,}".replace("-", MINUS)
    return f"{value:.4g}".replace("-", MINUS)


def grouped(value: float | None) -> str:
    """A whole number with grouped thousands."""
    return "" if value is None else f"{value:,}"


def percent(share: float) -> str:
    """`5 %`."""
    return f"{100 * share:.3g} %"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 claim`, `2 claims`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def title(key: str) -> str:
    """The name of a metric or cost."""
    return METRICS[key].title if key in METRICS else COSTS.get(key, key)
