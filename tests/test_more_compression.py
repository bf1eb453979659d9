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
from methods.core.recipe import Recipe, compose
from methods.core.surgery import flatten
from methods.deployment.low_rank.low_rank_svd import LowRank, Product, answers, low_rank_svd
from methods.deployment.quantization._calibration import Asked, asked_while_sampling, heard_by
from methods.deployment.quantization._inputs import Clock
from methods.deployment.quantization._layers import Quantized
from methods.deployment.quantization.early_stage_low_precision import Staged, early_stage_low_precision, switch_after
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


def ships_and_comes_back(recipe: Recipe, path: Path) -> models.Model:
    """The compressed model, once a file has given back the same weights and the same samples."""
    model, _, shapes = run.compress(recipe, stirred(recipe), images(), 0)
    models.save(model, path, {}, shapes)
    loaded = models.load(recipe, path, SHAPE, CLASSES, shipped=True)
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
