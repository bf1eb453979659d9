"""The formulas of the training objectives and couplings, against closed forms and the numbers of their papers."""

import math
from dataclasses import replace
from itertools import pairwise, permutations

import ot
import pytest
import torch
from small import BASE, CLASSES, SHAPE, recipe_of
from torch import Tensor, nn

from methods.core import models, run
from methods.core.activation import tallied
from methods.core.denoiser import NULL, Labels, Mixture, Network
from methods.core.objective import Objective, UniformTimes
from methods.core.process import Cosine, like
from methods.core.recipe import Recipe
from methods.core.sampling import SampleNoise
from methods.training.flow.flow_matching import StraightPath
from methods.training.flow.ot_cfm import OptimalTransport, optimal_plan
from methods.training.flow.stochastic_interpolants import InterpolantSDE
from methods.training.noise_process.immiscible_diffusion import NearestAssignment
from methods.training.objective._shared import Altered
from methods.training.objective.input_perturbation import Perturbed
from methods.training.objective.loss_aware_timestep_sampling import Bound, BySecondMoment
from methods.training.objective.self_conditioning import OwnEstimate, WithEstimate, memories
from methods.training.objective.speed_timestep_strategy import Asymmetric, ChangeAware
from methods.training.objective.stable_target_field import StableTarget


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Recording(nn.Module):
    """Answers with a fixed share of its input, and keeps what it was asked."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share, self.asked = share, []

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        self.asked.append((x, u, labels))
        return self.share * x


def network(recipe: Recipe, net: nn.Module) -> Network:
    return Network(net, recipe.process, recipe.parameterization, None)


def losses(recipe: Recipe, objective: Objective, x0: Tensor, labels: Tensor | None = None, seed: int = 0) -> Tensor:
    student = network(recipe, Recording())
    return objective(student, student, x0, labels, seeded(seed))


# Optimal transport ----------------------------------------------------------------------------------------------------


def test_the_plan_is_the_optimal_one_for_the_squared_distance() -> None:
    """All permutations of six, and POT's exact plan, which the official code draws from."""
    x0, eps = torch.randn(6, 1, 2, 2, generator=seeded()), torch.randn(6, 1, 2, 2, generator=seeded(1))
    plan = optimal_plan(x0, eps).tolist()
    costs = {p: (x0 - eps[list(p)]).square().sum().item() for p in permutations(range(6))}
    assert costs[tuple(plan)] == min(costs.values())
    even = torch.full((6,), 1 / 6, dtype=torch.float64).numpy()
    cost = torch.cdist(x0.flatten(1).double(), eps.flatten(1).double()) ** 2
    assert torch.from_numpy(ot.emd(even, even, cost.numpy())).argmax(1).tolist() == plan


def test_squared_distances_pair_otherwise_than_distances() -> None:
    """Where the two differ, the squared distance shares a detour out; `immiscible_diffusion` leaves it to one pair."""
    x0, eps = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.1, 1.0]])
    assert optimal_plan(x0, eps).tolist() == [0, 1]
    distance = torch.cdist(x0, eps)
    assert distance[0, 1] + distance[1, 0] < distance[0, 0] + distance[1, 1]


def test_paths_on_a_line_do_not_cross() -> None:
    """In one dimension the optimal plan is the monotone one: the order of images is the order of their noise."""
    x0 = torch.randn(50, 1, generator=seeded())
    eps = OptimalTransport()(x0, seeded(1))
    assert torch.equal(x0.argsort(dim=0), eps.argsort(dim=0))
    assert torch.equal(eps.sort(dim=0).values, torch.randn(50, 1, generator=seeded(1)).sort(dim=0).values)


def test_optimal_pairs_are_nearer_in_the_square_than_any_others() -> None:
    x0 = torch.randn(64, 1, 8, 8, generator=seeded())
    squared = [(c(x0, seeded(1)) - x0).square().sum() for c in (OptimalTransport(), NearestAssignment())]
    independent = (torch.randn(x0.shape, generator=seeded(1)) - x0).square().sum()
    assert squared[0] <= squared[1] < independent
    assert recipe_of("flow_matching", "ot_cfm").coupling == OptimalTransport()


