"""Measuring: closed forms, calibrated intervals, metrics that see every damage, exact costs, verdicts."""

import copy
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, scaled_dot_product_attention

from catalog import load as load_catalog
from flows.home import RESULTS
from methods.data import MissingData, load
from methods.measure import cost, features, plane, quality, reference, statistics
from methods.measure.activation import fired
from methods.measure.verdict import verdict
from methods.nets.classifier import Classifier

TRIALS = 1_000
KNOWN = load_catalog()
PINNED = [bed.name for bed in KNOWN.beds.values() if bed.features]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def extractor(digits):
    return features.train_features(digits)


@pytest.fixture(scope="module")
def scorer(digits, extractor):
    return reference.Reference.of(digits, extractor[0], n=len(digits.train))


# Feature extractor


def test_extractor_reads_digits(extractor):
    net, accuracy = extractor
    assert accuracy >= 0.97
    assert net.dimensions == 64 and not any(weight.requires_grad for weight in net.parameters())


def test_extractor_is_deterministic_and_survives_a_round_trip(digits, tmp_path):
    state = torch.random.get_rng_state()
    first, accuracy = features.train_features(digits, dimensions=16, epochs=1)
    second, _ = features.train_features(digits, dimensions=16, epochs=1)
    other, _ = features.train_features(digits, dimensions=16, epochs=1, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert features.digest(first) == features.digest(second) != features.digest(other)
    features.save(tmp_path / "features.safetensors", first, accuracy)
    loaded, stored = features.load(tmp_path / "features.safetensors")
    assert stored == accuracy and features.digest(loaded) == features.digest(first)
    a, b = features.extract(first, digits.held_out), features.extract(loaded, digits.held_out)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 32, 32), (3, 32, 32)])
def test_classifier_takes_every_bed(shape):
    net = Classifier(shape[0], shape[1], classes=10)
    x = torch.zeros(2, *shape)
    assert net(x).shape == (2, 10) and net.features(x).shape == (2, 64)
    assert (net.features(x) >= 0).all()


# Image metrics


def test_frechet_of_two_known_clouds():
    a = torch.randn(2_000, 5, dtype=torch.float64, generator=rng())
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T))).T  # mean 0, covariance 1
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    b = a * scale + torch.arange(5)
    expected = float((torch.arange(5) ** 2).sum() + (scale - 1).square().sum())
    assert quality.frechet(a, b) == pytest.approx(expected, abs=1e-6)
    assert quality.frechet(a, a) == pytest.approx(0, abs=1e-9)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=rng(1))).Q
    assert quality.frechet(a @ turn, b @ turn) == pytest.approx(expected, abs=1e-6)


def test_kid_is_unbiased_and_its_variance_is_right():
    same, apart = [], []
    for trial in range(100):
        x = torch.randn(3, 80, 4, dtype=torch.float64, generator=rng(trial))
        same.append(quality.kid(x[0], x[1]))
        apart.append(quality.kid(x[0], x[2] + 1))
    values = np.array([estimate.value for estimate in same])
    assert abs(values.mean()) < 3 * values.std() / 10
    true = np.var([estimate.value for estimate in apart], ddof=1)
    assert 0.6 < np.mean([estimate.variance for estimate in apart]) / true < 1.6
    degenerate = np.mean([estimate.variance for estimate in same]) / values.var(ddof=1)
    assert 1 < degenerate < 3.5


def test_precision_recall_density_coverage():
    real, fake = (torch.randn(400, 8, generator=rng(seed)) for seed in (0, 1))
    scores = quality.manifold(real, fake)
    assert scores["precision"] > 0.8 and scores["recall"] > 0.8
    assert scores["density"] == pytest.approx(1, abs=0.15) and scores["coverage"] > 0.9
    narrow = quality.manifold(real, 0.3 * fake)
    assert narrow["precision"] == 1 and narrow["recall"] < 0.3 and narrow["coverage"] < scores["coverage"]
    assert quality.precision_recall(real, fake + 100) == (0, 0)
    assert quality.density_coverage(real, fake + 100) == (0, 0)


def test_histogram_accuracy_fidelity():
    labels = torch.arange(10).repeat_interleave(10)
    assert quality.class_histogram(labels, labels.flip(0), 10) == 0
    assert quality.class_histogram(torch.zeros(5, dtype=torch.long), labels, 10) == pytest.approx(0.9)
    assert quality.conditional_accuracy(labels, labels.roll(5)) == 0.5
    x = torch.zeros(4, 1, 8, 8)
    assert quality.paired_fidelity(x + 0.5, x) == pytest.approx(0.5)


