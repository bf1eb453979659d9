"""Adapting a trained network: matrices of low rank, preferences, and control."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from small import BASE, CLASSES, SHAPE, images, method, recipe_of
from torch import Tensor, nn

from catalog import Cell
from catalog import load as load_catalog
from flows.cell import Spec, wanted_images
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.control import NULL, Prompts
from methods.core.denoiser import Network
from methods.core.objective import Independent, UniformTimes
from methods.core.parameterization import Clean, Noise
from methods.core.recipe import compose
from methods.data import Images, load
from methods.data.edges import edges
from methods.nets.controlled import ControlledUNet
from methods.nets.unet import UNet
from methods.training.adaptation.controlnet import HalfUnlabelled
from methods.training.adaptation.diffusion_dpo import DirectPreference, by_preference, noise_error
from methods.training.adaptation.lora import ADAPTED, LowRank, adapters, merged
from methods.training.objective.v_prediction import Velocity

WITHHELD = replace(images(), withheld=(2,))
X, U, LABELS = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.rand(6), torch.arange(6) % 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> nn.Module:
    """A fresh network whose last layer does not answer with zeros."""
    made = models.build(BASE, SHAPE, CLASSES).net
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=seeded(weight.numel())))
    return made.eval()


def learned(adapted: nn.Module) -> nn.Module:
    """As after some training: B is no longer zero."""
    with torch.no_grad():
        for part in adapted.modules():
            if isinstance(part, LowRank):
                part.b.normal_(generator=seeded(part.b.numel()))
    return adapted


# Low rank -------------------------------------------------------------------------------------------------------------


def test_nothing_has_changed_before_the_first_update() -> None:
    plain = net()
    adapted = adapters(copy.deepcopy(plain), 2, 2.0, seeded())
    with torch.no_grad():
        assert torch.equal(adapted(X, U, LABELS), plain(X, U, LABELS))


def test_only_the_matrices_learn_and_they_are_as_many_as_their_rank_says() -> None:
    plain, rank = net(), 2
    adapted = adapters(copy.deepcopy(plain), rank, 2.0, seeded())
    expected = 0
    for part in plain.modules():
        if isinstance(part, ADAPTED):
            rows, columns = part.weight.shape[0], part.weight[0].numel()
            expected += min(rank, rows, columns) * (rows + columns)
    learning = {name: weight.numel() for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert sum(learning.values()) == expected < sum(weight.numel() for weight in plain.parameters()) / 3
    adapted(X, U, LABELS).square().sum().backward()
    for name, weight in adapted.named_parameters():
        assert (weight.grad is not None) == (name in learning)


def test_merged_is_what_it_was_beside_the_weights_and_has_no_further_part() -> None:
    plain = net()
    adapted = learned(adapters(copy.deepcopy(plain), 2, 3.0, seeded()))
    with torch.no_grad():
        beside = adapted(X, U, LABELS)
        whole = merged(adapted, copy.deepcopy(plain))
        assert torch.allclose(whole(X, U, LABELS), beside, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(beside, plain(X, U, LABELS), atol=1e-2)
    assert [(n, w.shape) for n, w in whole.named_parameters()] == [(n, w.shape) for n, w in plain.named_parameters()]
    assert [type(part) for part in whole.modules()] == [type(part) for part in plain.modules()]


def test_what_is_added_has_the_rank_and_the_scale() -> None:
    """alpha / r B A of a convolution, whose matrix has its output channels as rows."""
    layer = nn.Conv2d(6, 8, 3)
    before = layer.weight.detach().clone()
    adapted = learned(adapters(nn.Sequential(copy.deepcopy(layer)), 3, 1.5, seeded()))
    product = next(part for part in adapted.modules() if isinstance(part, LowRank))
    merged(adapted, nn.Sequential(layer))
    added = (layer.weight.detach() - before).flatten(1)
    assert torch.linalg.matrix_rank(added, rtol=1e-4) == 3
    assert torch.allclose(added, 0.5 * product.b.detach() @ product.a.detach(), atol=1e-5)


def test_a_layer_smaller_than_the_rank_keeps_the_scale() -> None:
    """alpha / r is that of the rank that was asked for, in every layer alike."""
    small, large = nn.Linear(6, 2), nn.Linear(6, 8)
    adapted = adapters(nn.Sequential(large, small), 4, 2.0, seeded())
    scales = [(part.scale, part.a.shape[0]) for part in adapted.modules() if isinstance(part, LowRank)]
    assert scales == [(0.5, 4), (0.5, 2)]


@pytest.mark.parametrize("rank", [0, 2])
def test_it_learns_what_base_training_was_not_shown(rank: int) -> None:
    """The images of the class that was withheld, and no others; all weights keep their names."""
    recipe = compose(BASE, method("lora", rank=rank, fraction=2.0))
    trained, _ = run.train(BASE, WITHHELD, 0)
    base = copy.deepcopy(trained)
    told: list[Tensor] = []
    trained.net.register_forward_pre_hook(lambda _, given: told.append(given[2]))
    with tallied() as counters:
        model, seen, _ = run.compress(recipe, trained, WITHHELD, 0)
    assert seen == round(2.0 * BASE.fit.iterations) * BASE.fit.batch
    assert {2} <= {label for labels in told for label in labels.tolist()} <= {2, NULL}
    assert 0 < counters["weights_adapted"] <= sum(weight.numel() for weight in base.net.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(model.net.parameters(), base.net.parameters(), strict=True)]
    assert any(changed) and model.net.state_dict().keys() == base.net.state_dict().keys()


# Preferences ----------------------------------------------------------------------------------------------------------


class Share(nn.Module):
    """Answers with a share of its input."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return self.share * x


