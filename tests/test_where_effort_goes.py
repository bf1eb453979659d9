"""Where guidance, steps and weight are spent, against closed forms and by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from small import BASE, SHAPE, TECHNIQUES, recipe_of
from torch import Tensor, nn

from methods.core.activation import tallied
from methods.core.denoiser import NULL, Denoiser, Labels, Network
from methods.core.process import Cosine, Process
from methods.core.sampling import SampleNoise, UniformAngle
from methods.deployment.serving.dynamic_batching import Admission, Queued
from methods.inference.guidance_cost.adaptive_guidance import UntilAlike
from methods.inference.ode_solver.dpm_solver_pp_2m import DPMSolverPP2M
from methods.inference.ode_solver.unipc import UniPC
from methods.inference.timestep_schedule.dm_nonuniform import OptimizedTimes, bound, optimized, orders_of, weights
from methods.training.flow.flow_matching import StraightPath
from methods.training.guidance.classifier_free_guidance import ClassifierFree
from methods.training.noise_process.ddpm_linear_schedule import LinearBeta
from methods.training.objective.debiased_weighting import Debiased
from methods.training.objective.likelihood_weighting import Bound as LikelihoodBound
from methods.training.objective.likelihood_weighting import ByLikelihood

# Guidance -------------------------------------------------------------------------------------------------------------


class Turning(Denoiser):
    """Without a label e_1; with label k a vector that has turned away from it by opening(k, t). Keeps what is asked."""

    process = Cosine()

    def __init__(self, opening: list[float]) -> None:
        self.opening = torch.tensor(opening, dtype=torch.float64)
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Tensor, labels: Labels = None) -> Tensor:
        assert labels is not None
        self.asked.append((t, labels))
        turned = torch.where(labels == NULL, 0.0, self.opening[labels] * t)
        return torch.stack([turned.cos(), turned.sin()], dim=1)


LABELS = torch.tensor([0, 1, 2, 1])
OPENING = [0.2, 0.5, 2.0]
"""cos(0.5 t) exceeds 0.991 below t = 0.2685, cos(0.2 t) below 0.67, cos(2 t) below 0.067."""


def steps_down(denoiser: Denoiser, times: list[float]) -> list[Tensor]:
    return [denoiser(torch.zeros(4, 2).double(), torch.tensor(t).double(), LABELS) for t in times]


def test_a_sample_is_guided_until_its_estimates_agree_and_never_again() -> None:
    times = [0.9, 0.7, 0.6, 0.5, 0.3, 0.25, 0.2, 0.1]
    inner, plain = Turning(OPENING), Turning(OPENING)
    with tallied() as counters:
        found = steps_down(UntilAlike(3.0, 0.991)(inner), times)
    full, alone = steps_down(ClassifierFree(3.0)(plain), times), steps_down(plain, times)
    first = [next(i for i, t in enumerate(times) if math.cos(opening * t) > 0.991) for opening in OPENING[:2]] + [8]
    assert first == [2, 5, 8], "the call that finds them alike is guided still"
    for i, (x0, guided, conditional) in enumerate(zip(found, full, alone, strict=True)):
        for row, label in enumerate(LABELS.tolist()):
            assert torch.allclose(x0[row], (guided if i <= first[label] else conditional)[row]), (i, row)
    unguided = sum(i > first[label] for i in range(8) for label in LABELS.tolist())
    assert sum(len(labels) for _, labels in inner.asked) == 2 * 4 * 8 - unguided
    assert counters["guidance_skipped"] == unguided == 9


def test_what_cannot_be_reached_is_guidance_throughout() -> None:
    times, inner = [0.9, 0.4, 0.1], Turning(OPENING)
    for x0, guided in zip(
        steps_down(UntilAlike(1.5, 2.0)(inner), times),
        steps_down(ClassifierFree(1.5)(Turning(OPENING)), times), strict=True,
    ):  # fmt: skip
        assert torch.allclose(x0, guided)
    assert all((labels == NULL).sum() == 4 for _, labels in inner.asked)


def test_more_noise_and_a_new_trajectory_ask_again() -> None:
    for again in (lambda guided: guided.reset(), lambda guided: steps_down(guided, [0.8])):
        inner = Turning([0.1, 0.1, 0.1])
        guided = UntilAlike(1.0, 0.991)(inner)
        steps_down(guided, [0.6, 0.5])
        assert [len(labels) for _, labels in inner.asked] == [8, 4]
        again(guided)
        steps_down(guided, [0.4])
        assert len(inner.asked[2][1]) == 8


def test_rows_at_other_times_are_guided_as_nobody_knows_which_was_which() -> None:
    """Requests come and go between the calls of a server, which may have as many rows as the call before."""
    process, x = Cosine(), torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner, labels = Turning([0.1, 0.1, 0.1]), torch.tensor([0, 1, 2, 0, 1, 2])
    queued, times = Queued(Admission(3, 0.0), 2.0), UniformAngle()(process, 5)
    with tallied() as counters:
        queued(UntilAlike(1.0, 0.991)(inner), x, times, labels, SampleNoise(range(6)))
    apart = [asked for times, asked in inner.asked if (times != times[0]).any()]
    assert apart and all(2 * (asked == NULL).sum() == len(asked) for asked in apart)
    assert counters["guidance_skipped"] == 60 - len(torch.cat([asked for _, asked in inner.asked]))


# Steps ----------------------------------------------------------------------------------------------------------------


def lagrange(nodes: Sequence[float], j: int, at: float) -> float:
    return math.prod((at - node) / (nodes[j] - node) for m, node in enumerate(nodes) if m != j)


def by_hand(lam: Sequence[float], order: int, power: float, then: int) -> float:
    """The bound, step by step, with integrals by adaptive quadrature."""
    steps, total, together = len(lam) - 1, 0.0, [0.0] * len(lam)
    for n in range(steps):
        k = min(order, n + 1, steps + then - n)
        terms = {}
        for j in range(k):
            nodes = [lam[n - m] for m in range(k)]
            weight, _ = quad(lambda u: math.exp(u) * lagrange(nodes, j, u), lam[n], lam[n + 1])  # noqa: B023
            alpha, sigma = (1 + math.exp(-2 * nodes[j])) ** -0.5, (1 + math.exp(2 * nodes[j])) ** -0.5
            terms[n - j] = weight * sigma**power / alpha
        if n < order or k == 1:
            total += math.hypot(*terms.values())
        else:
            for place, term in terms.items():
                together[place] += term
    return total + sum(map(abs, together))


@pytest.mark.parametrize(("order", "power"), [(1, 1.0), (2, 2.0), (3, 1.0), (3, 2.0)])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_the_bound_is_the_sum_of_what_the_estimates_weigh(steps: int, order: int, power: float) -> None:
    lam = np.sort(np.random.default_rng(steps).uniform(-4, 5, steps + 1))
    for then in (0, 1):
        assert bound(lam, order, power, then) == pytest.approx(by_hand(lam.tolist(), order, power, then), rel=1e-6)


@pytest.mark.parametrize("steps", [2, 5, 10])
def test_the_bound_is_of_the_orders_that_the_solver_has(steps: int) -> None:
    """Those of its grid's steps but the last, to zero; the solver knows one estimate more with each."""
    times = OptimizedTimes(3, 1.0, 0.01, 100.0)(Cosine(), steps)
    planned = [min(order, i + 1) for i, (_, _, order) in enumerate(UniPC(3).plan(times))]
    assert [*orders_of(steps - 1, 3, then=1), 1] == planned


