"""The searches for variances and grids, against closed forms and against search by hand."""

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from methods.baseline import baseline
from methods.core import models, run
from methods.core.denoiser import Mixture, Network
from methods.core.fit import Fit
from methods.core.process import Cosine, Process
from methods.core.recipe import Recipe, compose
from methods.core.sampling import SampleNoise, UniformAngle
from methods.inference._shared import affordable, forward_paths
from methods.inference.guidance_cost.batched_cfg import InTurn
from methods.inference.ode_solver.dpm_solver_pp_2m import DPMSolverPP2M
from methods.inference.reverse_covariance.analytic_dpm import GREY, OptimalVariance, analytic_dpm
from methods.inference.timestep_schedule._shared import FittedTimes, cheapest_path
from methods.inference.timestep_schedule.align_your_steps import align, align_your_steps, klub, schedule
from methods.inference.timestep_schedule.dp_schedule_watson import bound, dp_schedule_watson
from methods.inference.timestep_schedule.gits import deviations, follow, gits
from methods.inference.timestep_schedule.karras_rho_schedule import KarrasRho
from methods.nets.unet import UNetConfig
from methods.training.flow.flow_matching import StraightPath
from methods.training.guidance.classifier_free_guidance import ClassifierFree

BASE = baseline(UNetConfig(8), Fit(400), 6)
PROCESSES = [Cosine(), StraightPath()]
BY_NAME = {"argvalues": PROCESSES, "ids": ["cosine", "straight"]}
STD = 0.6


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(process: Process, dimensions: int = 2) -> tuple[Mixture, Tensor]:
    """The exact denoiser of one Gaussian about the origin, and samples of it."""
    one = torch.ones(1, dtype=torch.float64)
    exact = Mixture(0 * one.expand(1, dimensions), STD * one, one, process)
    return exact, STD * torch.randn(4000, dimensions, generator=rng(), dtype=torch.float64)


def ring(process: Process) -> tuple[Mixture, Tensor]:
    """Three narrow modes, and samples of them."""
    means = torch.tensor([[1.0, 0.2], [-0.7, 0.9], [-0.2, -1.1]], dtype=torch.float64)
    exact = Mixture(means, torch.full((3,), 0.1).double(), torch.ones(3).double() / 3, process)
    spread = 0.1 * torch.randn(3000, 2, generator=rng(1), dtype=torch.float64)
    return exact, means[torch.randint(3, (3000,), generator=rng())] + spread


def part_of(recipe: Recipe, slot: str, exact: Mixture, x0: Tensor) -> torch.nn.Module:
    return run.deploy_exact(recipe, exact, x0).model.parts[slot]


# Listening ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", **BY_NAME)
def test_forward_paths_are_the_forward_process(process: Process) -> None:
    """x_t - alpha x_0 has variance sigma^2; two levels of one path covary as a level and what is noised on from it."""
    exact, x0 = gaussian(process, 50)
    times = UniformAngle()(process, 4)[:-1]
    paths = [(x_t - process.alpha(times)[:, None] * clean) for clean, x_t, _ in forward_paths(exact, x0, None, times,
                                                                                             300, rng())]  # fmt: skip
    noise = torch.cat(paths, 1)
    alpha, sigma = process.alpha(times), process.sigma(times)
    expected = (alpha[:, None] * sigma**2 / alpha).triu()  # alpha_t / alpha_s sigma_s^2 for s below t
    assert torch.allclose(noise.cov().triu(), expected, rtol=0, atol=0.03)


def test_a_fraction_of_training_is_a_number_of_paths() -> None:
    assert affordable(Fit(1560, batch=64), 0.1, 128) == 78
    assert affordable(Fit(2, batch=8), 0.1, 128) == 1


# The optimal variance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", **BY_NAME)
def test_the_variance_of_a_gaussian_is_its_posterior_variance(process: Process) -> None:
    """Var[x_0 | x_t] = (1 / s^2 + alpha^2 / sigma^2)^-1, within what 400 draws of 50 dimensions leave open."""
    exact, x0 = gaussian(process, 50)
    recipe = compose(replace(BASE, process=process), analytic_dpm(fraction=1.0))
    part = part_of(recipe, "sampler", exact, x0)
    assert isinstance(part, OptimalVariance) and part.spread[0] == 0
    times = UniformAngle()(process, 128)[64:-1]  # above, the signal is too little of x_t to measure its spread
    found = torch.tensor([part.spread_at(process, t) for t in times])
    truth = 1 / (1 / STD**2 + torch.exp(2 * process.lam(times)))
    assert torch.allclose(found.double(), truth, rtol=0.1)
    middle = (times[20] + times[21]) / 2
    assert min(found[20:22]) < part.spread_at(process, middle) < max(found[20:22])