# Stochastic interpolants ----------------------------------------------------------------------------------------------


class Scripted(SampleNoise):
    """A given value for every sample."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return self.values.reshape(-1, *[1] * len(shape)).expand(-1, *shape)


@pytest.mark.parametrize("diffusion", [0.0, 1.0, 3.0])
def test_every_diffusion_coefficient_keeps_the_marginals(diffusion: float) -> None:
    """For one Gaussian a step is a x + b + c z: mean and variance follow without sampling, to O(1/steps)."""
    mean, std, one = 0.75, 0.625, torch.ones(1, dtype=torch.float64)
    process, solver = StraightPath(), InterpolantSDE(diffusion)
    exact = Mixture(mean * one[:, None], std * one, one, process)
    probes, noise = torch.tensor([[0.0], [1.0], [0.0]]).double(), Scripted(torch.tensor([0.0, 0.0, 1.0]).double())

    def errors(steps: int) -> Tensor:
        times = torch.linspace(0.98, 0.1, steps + 1, dtype=torch.float64)
        alpha, sigma = process.alpha(times), process.sigma(times)
        m, v = alpha[0] * mean, (alpha[0] * std) ** 2 + sigma[0] ** 2
        for t, s in pairwise(times):
            b, ab, cb = solver.step(exact, process, probes, t, s, None, noise)[0].flatten()
            m, v = (ab - b) * m + b, (ab - b) ** 2 * v + (cb - b) ** 2
        truth = torch.stack([alpha[-1] * mean, (alpha[-1] * std) ** 2 + sigma[-1] ** 2])
        return (torch.stack([m, v]) - truth).abs()

    coarse, fine = errors(200), errors(400)
    assert (fine < 0.01).all()
    assert ((coarse / fine > 1.7) & (coarse / fine < 2.3) | (fine < 1e-12)).all(), (coarse, fine)


def test_one_step_of_the_reverse_sde_by_hand() -> None:
    """x - h (v - w/2 score) + sqrt(w h) z with w = c sigma; the last step, to t = 0, adds no noise."""
    process, c = StraightPath(), 2.0
    x, x0, z = (torch.randn(3, 2, generator=seeded(i), dtype=torch.float64) for i in range(3))
    t, s = torch.tensor([0.6, 0.4], dtype=torch.float64)
    score, velocity = -(x - 0.4 * x0) / 0.6**2, (x - 0.4 * x0) / 0.6 - x0
    drift = velocity - c * 0.6 / 2 * score

    class Given(SampleNoise):
        def __init__(self) -> None: ...

        def __call__(self, shape: tuple[int, ...]) -> Tensor:
            return z

    solver = InterpolantSDE(c)
    stepped, _ = solver.step(lambda x, t: x0, process, x, t, s, None, Given())
    assert torch.allclose(stepped, x - 0.2 * drift + math.sqrt(c * 0.6 * 0.2) * z)
    ended, _ = solver.step(lambda x, t: x0, process, x, t, 0 * s, None, Given())
    assert torch.allclose(ended, x - 0.6 * drift)


# The loss in parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [(), ("min_snr_weighting", "v_prediction"), ("flow_matching", "ot_cfm")])
def test_unaltered_parts_are_the_denoising_loss(ids: tuple[str, ...]) -> None:
    recipe = replace(recipe_of(*ids), label_dropout=0.5)
    x0, labels = torch.randn(16, 1, 4, 4, generator=seeded()), torch.arange(16) % 3
    for objective in (Altered(recipe), Perturbed(recipe, 0.0)):
        assert torch.equal(losses(recipe, objective, x0, labels), losses(recipe, recipe.objective, x0, labels))


def test_inputs_are_noisier_than_the_network_is_told_and_targets_are_not() -> None:
    """The second noise is gamma sigma xi; a network that knew the first noise alone would have no loss."""
    gamma, x0 = 0.5, torch.randn(256, 1, 8, 8, generator=seeded())
    plain, perturbed = Recording(), Recording()
    for net, objective in ((plain, Altered(BASE)), (perturbed, Perturbed(BASE, gamma))):
        student = network(BASE, net)
        objective(student, student, x0, None, seeded(1))
    (x, u, _), (noisier, told, _) = plain.asked[0], perturbed.asked[0]
    assert torch.equal(u, told)
    xi = (noisier - x) / like(BASE.process.sigma(u.double()), x) / gamma
    assert abs(xi.std() - 1) < 0.02 and abs(xi.mean()) < 0.02
    noise = x - like(BASE.process.alpha(u.double()), x0) * x0
    assert abs((noise * xi).mean()) < 0.02, "the second noise is independent of the first"

    class Oracle(nn.Module):
        def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
            return torch.randn(x0.shape, generator=seeded(1))

    student = network(BASE, Oracle())
    assert Perturbed(BASE, gamma)(student, student, x0, None, seeded(1)).max() < 1e-10


# Stable target field --------------------------------------------------------------------------------------------------


def target_of(
    reference: int, x0: Tensor, x_t: Tensor, t: Tensor, labels: Tensor | None, told: Tensor | None
) -> tuple[Tensor, Tensor]:
    return StableTarget(BASE, reference).target(BASE.process, x0, torch.zeros_like(x0), x_t, t, labels, told)


def test_over_all_images_the_target_is_the_exact_mean() -> None:
    """That of the mixture of points which the images are."""
    x0 = torch.randn(40, 2, generator=seeded(), dtype=torch.float64)
    t = torch.linspace(0.02, 1.0, 40, dtype=torch.float64)
    x_t = BASE.process.diffuse(x0, torch.randn(40, 2, generator=seeded(1), dtype=torch.float64), t)
    exact = Mixture(x0, torch.full((40,), 1e-9).double(), torch.full((40,), 1 / 40).double(), BASE.process)
    clean, noise = target_of(40, x0, x_t, t, None, None)
    assert torch.allclose(clean, exact(x_t, t), atol=1e-6)
    assert torch.allclose(BASE.process.diffuse(clean, noise, t), x_t)


def test_targets_stay_within_the_class_that_the_network_is_told() -> None:
    """At pure noise the target is the mean of the class, and of everything where the label was dropped."""
    x0, labels = torch.randn(12, 2, generator=seeded()), torch.arange(12) % 3
    told = labels.clone()
    told[:2] = NULL
    t = torch.ones(12, dtype=torch.float64)
    clean, _ = target_of(12, x0, torch.randn(12, 2, generator=seeded(1)), t, labels, told)
    assert torch.allclose(clean[:2], x0.mean(0).expand(2, -1), atol=1e-5)
    for row in range(2, 12):
        assert torch.allclose(clean[row], x0[labels == labels[row]].mean(0), atol=1e-5)


def test_a_reference_remembers_the_latest_images_and_lowers_the_variance_of_targets() -> None:
    x0 = torch.randn(32, 1, 4, 4, generator=seeded())
    objective = StableTarget(BASE, 80)
    for batch in range(4):
        losses(BASE, objective, x0 + batch, torch.full((32,), batch))
    assert torch.equal(objective.images, torch.cat([x0 + 3, x0 + 2, (x0 + 1)[:16]]))
    assert objective.labels.unique(return_counts=True)[1].tolist() == [16, 32, 32]
    t, start = torch.full((32,), 0.8, dtype=torch.float64), torch.randn(32, 1, 4, 4, generator=seeded(2))
    x_t = BASE.process.diffuse(x0, start, t)
    averaged, _ = target_of(32, x0, x_t, t, None, None)
    assert averaged.var(0).sum() < 0.8 * x0.var(0).sum()


def test_with_one_image_a_class_nothing_changes() -> None:
    x0, labels = torch.randn(8, 1, 4, 4, generator=seeded()), torch.arange(8)
    changed = losses(BASE, StableTarget(BASE, 8), x0, labels)
    assert torch.allclose(changed, losses(BASE, BASE.objective, x0, labels), rtol=1e-3)


# Importance sampling of the bound -------------------------------------------------------------------------------------


def test_strata_are_drawn_by_the_root_of_their_mean_squared_loss() -> None:
    times = BySecondMoment(0.1, levels=4, history=2, uniform=0.2)
    size = torch.tensor([[1.0, 1.0], [3.0, 4.0], [0.0, 0.0], [2.0, 0.0]])
    for column in size.T:
        assert not times.known and torch.equal(times.chances, torch.full((4,), 0.25, dtype=torch.float64))
        times.level = torch.arange(4)
        times.remember(9 + column)  # the first two losses, which are forgotten
    for column in size.T:
        times.remember(column)
    root = torch.tensor([1.0, math.sqrt(12.5), 0.0, math.sqrt(2.0)], dtype=torch.float64)
    expected = 0.8 * root / root.sum() + 0.05
    assert torch.allclose(times.chances, expected)
    t = times(BASE.process, 20_000, seeded())
    last = BASE.process.time(torch.tensor(BASE.process.lam_start, dtype=torch.float64))
    level = ((t - 0.1) / (last - 0.1) * 4).long()
    assert torch.equal(level, times.level) and t.min() > 0.1 and t.max() < last
    assert torch.allclose(level.bincount() / len(t), expected.float(), atol=0.01)
    assert abs(times.factor.mean() - 1) < 0.05, "the weights make up for the probabilities"


def test_importance_sampling_leaves_the_mean_and_lowers_the_spread() -> None:
    """The loss of a fixed network on the bound: the same mean, and less variance than with uniform times."""
    x0 = 0.3 * torch.randn(4000, 1, 2, 2, generator=seeded())
    found = {}
    for uniform in (1.0, 0.001):
        objective = Bound(BASE, BySecondMoment(1e-3, levels=50, history=10, uniform=uniform))
        for seed in range(3):
            found[uniform] = losses(BASE, objective, x0, seed=seed)
        assert objective.strata.known
    means = [value.mean() for value in found.values()]
    spread = [value.std() for value in found.values()]
    error = math.hypot(*(s / math.sqrt(len(x0)) for s in spread))
    assert abs(means[0] - means[1]) < 4 * error
    assert spread[1] < 0.6 * spread[0]


@pytest.mark.parametrize("ids", [(), ("v_prediction",), ("flow_matching",)])
def test_the_bound_weighs_the_error_of_the_noise_by_the_slope_of_lam(ids: tuple[str, ...]) -> None:
    recipe = recipe_of(*ids)
    process, parameterization = recipe.process, recipe.parameterization
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    weight = Bound(recipe, BySecondMoment(1e-3, 1, 1, 0.0)).weigh(process, parameterization, t)
    per_eps = (process.alpha(t) / process.sigma(t) * parameterization.gain(process, t)) ** 2
    slope = (process.lam(t + 1e-6) - process.lam(t - 1e-6)) / 2e-6
    assert torch.allclose(weight, -slope * per_eps, rtol=1e-5)
    if not ids:
        assert torch.allclose(weight, math.pi / torch.sin(math.pi * t))


# SpeeD ----------------------------------------------------------------------------------------------------------------


def test_times_follow_the_papers_two_probabilities() -> None:
    """P = k / (T + tau (k - 1)) a step up to tau, and a k-th of it past it: T = 1000, tau = 700, k = 5."""
    n = 400_000
    t = Asymmetric(5.0, 0.7)(Cosine(), n, seeded())
    counts = torch.histc(t.float(), 10, 0, 1) / n
    early, late = 100 * 5 / (1000 + 700 * 4), 100 * 1 / (1000 + 700 * 4)
    assert torch.allclose(counts[:7], torch.full((7,), early), atol=3e-3)
    assert torch.allclose(counts[7:], torch.full((3,), late), atol=3e-3)
    assert torch.allclose(Asymmetric(1.0, 0.7)(Cosine(), 9, seeded()), UniformTimes()(Cosine(), 9, seeded()))


def test_weights_are_the_rescaled_gradient_of_the_variance() -> None:
    """As the official code has them, from differences over 1,000 steps; 1 past tau; on the error of the noise."""
    process = Cosine()
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    gradient = torch.gradient(process.sigma(t) ** 2)[0]
    rescaled = 0.4 + 0.2 * (gradient - gradient.min()) / (gradient.max() - gradient.min())
    expected = torch.where(t < 0.7, rescaled, 1.0)
    gain = BASE.parameterization.gain(process, t)
    assert torch.allclose(ChangeAware(0.6, 0.7).on_target(process.lam(t), gain), expected, atol=2e-3)


# Self-conditioning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [("self_conditioning",), ("dit", "self_conditioning")])
def test_two_convolutions_are_one_of_image_and_estimate(ids: tuple[str, ...]) -> None:
    """The paper's concatenation of channels."""
    net = models.build(recipe_of(*ids), SHAPE, CLASSES).net
    (first,) = memories(net)
    image, both = first.image, torch.cat([first.image.weight, first.estimate.weight], dim=1)
    x, given = torch.randn(3, *SHAPE, generator=seeded()), torch.randn(3, *SHAPE, generator=seeded(1))
    first.given = given
    assert isinstance(image, nn.Conv2d)
    joined = nn.functional.conv2d(torch.cat([x, given], dim=1), both, image.bias, image.stride, image.padding)
    assert torch.allclose(first(x), joined, atol=1e-5)
    first.reset()
    assert torch.allclose(first(x), image(x))