def shares(share: float) -> Network:
    return Network(Share(share), BASE.process, BASE.parameterization, None)


def test_pairs_have_one_label_and_the_heavier_image_first() -> None:
    drawn = torch.rand(31, *SHAPE, generator=seeded()) * 2 - 1
    labels = torch.randint(3, (31,), generator=seeded(1))
    rows, known = by_preference(drawn, labels)
    ink = drawn.flatten(1).mean(1)
    assert (labels[rows[:, 0]] == known).all() and (labels[rows[:, 1]] == known).all()
    assert (ink[rows[:, 0]] >= ink[rows[:, 1]]).all()
    assert len(set(rows.flatten().tolist())) == 2 * len(rows) and len(rows) >= 31 // 2 - 3


@pytest.mark.parametrize("parameterization", [Noise(), Clean(), Velocity()], ids=lambda p: type(p).__name__)
def test_the_error_is_that_of_the_noise_whatever_is_predicted(parameterization: object) -> None:
    network = Network(Share(0.3), BASE.process, parameterization, None)  # pyright: ignore[reportArgumentType]
    eps, t = torch.randn(X.shape, generator=seeded(2)), torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    x_t = network.process.diffuse(X, eps, t)
    x0 = network.parameterization.clean(network.process, x_t, network.predict(x_t, t, LABELS), t)
    alpha, sigma = (c.float()[:, None, None, None] for c in (network.process.alpha(t), network.process.sigma(t)))
    expected = ((x_t - alpha * x0) / sigma - eps).square().flatten(1).mean(1)
    assert torch.allclose(noise_error(network, X, eps, t, LABELS), expected, rtol=1e-3, atol=1e-5)


def test_the_loss_is_log_2_before_the_first_update_and_falls_towards_what_is_preferred() -> None:
    pairs = torch.stack([X, 0.2 * X], dim=1)
    loss = DirectPreference(UniformTimes(), Independent(), beta=50.0)
    student, reference = shares(0.3), shares(0.3)
    begun = loss(student, reference, pairs, LABELS, seeded(3))
    assert torch.allclose(begun, torch.full_like(begun, math.log(2)))
    (slope,) = torch.autograd.grad(begun.mean(), student.net.parameters())
    rng = seeded(3)
    t, eps = UniformTimes()(BASE.process, 6, rng), Independent()(X, rng)
    apart = noise_error(student, X, eps, t, LABELS) - noise_error(student, 0.2 * X, eps, t, LABELS)
    (direct,) = torch.autograd.grad(50.0 / 4 * apart.mean(), student.net.parameters())
    assert torch.allclose(slope, direct, rtol=1e-4)
    better = shares(0.3 - 0.05 * math.copysign(1, slope.item()))
    assert loss(better, reference, pairs, LABELS, seeded(3)).mean() < begun.mean()