def test_the_weights_are_those_of_the_solver() -> None:
    """What enters the end point of DPM-Solver++(2M) for each estimate is what they say, up to its order in the step."""
    process, end = Cosine(), []
    for h in (0.2, 0.1):
        lam = torch.tensor([0.3, 0.3 + h, 0.3 + 2.5 * h], dtype=torch.float64)
        times = process.time(lam)
        ours = weights(lam.numpy(), np.array([1]), 2)[0] * process.sigma(times[2]).item()
        moved = []
        for estimates in ((0.0, 1.0), (1.0, 0.0)):
            x0, before = (torch.full((1, 1), value, dtype=torch.float64) for value in estimates[::-1])
            x = torch.zeros(1, 1, dtype=torch.float64)
            y, _ = DPMSolverPP2M().step(lambda x, t: x0, process, x, times[1], times[2], (times[0], before),  # noqa: B023
                                        SampleNoise([0]))  # fmt: skip
            moved.append(y.item())
        end.append(np.abs(np.array(moved) - ours).max() / h)
    assert end[1] < 0.6 * end[0] < 0.2


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("order", [1, 3])
def test_two_steps_meet_where_a_search_by_hand_finds_them(order: int, power: float) -> None:
    """Its error of both steps is that of first order, e^lam differences times sigma^power / alpha."""

    def price(m: float) -> float:
        error = [(1 + math.exp(2 * u)) ** (-power / 2) * math.sqrt(1 + math.exp(-2 * u)) for u in (-2.0, m)]
        return (math.exp(m) - math.exp(-2)) * error[0] + (math.exp(3) - math.exp(m)) * error[1]

    best = minimize_scalar(price, bounds=(-2, 3), method="bounded").x  # pyright: ignore[reportAttributeAccessIssue]
    assert optimized(-2.0, 3.0, 2, order, power)[1] == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("steps", [5, 9])
