"""Masked training: what is hidden from which part of a transformer, what the loss is taken on, what an update costs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small import BASE, CLASSES, SHAPE, method, recipe_of, trained
from torch import Tensor, nn

from catalog import load
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.denoiser import Network
from methods.core.objective import Denoising, Regression
from methods.core.recipe import Recipe, compose
from methods.measure import cost
from methods.nets.masked_dit import (
    DeferredDiT,
    DeferredDiTConfig,
    MaskDiT,
    MaskDiTConfig,
    MaskedTransformer,
    put_back,
    taken,
)
from methods.training.cost_reduction._shared import MaskedDenoising, draw_visible, of_patches
from methods.training.cost_reduction.maskdit import DenoiseAndReconstruct, reconstruction

TOKENS, SIDE, PATCH = 16, 4, 2
"""Of an image of 8x8 pixels."""
IDS = ("maskdit", "deferred_masking")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def roused(net: nn.Module) -> nn.Module:
    """The network with no parameter at zero, so that every part has a say."""
    rng = seeded(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=rng)
    return net


def network(recipe: Recipe) -> tuple[Network, MaskedTransformer]:
    net = roused(models.build(recipe, SHAPE, CLASSES).net)
    assert isinstance(net, MaskedTransformer)
    return Network(net, recipe.process, recipe.parameterization, None), net


def asked(n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(n, *SHAPE, generator=seeded(2)), torch.full((n,), 0.4), torch.arange(n) % CLASSES


def pixels_of(places: Tensor) -> Tensor:
    """Which pixels the tokens at these places stand for, by hand."""
    seen = torch.zeros(len(places), 1, 8, 8, dtype=torch.bool)
    for row, tokens in enumerate(places.tolist()):
        for token in tokens:
            i, j = token // SIDE * PATCH, token % SIDE * PATCH
            seen[row, 0, i : i + PATCH, j : j + PATCH] = True
    return seen


def watched(net: nn.Module, *parts: str) -> dict[str, list[int]]:
    """How many tokens each part is given, call by call."""
    seen: dict[str, list[int]] = {part: [] for part in parts}

    def watch(part: str) -> None:
        net.get_submodule(part).register_forward_pre_hook(lambda _, given: seen[part].append(given[0].shape[1]))

    for part in parts:
        watch(part)
    return seen


# Masks ----------------------------------------------------------------------------------------------------------------


def test_so_many_places_stay_visible_each_as_likely_and_each_sample_on_its_own() -> None:
    """int((1 - ratio) tokens), as in both official codes, and never none."""
    for tokens, ratio, kept in ((256, 0.5, 128), (256, 0.75, 64), (16, 0.75, 4), (16, 0.3, 11), (4, 0.9, 1)):
        assert draw_visible(3, tokens, ratio, seeded()).shape == (3, kept)
    places = draw_visible(4000, TOKENS, 0.75, seeded())
    assert all(len(set(row)) == 4 for row in places[:50].tolist())
    often = places.flatten().bincount(minlength=TOKENS) / len(places)
    assert (often - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5
    together = sum({3, 7} <= set(row) for row in places.tolist()) / len(places)
    assert abs(together - 0.25 * 3 / 15) < 0.015
    assert not torch.equal(places[0].sort().values, places[1].sort().values)


def test_tokens_are_put_back_where_they_were_taken() -> None:
    h, places = torch.randn(2, TOKENS, 3), torch.tensor([[5, 0, 9], [15, 2, 1]])
    hidden = torch.tensor([7.0, 8.0, 9.0])
    whole = put_back(taken(h, places), places, TOKENS, hidden)
    for row in range(2):
        for token in range(TOKENS):
            expected = h[row, token] if token in places[row].tolist() else hidden
            assert torch.equal(whole[row, token], expected)


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", IDS)
def test_a_network_shown_all_tokens_in_any_order_answers_as_if_asked_of_the_whole(id: str) -> None:
    _, net = network(recipe_of(id))
    x, u, labels = asked()
    whole = net(x, u, labels)
    with net.showing(torch.stack([torch.randperm(TOKENS, generator=seeded(row)) for row in range(2)])):
        shuffled = net(x, u, labels)
    assert whole.std() > 0.1 and torch.allclose(shuffled, whole, atol=1e-4)
    assert net.visible is None and torch.equal(net(x, u, labels), whole)


def test_the_encoder_sees_visible_tokens_and_the_decoder_all() -> None:
    net = MaskDiT(SHAPE, CLASSES, MaskDiTConfig(decoder=2))
    seen = watched(net, "blocks.0", "blocks.3", "bridge", "decoder.0", "decoder.1", "head")
    with net.showing(draw_visible(2, TOKENS, 0.5, seeded())):
        net(*asked())
    net(*asked())
    assert seen == {
        "blocks.0": [8, 16], "blocks.3": [8, 16], "bridge": [8, 16],
        "decoder.0": [16, 16], "decoder.1": [16, 16], "head": [16, 16],
    }  # fmt: skip


def test_the_mixer_sees_all_tokens_and_the_backbone_visible_ones() -> None:
    net = DeferredDiT(SHAPE, CLASSES, DeferredDiTConfig())
    seen = watched(net, "enter", "mixer.0", "mixer.1", "leave", "blocks.0", "blocks.3", "head")
    with net.showing(draw_visible(2, TOKENS, 0.75, seeded())):
        net(*asked())
    assert seen == {
        "enter": [16], "mixer.0": [16], "mixer.1": [16], "leave": [4], "blocks.0": [4], "blocks.3": [4], "head": [4],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("id", "params", "heard"),
    [("maskdit", {}, False), ("deferred_masking", {"mixer": 0}, False), ("deferred_masking", {}, True)],
    ids=("MaskDiT", "plain", "deferred"),
)
def test_hidden_pixels_are_heard_only_through_a_mixer(id: str, params: dict[str, float], heard: bool) -> None:
    """What tells the two apart: a patch hidden at once is lost, one hidden later has told the others."""
    _, net = network(compose(BASE, method(id, **params)))
    x, u, labels = asked()
    places = draw_visible(2, TOKENS, 0.5, seeded())
    seen = pixels_of(places)
    with net.showing(places):
        before, after = net(x, u, labels), net(torch.where(seen, x, x + 1), u, labels)
    assert torch.allclose(before[seen], after[seen], atol=1e-5) != heard
    with net.showing(places):
        other = net(torch.where(seen, x + 1, x), u, labels)
    assert not torch.allclose(before[seen], other[seen], atol=1e-2)


def test_the_encoder_and_the_backbone_are_the_transformer_they_are_held_against() -> None:
    """Block by block the same shapes; without a mixer, the same network."""
    plain = models.build(recipe_of("dit"), SHAPE, CLASSES, 3).net
    for id in IDS:
        net = models.build(recipe_of(id), SHAPE, CLASSES, 3).net
        for name in ("conditioning", "tokens", "blocks"):
            shapes = [(n, p.shape) for n, p in net.get_submodule(name).named_parameters()]
            assert shapes == [(n, p.shape) for n, p in plain.get_submodule(name).named_parameters()], (id, name)
    bare = models.build(compose(BASE, method("deferred_masking", mixer=0)), SHAPE, CLASSES, 3).net
    bare.load_state_dict(roused(plain).state_dict())
    assert torch.equal(bare(*asked()), plain(*asked()))


# The loss -------------------------------------------------------------------------------------------------------------


def lasting(id: str, **params: float) -> Recipe:
    """With ten iterations of training."""
    recipe = compose(BASE, method(id, **params))
    return replace(recipe, fit=replace(recipe.fit, iterations=10))


def objective_of(recipe: Recipe) -> MaskedDenoising:
    objective = recipe.objective
    assert isinstance(objective, MaskedDenoising)
    return objective


@pytest.mark.parametrize("id", IDS)
def test_the_loss_is_the_mean_over_visible_pixels_of_what_the_plain_loss_sees(id: str) -> None:
    """The same images, times and noise reach the network; the error is that of visible patches alone."""
    recipe = lasting(id, **({"reconstruct": 0.0} if id == "maskdit" else {}))
    student, net = network(recipe)
    given: list[tuple[Tensor, ...]] = []
    answers: list[Any] = []
    net.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    net.register_forward_hook(lambda _, inputs, answer: answers.append(answer))
    x0, labels = torch.rand(6, *SHAPE, generator=seeded(3)) * 2 - 1, torch.arange(6) % CLASSES
    objective = objective_of(recipe)
    loss = objective(student, student, x0, labels, seeded(4))
    assert objective.visible is not None
    seen = pixels_of(objective.visible)
    Regression().objective(recipe)(student, student, x0, labels, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(*given, strict=True))
    eps = torch.randn(x0.shape, generator=seeded(4))
    for row in range(6):
        error = (answers[0] - eps)[row][seen[row]].square().mean()
        assert abs(loss[row] / error - 1) < 1e-5


@pytest.mark.parametrize("id", IDS)
def test_nothing_is_hidden_at_the_end(id: str) -> None:
    """Three of ten batches are whole, and their loss is the plain one, bit for bit; without a ratio all ten are."""
    for ratio, expected in ((0.5, 7), (0.0, 0)):
        recipe = lasting(id, unmasked=0.3, ratio=ratio)
        student, _ = network(recipe)
        x0, labels = torch.rand(4, *SHAPE, generator=seeded(3)) * 2 - 1, torch.arange(4) % CLASSES
        objective, plain = objective_of(recipe), Regression().objective(recipe)
        assert isinstance(plain, Denoising)
        whole = []
        with tallied() as counters:
            for i in range(10):
                loss = objective(student, student, x0, labels, seeded(i))
                whole.append(torch.equal(loss, plain(student, student, x0, labels, seeded(i))))
        assert whole == [False] * expected + [True] * (10 - expected)
        assert counters["tokens_masked"] == expected * 4 * 8


@pytest.mark.parametrize("id", IDS)
def test_training_masks_and_sampling_does_not(id: str) -> None:
    model, counters = trained(recipe_of(id))
    ratio = 0.5 if id == "maskdit" else 0.75
    assert counters["tokens_masked"] == BASE.fit.iterations * BASE.fit.batch * TOKENS * ratio
    seen = watched(model.net, "blocks.0", "blocks.3")
    recipe = replace(recipe_of(id), steps=3)
    with tallied() as counters:
        run.generate(recipe, run.deploy(recipe, model), torch.tensor([0, 1]), [0, 1])
    assert seen == {"blocks.0": [16] * 3, "blocks.3": [16] * 3} and counters["tokens_masked"] == 0


def test_the_mean_of_patches_is_that_of_their_pixels_over_all_channels() -> None:
    error = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    assert of_patches(error, 2).tolist() == [[2.5 + 8, 4.5 + 8, 10.5 + 8, 12.5 + 8]]


def test_hidden_patches_are_held_against_their_normalised_pixels() -> None:
    """A patch of 1, 2, 3, 4 has mean 2.5 and, as in the official code, variance 5/3."""
    x_t = torch.tensor([[1.0, 2.0, 5.0, 5.0], [3.0, 4.0, 5.0, 9.0]]).reshape(1, 1, 2, 4)
    spread = (5 / 3 + 1e-6) ** 0.5
    normal = torch.tensor([[-1.5, -0.5], [0.5, 1.5]]) / spread
    for answer, expected in ((0.0, 0.75), (1.0, 1.75)):
        loss = reconstruction(torch.full_like(x_t, answer), x_t, torch.tensor([[1]]), 2)
        assert abs(loss.item() - expected) < 1e-5
    right = torch.zeros_like(x_t)
    right[0, 0, :, :2] = normal
    assert reconstruction(right, x_t, torch.tensor([[1]]), 2).item() < 1e-10
    both = torch.empty(1, 0, dtype=torch.long)
    assert abs(reconstruction(right, x_t, both, 2).item() - 0.375) < 1e-5
    assert abs(reconstruction(right, 3 * x_t - 7, torch.tensor([[1]]), 2).item()) < 1e-10


def test_reconstruction_is_added_with_its_weight_whatever_the_noise_level_weighs() -> None:
    x0, labels = torch.rand(5, *SHAPE, generator=seeded(3)) * 2 - 1, torch.arange(5) % CLASSES
    losses: dict[tuple[float, bool], Tensor] = {}
    beside = torch.zeros(5)
    for weighed in (False, True):
        for weight in (0.0, 0.1, 1.0):
            edits = [method("maskdit", reconstruct=weight), *([method("min_snr_weighting")] if weighed else [])]
            recipe = compose(BASE, *edits)
            student, _ = network(recipe)
            objective = recipe.objective
            assert isinstance(objective, DenoiseAndReconstruct)
            losses[weight, weighed] = objective(student, student, x0, labels, seeded(4))
            beside = torch.as_tensor(objective.beside)
    assert (beside > 0.1).all()
    for weighed in (False, True):
        assert torch.allclose(losses[1.0, weighed] - losses[0.0, weighed], beside, rtol=1e-3, atol=1e-4)
        assert torch.allclose(losses[0.1, weighed] - losses[0.0, weighed], 0.1 * beside, rtol=1e-2, atol=1e-4)
    assert not torch.allclose(losses[0.0, False], losses[0.0, True])


# Cost -----------------------------------------------------------------------------------------------------------------


def update_macs(bed: str, id: str, **params: float) -> int:
    """Multiply-accumulates of the forward and backward pass of one update, on a bed's images, per image."""
    shape = load().beds[bed].shape
    recipe = compose(BASE, load().techniques[id].call(params, bed))
    model = models.build(recipe, shape, CLASSES)
    student, x0 = models.network(recipe, model), torch.rand(2, *shape, generator=seeded()) * 2 - 1
    objective = recipe.objective
    step: Callable[[], object] = lambda: objective(student, student, x0, None, seeded()).mean().backward()  # noqa: E731
    return cost.macs(step)[0] // 2


@pytest.mark.parametrize(
    ("bed", "id", "masked", "training", "width"),
    [
        ("digits", "maskdit", 0.586, 0.635, 76),
        ("digits", "deferred_masking", 0.416, 0.489, 68),
        ("mnist", "deferred_masking", 0.393, 0.469, 68),
    ],
)
def test_an_update_costs_what_the_catalog_says(bed: str, id: str, masked: float, training: float, width: int) -> None:
    """Beside dit, whose compute a narrower one that is held against it shares."""
    full = update_macs(bed, "dit")
    update, whole = update_macs(bed, id), update_macs(bed, id, ratio=0.0)
    assert abs(update / full - masked) < 6e-4
    total = (0.9 * update + 0.1 * whole) / full
    assert abs(total - training) < 6e-4
    assert -0.01 < update_macs(bed, "dit", width=width) / full - total < 0.05