def test_it_compares_samples_of_the_classes_that_were_shown() -> None:
    recipe = recipe_of("diffusion_dpo")
    trained, _ = run.train(BASE, WITHHELD, 0)
    told: list[Tensor] = []
    trained.net.register_forward_pre_hook(lambda _, given: told.append(given[2]))
    before = copy.deepcopy(trained.net)
    with tallied() as counters:
        model, seen, _ = run.compress(recipe, trained, WITHHELD, 0)
    assert counters["preferences_compared"] >= BASE.fit.batch and seen > 0
    assert {label for labels in told for label in labels.tolist()} == {0, 1}
    assert any(not torch.equal(a, b) for a, b in zip(model.net.parameters(), before.parameters(), strict=True))


def test_every_label_has_a_held_out_image_of_its_class_in_turn() -> None:
    known = load_catalog()
    spec = Spec(known, known.bed("adaptation"), known.canonical(Cell(methods={}), "adaptation"), ((0, 0),))
    digits, labels = load("adaptation"), torch.tensor([3, 8, 3, 3, 0])
    assert isinstance(digits, Images)
    wanted = wanted_images(spec, labels)
    assert wanted is not None
    threes = digits.held_out[digits.held_out_labels == 3]
    assert torch.equal(wanted[labels == 3], threes[:3])
    assert torch.equal(wanted[1], digits.held_out[digits.held_out_labels == 8][0])
    many = wanted_images(spec, torch.full((len(threes) + 1,), 3))
    assert many is not None and torch.equal(many, torch.cat([threes, threes[:1]]))


# Control --------------------------------------------------------------------------------------------------------------


MAPS = edges(X)


def controlled() -> ControlledUNet:
    base = net()
    assert isinstance(base, UNet)
    return ControlledUNet(copy.deepcopy(base)).eval()


def test_edges_are_where_an_image_changes() -> None:
    """A step of one from left to right has a slope of one half on both sides of it, and nothing elsewhere."""
    step = torch.zeros(1, 1, 6, 6)
    step[..., 3:] = 1
    expected = torch.tensor([0.0, 0.0, 0.5, 0.5, 0.0, 0.0]).expand(6, 6)
    assert torch.allclose(edges(step)[0, 0], expected)
    assert torch.allclose(edges(step.mT)[0, 0], expected.T)
    assert torch.equal(edges(torch.cat([step, step], dim=1)), edges(step))


def test_a_map_changes_nothing_before_the_first_update_and_without_a_map_nothing_ever_changes() -> None:
    plain, whole = net(), controlled()
    with torch.no_grad():
        before = plain(X, U, LABELS)
        assert torch.equal(whole(X, U, LABELS, MAPS), before)
        for weight in whole.reader.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=seeded(weight.numel())))
        assert not torch.allclose(whole(X, U, LABELS, MAPS), before, atol=1e-2)
        assert torch.equal(whole(X, U, LABELS), before)


def test_the_reader_sees_what_the_encoder_does_and_only_it_learns() -> None:
    """A copy, told nothing by an empty hint: with convolutions of one in place of zero it says the encoder's own."""
    whole = controlled()
    for tell in whole.reader.tell:
        assert isinstance(tell, nn.Conv2d)
        nn.init.dirac_(tell.weight)
    said = whole.reader(X, U, LABELS, MAPS)
    heard: dict[nn.Module, Tensor] = {}
    for place in whole.places:
        place.inner.register_forward_hook(lambda part, given, out: heard.update({part: out}))
    whole(X, U, LABELS)
    assert len(said) == len(whole.places) == 3  # two levels and the middle
    for place, told in zip(whole.places, said, strict=True):
        assert torch.allclose(told, heard[place.inner], atol=1e-5)
    whole.begin()
    learning = sum(weight.numel() for weight in whole.parameters() if weight.requires_grad)
    assert (
        learning
        == sum(weight.numel() for weight in whole.reader.parameters())
        < 1.1 * sum(weight.numel() for weight in whole.net.parameters())
    )


