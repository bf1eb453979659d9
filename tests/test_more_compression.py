"""Thin factors, precision by noise level, and corrected quantization, against closed forms."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import BASE, CLASSES, SHAPE, images, trained
from torch import Tensor, nn

from methods.core import models, run
from methods.core.recipe import Recipe, compose
from methods.core.surgery import flatten
from methods.deployment.low_rank.low_rank_svd import LowRank, Product, answers, low_rank_svd
from methods.deployment.quantization._calibration import Asked, asked_while_sampling, heard_by
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
