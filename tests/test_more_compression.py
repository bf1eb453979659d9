"""Thin factors, precision by noise level, and corrected quantization, against closed forms."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import BASE, CLASSES, SHAPE, images, trained
from torch import Tensor, nn

from methods.core import models, run
from methods.core.activation import tallied
from methods.core.data import TrainingSet
from methods.core.denoiser import Network
from methods.core.parameterization import Noise
from methods.core.process import Cosine
from methods.core.recipe import Recipe, compose
from methods.core.sampling import SampleNoise
from methods.core.surgery import flatten
from methods.deployment.low_rank.low_rank_svd import LowRank, Product, answers, low_rank_svd
from methods.deployment.quantization._calibration import Asked, asked_while_sampling, heard_by
from methods.deployment.quantization._correction import BUCKETS, Correction, error_of
from methods.deployment.quantization._inputs import Clock
from methods.deployment.quantization._layers import Quantized
from methods.deployment.quantization.early_stage_low_precision import Staged, early_stage_low_precision, switch_after
from methods.deployment.quantization.ptqd import CalibratedVariance, error_factor, ptqd
from methods.inference.ode_solver.ddim import posterior
from methods.measure import cost


@pytest.fixture(autouse=True)
def the_same_layers() -> None:
    torch.manual_seed(0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(recipe: Recipe) -> models.Model:
    """A trained model in which no layer is nearly zero any more, as some are at first."""
    model, rng = trained(recipe)[0], torch.Generator().manual_seed(1)
    for parameter in model.net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    return model


def asked(recipe: Recipe, model: models.Model) -> Asked:
    return asked_while_sampling(replace(recipe, steps=4), model.net, model, images(), 0)


def ships_and_comes_back(
    recipe: Recipe, path: Path, whole: models.Model | None = None, data: TrainingSet | None = None
) -> models.Model:
    """The compressed model, once a file has given back the same weights and the same samples."""
    data = data or images()
    model, _, shapes = run.compress(recipe, whole or stirred(recipe), data, 0)
    models.save(model, path, {}, shapes)
    loaded = models.load(recipe, path, data.shape, CLASSES, shipped=True)
    here, there = flatten(model), flatten(loaded)
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    first, second = (run.generate(recipe, run.deploy(recipe, m), torch.tensor([0, 1]), [0, 1]) for m in (model, loaded))
    assert torch.equal(first, second)
    return model


# Thin factors ---------------------------------------------------------------------------------------------------------

LAYERS = [
    (nn.Linear(12, 20), random(50, 12)),
    (nn.Linear(12, 7, bias=False), random(3, 9, 12)),
    (nn.Conv2d(4, 10, 3, stride=2, padding=1), random(3, 4, 8, 8)),
]


@pytest.mark.parametrize("weighted", [0, 1])
def test_full_rank_is_the_same_network(weighted: int) -> None:
    recipe = replace(BASE, steps=4, transforms=(LowRank(2.0, weighted),))
    model = stirred(BASE)
    whole, (thin, *_) = deepcopy(model.net), run.compress(recipe, model, images(), 0)
    rows = asked(BASE, stirred(BASE))
    assert sum(isinstance(part, Product) for part in thin.net.modules()) > 10
    with torch.no_grad():
        assert torch.allclose(thin.net(*rows[:3]), whole(*rows[:3]), atol=1e-4)


@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=["linear", "without bias", "convolution"])
def test_the_error_is_the_tail_of_the_singular_values(layer: nn.Linear | nn.Conv2d, x: Tensor) -> None:
    """Eckart and Young: of the weights alone, and of what the layer answers to what it was asked."""
    weight = layer.weight.detach()
    for rank in (1, 3, 5):
        product = Product(layer, rank)
        made = (product[1].weight.flatten(1) @ product[0].weight.flatten(1)).reshape(weight.shape)
        values = torch.linalg.svdvals(weight.flatten(1))
        assert torch.allclose((made - weight).square().sum(), values[rank:].square().sum(), rtol=1e-4)
        plain = (product(x) - layer(x)).square().sum()
        y = layer(x) if layer.bias is None else layer(x) - layer(torch.zeros_like(x))
        y = (y.movedim(1, -1) if y.ndim == 4 else y).flatten(0, -2)
        directions, values, _ = torch.linalg.svd(y.T.double().detach(), full_matrices=False)
        product.project(layer.weight, directions[:, :rank])
        error = (product(x) - layer(x)).square().sum()
        assert torch.allclose(error, values[rank:].square().sum().float(), rtol=1e-3) and error < plain


def test_directions_are_those_of_answers_without_their_bias() -> None:
    model = stirred(BASE)
    rows = asked(BASE, model)
    path = "level.down.0.conv_in"
    _, y = heard_by(model.net, [path], rows)[path]
    y = (y - model.net.get_parameter(f"{path}.bias")[:, None, None]).movedim(1, -1).flatten(0, -2).double()
    for batch in (3, len(rows.x)):
        assert torch.allclose(answers(model.net, [path], rows, batch)[path], y.T @ y, rtol=1e-4, atol=1e-4)


def test_listening_while_sampling_loses_less_of_what_layers_answer() -> None:
    """In every layer on the states that were listened to, and not in its weights."""
    whole = stirred(BASE).net
    nets = {
        weighted: run.compress(replace(BASE, steps=4, transforms=(LowRank(0.5, weighted),)), stirred(BASE), images(), 0)
        for weighted in (0, 1)
    }
    rows, paths = (
        asked(BASE, stirred(BASE)),
        [p for p, part in nets[0][0].net.named_modules() if isinstance(part, Product)],
    )
    for path, ((x, *_), y) in heard_by(whole, paths, rows).items():
        plain, weighted = ((model.net.get_submodule(path)(x) - y).square().sum() for model, *_ in (nets[0], nets[1]))
        assert weighted <= 1.05 * plain, path


def test_a_thin_network_ships_as_many_numbers_and_multiplies_as_its_ranks_say(tmp_path: Path) -> None:
    recipe = replace(compose(BASE, low_rank_svd(0.5)), steps=4)
    thin = ships_and_comes_back(recipe, tmp_path / "thin").net
    whole = models.build(BASE, SHAPE, CLASSES).net
    saved = 0
    for path, part in thin.named_modules():
        if isinstance(part, Product):
            out, into = whole.get_parameter(f"{path}.weight").flatten(1).shape
            assert part.rank == max(1, int(0.5 * out * into / (out + into)))
            saved += out * into - part.rank * (out + into)
    assert saved > 0
    assert cost.parameters(thin) == cost.parameters(whole) - saved
    assert cost.nbytes(thin) == cost.nbytes(whole) - 4 * saved
    x, layer = random(1, 8, 6, 6), nn.Conv2d(8, 12, 3, padding=1, stride=2)
    product = Product(layer, 3)
    assert cost.macs(lambda: product(x))[0] == 3 * 3 * 3 * (8 * 9 + 12) < cost.macs(lambda: layer(x))[0]


# Precision by noise level ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "early"), [(0.0, 0), (0.3, 3), (0.5, 5), (0.75, 8), (1.0, 10)])
def test_only_the_noisiest_levels_are_early(share: float, early: int) -> None:
    """Counted at the call: as many of ten steps, in every layer, and no others."""
    levels = torch.linspace(0.05, 0.95, 10)
    above = levels > switch_after(levels, share)
    assert above.sum() == early and above[10 - early :].all()
    recipe = replace(compose(BASE, early_stage_low_precision(share=share)), steps=10)
    model, *_ = run.compress(recipe, stirred(recipe), images(), 0)
    with tallied() as counters:
        run.generate(recipe, run.deploy(recipe, model), torch.tensor([0, 1]), [0, 1])
    layers = sum(isinstance(part, Quantized) for part in model.net.modules())
    assert counters["rows_early"] == 2 * layers * early and counters["rows_late"] == 2 * layers * (10 - early)


def test_each_stage_has_its_bits_and_outer_layers_keep_eight() -> None:
    recipe = compose(BASE, early_stage_low_precision(early_bits=3, late_bits=6, share=0.25))
    parts = {
        path: (part.early.levels, part.late.levels)
        for path, part in run.compress(recipe, stirred(recipe), images(), 0)[0].net.named_modules()
        if isinstance(part, Staged)
    }
    outer = {"stem.rounding", "head.rounding"}
    assert all(levels == ((255, 255) if path in outer else (7, 63)) for path, levels in parts.items())
    assert outer < parts.keys()


def test_the_stages_are_calibrated_apart_and_early_inputs_have_few_values() -> None:
    recipe = replace(compose(BASE, early_stage_low_precision(early_bits=2)), steps=4)
    model, *_ = run.compress(recipe, stirred(recipe), images(), 0)
    part = model.net.get_submodule("level.down.0.conv_out.rounding")
    assert isinstance(part, Staged) and not torch.equal(part.early.step, part.late.step)
    rows = asked(BASE, stirred(BASE))
    level = rows.level.unique()
    assert (level > part.switch).sum() == 2
    heard = {}
    for stage, chosen in {"early": rows.level > part.switch, "late": rows.level <= part.switch}.items():
        heard[stage] = heard_by(model.net, ["level.down.0.conv_out.rounding"], rows.rows(chosen.nonzero().flatten()))
    few, many = (len(next(iter(h.values()))[1].unique()) for h in (heard["early"], heard["late"]))
    assert few <= 4 and 4 < many <= 256


def test_a_batch_of_both_stages_treats_each_row_by_its_own() -> None:
    clock, x = Clock(), random(3, 5, 6)
    part = Staged(2, 8, clock)
    part.switch.fill_(0.5)
    part.early.step.fill_(1.0)
    part.late.step.fill_(0.1)
    clock.level = torch.tensor([0.4, 0.6, 0.5])
    mixed = part(x.abs())
    assert torch.equal(mixed[1], part.early(x.abs())[1]) and torch.equal(mixed[[0, 2]], part.late(x.abs())[[0, 2]])
    assert len(mixed[1].unique()) <= 4 < len(mixed[0].unique())


def test_precision_by_stage_ships(tmp_path: Path) -> None:
    ships_and_comes_back(replace(compose(BASE, early_stage_low_precision()), steps=4), tmp_path / "staged")


# Corrected quantization -----------------------------------------------------------------------------------------------


def test_the_error_is_taken_apart_as_it_was_put_together() -> None:
    truth, rest = random(400, 2, 4, 4) + 0.3, 0.2 * random(400, 2, 4, 4, seed=1)
    bias = torch.tensor([0.1, -0.4])
    for k, known in ((0.25, 0.25), (-0.1, 0.0)):
        slope, mean, variance = error_of(truth, (1 + k) * truth + bias[:, None, None] + rest, True, True)
        assert abs(slope - known) < 0.01
        assert torch.allclose(mean, bias + (k - known) * truth.mean((0, 2, 3)), atol=0.01)
        assert abs(variance - 0.04 - (k - known) ** 2) < 0.002
    slope, mean, variance = error_of(truth, 1.25 * truth + 0.1, False, True)
    assert slope == 0 and torch.allclose(mean, 0.25 * truth.mean((0, 2, 3)) + 0.1, atol=1e-5)
    slope, mean, variance = error_of(truth, 1.25 * truth + 0.1, True, False)
    assert abs(slope - 0.25) < 1e-4 and not mean.any() and variance == 0


class Distorted(nn.Module):
    """What a network says, enlarged and shifted as the noise level says, with a second half beside."""

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        level = u.reshape(-1, 1, 1, 1)
        return torch.cat([(1 + level) * x.sin() - 2 * level, x], dim=1)


def test_the_correction_is_exact_where_the_noise_is_correlated_by_construction() -> None:
    """At every level that was measured, and only in what is the prediction."""
    x, level = random(60, 2, 4, 4), torch.linspace(0.1, 0.9, 5).repeat_interleave(12)
    labels = torch.zeros(60, dtype=torch.long)
    part = Correction(torch.device("cpu"))
    net = part.correcting(Distorted())
    part.measure(net, Asked(x, level, labels, x.sin()), 16, True, True)
    mixed = torch.randperm(60)
    answer = net(x[mixed], level[mixed], labels)
    assert torch.allclose(answer[:, :2], x[mixed].sin(), atol=1e-4) and torch.equal(answer[:, 2:], x[mixed])
    assert part.left.max() < 1e-8 and (part.slope.diff() >= 0).all() and part.slope.unique().numel() == 5


def test_what_is_corrected_is_nearer_to_the_whole_network_at_every_level() -> None:
    whole, nets = stirred(BASE), {}
    for corrected in (0, 1):
        recipe = replace(compose(BASE, ptqd(correlated=corrected, residual=corrected)), steps=4)
        nets[corrected] = run.compress(recipe, stirred(recipe), images(), 0)[0].net
    rows = asked_while_sampling(recipe, whole.net, whole, images(), 0)
    known, nothing = (nets[i].get_submodule("correction") for i in (1, 0))
    assert isinstance(known, Correction) and isinstance(nothing, Correction)
    assert known.left.all() and not any(part.any() for part in nothing.parameters())
    with torch.no_grad():
        errors = [(net(rows.x, rows.u, rows.labels) - rows.answer).square() for net in nets.values()]
    for level in rows.level.unique():
        plain, corrected = (error[rows.level == level].mean() for error in errors)
        assert corrected < plain
        assert torch.allclose(corrected, known.left[int(level * BUCKETS)], rtol=1e-3)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_an_error_is_passed_on_as_the_official_code_says(eta: float) -> None:
    """|sqrt(1 - a_s - sigma^2) - sqrt(a_s (1 - a_t) / a_t)|, with a = alpha^2."""
    process, t, s = Cosine(), torch.tensor(0.7).double(), torch.tensor(0.6).double()
    a_t, a_s = process.alpha(t) ** 2, process.alpha(s) ** 2
    _, _, fresh = posterior(process, eta, t, s)
    expected = ((1 - a_s - fresh**2).sqrt() - (a_s * (1 - a_t) / a_t).sqrt()).abs()
    assert abs(error_factor(process, eta, t, s)[0] - expected) < 1e-9


def test_a_step_ends_with_the_variance_it_would_have_had_without_the_error() -> None:
    """Of a network that always says -0.3 and whose error is known; from x = 0.5, and then a step without noise."""
    process, n = Cosine(), 4000
    times, x = torch.tensor([0.7, 0.5, 0.0]).double(), torch.full((n, 1, 2, 2), 0.5)
    fresh, c = posterior(process, 1.0, *times[:2])[2], error_factor(process, 1.0, *times[:2])[0]

    def spread(variance: float, known: float, bounds: tuple[float, float] | None = None) -> float:
        """The variance after the first step, in units of that of its fresh noise."""
        correction = Correction(torch.device("cpu"))
        correction.variance.fill_(known)
        net, seen = correction.correcting(Erring(variance)), list[Tensor]()
        net.register_forward_pre_hook(lambda part, given: seen.append(given[0]))
        denoiser = Network(net, process, Noise(), bounds)
        CalibratedVariance(1.0)(denoiser, x, times, None, SampleNoise(range(n)))
        return (seen[1].var() / fresh**2).item()

    assert abs(spread(0.0, 0.0) - 1) < 0.05
    for share in (0.5, 0.9):
        variance = share * fresh**2 / c**2
        assert abs(spread(variance, 0.0) - 1 - share) < 0.06, "uncalibrated, variances add up"
        assert abs(spread(variance, variance) - 1) < 0.06
    assert spread(0.0, 2 * fresh**2 / c**2) < 1e-6
    added = posterior(process, 1.0, *times[:2])[1]
    assert abs(spread(0.0, 2 * fresh**2 / c**2, (-0.1, 0.1)) - 1 + (0.2 * added / fresh) ** 2) < 0.05, "clipped"


class Erring(nn.Module):
    """Says -0.3 and an error of some variance."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return self.variance**0.5 * random(*x.shape, seed=5) - 0.3


@pytest.mark.parametrize("channels", [1, 3])
def test_corrections_ship(channels: int, tmp_path: Path) -> None:
    recipe = replace(compose(BASE, ptqd()), steps=4)
    data = TrainingSet(random(24, channels, 8, 8).clamp(-1, 1), torch.arange(24) % CLASSES, CLASSES)
    model = ships_and_comes_back(recipe, tmp_path / "corrected", run.train(recipe, data, 0)[0], data)
    assert model.net.get_parameter("correction.mean").shape == (BUCKETS, channels)