def test_copies_of_the_training_set_are_noticed(digits, scorer):
    assert scorer.score(digits.train, digits.train_labels).values["nearest"] == pytest.approx(0, abs=1e-3)
    assert reference.floor(digits, scorer).scores["nearest"] == pytest.approx(1)


def test_an_adapted_model_is_measured_where_it_learned_and_where_it_may_forget(digits, scorer):
    """Noise on new classes moves their distance alone, noise on known ones theirs; ink is counted as it is."""
    adapted = replace(
        scorer, withheld=(7, 8, 9), median_ink=quality.median_ink(digits.train, digits.train_labels, digits.classes)
    )
    new = torch.isin(digits.train_labels, torch.tensor([7, 8, 9]))
    noise = 0.5 * torch.randn(digits.train.shape, generator=rng(0))

    def scores(images):
        return adapted.score(images.clamp(-1, 1), digits.train_labels).values

    real = scores(digits.train)
    assert real["fd_new"] == pytest.approx(0, abs=1e-3) and real["fd_old"] == pytest.approx(0, abs=1e-3)
    assert real["preferred"] == pytest.approx(0.5, abs=0.03)
    for noisy, moved, kept in ((new, "fd_new", "fd_old"), (~new, "fd_old", "fd_new")):
        worse = scores(digits.train + noise * noisy[:, None, None, None])
        assert worse[moved] > 1 and worse[kept] == pytest.approx(0, abs=1e-3)
    thick, thin = (scores(digits.train + sign * 0.3 * (~new[:, None, None, None])) for sign in (1, -1))
    assert thick["preferred"] > 0.9 and thin["preferred"] < 0.1
    assert "fd_new" not in scorer.score(digits.train, digits.train_labels).values


def blurred(digits, strength):
    soft = avg_pool2d(digits.train, 3, stride=1, padding=1, count_include_pad=False)
    return torch.lerp(digits.train, soft, strength)


def noisy(digits, strength):
    return digits.train + 0.5 * strength * torch.randn(digits.train.shape, generator=rng())


def with_shares(digits, shares):
    """So many images of each class, those of a class again where there are not enough."""
    places = (torch.arange(len(digits.train)) + 0.5) / len(digits.train)
    counts = torch.searchsorted(shares.cumsum(0) / shares.sum(), places).bincount(minlength=len(shares))
    members = [(digits.train_labels == label).nonzero()[:, 0] for label in range(len(counts))]
    rows = [own[torch.arange(count) % len(own)] for own, count in zip(members, counts.tolist(), strict=True)]
    return digits.train[torch.cat(rows)]


def dropped(digits, strength):
    """Of the first four classes ever fewer are left, in the end none."""
    shares = digits.train_labels.bincount().float()
    return with_shares(digits, torch.where(torch.arange(len(shares)) < 4, 1 - strength, 1) * shares)


def gone(digits, strength):
    """The first classes are gone, one after another, their places taken by the others."""
    kept = (digits.train_labels >= round(4 * strength)).nonzero()[:, 0]
    return digits.train[kept[torch.arange(len(digits.train)) % len(kept)]]


def imbalanced(digits, strength):
    shares = digits.train_labels.bincount().float()
    return with_shares(digits, torch.exp(-strength * torch.arange(len(shares)) / 4) * shares)


@pytest.fixture(scope="module", params=PINNED)
def pinned(request):
    """Training images of a bed, as many as it samples, and the scorer that its records are made with."""
    bed = KNOWN.bed(request.param)
    try:
        images = load(bed.name)
    except MissingData as error:
        pytest.skip(str(error))
    chosen = torch.randperm(len(images.train), generator=rng())[: bed.n]
    some = replace(images, train=images.train[chosen], train_labels=images.train_labels[chosen])
    net, _ = features.load(RESULTS / bed.name / "features.safetensors")
    return some, reference.Reference.of(images, net, n=bed.n)


