"""Training on crops, and with aligned features: formulas, what a step costs, and that samples cost what they did."""

import copy
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from small import BASE, CLASSES, SHAPE
from torch import Tensor, nn

from methods.core import models, run
from methods.core.data import TrainingSet
from methods.core.denoiser import Network
from methods.core.identity import import_closure
from methods.core.objective import Coupling
from methods.core.recipe import Recipe, compose
from methods.data import digits
from methods.measure import cost
from methods.nets.dit import DiT, DiTConfig
from methods.nets.placed_unet import PlacedUNet, located
from methods.nets.unet import UNetConfig
from methods.training.cost_reduction import _encoder
from methods.training.cost_reduction._encoder import TEMPERATURE, PatchEncoder, contrast, view
from methods.training.cost_reduction.patch_diffusion_training import (
    DECK,
    PatchWise,
    cropped,
    patch_diffusion_training,
)
from methods.training.cost_reduction.representation_alignment import Alignment, misaligned, representation_alignment
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
    rng, n = seeded(), 4000
    for full in (0.5, 0.0, 1.0):
        sizes = Counter(PatchWise(BASE.objective, full, 2).parts(rng) for _ in range(n))
        for parts, chance in ((1, full), (2, 0.6 * (1 - full)), (4, 0.4 * (1 - full))):
            assert abs(sizes[parts] - chance * n) <= 5 * (chance * (1 - chance) * n) ** 0.5, (full, parts)
    loss = PatchWise(BASE.objective, 0.5, 2)
    for _ in range(5):
        assert Counter(loss.parts(rng) for _ in range(DECK)) == {1: 10, 2: 6, 4: 4}, "a short run has its shares too"


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
    torch.rand((), generator=rng)
    torch.randperm(DECK, generator=rng)
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
    found = {}
    for seed in range(20):
        objective, same = (PatchWise(recipe.objective, 0.4, crops) for _ in range(2))
        losses = objective(student, student, images(), None, seeded(seed))
        found[same.parts(seeded(seed))] = losses.tolist()
    assert found == {1: [1.0] * 8, 2: [1 / 4] * 8, 4: [1 / 16] * 8}


def training_macs(recipe: Recipe, parts: int | None = None) -> int:
    """Multiply-accumulates of a step's way forth on MNIST's size, with crops of one size if given; back is twice it."""
    shape, objective = (1, 32, 32), recipe.objective
    student = models.network(recipe, models.build(recipe, shape, CLASSES))
    seed = 0
    while isinstance(objective, PatchWise) and replace(objective, drawn=[]).parts(seeded(seed)) != parts:
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


# Alignment ------------------------------------------------------------------------------------------------------------

DIT = replace(BASE, net=DiTConfig(2, 32, 3, 2))


def with_alignment(base: Recipe = DIT, **parameters: Any) -> Recipe:
    return compose(base, representation_alignment(**parameters))


def begun(recipe: Recipe) -> Network:
    """A fresh network whose gates and last layer are open, so that everything answers."""
    student = models.network(recipe, models.build(recipe, SHAPE, CLASSES))
    assert isinstance(student.net, DiT)
    for block in student.net.blocks:
        nn.init.normal_(block.get_parameter("modulation.weight"), std=0.2, generator=seeded(2))
    nn.init.normal_(student.net.get_parameter("head.pixels.weight"), std=0.2, generator=seeded(3))
    return student


def alignment_of(net: nn.Module) -> Alignment:
    alignment = net.get_submodule("alignment")
    assert isinstance(alignment, Alignment)
    return alignment


def test_misalignment_is_the_mean_cosine_over_patches() -> None:
    y, h = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[[6.0, 8.0], [-1.0, 1.0]]])
    assert misaligned(y, h).item() == pytest.approx(-(1 - 0.5**0.5) / 2)
    assert torch.allclose(misaligned(2 * y, 7 * h), misaligned(y, h))


