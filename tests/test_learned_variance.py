"""The variance of a reverse step that the network learns: its bounds, what it learns, and what is sampled with it."""

import math
from dataclasses import replace

import pytest
import torch
from small import BASE, SEEDS, SHAPE, images, method, walk
from torch import Tensor

from methods.core import models, run
from methods.core.denoiser import Network
from methods.inference.ode_solver.ddim import posterior
from methods.training.objective._variance import bits, log_variance
from methods.training.objective.learned_reverse_variance import learned_reverse_variance

PROCESS = BASE.process
T, S = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.tensor([0.1, 0.3, 0.8], dtype=torch.float64)


def test_bounds_are_those_of_the_posterior_and_of_the_forward_step() -> None:
    *_, fresh = posterior(PROCESS, 1.0, T, S)
    beta = 1 - (PROCESS.alpha(T) / PROCESS.alpha(S)) ** 2
    assert torch.allclose(log_variance(PROCESS, torch.full((3, 1), -1.0).double(), T, S)[:, 0], 2 * fresh.log())
    assert torch.allclose(log_variance(PROCESS, torch.ones(3, 1).double(), T, S)[:, 0], beta.log())


def test_the_bound_is_the_divergence_of_two_normals_in_bits() -> None:
    rng = torch.Generator().manual_seed(0)
    said, x0, estimate = (torch.randn(3, 5, generator=rng, dtype=torch.float64) for _ in range(3))
    s = T - 1e-3
    kept, added, fresh = posterior(PROCESS, 1.0, T, s)
    x_t = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    exact, ours = (
        torch.distributions.Normal(kept[:, None] * x_t + added[:, None] * mean, deviation)
        for mean, deviation in (
            (x0, fresh[:, None].expand(3, 5)), (estimate, torch.exp(0.5 * log_variance(PROCESS, said, T, s))),
        )
    )  # fmt: skip
    expected = torch.distributions.kl_divergence(exact, ours).mean(1) / math.log(2)
    assert torch.allclose(bits(PROCESS, said, x0, estimate, T), expected)


def test_the_best_variance_adds_what_is_not_known_of_the_image() -> None:
    """Of all variances the bound is least at beta~ + c^2 E(x_0 - estimate)^2, if that lies between the bounds."""
    t, rng = torch.full((4000,), 0.3, dtype=torch.float64), torch.Generator().manual_seed(0)
    s = t - 1e-3
    _, added, fresh = posterior(PROCESS, 1.0, t[:1], s[:1])
    deviation = 0.1 * (fresh / added).item()
    x0 = deviation * torch.randn(4000, 1, generator=rng, dtype=torch.float64)
    said = torch.linspace(-3, 30, 4001, dtype=torch.float64)
    losses = torch.stack([bits(PROCESS, v.expand(4000, 1), x0, torch.zeros_like(x0), t).mean() for v in said[::20]])
    best = log_variance(PROCESS, said[::20][losses.argmin()].reshape(1, 1), t[:1], s[:1]).exp().item()
    assert best == pytest.approx(fresh.item() ** 2 + (added * x0.square().mean().sqrt()).item() ** 2, rel=2e-3)


def trained() -> models.Model:
    model, _ = run.train(replace(method("learned_reverse_variance")(BASE), steps=4), images(), 0)
    return model


def saying(value: float) -> Tensor:
    """Samples of a network whose second output is a constant."""
    recipe, model = replace(method("learned_reverse_variance")(BASE), steps=4), trained()
    head = model.net.get_submodule("head")
    with torch.no_grad():
        head.get_parameter("weight")[SHAPE[0] :] = 0
        head.get_parameter("bias")[SHAPE[0] :] = value
    shipped, *_ = run.compress(recipe, model, images(), 0)
    return run.generate(recipe, run.deploy(recipe, shipped), torch.tensor(SEEDS) % 3, SEEDS)


def test_said_to_be_least_it_is_the_posterior_of_ddpm() -> None:
    """With the same mean and noise, which is what DDIM with eta = 1 draws."""
    model = trained()
    recipe = replace(method("learned_reverse_variance")(BASE), steps=4)
    fixed = replace(recipe, sampler=method("ddim", eta=1.0).edits["sampler"])
    shipped, *_ = run.compress(recipe, model, images(), 0)
    expected = run.generate(fixed, run.deploy(fixed, shipped), torch.tensor(SEEDS) % 3, SEEDS)
    assert torch.allclose(saying(-1.0), expected, atol=1e-5)
    assert not torch.allclose(saying(1.0), expected, atol=1e-2)


@pytest.mark.parametrize("others", [(), ("dit",), ("edm_preconditioning",)])
def test_it_goes_with_networks_and_targets_of_any_kind(others: tuple[str, ...]) -> None:
    recipe = BASE
    for id in (*others, "learned_reverse_variance"):
        recipe = method(id)(recipe)
    first, again, counters = walk(replace(recipe, steps=4))
    assert first.isfinite().all() and torch.equal(first, again)
    assert counters["variances_learned"] > 0 and counters["variances_used"] > 0


def test_a_network_without_a_second_output_says_nothing_beside() -> None:
    model, _ = run.train(BASE, images(), 0)
    network = models.network(BASE, model)
    assert isinstance(network, Network)
    network.predict(torch.zeros(2, *SHAPE), torch.tensor(0.5), None)
    assert network.beside is None


def test_the_bound_does_not_move_the_mean() -> None:
    """The first output learns what it learns without the bound, as long as nothing below it is shared."""
    recipe, model = method("learned_reverse_variance", share=0.1)(BASE), trained()
    network, data = models.network(recipe, model), images()
    model.net.requires_grad_(True)
    rng = torch.Generator().manual_seed(0)
    loss = recipe.objective(network, network, data.images, data.labels, rng).mean()
    weight = model.net.get_submodule("head").get_parameter("weight")
    (both,) = torch.autograd.grad(loss, weight)
    plain = learned_reverse_variance(share=0.0)(BASE)
    rng = torch.Generator().manual_seed(0)
    (alone,) = torch.autograd.grad(plain.objective(network, network, data.images, data.labels, rng).mean(), weight)
    assert torch.allclose(both[: SHAPE[0]], alone[: SHAPE[0]], atol=1e-6)
    assert both[SHAPE[0] :].abs().max() > 1e-4 and alone[SHAPE[0] :].abs().max() < 1e-6