@pytest.mark.parametrize("damage", [blurred, noisy, dropped, gone, imbalanced])
def test_fd_and_kid_grow_with_every_kind_of_damage(damage, pinned, request):
    """In the features that are committed: a metric that does not see a damage could not see a technique do it."""
    images, scorer = pinned
    if damage is gone and request.node.callspec.params["pinned"] == "cifar10":
        reason = "FD falls again as a third and a fourth class go: METRICS says so"
        request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    strengths = (0.0, 0.25, 0.5, 0.75, 1.0)
    scores = [scorer.score(damage(images, strength), images.train_labels).values for strength in strengths]
    for metric in ("fd", "kid"):
        values = [score[metric] for score in scores]
        assert values == sorted(values) and len(set(values)) == len(values), (metric, values)


def test_score_gives_every_metric_of_an_image_bed(digits, scorer):
    scores = scorer.score(noisy(digits, 0.2), digits.train_labels, same_noise=digits.train).values
    assert scores.keys() == {"fd", "kid", "accuracy", "fidelity", "precision", "recall", "density"} | {
        "coverage",
        "histogram",
        "nearest",
    }
    assert scores.keys() <= reference.UNITS.keys()
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["fidelity"] == pytest.approx(0.1, rel=0.05)


def test_held_out_data_score_at_the_floor(digits, scorer):
    floor = reference.floor(digits, scorer)
    assert floor.identity.n == 360
    assert abs(floor.excess) < 0.5 * floor.bias
    assert floor.bias_at_n < 0.5 * floor.bias
    assert floor.scores["accuracy"] >= 0.97


def test_bias_floor_without_classes_is_the_gaussian_one():
    """With one class, FD of n draws of a Gaussian from itself: known to first order in 1/n."""
    d, n = 8, 500
    x = torch.randn(20_000, d, dtype=torch.float64, generator=rng())
    bias = quality.bias_floor(x, torch.zeros(len(x), dtype=torch.long), n, rng(1))
    assert bias == pytest.approx((d + d * (d + 1) / 4) / n, rel=0.15)  # mean d/n, covariance d(d+1)/4n


def test_reference_does_not_depend_on_the_order_of_the_files(digits, extractor):
    order = torch.randperm(len(digits.train), generator=rng())
    shuffled = replace(digits, train=digits.train[order], train_labels=digits.train_labels[order])
    a, b = (reference.Reference.of(images, extractor[0], n=10, size=500) for images in (digits, shuffled))
    assert a.identity == b.identity and a.identity.size == 500
    assert torch.equal(a.labels, b.labels) and torch.allclose(a.features, b.features)
    assert (a.labels.bincount() > 35).all()


def test_numbers_of_different_identity_are_refused(digits, scorer):
    with pytest.raises(ValueError, match="scores 1437 samples and was given 100"):
        scorer.score(digits.train[:100], digits.train_labels[:100])
    mine = scorer.identity
    mine.require(replace(mine))
    for change in ({"n": 2}, {"extractor": "other"}, {"data": "other"}, {"size": 3}):
        with pytest.raises(ValueError, match=f"differ in {next(iter(change))}"):
            mine.require(replace(mine, **change))


# Metrics in the plane


def test_the_exact_sampler_scores_at_the_floor_and_others_do_not():
    ring = load("mixture")
    scorer = reference.MixtureReference.of(ring, n=500)
    exact = scorer.score(ring.sample(500, rng(7))).values
    assert exact.keys() <= reference.UNITS.keys()
    assert exact["coverage"] == 1 and exact["off_manifold"] < 0.01
    wide = ring.means[torch.arange(500) % 8] + 0.2 * torch.randn(500, 2, generator=rng(8))
    half = ring.means[torch.arange(500) % 4] + 0.05 * torch.randn(500, 2, generator=rng(9))
    lopsided = scorer.score(half).values
    assert lopsided["w2"] > 3 * exact["w2"] and lopsided["sliced_w2"] > 3 * exact["sliced_w2"]
    assert lopsided["mmd"] > 0.1 > exact["mmd"] and lopsided["coverage"] == 0.5
    assert scorer.score(wide).values["off_manifold"] > 0.3


def test_wasserstein_of_a_shift_is_the_shift():
    x = torch.randn(300, 2, generator=rng())
    shift = torch.tensor([3.0, 4.0])
    assert plane.wasserstein2(x, x + shift) == pytest.approx(5, rel=1e-6)
    assert plane.sliced_wasserstein2(x, x + shift) == pytest.approx(5 / math.sqrt(2), rel=0.1)
    with pytest.raises(ValueError, match="at most 2000 points"):
        plane.wasserstein2(torch.zeros(2_001, 2), x)