@pytest.mark.parametrize("depth", [1, 3])
def test_the_loss_is_the_denoising_loss_and_the_alignment_of_that_block(depth: int) -> None:
    """Recomputed from the blocks up to the depth, on the very inputs that the plain loss asks about."""
    recipe = with_alignment(weight=0.7, depth=depth, share=0.0)
    student, x0, labels = begun(recipe), images(), torch.arange(8) % CLASSES
    net, alignment = student.net, alignment_of(student.net)
    assert isinstance(net, DiT)
    inputs: list[tuple[Tensor, ...]] = []
    hook = net.register_forward_pre_hook(lambda net, given: inputs.append(given))
    plain = DIT.objective(student, student, x0, labels, seeded(1))
    hook.remove()
    x, u, told = inputs[0]
    h = net.tokens(x).flatten(2).transpose(1, 2) + net.position
    for block in net.blocks[:depth]:
        h = block(h, net.conditioning(u, told))
    features, projected = alignment.encoder(x0), alignment.head(h)
    cosine = (nn.functional.normalize(features, dim=2) * nn.functional.normalize(projected, dim=2)).sum(2)
    expected = plain - 0.7 * cosine.mean(1)
    assert torch.allclose(recipe.objective(student, student, x0, labels, seeded(1)), expected, atol=1e-5)
    nothing = with_alignment(weight=0.0, depth=depth, share=0.0).objective
    assert torch.equal(nothing(student, student, x0, labels, seeded(1)), plain)


def test_alignment_turns_the_blocks_up_to_its_own_and_not_the_encoder() -> None:
    recipe = with_alignment(depth=2, share=0.0)
    student = begun(recipe)
    both = recipe.objective(student, student, images(), None, seeded(1)).mean()
    (both - DIT.objective(student, student, images(), None, seeded(1)).mean()).backward()
    net, alignment = student.net, alignment_of(student.net)
    assert isinstance(net, DiT)
    moved = [any(p.grad is not None and p.grad.abs().max() > 1e-7 for p in block.parameters()) for block in net.blocks]
    assert moved == [True, True, False]
    assert all(p.grad is not None for p in alignment.head.parameters())
    assert all(p.grad is None for p in alignment.encoder.parameters())


def test_the_head_has_three_layers_as_in_the_official_code() -> None:
    alignment = alignment_of(models.build(with_alignment(), SHAPE, CLASSES).net)
    assert [type(part) for part in alignment.head] == [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear]
    assert alignment.encoder(images()).shape == (8, 16, 64), "a feature for each of the 4x4 tokens"