class Affine(nn.Module):
    """Adds what its first part makes of the image and of the estimate; the estimate's share shows in the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = WithEstimate(nn.Conv2d(1, 1, 1, bias=False))
        nn.init.constant_(self.stem.image.weight, 0.5)  # pyright: ignore[reportArgumentType]
        nn.init.constant_(self.stem.estimate.weight, 0.25)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        given = self.stem.given
        self.seen.append(torch.zeros_like(x) if given is None else given.clone())
        return self.stem(x)


def test_half_of_a_batch_is_shown_the_estimate_made_without_one_and_no_gradient_passes_through_it() -> None:
    net, x0 = Affine(), torch.randn(8, 1, 4, 4, generator=seeded())
    student = network(BASE, net)
    student.bounds = (-1.0, 1.0)
    loss = OwnEstimate(BASE, 0.5)(student, student, x0, None, seeded(1)).sum()
    without, shown = net.seen
    assert len(without) == 4 and not without.any() and not shown[4:].any() and not shown.requires_grad
    eps = torch.randn(x0.shape, generator=(rng := seeded(1)))
    t = BASE.times(BASE.process, 8, rng)
    x_t = BASE.process.diffuse(x0, eps, t)
    alone = BASE.parameterization.clean(BASE.process, x_t, 0.5 * x_t, t).clamp(-1, 1)
    assert torch.allclose(shown[:4], alone[:4], atol=1e-5)
    answer = 0.5 * x_t
    answer[:4] += 0.25 * alone[:4]
    assert torch.allclose(loss, (answer - eps).square().flatten(1).mean(1).sum(), rtol=1e-4)
    assert next(memories(net)).given is None


def test_sampling_shows_every_step_the_estimate_of_the_one_before() -> None:
    recipe = replace(recipe_of("self_conditioning"), steps=5)
    net, given, made = models.build(recipe, SHAPE, CLASSES), [], []
    deployed = run.deploy(recipe, net.eval())
    (memory,) = memories(deployed.network.net)  # pyright: ignore[reportAttributeAccessIssue]
    memory.register_forward_pre_hook(lambda module, inputs: given.append(module.given))
    asked = type(deployed.denoiser).__call__

    def listening(denoiser: object, x_t: Tensor, t: Tensor, labels: Labels = None) -> Tensor:
        made.append(asked(deployed.denoiser, x_t, t, labels))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch, tallied() as counters:
        patch.setattr(type(deployed.denoiser), "__call__", listening)
        run.generate(recipe, deployed, torch.tensor([0, 1]), [0, 1])
        run.generate(recipe, deployed, torch.tensor([0, 1]), [2, 3])
    for first in (0, 5):
        assert given[first] is None, "a new trajectory forgets"
        assert all(torch.equal(a, b) for a, b in zip(given[first + 1 : first + 5], made[first:], strict=False))
    assert counters["estimates_shown"] == 2 * 2 * 4 and deployed.network.rows == 2 * 2 * 5