# Intervals


def coverage(interval_of, truth: float) -> float:
    generator = np.random.default_rng(0)
    intervals = [interval_of(generator) for _ in range(TRIALS)]
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def seeds(generator, control: float, arm: float, n: int = 5) -> tuple[list[float], list[float]]:
    """Arm and control sharing most of their noise, as paired seeds do."""
    shared = generator.normal(size=n)
    noise = 0.3 * generator.normal(size=(2, n))
    return list(arm + shared + noise[0]), list(control + shared + noise[1])


def test_intervals_cover_as_often_as_they_say():
    assert 0.93 < coverage(lambda g: statistics.t_interval(list(g.normal(2, 1, 5))), 2) < 0.97
    assert 0.93 < coverage(lambda g: statistics.paired(*seeds(g, 10, 9)), -1) < 0.97
    assert 0.93 < coverage(lambda g: statistics.ratio(*seeds(g, 10, 9)), 0.9) < 0.97
    assert 0.93 < coverage(lambda g: statistics.median_interval(list(g.exponential(1, 25))), math.log(2)) < 0.975


def expected_kernel(one: torch.Tensor, other: torch.Tensor) -> float:
    """E (x.y / d + 1)^3 for independent x and y with these means and covariance 1: moments of x.y given y."""
    d, product = len(one), float(one @ other)
    first, second = float(one @ one), float(other @ other)
    square = d + first + second + product**2
    cube = product**3 + 3 * product * second + 3 * product * (d + first + 2)
    return 1 + 3 * product / d + 3 * square / d**2 + cube / d**3


def test_kernel_distance_covers_the_one_between_two_known_clouds():
    """As many dimensions as the features of a bed have. In four, where the cubic kernel is skewed, it is 92.5 %."""
    origin, apart = torch.zeros(64), torch.full((64,), 0.3)
    truth = expected_kernel(origin, origin) + expected_kernel(apart, apart) - 2 * expected_kernel(origin, apart)

    def interval(generator):
        x, y = torch.from_numpy(generator.normal(size=(2, 300, 64)))
        found = quality.kid(x, y + apart)
        return statistics.kid_interval(found.value, found.variance, n=300)

    assert 0.93 < coverage(interval, truth) < 0.97


def test_pairing_sharpens():
    arm, control = seeds(np.random.default_rng(1), 10, 9)
    difference = statistics.paired(arm, control)
    own = statistics.t_interval(arm)
    assert difference.high - difference.low < own.high - own.low


def test_equivalence_is_accepted_at_the_margin_at_the_nominal_rate():
    generator = np.random.default_rng(0)
    accepted = [statistics.tost(*seeds(generator, 0, 1), margin=1.0).equivalent for _ in range(TRIALS)]
    assert 0.03 < np.mean(accepted) < 0.07
    within = statistics.tost(*seeds(generator, 0, 0.1, n=20), margin=1.0)
    assert within.equivalent and within.p < 0.05
    apart = statistics.tost(*seeds(generator, 0, 2, n=20), margin=1.0)
    assert not apart.equivalent and apart.p > 0.5


def test_ratio_to_what_may_be_zero_is_unbounded():
    interval = statistics.ratio([1.0, 1.1, 0.9], [1.0, -1.0, 0.2])
    assert interval.low == -math.inf and interval.high == math.inf
    proportional = statistics.ratio([2.0, 2.2, 1.8], [1.0, 1.1, 0.9])
    assert (proportional.low, proportional.mean, proportional.high) == pytest.approx((2, 2, 2), abs=1e-6)


@pytest.mark.parametrize("wrong", [lambda: statistics.t_interval([1.0]), lambda: statistics.paired([1.0, 2.0], [1.0])])
def test_too_few_or_unpaired_values_are_refused(wrong):
    with pytest.raises(ValueError, match=r"\.$"):
        wrong()


def test_kid_interval_and_false_discoveries():
    interval = statistics.kid_interval(1.0, 0.25, n=100)
    assert (interval.low, interval.high) == pytest.approx((1 - 0.98, 1 + 0.98), abs=1e-3)
    assert statistics.benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert statistics.benjamini_hochberg([]) == []


# Cost


