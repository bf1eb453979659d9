"""Floors: the best that a sampler can score on a bed, as real images do that nobody trained on."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from catalog import Bed
from flows.cell import Workplace, images, source
from flows.records import SCHEMA, write_json
from flows.score import feature_net
from methods.data import Images
from methods.measure import features
from methods.measure.quality import bias_floor
from methods.measure.reference import UNITS, MixtureReference, Reference, floor
from methods.measure.statistics import Interval, t_interval

GROUPS = 10
"""Parts of the held-out images, each with the classes of the whole, that are left out in turn."""
DRAWS = 5
"""Values of the bias, each with draws of its own."""


def jackknife(value: float, left_out: Sequence[float], level: float = 0.95) -> Interval:
    """The interval of an estimate from what it is without each of at least two equal parts of the data.

    Its variance is (k - 1) / k times the sum of the squared deviations of the k estimates, its quantile Student's with
    k - 1 degrees of freedom. Parts, not single values, so that it holds for medians and neighbours as well. Source:
    Tukey 1958, Ann. Math. Statist. 29, 614; that it errs to the wide side, Efron and Stein 1981, Ann. Statist. 9, 586.
    """
    k, mean = len(left_out), fmean(left_out)
    error = math.sqrt((k - 1) / k * math.fsum((each - mean) ** 2 for each in left_out))
    half = float(stats.t.ppf((1 + level) / 2, k - 1)) * error
    return Interval(value, value - half, value + half, 1)


def held_out(loaded: Images, ruler: Reference) -> dict[str, Interval]:
    """What held-out images score at their own number, each metric with its interval."""
    real, labels = loaded.held_out, loaded.held_out_labels
    group = torch.empty(len(labels), dtype=torch.long)
    group[labels.argsort(stable=True)] = torch.arange(len(labels)) % GROUPS

    def score(rows: Tensor) -> dict[str, float]:
        return floor(replace(loaded, held_out=real[rows], held_out_labels=labels[rows]), ruler).scores

    parts = [score(group != left_out) for left_out in range(GROUPS)]
    return {key: jackknife(value, [part[key] for part in parts]) for key, value in score(group >= 0).items()}


def bias(ruler: Reference, n: int) -> Interval:
    """FD that a perfect sampler is expected to have at n samples."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(DRAWS)]
    return t_interval([bias_floor(ruler.features, ruler.labels, n, generator) for generator in generators])


def of_images(bed: Bed, place: Workplace, results: Path) -> None:
    """What real held-out images score, and how far FD is from zero for no other reason than the number of samples."""
    net, accuracy = features.load(feature_net(bed, place))
    loaded: Images = images(bed.name)
    ruler, count = Reference.of(loaded, net, bed.n), len(loaded.held_out)
    extractor = {"sha256": features.digest(net), "accuracy": accuracy, "dimensions": net.dimensions}
    biases = {key: entry(bias(ruler, n), "fd", n) for key, n in (("bias_at_held_out", count), ("bias_at_n", bed.n))}
    scores = {key: entry(found, key, count) for key, found in held_out(loaded, ruler).items()}
    _write(bed, results, features=extractor, held_out=scores, fd=biases)


def of_plane(bed: Bed, results: Path) -> None:
    """What fresh draws of the mixture itself score against the reference draw, over the blocks."""
    mixture = images(bed.name)
    ruler = MixtureReference.of(mixture, bed.n)
    draws = [mixture.sample(bed.n, torch.Generator().manual_seed(1 + seed)) for seed in bed.seeds.sample]
    values = [ruler.score(draw).values for draw in draws]
    scores = {key: entry(t_interval([each[key] for each in values]), key, bed.n) for key in values[0]}
    _write(bed, results, features=None, held_out=scores, fd=None)


def entry(found: Interval, key: str, n: int) -> dict[str, Any]:
    """A number of a floor as its file has it; `n` counts the samples of each of its `blocks`."""
    return {"mean": found.mean, "low": found.low, "high": found.high, "blocks": found.n, "n": n, "unit": UNITS[key]}


def _write(bed: Bed, results: Path, **found: Any) -> None:
    head = {"schema": SCHEMA, "bed": bed.name, "id": "floor", "data": source(bed.name)}
    write_json(results / bed.name / "floor.json", head | found)