def test_features_are_in_the_order_of_the_tokens() -> None:
    """Row by row: a corner pixel reaches the tokens at most two rows and two columns away, and no others."""
    encoder = alignment_of(models.build(with_alignment(), SHAPE, CLASSES).net).encoder
    x, row, column = images(1), torch.arange(16) // 4, torch.arange(16) % 4
    for i, j in ((0, 0), (0, 7), (7, 0)):
        other = x.clone()
        other[:, :, i, j] += 1
        reached = (encoder(other) != encoder(x)).any(2)[0]
        assert torch.equal(reached, ((row - i // 2).abs() <= 2) & ((column - j // 2).abs() <= 2))


def trained_for(recipe: Recipe, iterations: int, seed: int = 0) -> models.Model:
    x0 = images(24)
    data = TrainingSet(x0, torch.arange(24) % CLASSES, CLASSES)
    return run.train(replace(recipe, fit=replace(recipe.fit, iterations=iterations)), data, seed)[0]


def test_the_encoder_learns_first_and_is_frozen_afterwards() -> None:
    """It is the same after 3 updates of learning as after 3 of learning and 3 of alignment, and another than at first.

    Moving averages are off, so that what comes back are the weights themselves.
    """
    base = replace(DIT, fit=replace(DIT.fit, ema=0.0))
    learned = alignment_of(trained_for(with_alignment(base, share=0.999), 3).net)
    kept = alignment_of(trained_for(with_alignment(base, share=0.5), 6).net)
    fresh = alignment_of(models.build(with_alignment(base), SHAPE, CLASSES, 0).net)
    random = alignment_of(trained_for(with_alignment(base, share=0.5, contrast=0.0), 6).net)
    for name, weight in learned.encoder.state_dict().items():
        assert torch.equal(weight, kept.encoder.state_dict()[name])
        assert not torch.equal(weight, fresh.encoder.state_dict()[name])
        assert torch.equal(random.encoder.state_dict()[name], fresh.encoder.state_dict()[name])
    assert not torch.equal(kept.head[0].weight, fresh.head[0].weight)  # pyright: ignore[reportArgumentType]


def test_while_the_encoder_learns_the_network_is_trained_as_without_it() -> None:
    """Weights, order and noise are those of the plain network with the same seed, bit for bit."""
    plain, beside = trained_for(DIT, 3).net.state_dict(), trained_for(with_alignment(share=0.999), 3).net.state_dict()
    assert all(torch.equal(plain[name], beside[name]) for name in plain)
    after = trained_for(with_alignment(share=0.0), 3).net.state_dict()
    assert not all(torch.equal(plain[name], after[name]) for name in plain)


def test_what_ships_is_the_plain_network() -> None:
    """The same parameters and multiply-accumulates as without alignment, and the answers from before the drop."""
    model = trained_for(with_alignment(), 2)
    before = copy.deepcopy(model.net)
    data = TrainingSet(images(24), torch.arange(24) % CLASSES, CLASSES)
    model, *_ = run.compress(with_alignment(), model, data, 0)
    plain = models.build(DIT, SHAPE, CLASSES)
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    assert cost.parameters(model) == cost.parameters(plain) < cost.parameters(before)
    given = images(), torch.rand(8), torch.arange(8) % CLASSES
    assert cost.macs(lambda: model.net(*given)) == cost.macs(lambda: plain.net(*given))
    with torch.no_grad():
        assert torch.equal(model.net(*given), before(*given))


def test_a_fifth_block_costs_what_encoder_and_head_do() -> None:
    """Of an update at the size of the digits, but for the way back of attention, which is not counted."""

    def macs(recipe: Recipe) -> int:
        return cost.macs(lambda: trained_for(recipe, 1))[0]

    plain, deeper = (replace(BASE, net=DiTConfig(depth=depth)) for depth in (4, 5))
    learning, aligning = (macs(with_alignment(plain, share=share)) for share in (0.9, 0.0))
    assert 0.15 * learning + 0.85 * aligning == pytest.approx(macs(deeper), rel=0.05)
    assert macs(plain) < 0.85 * macs(deeper)


def test_contrast_is_the_cross_entropy_of_the_right_pair() -> None:
    """Orthogonal images with equal views: -log(e^(1/T) / (e^(1/T) + 2 b - 2)); and all alike: log(2 b - 1)."""
    one = torch.eye(5)
    right = math.exp(1 / TEMPERATURE)
    assert contrast(one, 3 * one).tolist() == pytest.approx([-math.log(right / (right + 8))] * 5, rel=1e-4)
    alike = torch.ones(5, 4)
    assert contrast(alike, alike).tolist() == pytest.approx([math.log(9)] * 5, rel=1e-4)


def test_a_view_is_the_image_moved_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(64)
    assert not torch.allclose(view(x, seeded(0)), view(x, seeded(1)), atol=0.1)
    for name in ("TURN", "ZOOM", "SHIFT", "NOISE"):
        monkeypatch.setattr(_encoder, name, 0.0)
    assert torch.allclose(view(x, seeded()), x, atol=1e-5)


def test_the_encoder_learns_to_tell_images_apart() -> None:
    """On real digits: the contrast of images it has not seen falls far below log(2 b - 1), where a random one stays."""
    torch.manual_seed(0)
    x, rng = digits.load().train, seeded()
    encoder, shown, unseen = PatchEncoder(1, 2, 32), x[:-64], x[-64:]
    with torch.no_grad():
        before = encoder.contrasted(unseen, seeded(9)).mean()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    for _ in range(60):
        loss = encoder.contrasted(shown[torch.randint(len(shown), (64,), generator=rng)], rng).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = encoder.contrasted(unseen, seeded(9)).mean()
    assert before > math.log(127) - 0.5 and after < before - 1.5


def test_the_encoder_is_not_what_samples_are_judged_with() -> None:
    reached = import_closure({"methods.training.cost_reduction.representation_alignment"})
    assert not reached & {"methods.measure.features", "methods.nets.classifier"}