def test_optimized_levels_have_a_lower_bound_than_hand_made_and_random_ones(steps: int) -> None:
    first, last = -math.log(80), -math.log(0.002)
    found, rng = np.array(optimized(first, last, steps, 3, 1.0)), np.random.default_rng(0)
    least = bound(found, 3, 1.0)
    hand_made = [-np.linspace(80 ** (1 / rho), 0.002 ** (1 / rho), steps + 1) for rho in (3, 7, 1000)]
    hand_made = [-rho * np.log(-root) for rho, root in zip((3, 7, 1000), hand_made, strict=True)]
    assert all(least < 0.6 * bound(levels, 3, 1.0) for levels in hand_made)
    for _ in range(200):
        inner = np.sort(rng.uniform(first, last, steps - 1))
        assert least < bound(np.array([first, *inner, last]), 3, 1.0)
        near = found + np.array([0, *rng.normal(0, 0.05, steps - 1), 0])
        assert least < 1.001 * bound(near, 3, 1.0)


@pytest.mark.parametrize("steps", [4, 7, 9, 14])
def test_optimized_levels_do_not_hang_on_the_last_digit(steps: int) -> None:
    """So that another processor finds the same grid."""
    first, last = -5.0, -math.log(0.0105)
    found, near = (np.array(optimized(begin, last, steps, 3, 1.0, then=1)) for begin in (first, first * (1 + 1e-9)))
    assert np.abs(found - near).max() < 0.002