def test_macs_are_exact_and_nothing_is_silently_zero():
    x, q = torch.randn(4, 64), torch.randn(2, 4, 8, 16)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    linear = 4 * (64 * 128 + 128 * 10)
    classifier = 2 * (64 * 32 * 9 + 16 * 32 * 64 * 9 + 16 * 64 * 64 * 9 + 64 * 10)
    attention = 2 * (2 * 4 * 8 * 8 * 16)
    small = Classifier(1, 8, 10)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            assert cost.macs(lambda: net(x)) == (linear, [])
            assert cost.macs(lambda: small(torch.zeros(2, 1, 8, 8))) == (classifier, [])
            assert cost.macs(lambda: scaled_dot_product_attention(q, q, q)) == (attention, [])
    assert cost.macs(lambda: [net(x), net(x)])[0] == 2 * linear
    assert cost.macs(lambda: x @ x[0]) == (4 * 64, [])
    assert cost.macs(lambda: torch._int_mm(torch.ones(32, 16).char(), torch.ones(16, 8).char())) == (
        32 * 16 * 8,
        [],
    )
    assert cost.macs(lambda: torch.fft.fft(x)) == (0, ["aten._fft_r2c"])
    assert cost.macs(lambda: x.softmax(1)) == (0, [])


@pytest.mark.filterwarnings("ignore")
def test_quantized_networks_are_counted_and_weighed():
    torchao = pytest.importorskip("torchao.quantization")
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    small = copy.deepcopy(net)
    torchao.quantize_(small, torchao.Int8DynamicActivationInt8WeightConfig())
    x = torch.randn(32, 64)
    with torch.no_grad():
        assert cost.macs(lambda: small(x)) == cost.macs(lambda: net(x))
    assert cost.parameters(small) == cost.parameters(net) == 64 * 128 + 128 + 128 * 10 + 10
    assert cost.nbytes(net) == 4 * cost.parameters(net)
    weights, rows = 64 * 128 + 128 * 10, 128 + 10
    assert weights + 8 * rows <= cost.nbytes(small) <= weights + 12 * rows


def test_shared_weights_weigh_once(tmp_path):
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    net[1].weight = net[0].weight
    assert cost.parameters(net) == 64 and cost.nbytes(net) == 256
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "deep" / "b").write_bytes(b"4567")
    assert cost.file_bytes(tmp_path / "a") == 3 and cost.file_bytes(tmp_path) == 7


