"""Training on crops, and with aligned features: formulas, what a step costs, and that samples cost what they did."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from small import BASE, CLASSES, SHAPE
from torch import Tensor, nn

from methods.core import models
from methods.core.denoiser import Network
from methods.core.objective import Coupling
from methods.core.recipe import Recipe, compose
from methods.measure import cost
from methods.nets.placed_unet import PlacedUNet, located
from methods.nets.unet import UNetConfig
from methods.training.cost_reduction.patch_diffusion_training import PatchWise, cropped, patch_diffusion_training
from methods.training.flow.flow_matching import flow_matching


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 8, side: int = 8) -> Tensor:
    return torch.rand(n, 1, side, side, generator=seeded(5)) * 2 - 1


class Recording(nn.Module):
    """Answers with half of the pixels, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        self.asked.append(x)
        return x[:, :1] / 2


def asked(recipe: Recipe, x0: Tensor, seed: int = 0) -> Tensor:
    """What the objective of a recipe asks the network in one step."""
    net = Recording()
    student = Network(net, recipe.process, recipe.parameterization, None)
    recipe.objective(student, student, x0, None, seeded(seed))
    return net.asked[0]


# Crops ----------------------------------------------------------------------------------------------------------------


def test_crops_are_squares_of_their_image_anywhere_in_it() -> None:
    """Of an image that holds its own row and column, every crop is a square of consecutive ones; all places occur."""
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    x = torch.stack([row, column]).expand(2000, 2, 8, 8)
    crops = cropped(x, 2, seeded())
    assert crops.shape == (2000, 2, 4, 4)
    first = crops[:, :, :1, :1]
    assert torch.equal(crops - first, x[:, :, :4, :4])
    places = Counter(map(tuple, first.flatten(1).int().tolist()))
    assert set(places) == {(i, j) for i in range(5) for j in range(5)}
    assert all(abs(n - 80) < 5 * 80**0.5 for n in places.values())


def test_coordinates_are_those_of_the_official_code() -> None:
    """First the column, then the row, each (i / (N - 1) - 1/2) 2; and a crop has those of its place in the whole."""
    whole = located(images())
    line = (torch.arange(8) / 7 - 0.5) * 2
    assert torch.allclose(whole[3, 1], line.expand(8, 8), atol=1e-6)
    assert torch.allclose(whole[3, 2], line[:, None].expand(8, 8), atol=1e-6)
    for crop in cropped(whole, 4, seeded()):
        j, i = ((crop[1:, 0, 0] / 2 + 0.5) * 7).round().int().tolist()
        assert any(torch.equal(crop, one[:, i : i + 2, j : j + 2]) for one in whole)


def test_sizes_come_with_the_probabilities_of_the_paper() -> None:
    rng, n = seeded(), 20_000
    for full in (0.5, 0.0, 1.0):
        sizes = Counter(PatchWise(BASE.objective, full, 2).parts(rng) for _ in range(n))
        for parts, chance in ((1, full), (2, 0.6 * (1 - full)), (4, 0.4 * (1 - full))):
            assert abs(sizes[parts] - chance * n) <= 5 * (chance * (1 - chance) * n) ** 0.5, (full, parts)


def test_all_crops_of_a_step_have_one_size_and_their_number_grows() -> None:
    recipe = compose(BASE, patch_diffusion_training(full=0.4, crops=2, width=8))
    shapes = {tuple(asked(recipe, images(), seed).shape) for seed in range(30)}
    assert shapes == {(8, 3, 8, 8), (16, 3, 4, 4), (32, 3, 2, 2)}


def test_the_input_scale_leaves_coordinates_alone() -> None:
    """Under a straight path inputs are scaled by the time, and coordinates are not."""
    plain = compose(BASE, patch_diffusion_training(1.0, width=8))
    scaled = compose(plain, flow_matching())
    for recipe in (plain, scaled):
        assert torch.equal(asked(recipe, images())[:, 1:], located(images())[:, 1:])
    assert not torch.equal(asked(plain, images())[:, :1], asked(scaled, images())[:, :1])