@pytest.mark.parametrize("process", **BY_NAME)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_deviation_is_the_papers_and_keeps_a_gaussian_in_one_long_step(process: Process, eta: float) -> None:
    """Eq. 9 on a chain with skipped steps, from alphas and betas; with the true variance x_s has the true variance."""
    exact, _ = gaussian(process)
    part = OptimalVariance(eta, math.inf, 1)
    t, s = process.time(torch.tensor([-1.2, 0.9], dtype=torch.float64))
    truth = 1 / (1 / STD**2 + torch.exp(2 * process.lam(t)))
    part.spread_at = lambda *_: truth.item()
    probes = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    moved, (own, deviation) = part.step(lambda x, t: exact(x, t), process, probes, t, s, None, SampleNoise([0, 1]))
    ratio, beta_t, beta_s = process.alpha(t) ** 2 / process.alpha(s) ** 2, process.sigma(t) ** 2, process.sigma(s) ** 2
    posterior = eta**2 * beta_s / beta_t * (beta_t - ratio * beta_s)
    energy = 1 - truth * process.alpha(t) ** 2 / beta_t  # E|eps|^2 / d = beta Gamma
    paper = posterior + ((beta_t / ratio).sqrt() - (beta_s - posterior).sqrt()) ** 2 * (1 - energy)
    assert math.isclose(deviation**2, paper, rel_tol=1e-9)
    assert math.isclose(own**2, posterior, rel_tol=1e-9, abs_tol=1e-12)
    slope = (moved[1] - moved[0])[0]
    before, after = (process.alpha(u) ** 2 * STD**2 + process.sigma(u) ** 2 for u in (t, s))
    assert torch.isclose(slope**2 * before + deviation**2, after)


