"""The slot of what is fitted after it is applied, and the mathematics of quantizers against closed forms."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

from catalog import load
from methods.baseline import baseline
from methods.core import learning, models, run
from methods.core.activation import tallied
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.errors import Conflict
from methods.core.fit import Fit
from methods.core.identity import shipped_fingerprint
from methods.core.recipe import Method, Recipe, compose
from methods.core.sampling import UniformAngle
from methods.core.surgery import Stage, Transform, flatten
from methods.deployment.quantization._adaround import reconstruct
from methods.deployment.quantization._calibration import Asked, asked_while_sampling, calibrate, near
from methods.deployment.quantization._inputs import Clock, GroupRounding, Rounding
from methods.deployment.quantization._layers import Quantized, Trainable, simulated
from methods.deployment.quantization._training import distil, settle, trained
from methods.deployment.quantization._weights import Integers, best_scale, grouped, nearest, widest
from methods.deployment.quantization.cpu_int8_intel import TwoPrecisions, between
from methods.deployment.quantization.efficientdm import Adapted
from methods.deployment.quantization.ptq4dm import truncated_normal
from methods.deployment.quantization.q_diffusion import Split
from methods.deployment.quantization.svdquant import Branched
from methods.measure import cost
from methods.nets.unet import UNetConfig

TECHNIQUES = load().techniques
BASE = replace(baseline(UNetConfig(8), Fit(2, batch=8, learning_rate=1e-2, warmup=1, ema=0.5)), steps=4)
SHAPE, CLASSES = (1, 8, 8), 3
QUANTIZERS = [id for id, t in TECHNIQUES.items() if t.family == "quantization"]


@pytest.fixture(autouse=True)
def the_same_layers() -> None:
    torch.manual_seed(0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def images() -> TrainingSet:
    return TrainingSet(random(24, *SHAPE).clamp(-1, 1), torch.arange(24) % CLASSES, CLASSES)


@cache
def base() -> models.Model:
    return run.train(BASE, images(), 0)[0]


def method(id: str, **params: float) -> Method:
    return replace(TECHNIQUES[id].call(params), name=id)


def compressed(recipe: Recipe) -> tuple[models.Model, int, dict[str, list[int]]]:
    return run.compress(recipe, deepcopy(base()), images(), 0)


def samples(recipe: Recipe, model: models.Model) -> Tensor:
    return run.generate(recipe, run.deploy(recipe, model), torch.tensor([0, 1]), [0, 1])


# What is fitted after it is applied -----------------------------------------------------------------------------------


class Offset(nn.Module):
    """A network and a number that is added to what it answers."""

    number: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("number", torch.zeros(()))

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return self.inner(x, u, labels) + self.number


@dataclass(frozen=True)
class Offsetting(Calibrated):
    """Adds twice the mean of the training images; counts how often it was fitted."""

    stage: ClassVar[Stage] = Stage.NUMERICS
    fits: ClassVar[list[tuple[nn.Module, nn.Module]]] = []

    def __call__(self, module: nn.Module) -> nn.Module:
        return Offset(deepcopy(module))

    def fit(
        self,
        recipe: Recipe,
        before: nn.Module,
        model: models.Model,
        data: TrainingSet,
        seed: int,
        report: Report,
    ) -> int:
        assert isinstance(model.net, Offset)
        self.fits.append((before, model.net))
        model.net.number = 2 * data.images.mean()
        return len(data.images)


@dataclass(frozen=True)
class Doubling(Transform):
    """Ships and is not fitted; applied after what is listed under an earlier name or stage."""

    stage: ClassVar[Stage] = Stage.STRUCTURE
    ships: ClassVar[bool] = True

    def __call__(self, module: nn.Module) -> nn.Module:
        module = deepcopy(module)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2)
        return module


@pytest.fixture
def offsetting() -> Iterator[Offsetting]:
    Offsetting.fits.clear()
    yield Offsetting()
    Offsetting.fits.clear()


def test_it_is_fitted_once_to_the_network_as_it_was_when_it_was_applied(offsetting: Offsetting) -> None:
    recipe = replace(BASE, transforms=(offsetting, Doubling()))
    model, seen, shapes = compressed(recipe)
    ((before, after),) = offsetting.fits
    assert seen == 24 and model.net is after and not isinstance(before, Offset)
    doubled = base().net.state_dict()
    assert all(torch.equal(tensor, 2 * doubled[name]) for name, tensor in before.state_dict().items())
    assert "net.number" not in shapes and "net.number" in model.state_dict()
    assert torch.allclose(model.net.number, 2 * images().images.mean())  # pyright: ignore[reportArgumentType]


def test_a_file_gives_back_what_was_fitted_without_fitting_it(offsetting: Offsetting, tmp_path: Path) -> None:
    recipe = replace(BASE, transforms=(offsetting,))
    model, _, shapes = compressed(recipe)
    models.save(model, tmp_path / "model.safetensors", {}, shapes)
    loaded = models.load(recipe, tmp_path / "model.safetensors", SHAPE, CLASSES, shipped=True)
    assert len(offsetting.fits) == 1
    expected = samples(recipe, model)
    assert torch.equal(samples(recipe, loaded), expected) and not torch.equal(samples(BASE, base()), expected)


def test_weights_that_were_fitted_while_sampling_belong_to_their_sampling(offsetting: Offsetting) -> None:
    def fingerprints(*transforms: Transform) -> set[str]:
        return {shipped_fingerprint(replace(BASE, transforms=transforms, steps=steps)) for steps in (4, 8)}

    assert len(fingerprints(Doubling())) == 1 and len(fingerprints(Doubling(), offsetting)) == 2


@pytest.mark.parametrize("id", QUANTIZERS)
def test_a_file_gives_back_a_quantized_network(id: str, tmp_path: Path) -> None:
    recipe = compose(BASE, method(id))
    model, _, shapes = compressed(recipe)
    models.save(model, tmp_path / "model.safetensors", {}, shapes)
    loaded = models.load(recipe, tmp_path / "model.safetensors", SHAPE, CLASSES, shipped=True)
    assert torch.equal(samples(recipe, loaded), samples(recipe, model))
    assert cost.nbytes(loaded) == cost.nbytes(model) < cost.nbytes(base())
    assert all(torch.equal(tensor, flatten(loaded)[name]) for name, tensor in flatten(model).items())


def test_two_quantizers_conflict_by_name() -> None:
    for a in QUANTIZERS:
        for b in QUANTIZERS:
            if a != b:
                with pytest.raises(Conflict, match=f"{a} and {b}|{b} and {a}"):
                    compose(BASE, method(a), method(b))


# Integers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(6, 96), (5, 3, 3, 3), (4, 7)])
def test_integers_are_within_half_a_step_and_take_their_bits(bits: int, shape: tuple[int, ...]) -> None:
    weight = random(*shape)
    stored = nearest(weight, bits, 32, widest)
    assert stored.shape == weight.shape and isinstance(stored, Integers)
    n = weight[0].numel()
    size = min(n, 32) + min(n, 32) % 2
    groups = -(-n // size)
    scale = stored.scale.repeat_interleave(size, 1)[:, :n].reshape(shape)
    assert ((stored.dequantize() - weight).abs() <= scale / 2 * 1.001).all()
    assert len((stored.dequantize() / scale).round().unique()) <= 2**bits
    held = nn.ParameterDict({"w": stored})
    assert cost.nbytes(held) == shape[0] * groups * (size * (1 if bits > 4 else 0.5) + 4)
    assert cost.parameters(held) == weight.numel()
    copy = deepcopy(held)["w"]
    assert torch.equal(copy.dequantize(), stored.dequantize()) and copy.packed is not stored.packed


def test_weights_alone_are_rounded_as_torchao_rounds_them() -> None:
    four = IntxWeightOnlyConfig(torch.int4, PerGroup(32))  # pyright: ignore[reportAttributeAccessIssue]
    for bits, config in ((8, Int8WeightOnlyConfig()), (4, four)):
        layer = nn.Linear(96, 16)
        exact = layer.weight.detach().clone()
        ours = nearest(exact, bits, 32 if bits == 4 else None, widest).dequantize()
        quantize_(layer, config)
        theirs = layer.weight.dequantize()
        assert (theirs - ours).abs().max() <= 1.01 * exact.abs().max() / (2 ** (bits - 1) - 1), bits
        assert abs((ours - exact).norm() / (theirs - exact).norm() - 1) < 0.02, bits


def test_the_best_scale_is_no_worse_than_any_other() -> None:
    parts = grouped(random(8, 512))

    def error(scale: Tensor) -> Tensor:
        return ((parts / scale[..., None]).round().clamp(-8, 7) * scale[..., None] - parts).square().sum(-1)

    best = error(best_scale(parts, 4))
    assert all(best.sum() <= 1.02 * error(share * widest(parts, 4)).sum() for share in torch.linspace(0.25, 1, 100))
    assert best.sum() < 0.9 * error(widest(parts, 4)).sum()


# Inputs ---------------------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_step_is_that_of_learned_step_sizes() -> None:
    """Esser et al. 2020 (1902.08153), eq. 3 with a zero point; and the straight-through estimator for the input."""
    rounding = Rounding(4)
    rounding.step.fill_(0.3)
    rounding.zero.fill_(5)
    rounding.step.requires_grad_(True)
    x = torch.tensor([-9.0, -1.0, 0.2, 0.7, 9.0], requires_grad=True)
    rounding(x[:, None]).sum().backward()
    v = x.detach() / 0.3
    inside = (v.round() >= -5) & (v.round() <= 10)
    expected = torch.where(inside, v.round() - v, torch.where(v < 0, -5.0, 10.0))
    assert torch.allclose(rounding.step.grad, expected.sum(), atol=1e-5)  # pyright: ignore[reportArgumentType]
    assert x.grad is not None and torch.equal(x.grad, inside.float())


def test_each_bucket_of_noise_levels_has_its_range_and_copies_have_their_own_clock() -> None:
    clock = Clock()
    rounding, small, large = Rounding(8, buckets=2, clock=clock), random(4, 100), 100 * random(4, 100, seed=1)
    rounding.fitting = True
    for level, x in ((0.2, small), (0.9, large)):
        clock.level = torch.full((4,), level)
        rounding(x)
    rounding.fitting = False
    assert rounding.step[1] > 50 * rounding.step[0]
    clock.level = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.8, 0.8, 0.8, 0.8])
    mixed = rounding(torch.cat([small, large]))
    assert (mixed[:4] - small).abs().max() < 0.05 and (mixed[4:] - large).abs().max() < 5
    net = Perceptron()
    hook = Clock()
    net.register_forward_pre_hook(hook)
    net.layers[1] = nn.Sequential(Rounding(8, buckets=2, clock=hook), net.layers[1])
    copy = deepcopy(net)
    copy(random(3, 8), torch.tensor([0.1, 0.2, 0.9]), torch.zeros(3))
    inner = copy.get_submodule("layers.1.0")
    assert isinstance(inner, Rounding) and inner.clock is not None and inner.clock is not hook
    assert torch.equal(inner.clock.level, torch.tensor([0.1, 0.2, 0.9])) and not hasattr(hook, "level")


def test_groups_of_channels_have_the_scale_of_their_largest() -> None:
    x = random(2, 10, 3, 3)
    rounded = GroupRounding(4, 4)(x)
    for first in (0, 4, 8):
        part = x[:, first : first + 4]
        step = part.abs().amax(1, keepdim=True) / 7
        assert torch.allclose(rounded[:, first : first + 4], (part / step).round() * step, atol=1e-6)
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.allclose(GroupRounding(4, 4)(tokens), rounded.flatten(2).transpose(1, 2), atol=1e-6)


# Calibration ----------------------------------------------------------------------------------------------------------


def test_a_network_is_asked_what_it_is_asked_while_sampling() -> None:
    asked = asked_while_sampling(BASE, base().net, base(), images(), 0)
    assert isinstance(BASE.grid, UniformAngle)
    times = BASE.grid(BASE.process, BASE.steps)[:-1]
    assert torch.allclose(asked.level.unique(), BASE.process.angle(times).flip(0).float())
    assert len(asked.x) == BASE.steps * 2 * BASE.fit.batch
    with torch.no_grad():
        assert torch.allclose(base().net(asked.x, asked.u, asked.labels), asked.answer, atol=1e-5)
    first = asked.x[asked.level == asked.level.max()]
    assert abs(first.std() - 1) < 0.1 and len(first.flatten(1).unique(dim=0)) == 2 * BASE.fit.batch


def test_calibration_levels_are_normal_within_the_chain() -> None:
    rng = torch.Generator().manual_seed(0)
    drawn = truncated_normal(0.4, 0.4, 20_000, rng)
    assert drawn.min() >= 0 and drawn.max() <= 1
    inside = 0.4 + 0.4 * torch.randn(200_000, generator=rng, dtype=torch.float64)
    inside = inside[(inside >= 0) & (inside <= 1)]
    assert torch.allclose(drawn.quantile(torch.tensor([0.1, 0.5, 0.9]).double()),
                          inside.quantile(torch.tensor([0.1, 0.5, 0.9]).double()), atol=0.02)  # fmt: skip
    even = truncated_normal(0.4, 1000.0, 20_000, rng).sort().values
    assert (even - torch.linspace(0, 1, 20_000)).abs().max() < 0.02
    for single in (0.0, 0.3, 1.0):
        assert (truncated_normal(single, 0.0, 100, rng) - single).abs().max() < 1e-4


def test_rows_are_taken_from_the_nearest_level() -> None:
    level = torch.tensor([0.1, 0.5, 0.9]).repeat(20)
    pool = Asked(torch.arange(60.0)[:, None], level, torch.zeros(60, dtype=torch.long), torch.zeros(60, 1))
    rows = near(pool, torch.tensor([0.0, 0.29, 0.31, 0.8, 1.0]).repeat(40), torch.Generator().manual_seed(0))
    assert torch.equal(rows.level, torch.tensor([0.1, 0.1, 0.5, 0.9, 0.9]).repeat(40))
    assert len(rows.x[rows.level == 0.5].unique()) > 12


def test_quantization_leaves_the_macs_as_they_were() -> None:
    recipe = compose(BASE, method("ptq4dm"))
    model, *_ = compressed(recipe)
    before, _ = cost.macs(lambda: samples(BASE, base()))
    assert cost.macs(lambda: samples(recipe, model)) == (before, [])
    assert cost.parameters(model) == cost.parameters(base())


# Single techniques ----------------------------------------------------------------------------------------------------


def test_a_split_shortcut_is_the_shortcut() -> None:
    layer, x = nn.Conv2d(12, 5, 1), random(2, 12, 4, 4)
    assert torch.allclose(Split(layer, 8)(x), layer(x), atol=1e-5)


def test_learned_roundings_keep_the_output_where_the_nearest_do_not() -> None:
    """Inputs that move together: errors of roundings then add up or cancel."""
    layer = nn.Linear(32, 8)
    x = random(256, 2) @ random(2, 32, seed=1) + 0.1 * random(256, 32, seed=2)
    quantized = Quantized(layer, nearest(layer.weight, 4), nn.Identity())
    y, plain = layer(x).detach(), deepcopy(quantized)
    rows = [torch.randint(256, (64,), generator=torch.Generator().manual_seed(i)) for i in range(200)]
    with tallied() as counters:
        reconstruct(layer, quantized, (x,), y, 200, rows)
    assert counters["weights_turned"] > 0
    assert (quantized(x) - y).square().mean() < 0.5 * (plain(x) - y).square().mean()
    step = quantized.weight.scale
    assert ((quantized.weight.dequantize() - plain.weight.dequantize()).abs() <= 1.001 * step).all()


def test_a_branch_takes_the_largest_directions_and_outliers() -> None:
    layer = nn.Linear(64, 48, bias=False)
    with torch.no_grad():
        layer.weight.copy_(0.02 * random(48, 64) + random(48, 2) @ random(2, 64, seed=1))
    x = random(200, 64, seed=2)
    x[:, 5] *= 50
    y, errors = layer(x).detach(), {}
    for rank, strengths in ((0, 1), (0, 4), (2, 1), (2, 4)):
        part = Branched(layer, 4, rank, 64)
        part.fit(layer.weight, x, y, strengths)
        errors[rank, strengths] = (part(x) - y).square().mean()
    assert errors[2, 4] < 0.5 * min(errors[0, 4], errors[2, 1]) and errors[0, 4] < errors[0, 1]
    whole = Branched(layer, 4, 48, 64)
    whole.fit(layer.weight, x, y, 1)
    assert (whole(x) - y).norm() < 0.01 * y.norm()
    s = torch.linalg.svdvals(layer.weight)
    part = Branched(layer, 8, 2, 64)
    part.fit(layer.weight, x, y, 1)
    left = part.residual.weight.dequantize().norm()
    assert abs(left / s[2:].norm() - 1) < 0.05


def test_convolutions_have_the_same_branch() -> None:
    layer, x = nn.Conv2d(6, 8, 3, padding=1, stride=2), random(4, 6, 8, 8)
    part = Branched(layer, 8, 8, 64)
    part.fit(layer.weight, x, layer(x).detach(), 4)
    assert (part(x) - layer(x)).norm() < 0.02 * layer(x).norm()


def test_what_was_trained_is_what_ships() -> None:
    layer = nn.Conv2d(3, 5, 3)
    quantized = Quantized(layer, nearest(layer.weight, 4), nn.Identity())
    training = Trainable(quantized, layer.weight + 0.1 * random(5, 3, 3, 3))
    x = random(2, 3, 6, 6)
    expected = training(x)
    expected.sum().backward()
    assert training.weight.grad is not None and training.weight.grad.abs().sum() > 0
    with tallied() as counters:
        assert training.settle() is quantized and torch.allclose(quantized(x), expected, atol=1e-5)
    assert counters["weights_moved"] > 0


class Perceptron(nn.Module):
    """A network of four layers that is told nothing but x."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in ((8, 32), (32, 32), (32, 32), (32, 8)))

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(nn.functional.silu(x))
        return x