class _Gated(nn.Module):
    """Uses its second half at every other call."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.shift = nn.Parameter(torch.zeros(4))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.first(x) + self.shift if self.calls % 2 else self.second(self.second(x)) + self.shift


def test_active_parameters_are_those_an_evaluation_touches():
    net, x = _Gated(), torch.zeros(1, 4)
    assert cost.active_parameters(net, lambda: net(x)) == 16 + 4 + 4
    assert cost.active_parameters(net, lambda: net(x)) == 16 + 4, "a layer called twice counts once"
    assert cost.active_parameters(net, lambda: [net(x), net(x)]) == (24 + 20) / 2
    assert not net._forward_pre_hooks and not net.first._forward_pre_hooks


def test_what_is_spent_once_pays_back_after_some_samples():
    assert cost.break_even(1000, 2, 0, 4) == 500
    assert cost.break_even(1000, 2, 600, 4) == 200
    assert cost.break_even(0, 2, 0, 4) == cost.break_even(0, 2, 0, 2) == 0
    assert cost.break_even(1000, 4, 0, 4) is None and cost.break_even(0, 5, 100, 4) is None


def test_timing_alternates():
    calls: list[str] = []
    found = cost.interleaved(lambda: calls.append("a"), lambda: calls.append("b"), rounds=6)
    assert "".join(calls) == "ab" * (cost.WARM_UP + 6)
    for interval in (found.a, found.b, found.ratio):
        assert 0 < interval.low <= interval.mean <= interval.high and interval.n == 6
    assert cost.latency(lambda: None, rounds=6).low >= 0


def test_peak_memory_is_that_of_the_command_alone():
    ballast = bytearray(200_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    small = cost.peak_memory([sys.executable, "-c", "pass"])
    large = cost.peak_memory([sys.executable, "-c", "x = b'x' * 100_000_000"])
    assert small < 60_000_000 < 100_000_000 < large < 200_000_000


# Verdicts


LOW, HIGH = [1.0, 1.1, 0.9, 1.05, 0.95], [2.0, 2.1, 1.9, 2.0, 2.0]


@pytest.mark.parametrize(
    ("statistic", "arm", "control", "expect", "tolerance", "status"),
    [
        ("difference", LOW, HIGH, {"at_most": 0.0}, 0.0, "supported"),
        ("difference", HIGH, LOW, {"at_most": 0.0}, 0.1, "not supported"),
        ("difference", HIGH, LOW, {"at_most": 0.0}, 1.5, "supported"),
        ("difference", HIGH, LOW, {"at_most": 1.0}, 0.0, "inconclusive"),
        ("difference", HIGH, LOW, {"at_least": 0.5}, 0.0, "supported"),
        ("difference", HIGH, LOW, {"equal": 1.0}, 0.5, "supported"),
        ("difference", HIGH, LOW, {"equal": 0.0}, 0.5, "not supported"),
        ("difference", HIGH, LOW, {"equal": 1.0}, 0.02, "inconclusive"),
        ("ratio", HIGH, LOW, {"at_least": 1.5}, 0.0, "supported"),
        ("ratio", HIGH, LOW, {"at_most": 1.5}, 0.0, "not supported"),
        ("ratio", LOW, [1.0, -1.0, 0.5, -0.4, 0.1], {"at_most": 1.5}, 0.0, "inconclusive"),
        ("value", LOW, None, {"at_least": 0.5}, 0.0, "supported"),
        ("value", LOW, None, {"at_least": 2.0}, 0.1, "not supported"),
        ("ratio", 20.0, 50.0, {"at_most": 0.5}, 0.0, "supported"),
        ("ratio", 50.0, 50.0, {"at_most": 0.5}, 0.1, "not supported"),
        ("difference", 7.0, 7.0, {"equal": 0.0}, 0.0, "supported"),
        ("difference", HIGH, 1.0, {"at_least": 0.5}, 0.0, "supported"),
        ("difference", [5.0], [1.0], {"at_least": 0.5}, 0.0, "inconclusive"),
    ],
)
def test_verdicts(statistic, arm, control, expect, tolerance, status):
    found = verdict("ordering", statistic, arm, control, expect, tolerance)
    assert found.status == status
    assert found.text.endswith(f"{status}.") and 0 <= found.p <= 1
    assert (found.low is None) == ("at_most" in expect) and (found.high is None) == ("at_least" in expect)
    assert (found.p <= 0.05) == (status != "inconclusive"), "p belongs to the decision, whichever way it goes"


def test_exact_numbers_have_exact_verdicts():
    found = verdict("ratio", "ratio", 20.0, 50.0, {"at_most": 0.5}, 0.0)
    assert found.interval == statistics.Interval(0.4, 0.4, 0.4, 1) and found.p == 0
    assert json.dumps(found.low) == "null" and found.high == 0.5 and "exactly" in found.text


@pytest.mark.parametrize(
    ("kind", "statistic", "control", "expect"),
    [
        ("equivalence", "difference", HIGH, {"at_most": 0.0}),
        ("ordering", "difference", None, {"at_most": 0.0}),
        ("absolute", "value", HIGH, {"at_most": 0.0}),
        ("ordering", "quotient", HIGH, {"at_most": 0.0}),
        ("ordering", "difference", HIGH, {}),
        ("ordering", "difference", HIGH, {"at_most": 0.0, "at_least": 0.0}),
        ("ordering", "difference", HIGH[:3], {"at_most": 0.0}),
        ("ratio", "ratio", [0.0] * 5, {"at_most": 0.0}),
    ],
)
def test_claims_that_do_not_fit_together_are_refused(kind, statistic, control, expect):
    with pytest.raises(ValueError, match=r"\.$"):
        verdict(kind, statistic, LOW, control, expect, 0.0)


def test_there_is_no_ratio_to_an_exact_zero():
    with pytest.raises(ValueError, match="The control is zero"):
        verdict("ratio", "ratio", 5.0, 0.0, {"at_most": 1.0}, 0.0)


def test_fired():
    assert fired({"skipped": 3, "clamped": 1}, ["skipped", "clamped"])
    assert not fired({"skipped": 3}, ["skipped", "clamped"])
    assert not fired({"skipped": 0}, ["skipped"]) and not fired({}, [])