def test_whole_images_alone_are_the_plain_loss() -> None:
    """Without crops it is the recipe's denoising loss, bit for bit, after the one draw of the size."""
    recipe = compose(BASE, patch_diffusion_training(1.0, width=8))
    student = models.network(recipe, models.build(recipe, SHAPE, CLASSES))
    nn.init.normal_(student.net.get_parameter("head.weight"), generator=seeded())
    x0, labels, rng = images(), torch.arange(8) % CLASSES, seeded(1)
    torch.rand((), generator=rng, dtype=torch.float64)
    for _ in x0.shape[2:]:
        torch.randint(1, (len(x0),), generator=rng)
    plain = BASE.objective(student, student, x0, labels, rng)
    assert torch.equal(recipe.objective(student, student, x0, labels, seeded(1)), plain)


class Silent(Coupling):
    """No noise."""

    def __call__(self, x0: Tensor, rng: torch.Generator) -> Tensor:
        return torch.zeros_like(x0)


class OffByOne(nn.Module):
    """Answers 1 everywhere."""

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return torch.ones_like(x[:, :1])


@pytest.mark.parametrize("crops", [1, 2, 4])
def test_a_crop_weighs_what_it_covers(crops: int) -> None:
    """The official code sums over pixels and divides by the number of crops.

    So where all pixels err alike, a quarter of the side has a sixteenth of the loss of a whole, however many crops.
    """
    recipe = replace(BASE, coupling=Silent())
    student = Network(OffByOne(), recipe.process, recipe.parameterization, None)
    objective, found = PatchWise(recipe.objective, 0.4, crops), {}
    for seed in range(20):
        losses = objective(student, student, images(), None, seeded(seed))
        found[objective.parts(seeded(seed))] = losses.tolist()
    assert found == {1: [1.0] * 8, 2: [1 / 4] * 8, 4: [1 / 16] * 8}


def training_macs(recipe: Recipe, parts: int | None = None) -> int:
    """Multiply-accumulates of a step's way forth on MNIST's size, with crops of one size if given; back is twice it."""
    shape, objective = (1, 32, 32), recipe.objective
    student = models.network(recipe, models.build(recipe, shape, CLASSES))
    seed = 0
    while isinstance(objective, PatchWise) and objective.parts(seeded(seed)) != parts:
        seed += 1
    x0 = images(4, 32)
    operations, uncounted = cost.macs(lambda: objective(student, student, x0, None, seeded(seed)))
    assert not uncounted
    return operations


@pytest.mark.parametrize(("crops", "expected"), [(1, 0.5875), (2, 0.7), (4, 1.0)])
def test_what_a_step_costs(crops: int, expected: float) -> None:
    """p + (1 - p) (3/5 k/4 + 2/5 k^2/16) of a step on whole images for k crops; convolutions are nearly all of it."""
    plain = training_macs(replace(BASE, net=UNetConfig(8, (1, 2, 4))))
    recipe = compose(BASE, patch_diffusion_training(0.5, crops, width=8, levels=3))
    one, half, quarter = (training_macs(recipe, parts) / plain for parts in (1, 2, 4))
    assert one == pytest.approx(1, abs=0.01)
    assert 0.5 * one + 0.3 * half + 0.2 * quarter == pytest.approx(expected, rel=0.02)


def test_the_network_is_the_plain_one_but_for_two_channels() -> None:
    """With the same seed every other weight is the same, and so is the cost of a sample but for the first layer."""
    recipe = compose(BASE, patch_diffusion_training(width=8))
    plain, placed = (models.build(r, SHAPE, CLASSES, 3).net for r in (BASE, recipe))
    assert isinstance(placed, PlacedUNet)
    weights = placed.state_dict()
    assert weights.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert name.startswith("stem.") or torch.equal(tensor, weights[name])
    assert weights["stem.weight"].shape == (8, 3, 3, 3)
    x, u, labels = images(), torch.rand(8), torch.arange(8) % CLASSES
    one, other = (cost.macs(lambda net=net: net(x, u, labels))[0] for net in (plain, placed))
    assert other - one == 8 * 2 * 9 * 8 * 64
    nn.init.normal_(placed.get_parameter("head.weight"), generator=seeded())
    assert torch.equal(placed(x, u, labels), placed(located(x), u, labels))