def test_adapters_learn_what_rounding_lost_and_are_gone() -> None:
    exact, x, rng = Perceptron(), random(512, 8), torch.Generator().manual_seed(0)
    pool = Asked(x, torch.zeros(512), torch.zeros(512, dtype=torch.long), exact(x, x, x).detach())
    plain = simulated(exact, 3, 8)
    calibrate(plain, pool)
    tuned = deepcopy(plain)
    training = trained(tuned, lambda _, layer: Adapted(layer, 4, rng))
    distil(tuned, pool, [g for part in training.values() for g in part.groups(200)], 200, 64, rng, learning.quiet)
    learned = tuned(x, x, x)
    settle(tuned, training)
    assert torch.allclose(tuned(x, x, x), learned, atol=1e-5), "merged, they do what they did"
    assert tuned.state_dict().keys() == plain.state_dict().keys() and cost.nbytes(tuned) == cost.nbytes(plain)
    assert (learned - pool.answer).square().mean() < 0.7 * (plain(x, x, x) - pool.answer).square().mean()


def test_the_middle_leaves_out_the_ends() -> None:
    levels = torch.linspace(0.1, 1, 10)
    for ends, inside in ((0, 10), (1, 8), (4, 2), (5, 0), (9, 0)):
        low, high = between(levels, ends)
        kept = ~((levels < low) | (levels > high))
        assert int(kept.sum()) == inside and (ends == 0 or inside == 0 or not kept[:ends].any())


def test_the_first_and_the_last_steps_are_not_taken_in_integers() -> None:
    recipe = replace(compose(BASE, method("cpu_int8_intel", ends=2)), steps=10)
    model, *_ = compressed(recipe)
    with tallied() as counters:
        samples(recipe, model)
    assert counters["rows_in_bfloat16"] * 6 == counters["rows_in_int8"] * 4 > 0


def test_a_batch_of_many_levels_treats_each_row_by_its_own() -> None:
    clock = Clock()
    layer, x = nn.Conv2d(3, 4, 1), random(3, 3, 5, 5)
    part = TwoPrecisions(layer, clock)
    part.middle.copy_(torch.tensor([0.2, 0.8]))
    part.integers.rounding.step.fill_(0.1)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    levels = torch.tensor([0.1, 0.5, 0.9])
    alone = []
    for row, level in zip(x, levels, strict=True):
        clock.level = level[None]
        alone.append(part(row[None]))
    clock.level = levels
    assert torch.allclose(part(x), torch.cat(alone), atol=1e-5)
    assert torch.equal(alone[0], part.in_half(x[:1])) and torch.equal(alone[1], part.integers(x[1:2]))