def test_estimates_are_clipped_to_the_bounds_of_the_theorem() -> None:
    """Between nothing and the variance of data that are all at the ends of the range."""
    recipe = compose(BASE, analytic_dpm(fraction=1.0))
    exact, x0 = gaussian(Cosine())
    part = part_of(recipe, "sampler", exact, x0)
    assert (part.spread >= 0).all() and part.spread.max() > 1  # unbounded: noise where there is next to no signal
    exact.bounds = (-0.5, 0.5)
    assert part_of(recipe, "sampler", exact, x0).spread.max() <= 0.25


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_is_clipped_before_the_last_step_alone(eta: float) -> None:
    """What is added to the noise of the chain, that is: of a chain with noise enough nothing is taken away."""

    class Ones(SampleNoise):
        def __call__(self, shape: tuple[int, ...]) -> Tensor:
            return torch.ones(2, *shape, dtype=torch.float64)

    part, x = OptimalVariance(eta, 1.0 * GREY, 1), torch.zeros(2, 3, dtype=torch.float64)
    times = UniformAngle()(Cosine(), 4)
    seen: list[Tensor] = []

    def silent(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    past = None
    part.spread_at = lambda *_: 1.0
    owns, deviations = [], []
    for t, s in pairwise(times):
        x, past = part.step(silent, Cosine(), x, t, s, past, Ones([0, 1]))
        owns.append(past[0])
        deviations.append(past[1])
    kept = [torch.sqrt(Cosine().sigma(t) ** 2 - own**2) / Cosine().sigma(r)
            for own, (r, t) in zip(owns, pairwise(times[:-1]), strict=False)]  # fmt: skip
    added = [b[0, 0] - factor * a[0, 0] for a, b, factor in zip(seen, seen[1:], kept, strict=False)]
    assert np.allclose(added[:-1], deviations[: len(added) - 1]) and min(deviations[:3]) > GREY
    assert np.isclose(added[-1], owns[2] if eta else 2 / 255 * math.sqrt(math.pi / 2)) and (x == 0).all()
    assert (owns[2] > GREY) == (eta > 0)


# The cheapest path ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_the_cheapest_path_is_the_cheapest_of_all(steps: int, factor: float) -> None:
    cost = torch.randn(8, 8, generator=rng(steps), dtype=torch.float64)
    paths = [(0, *inner, 7) for inner in combinations(range(1, 7), steps - 1)]
    prices = [sum(factor**k * cost[e] for k, e in enumerate(pairwise(path))) for path in paths]
    found = tuple(cheapest_path(cost, steps, factor).tolist())
    assert found == paths[int(torch.stack([torch.as_tensor(p) for p in prices]).argmin())]


def test_a_step_costs_the_divergence_of_its_two_gaussians() -> None:
    """q(x_s | x_t, x_0) against the same with the estimate in place of x_0, in one dimension and nats."""
    t, s = torch.tensor([0.7, 0.3], dtype=torch.float64)
    process, x0, estimate, x_t = Cosine(), 0.4, -0.3, 0.9
    cost = bound(process.lam(torch.stack([t, s])), torch.full((2,), (x0 - estimate) ** 2, dtype=torch.float64))
    variance = process.sigma(s) ** 2 * (1 - torch.exp(2 * (process.lam(t) - process.lam(s))))
    kept = torch.sqrt(process.sigma(s) ** 2 - variance) / process.sigma(t)
    means = [kept * x_t + (process.alpha(s) - process.alpha(t) * kept) * clean for clean in (x0, estimate)]
    q, p = (torch.distributions.Normal(mean, variance.sqrt()) for mean in means)
    assert torch.isclose(cost[0, 1], torch.distributions.kl_divergence(q, p))
    decoder = torch.distributions.Normal(torch.tensor(estimate).double(), process.sigma(s))
    assert torch.isclose(cost[1, 2], -decoder.log_prob(torch.tensor(x0).double()))


def test_the_schedule_of_watson_has_a_higher_bound_than_others() -> None:
    """Counted afresh on the exact error of a Gaussian: even and random chains of as many steps are worse."""
    process, (exact, x0) = Cosine(), gaussian(Cosine(), 50)
    part = part_of(compose(BASE, dp_schedule_watson(fraction=1.0)), "grid", exact, x0)
    assert isinstance(part, FittedTimes)

    def price(times: Tensor) -> float:
        lam = process.lam(times[:-1])
        error = 1 / (1 / STD**2 + torch.exp(2 * lam))
        return sum(float(bound(lam, error)[k, k + 1]) for k in range(len(lam)))

    chain, found = UniformAngle()(process, 128), part(process, BASE.steps)
    others = [chain[[0, *sorted(np.random.default_rng(i).choice(range(1, 128), 5, replace=False)), 128]]
              for i in range(50)]  # fmt: skip
    assert price(found) < min(map(price, [UniformAngle()(process, BASE.steps), *others]))


# Trajectories ---------------------------------------------------------------------------------------------------------


def test_teacher_trajectories_are_those_of_the_solver() -> None:
    process, (exact, _) = Cosine(), ring(Cosine())
    times = KarrasRho(7.0, 0.002, 80.0)(process, 30)
    x = torch.randn(5, 2, generator=rng(), dtype=torch.float64)
    path, estimates = follow(exact, x, times, None)
    end = DPMSolverPP2M()(exact, x, times, None, SampleNoise(range(5)))
    assert path.shape == (31, 5, 2) and estimates.shape == (30, 5, 2)
    assert torch.equal(path[-1], end) and torch.allclose(path[0], x / process.alpha(times[0]))


def test_deviations_are_those_of_euler_steps_from_the_chord() -> None:
    """Step by step in x / alpha, the distance by Pythagoras; the last state is on the chord."""
    path = torch.randn(5, 3, 4, generator=rng(), dtype=torch.float64)
    estimates = torch.randn(4, 3, 4, generator=rng(1), dtype=torch.float64)
    ratio = torch.tensor([9.0, 4.0, 1.0, 0.3, 0.0]).double()
    found = deviations(path, estimates, ratio)

    def off(y: Tensor, b: int) -> float:
        chord, from_start = path[-1, b] - path[0, b], y - path[0, b]
        along = from_start @ chord / chord.norm()
        return math.sqrt(max(float(from_start @ from_start - along**2), 0.0))

    for i in range(4):
        for j in range(i + 1, 5):
            slope = (path[i] - estimates[i]) / ratio[i]
            ends = path[i] + (ratio[j] - ratio[i]) * slope
            gone = [off(ends[b], b) - off(path[j, b], b) for b in range(3)]
            assert math.isclose(found[i, j], sum(gone) / 3, abs_tol=1e-7)


# The bound of Align Your Steps ----------------------------------------------------------------------------------------


def test_the_bound_of_a_gaussian_is_its_integral() -> None:
    """Its estimates change by c^4 (1 / (t^2 + c^2) - 1 / (u^2 + c^2)) per dimension, weighted by t^-3."""
    times = KarrasRho(7.0, 0.002, 80.0)(Cosine(), 400)[:-1]
    sigma = torch.exp(-Cosine().lam(times))
    precision = 1 / (sigma**2 + STD**2)
    cost = klub(Cosine().lam(times), STD**4 * (precision - precision[:, None]).abs())
    for i, j in ((0, 100), (150, 300), (250, 260)):
        u, low = float(sigma[i]), float(sigma[j])
        truth, _ = quad(lambda t: STD**4 * (1 / (t**2 + STD**2) - 1 / (u**2 + STD**2)) / t**3, low, u)  # noqa: B023
        assert math.isclose(cost[i, j], truth, rel_tol=0.01)


@pytest.mark.parametrize("process", **BY_NAME)
def test_estimates_of_a_gaussian_change_as_the_closed_form_says(process: Process) -> None:
    exact, x0 = gaussian(process, 50)
    times = process.time(torch.tensor([-1.5, 0.0, 1.5], dtype=torch.float64))
    change = torch.stack([
        (estimate[:, None] - estimate).square().mean(-1) for *_, estimate in forward_paths(exact, x0, None, times, 400,
                                                                                          rng())
    ]).mean(0)  # fmt: skip
    precision = 1 / (torch.exp(-2 * process.lam(times)) + STD**2)
    assert torch.allclose(change, STD**4 * (precision - precision[:, None]).abs(), rtol=0.05)


def test_no_single_move_lowers_an_aligned_bound() -> None:
    """And halving keeps the levels that were there, so that twice the steps are a finer version of the same grid."""
    lam = torch.linspace(-4, 6, 60, dtype=torch.float64)
    precision = 1 / (torch.exp(-2 * lam) + 0.09)
    cost = klub(lam, (precision - precision[:, None]).abs())
    start = [*range(0, 60, 8), 59]
    levels = align(cost, start)

    def price(path: list[int]) -> float:
        return sum(float(cost[a, b]) for a, b in pairwise(path))

    assert price(levels) < price(start) and levels[0] == 0 and levels[-1] == 59
    for i in range(1, len(levels) - 1):
        for other in range(levels[i - 1] + 1, levels[i + 1]):
            assert price(levels) <= price([*levels[:i], other, *levels[i + 1 :]]) + 1e-12
    ten, twenty = schedule(cost, 10), schedule(cost, 20)
    assert torch.equal(twenty[::2], ten) and (twenty.diff() > 0).all() and len(schedule(cost, 7)) == 8


@pytest.mark.parametrize("method", [gits(), align_your_steps(), dp_schedule_watson()], ids=["gits", "ays", "watson"])
@pytest.mark.parametrize("process", **BY_NAME)
@pytest.mark.parametrize("steps", [1, 6, 40])
def test_fitted_times_fall_from_within_the_process_to_zero(method: object, process: Process, steps: int) -> None:
    recipe = compose(replace(BASE, process=process, steps=steps, fit=Fit(20, batch=64)), method)  # pyright: ignore
    part = part_of(recipe, "grid", *ring(process))
    assert isinstance(part, FittedTimes)
    times = part(process, steps)
    assert len(times) == steps + 1 and (times.diff() < 0).all() and times[-1] == 0
    assert process.lam(times[0]) >= process.lam_start - 1e-9
    with pytest.raises(AssertionError, match=f"fitted for {steps} steps"):
        part(process, steps + 1)


# Guidance -------------------------------------------------------------------------------------------------------------


def test_guidance_in_turn_is_guidance_in_one_call() -> None:
    """The same estimate, for one time or a time per row; two calls instead of one, as many rows."""
    model, drawn = models.build(BASE, (1, 8, 8), 3), rng(1)
    for weight in model.net.parameters():  # zero at initialisation, where a label changes nothing
        torch.nn.init.normal_(weight, std=0.1, generator=drawn)
    x, labels = torch.randn(4, 1, 8, 8, generator=rng()), torch.tensor([0, 1, 2, 0])
    for t in (torch.tensor(0.4).double(), torch.linspace(0.2, 0.9, 4).double()):
        inner = [Network(model.net, BASE.process, BASE.parameterization, (-1.0, 1.0)) for _ in range(2)]
        together, in_turn = (g(d)(x, t, labels) for g, d in zip((ClassifierFree(2.0), InTurn(2.0)), inner, strict=True))
        assert torch.allclose(together, in_turn, atol=1e-5) and not torch.allclose(together, inner[0](x, t, labels))
        assert (inner[0].rows - 4, inner[0].calls - 1, inner[1].rows, inner[1].calls) == (8, 1, 8, 2)