def test_zero_convolutions_learn_in_the_first_update() -> None:
    whole = controlled()
    whole.begin()
    whole(X, U, LABELS, MAPS).square().sum().backward()
    for tell in whole.reader.tell:
        assert isinstance(tell, nn.Conv2d) and tell.weight.grad is not None and tell.weight.grad.abs().max() > 0
    assert all(weight.grad is None for weight in whole.net.parameters())


def test_numbers_of_prompts_go_where_labels_go() -> None:
    """In any order, twice, and dropped: NULL has no label and an empty map."""
    prompts = Prompts(LABELS, MAPS)
    labels, maps = prompts(torch.tensor([4, 0, NULL, 4]))
    assert labels.tolist() == [LABELS[4], LABELS[0], NULL, LABELS[4]]
    assert torch.equal(maps, torch.stack([MAPS[4], MAPS[0], torch.zeros_like(MAPS[0]), MAPS[4]]))


@pytest.mark.parametrize("others", [(), ("classifier_free_guidance",), ("deepcache",), ("int8_dynamic",)])
def test_samples_follow_the_images_that_are_wanted(others: tuple[str, ...]) -> None:
    """Whatever else is combined, and each sample its own: another order of what is wanted gives another order."""
    recipe = replace(recipe_of("controlnet", *others), steps=3)
    trained, _ = run.train(recipe, WITHHELD, 0)
    model = models.build(recipe, SHAPE, CLASSES)
    model.net, model.codec = trained.net, trained.codec
    with tallied() as counters:
        model, seen, _ = run.compress(recipe, model, WITHHELD, 0)
    assert counters["maps_followed"] == seen
    with torch.no_grad():
        for name, weight in model.net.named_parameters():
            if weight.ndim == 4 and any(part in name for part in ("head", "tell", "hint")):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=seeded(weight.numel())))
    ready, labels = run.deploy(recipe, model), torch.tensor([1, 1, 0])
    wanted = images().images[:3]
    first = run.generate(recipe, ready, labels, [5, 5, 6], wanted)
    assert torch.equal(run.generate(recipe, ready, labels, [5, 5, 6], wanted), first)
    swapped = run.generate(recipe, ready, labels, [5, 5, 6], wanted[[1, 0, 2]])
    assert not torch.allclose(first[0], first[1], atol=1e-3), "the same noise and label, another map"
    assert torch.allclose(swapped, first[[1, 0, 2]], atol=1e-4)
    free = run.generate(recipe, ready, labels, [5, 5, 6])
    assert torch.allclose(free[0], free[1], atol=1e-5) and not torch.allclose(free[2], first[2], atol=1e-3)


def test_half_of_the_prompts_have_no_label_and_keep_their_map() -> None:
    recipe = recipe_of("controlnet")
    heard: list[tuple[Tensor, Tensor]] = []

    class Hearing(nn.Module):
        def forward(self, x: Tensor, u: Tensor, labels: Tensor, maps: Tensor) -> Tensor:
            heard.append((labels, maps))
            return x

    student = Network(Hearing(), recipe.process, recipe.parameterization, None)
    x0, n = torch.randn(400, *SHAPE, generator=seeded()), 400
    labels, maps = torch.arange(n) % 3, edges(x0)
    student.prompts = Prompts(torch.cat([labels, torch.full_like(labels, NULL)]), torch.cat([maps, maps]))
    HalfUnlabelled(recipe.objective, n)(student, student, x0, torch.arange(n), seeded(1))
    ((told, shown),) = heard
    assert torch.equal(shown, maps) and 150 < (told == NULL).sum() < 250
    assert torch.equal(told[told != NULL], labels[told != NULL])
