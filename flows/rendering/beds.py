"""A test bed: what it is, what a perfect sampler scores, the baseline's curve, and the least difference it resolves."""

import math
from dataclasses import dataclass

from catalog import Bed
from flows.floors import GROUPS
from flows.rendering.charts import View
from flows.rendering.comparison import along_curve, metrics
from flows.rendering.measured import BASELINE, COST, DRAWN_AGAIN, FRESH, Measured, Picture
from flows.rendering.numbers import Number, Record, cost, excess, quality, within
from flows.rendering.quantities import COSTS, counted, main_metric
from flows.rendering.weak import weak
from methods.measure.resolution import between_samplers, between_trainings

ONE_TRAINING = "not known: one training seed"


@dataclass(frozen=True)
class Row:
    """A cell in a table of numbers."""

    cell: str
    role: str
    costs: dict[str, Number | None]
    metrics: dict[str, Number | None]
    uncounted: tuple[str, ...]


@dataclass(frozen=True)
class Resolution:
    """What a bed can tell apart by a metric.

    `held_out` is what real data (in the plane: fresh draws) score, `bias` what a perfect sampler is expected to score
    with as many samples as a block has. `samplers` and `trainings` are the smallest differences; `samplers` is None
    where values do not vary, and where `trainings` is None, `why` says so. `close` are the steps of neighbouring points
    of the curve that are not told apart, `backward` of those where more steps score worse: there the metric does not
    measure what steps do.
    """

    key: str
    baseline: Number
    within: Number | None
    held_out: Number | None
    bias: Number | None
    samplers: Number | None
    trainings: Number | None
    why: str
    close: list[tuple[int, int]]
    backward: list[tuple[int, int]]
    pairs: int


@dataclass(frozen=True)
class Floor:
    """FD of a perfect sampler at n samples and at the number of held-out images, and what these score and exceed."""

    perfect: Number
    own: Number
    held_out: Number
    excess: Number

    @property
    def shifted(self) -> bool:
        """Whether held-out images lie apart from training images by more than their number explains."""
        return self.excess.low is not None and self.excess.low > 0


@dataclass(frozen=True)
class BedView:
    """Everything the site shows of a bed; without the baseline's record most of it is empty."""

    bed: Bed
    metric: str
    record: Record | None
    path: str
    rows: list[Row]
    metrics: list[str]
    charts: list[View]
    resolutions: list[Resolution]
    picture: Picture | None
    floor: Floor | None
    weak: str | None = None
    """Why its qualities are to be read with care."""

    @property
    def size(self) -> Number | None:
        """Parameters of the baseline's network."""
        return cost(self.record, self.record["default"], "parameters", self.path) if self.record else None

    @property
    def trained(self) -> Number | None:
        """Images of one training."""
        return cost(self.record, self.record["default"], "training_images", self.path) if self.record else None

    @property
    def counted(self) -> list[str]:
        """The costs of its table."""
        return counted(self.bed)

    @property
    def several(self) -> bool:
        """Whether its blocks come from several trainings."""
        seeds = self.record["cells"][self.record["default"]]["seeds"]["train"] if self.record else self.bed.seeds.train
        return len(seeds) > 1

    @property
    def excess(self) -> Number | None:
        """What the baseline lies above a perfect sampler."""
        best = self.sharpest
        return excess(best.baseline, best.bias or best.held_out) if best else None

    @property
    def sharpest(self) -> Resolution | None:
        """What the bed resolves by its main metric."""
        return next((found for found in self.resolutions if found.key == self.metric), None)


def view(measured: Measured, bed: Bed) -> BedView:
    """Everything the site shows of a bed."""
    record, path, metric = measured.record(bed.name, BASELINE), f"data/{bed.name}/{BASELINE}.json", main_metric(bed)
    best = floor(measured, bed)
    if record is None or record["default"] not in record["cells"]:
        return BedView(bed, metric, None, path, [], [], [], [], None, best)
    charts = measured.views(bed, [COST], lambda _axis, _key: [], f"The baseline on {bed.name}")
    cells = sorted(rows(record, path), key=lambda row: record["cells"][row.cell]["cost"][COST])
    return BedView(
        bed, metric, record, path, cells, metrics(record), charts,
        [resolve(measured, bed, record, key, [row.cell for row in cells], path) for key in metrics(record)],
        measured.picture(bed, BASELINE, "the baseline"), best, weak(measured, bed),
    )  # fmt: skip


def floor(measured: Measured, bed: Bed) -> Floor | None:
    """The floor of an image bed, None where it was not measured."""
    found, perfect, real = measured.floors.get(bed.name), measured.floor_number(bed.name, "fd"), None
    if found is not None:
        real = _held_out(measured, bed, "fd")
    if found is None or perfect is None or real is None or not found["fd"]:
        return None
    own = measured.of_floor(bed.name, found["fd"]["bias_at_held_out"], DRAWN_AGAIN)
    above = excess(real, own)
    assert above is not None
    return Floor(perfect, own, real, above)


def resolve(measured: Measured, bed: Bed, record: Record, key: str, curve: list[str], path: str) -> Resolution:
    """What the bed can tell apart by one metric."""
    default, gaps = record["default"], along_curve(record, curve, key, path)
    found = quality(record, default, key, path)
    assert found is not None
    metric = [record["cells"][cell]["metrics"].get(key) for cell in curve]
    values = [each["values"] for each in metric if each]
    samplers = trainings = None
    if len(values) > 1 and found.n > 1 and (size := between_samplers(values)) > 0:
        samplers = found.but(size, -math.inf, math.inf, cell=f"the median of {len(gaps)} neighbouring pairs")
    several = len(record["cells"][default]["seeds"]["train"]) > 1
    if several and bed.network:
        size = between_trainings(record["cells"][default]["metrics"][key]["values"])
        trainings = found.but(size, -math.inf, math.inf, cell=f"{default}, one value per training seed")
    return Resolution(
        key, found, within(record, default, key, path), _held_out(measured, bed, key),
        measured.floor_number(bed.name, key) if bed.network else None, samplers, trainings,
        ONE_TRAINING, [pair for pair, gap in gaps if gap.word == "not told apart"],
        [pair for pair, gap in gaps if gap.word == "better"], len(gaps),
    )  # fmt: skip


def _held_out(measured: Measured, bed: Bed, key: str) -> Number | None:
    """What real data score that nobody trained on, or fresh draws of the truth."""
    found = (measured.floors.get(bed.name) or {"held_out": {}})["held_out"].get(key)
    if found is None:
        return None
    what = f"held-out images, interval from leaving out each of {GROUPS} parts" if bed.network else FRESH
    return measured.of_floor(bed.name, found, what)


def rows(record: Record, path: str) -> list[Row]:
    """Every cell of a record: subject, control, then by rising cost."""
    roles = {record["control"]: "control", record["default"]: "subject"}
    if len(roles) == 1:  # the baseline is held against itself
        roles = {record["default"]: "default"}
    order = {record["default"]: 0, record["control"]: 1}
    cells = sorted(record["cells"], key=lambda name: (order.get(name, 2), record["cells"][name]["cost"][COST], name))
    return [
        Row(
            name,
            roles.get(name, ""),
            {key: cost(record, name, key, path) for key in COSTS},
            {key: quality(record, name, key, path) for key in metrics(record)},
            tuple(record["cells"][name]["cost"]["uncounted_ops"]),
        )
        for name in cells
    ]