@pytest.mark.parametrize("process", [Cosine(), StraightPath()], ids=["cosine", "straight"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_optimized_times_fall_between_the_same_levels_in_every_process(process: Process, steps: int) -> None:
    times = OptimizedTimes(3, 1.0, 0.002, 80.0)(process, steps)
    ratio = torch.exp(-process.lam(times[:-1]))
    assert len(times) == steps + 1 and (times.diff() < 0).all() and times[-1] == 0
    assert ratio[0] == pytest.approx(80) and (steps == 1 or ratio[-1] == pytest.approx(0.002))
    assert torch.allclose(ratio, torch.exp(-Cosine().lam(OptimizedTimes(3, 1.0, 0.002, 80.0)(Cosine(), steps)[:-1])))


# Weight ---------------------------------------------------------------------------------------------------------------


class Half(nn.Module):
    """Answers half of what it sees."""

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return x / 2


def at_levels(*lam: float) -> Tensor:
    return torch.tensor(lam, dtype=torch.float64)


def test_debiasing_is_the_geometric_mean_of_a_constant_on_the_noise_and_one_on_the_image() -> None:
    lam = torch.linspace(-5, 8, 27, dtype=torch.float64)
    on_image, on_noise = Debiased(157.0)(lam), Debiased(157.0).on_target(lam, torch.exp(-lam))
    assert torch.allclose(on_noise, torch.rsqrt(torch.exp(2 * lam))) and torch.allclose(on_image**2, torch.exp(2 * lam))
    assert Debiased(157.0)(at_levels(math.log(4) / 2)).item() == pytest.approx(2.0)


def test_a_debiased_weight_is_bounded_where_the_chain_of_the_paper_ends() -> None:
    end = LinearBeta(1e-4, 0.02, 1.0).lam_start
    lam = at_levels(end - 20, end - 1, end, end + 1)
    on_noise = Debiased(157.0).on_target(lam, torch.exp(-lam))
    assert torch.allclose(on_noise[:3], torch.full((3,), 157.0).double(), rtol=0.005) and on_noise[3] < 60


def test_the_debiased_loss_is_the_weighted_error_of_the_noise() -> None:
    recipe, x0 = recipe_of("debiased_weighting"), torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    student = Network(Half(), recipe.process, recipe.parameterization, None)
    losses = recipe.objective(student, student, x0, None, torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(1)
    eps = recipe.coupling(x0, rng)
    t = recipe.times(recipe.process, 64, rng)
    error = (recipe.process.diffuse(x0, eps, t) / 2 - eps).square().flatten(1).mean(1)
    weight = (recipe.process.sigma(t) / recipe.process.alpha(t)).clamp(max=157)
    assert torch.allclose(losses, weight.float() * error, rtol=1e-4)


class LinearVP(Process):
    """The paper's process: dx = -beta x / 2 dt + sqrt(beta) dw, beta from 0.1 to 20."""

    lam_start = -5.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.25 * 19.9 * t**2 - 0.05 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-0.5 * 19.9 * t**2 - 0.1 * t))

    def time(self, lam: Tensor) -> Tensor:
        growth = torch.logaddexp(torch.zeros_like(lam), -2 * lam)
        return 2 * growth / (0.1 + torch.sqrt(0.01 + 2 * 19.9 * growth))


def test_times_are_drawn_as_what_the_process_adds_over_what_is_there() -> None:
    """Quantiles of the draws are those of the integral of beta / sigma^2, by quadrature."""
    process = LinearVP()

    def density(t: float) -> float:
        return (0.1 + 19.9 * t) / process.sigma(torch.tensor(t, dtype=torch.float64)).item() ** 2

    drawn = ByLikelihood(1e-3, 1)(process, 20_000, torch.Generator().manual_seed(0))
    end = process.time(at_levels(process.lam_start)).item()
    assert drawn.min() >= 1e-3 and drawn.max() <= end
    whole, _ = quad(density, 1e-3, end, limit=200)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        below, _ = quad(density, 1e-3, drawn.quantile(share).item(), limit=200)
        assert below / whole == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("process", [Cosine(), LinearVP(), StraightPath()], ids=["cosine", "linear", "straight"])
def test_even_times_weigh_the_score_by_what_the_process_adds(process: Process) -> None:
    """g^2 / sigma^2 on the noise, from g^2 = d sigma^2 / dt - 2 alpha' / alpha sigma^2, over its mean."""
    recipe, t = recipe_of("likelihood_weighting"), torch.linspace(0.05, 0.9, 9, dtype=torch.float64)
    noise, h, times = recipe.parameterization, 1e-5, ByLikelihood(0.01, 0)
    even = LikelihoodBound(recipe, times).weigh(process, noise, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    variance = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    added = variance - 2 * (process.alpha(t + h) - process.alpha(t - h)) / (2 * h) / alpha * sigma**2
    first, last = times.ends(process)
    mean = 2 * (process.lam(first) - process.lam(last)) / (last - first)
    assert torch.allclose(even, added / sigma**2 / mean, rtol=1e-4)
    assert torch.allclose(LikelihoodBound(recipe, ByLikelihood(0.01, 1)).weigh(process, noise, t), torch.ones_like(t))


def test_importance_leaves_the_expected_loss_as_it_is_and_most_of_its_variance_out() -> None:
    x0, found = 0.5 * torch.ones(40_000, 1, 1, 1), []
    for importance in (1, 0):
        loss = TECHNIQUES["likelihood_weighting"].call({"importance": importance, "smallest": 0.01}).edits["loss"]
        recipe = replace(BASE, loss=loss)
        student = Network(Half(), recipe.process, recipe.parameterization, None)
        found.append(recipe.objective(student, student, x0, None, torch.Generator().manual_seed(2)))
    (drawn, weighed), n = found, len(x0)
    assert (drawn.mean() - weighed.mean()).abs() < 4 * ((drawn.var() + weighed.var()) / n).sqrt()
    assert drawn.var() < weighed.var() / 3
