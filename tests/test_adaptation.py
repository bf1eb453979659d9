"""Adapting a trained network: matrices of low rank, and preferences."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from small import BASE, CLASSES, SHAPE, images, method, recipe_of
from torch import Tensor, nn

from methods.core import models, run
from methods.core.activation import tallied
from methods.core.denoiser import NULL, Network
from methods.core.objective import Independent, UniformTimes
from methods.core.parameterization import Clean, Noise
from methods.core.recipe import compose
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
        whole = merged(adapted)
        assert torch.allclose(whole(X, U, LABELS), beside, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(beside, plain(X, U, LABELS), atol=1e-2)
    assert {n: w.shape for n, w in whole.named_parameters()} == {n: w.shape for n, w in plain.named_parameters()}
    assert [type(part) for part in whole.modules()] == [type(part) for part in plain.modules()]


def test_what_is_added_has_the_rank_and_the_scale() -> None:
    """alpha / r B A of a convolution, whose matrix has its output channels as rows."""
    layer = nn.Conv2d(6, 8, 3)
    before = layer.weight.detach().clone()
    adapted = learned(adapters(nn.Sequential(layer), 3, 1.5, seeded()))
    product = next(part for part in adapted.modules() if isinstance(part, LowRank))
    a, b = product.a.detach().clone(), product.b.detach().clone()
    merged(adapted)
    added = (layer.weight.detach() - before).flatten(1)
    assert torch.linalg.matrix_rank(added, rtol=1e-4) == 3
    assert torch.allclose(added, 0.5 * b @ a, atol=1e-5)


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
