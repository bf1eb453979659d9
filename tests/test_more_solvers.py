"""More solvers: against closed forms, and against diffusers' schedulers of the same name on its denoisers and grids."""

import math
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_solvers import KARRAS, MEAN, PROCESSES, STD, even, one_gaussian
from torch import Tensor

from methods.core.denoiser import Denoiser, Labels, Mixture
from methods.core.process import Cosine, Process
from methods.core.sampling import SampleNoise, Sampler, UniformAngle
from methods.data.mixture import ring
from methods.inference.ode_solver.ddim import DDIM, StochasticDDIM
from methods.inference.ode_solver.deis import TABDEIS, coefficients
from methods.inference.ode_solver.dpm_solver_pp_2m import DPMSolverPP2M
from methods.inference.ode_solver.edm_heun import Heun
from methods.inference.ode_solver.unipc import moved
from methods.inference.sde_solver.edm_stochastic import Churn
from methods.inference.sde_solver.sa_solver import SASolver, sa_solver
from methods.inference.sde_solver.sa_solver import coefficients as adams
from methods.inference.sde_solver.sde_dpm_solver_pp import SDEDPMSolverPP2M
from methods.inference.timestep_schedule.karras_rho_schedule import KarrasRho
from methods.training.objective.edm_preconditioning import VarianceExploding

diffusers = pytest.importorskip("diffusers")
STEPS = range(5, 11)
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' DEIS


def in_the_plane(std: float = 0.05, process: Process | None = None) -> Mixture:
    modes = ring(std=std)
    return Mixture(modes.means, modes.stds, modes.weights, process or Cosine())


def from_noise(sampler: Sampler, denoiser: Mixture, times: Tensor, n: int, noise: SampleNoise | None = None) -> Tensor:
    x = denoiser.process.sigma(times[0]) * SampleNoise(range(n))((2,)).double()
    return sampler(denoiser, x, times, None, noise or SampleNoise(range(n, 2 * n)))


class Theirs(Sampler):
    """A scheduler that is told x_0, on our grid and with our noise, where it takes any."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __call__(self, denoiser: Denoiser, x: Tensor, times: Tensor, labels: Labels, noise: SampleNoise) -> Tensor:
        self.scheduler.set_timesteps(len(times) - 1)
        self.scheduler.sigmas = torch.exp(-denoiser.process.lam(times))
        with pytest.MonkeyPatch.context() as patch:
            module = import_module(type(self.scheduler).__module__)
            patch.setattr(module, "randn_tensor", lambda shape, **_: noise(tuple(shape[1:])), raising=False)
            for step, t in zip(self.scheduler.timesteps, times, strict=False):
                x0 = denoiser(x, t, labels)
                x = self.scheduler.step(x0, step, x, return_dict=False)[0]
        return x


def apart(x: Tensor, y: Tensor) -> float:
    """Root mean square distance."""
    return float((x - y).square().sum(1).mean().sqrt())


# DEIS -----------------------------------------------------------------------------------------------------------------


def test_coefficients_are_the_papers_integrals() -> None:
    """C_j with Psi = alpha_s / alpha and g^2 = -2 d log alpha / dt of a variance-preserving process, by a fine sum."""
    process, points = Cosine(), torch.tensor([0.8, 0.6, 0.45, 0.3], dtype=torch.float64)
    *earlier, s = points
    nodes, n = torch.stack(earlier[::-1]), 20_000
    tau = nodes[0] + (torch.arange(n) + 0.5) / n * (s - nodes[0])
    squared = math.pi * torch.tan(tau * math.pi / 2)
    drift = -process.alpha(s) / process.alpha(tau) * squared / (2 * process.sigma(tau))  # time runs backwards
    kept, *weights = coefficients(process, s, *nodes)
    for j, weight in enumerate(weights):
        others = torch.cat([nodes[:j], nodes[j + 1 :]])
        lagrange = ((tau[:, None] - others) / (nodes[j] - others)).prod(1)
        assert math.isclose(weight, -(drift * lagrange).mean() * (s - nodes[0]), rel_tol=1e-6)
    assert kept == pytest.approx(float(process.alpha(s) / process.alpha(nodes[0])))


@PROCESSES
def test_a_step_is_exact_for_noise_that_is_a_polynomial_in_time(process: Process) -> None:
    """x_s / alpha_s = x_t / alpha_t + int eps d rho; here down to a clean sample."""
    first, s, n = process.time(torch.tensor(-4.9, dtype=torch.float64)), torch.tensor(0.0).double(), 200_000
    times = torch.stack([first * share for share in (0.35, 0.6, 0.8, 1.0)])
    tau = torch.linspace(float(times[0]), 0, n + 1, dtype=torch.float64)
    rho = process.sigma(tau) / process.alpha(tau)
    for power in range(4):
        exact = ((tau[1:] ** power + tau[:-1] ** power) / 2 * rho.diff()).sum() * process.alpha(s)
        _, *weights = coefficients(process, s, *times)
        assert math.isclose(sum(w * t**power for w, t in zip(weights, times, strict=True)), exact, rel_tol=1e-6)


@PROCESSES
def test_a_polynomial_of_degree_zero_is_ddim(process: Process) -> None:
    times, denoiser = UniformAngle()(process, 7), one_gaussian(process, 2)
    ends = [from_noise(solver, denoiser, times, 9) for solver in (TABDEIS(0), DDIM())]
    assert torch.allclose(*ends, rtol=1e-9)


class LogTime(Process):
    """The variance-preserving process whose time is the logarithm of rho."""

    lam_start = -5.0
    preserves_variance = True

    def alpha(self, t: Tensor) -> Tensor:
        return torch.rsqrt(1 + torch.exp(2 * t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(t) * self.alpha(t)

    def time(self, lam: Tensor) -> Tensor:
        return -lam


@pytest.mark.parametrize("degree", [1, 2])
def test_in_the_time_of_diffusers_it_is_diffusers(degree: int) -> None:
    """Whose polynomials are in log rho: the same steps, to float tolerance, once that is the time of the process."""
    denoiser = in_the_plane(process=LogTime())
    times = even(denoiser.process, 9, -4.0, 3.0)
    options = {"solver_order": degree + 1, "prediction_type": "sample", "lower_order_final": False}
    other = from_noise(Theirs(diffusers.DEISMultistepScheduler(**options)), denoiser, times, 20)
    assert apart(from_noise(TABDEIS(degree), denoiser, times, 20), other) < 1e-6


@pytest.mark.parametrize("std", [0.05, 0.2])
def test_deis_is_no_worse_than_diffusers(std: float) -> None:
    """From as many predictions, on a grid that ends where diffusers' do, at a ratio of 0.01; and better than DDIM."""
    denoiser = in_the_plane(std)
    for n in STEPS:
        times = KarrasRho(7.0, 0.01, 80.0)(Cosine(), n + 1)[:-1]
        exact = from_noise(DPMSolverPP2M(), denoiser, finely(times), 200)
        scheduler = Theirs(diffusers.DEISMultistepScheduler(solver_order=3, prediction_type="sample"))
        ours = apart(from_noise(TABDEIS(2), denoiser, times, 200), exact)
        other = apart(from_noise(scheduler, denoiser, times, 200), exact)
        assert ours < other, (n, ours, other)
        assert ours < 0.8 * apart(from_noise(DDIM(), denoiser, times, 200), exact)


def finely(times: Tensor) -> Tensor:
    """From the first to the last time in many steps."""
    first, last = Cosine().lam(times[[0, -1]]).tolist()
    return even(Cosine(), 1000, first, last)


# Stochastic solvers ---------------------------------------------------------------------------------------------------


class Impulses(SampleNoise):
    """The k-th draw is one for sample k + 2 and zero for all others."""

    def __init__(self, n: int) -> None:
        self.n, self.drawn = n, 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        self.drawn += 1
        z = torch.zeros(self.n, *shape, dtype=torch.float64)
        z[self.drawn + 1 : self.drawn + 2] = 1
        return z


class Given(SampleNoise):
    """One draw, whenever it is asked for."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return self.z


def errors(sampler: Sampler, process: Process, times: Tensor) -> tuple[float, float]:
    """Of the mean, and relative of the variance, at the end: exact, because a run is linear in x and in every draw."""
    draws = len(times) - 1
    x = torch.zeros(draws + 2, 1, dtype=torch.float64)
    x[1], noise = 1, Impulses(draws + 2)
    end = sampler(one_gaussian(process), x, times, None, noise).double().flatten()
    assert noise.drawn <= draws
    scales, (alpha, sigma) = end - end[0], (process.alpha(times), process.sigma(times))
    mean = scales[1] * alpha[0] * MEAN + end[0]
    variance = scales[1] ** 2 * ((alpha[0] * STD) ** 2 + sigma[0] ** 2) + scales[2:].square().sum()
    true = (alpha[-1] * STD) ** 2 + sigma[-1] ** 2
    return abs(float(mean - alpha[-1] * MEAN)), abs(float(variance / true - 1))


EVERYWHERE = {"lowest": 0.0, "highest": math.inf}


@PROCESSES
@pytest.mark.parametrize(
    "sampler",
    [
        SDEDPMSolverPP2M(), Churn(2.0, **EVERYWHERE, excess=1.0), SASolver(3, 4, 1.0, **EVERYWHERE),
        SASolver(3, 4, 0.5, **EVERYWHERE), SASolver(2, 2, 1.0, **EVERYWHERE), SASolver(3, 4, 1.0, 0.3, 3.0),
    ],
    ids=str,
)  # fmt: skip
def test_stochastic_solvers_are_of_second_order_in_the_variance(sampler: Sampler, process: Process) -> None:
    """Of a Gaussian, whose mean they keep; ancestral sampling is of first order."""
    coarse, fine = (errors(sampler, process, even(process, n)) for n in (40, 80))
    assert coarse[0] < 1e-6 and fine[0] < 1e-6
    assert math.log2(coarse[1] / fine[1]) > 1.6
    assert fine[1] < 0.1 * errors(StochasticDDIM(1.0), process, even(process, 80))[1]


# SDE-DPM-Solver++ -----------------------------------------------------------------------------------------------------


@PROCESSES
def test_the_first_and_the_last_step_are_ancestral(process: Process) -> None:
    times, denoiser = UniformAngle()(process, 2), one_gaussian(process, 2)
    ends = [from_noise(solver, denoiser, times, 9) for solver in (SDEDPMSolverPP2M(), StochasticDDIM(1.0))]
    assert torch.allclose(*ends, rtol=1e-9)
    more = UniformAngle()(process, 3)
    ends = [from_noise(solver, denoiser, more, 9) for solver in (SDEDPMSolverPP2M(), StochasticDDIM(1.0))]
    assert apart(*ends) > 1e-3


@pytest.mark.parametrize("steps", STEPS)
def test_a_step_is_diffusers_sde_dpmsolver(steps: int) -> None:
    """On the grid of Karras et al., down to a clean sample, and so no worse."""
    options = {"algorithm_type": "sde-dpmsolver++", "prediction_type": "sample", "final_sigmas_type": "zero"}
    other = Theirs(diffusers.DPMSolverMultistepScheduler(**options))
    times, denoiser = KARRAS(Cosine(), steps), in_the_plane()
    ends = [from_noise(sampler, denoiser, times, 50) for sampler in (SDEDPMSolverPP2M(), other)]
    assert apart(ends[0], ends[1].double()) < 1e-4


# The stochastic sampler of EDM ----------------------------------------------------------------------------------------


def karras_ve(denoiser: Mixture, x: Tensor, levels: Tensor, noise: SampleNoise, **options: float) -> Tensor:
    """The loop of diffusers' pipeline for algorithm 2, whose scheduler is told -eps; sigma is time, x is not scaled."""
    module = import_module("diffusers.schedulers.deprecated.scheduling_karras_ve")
    scheduler = module.KarrasVeScheduler(**options)
    scheduler.set_timesteps(len(levels) - 1)

    def told(x: Tensor, level: Tensor) -> Tensor:
        return (denoiser(x, denoiser.process.time(-torch.log(level))) - x) / level

    with pytest.MonkeyPatch.context() as patch:
        for level, below in pairwise(levels):
            drawn = (
                noise((2,)).double() if options["s_min"] <= level <= options["s_max"] else x
            )  # elsewhere it is unused
            patch.setattr(module, "randn_tensor", lambda *_, drawn=drawn, **__: drawn)
            raised, above = scheduler.add_noise_to_input(x, level)
            x, slope = scheduler.step(told(raised, above), above, below, raised, return_dict=False)
            if below > 0:
                eps = told(x, below)
                x, _ = scheduler.step_correct(eps, above, below, raised, x, slope, return_dict=False)
    return x


@pytest.mark.parametrize("steps", [3, 4, 5, 12])
@pytest.mark.parametrize("settings", [(30.0, 0.01, 1.0, 1.007), (3.0, 0.05, 50.0, 1.003)], ids=str)
def test_churn_is_diffusers_algorithm_2(settings: tuple[float, ...], steps: int) -> None:
    """For a process whose time is sigma, and for one that keeps the variance and has the same flow: so no worse."""
    denoiser, churn = in_the_plane(process=VarianceExploding()), Churn(*settings)
    times = KARRAS(denoiser.process, steps)
    levels = torch.exp(-denoiser.process.lam(times))
    x = levels[0] * SampleNoise(range(20))((2,)).double()
    options = dict(zip(("s_churn", "s_min", "s_max", "s_noise"), settings, strict=True))
    other = karras_ve(denoiser, x, levels, SampleNoise(range(20, 40)), **options)
    elsewhere = in_the_plane()
    for mixture in (denoiser, elsewhere):
        times = mixture.process.time(-torch.log(levels))
        start = x * mixture.process.alpha(times[0])
        assert apart(churn(mixture, start, times, None, SampleNoise(range(20, 40))), other) < 1e-6


def test_without_churn_it_is_heun_and_noise_costs_no_evaluations() -> None:
    denoiser, times = in_the_plane(), KARRAS(Cosine(), 8)
    heun = from_noise(Heun(), denoiser, times, 9)
    for idle in (Churn(0.0, 0.01, 1.0, 1.007), Churn(30.0, 1.0, 0.01, 1.007)):
        assert torch.equal(from_noise(idle, denoiser, times, 9), heun)
    before = denoiser.calls
    churned = from_noise(Churn(30.0, 0.01, 1.0, 1.0), denoiser, times, 9)
    assert denoiser.calls - before == 15 and apart(churned, heun) > 1e-3


# SA-Solver ------------------------------------------------------------------------------------------------------------


@PROCESSES
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_a_step_of_adams_is_exact_for_estimates_that_are_polynomials_in_lam(tau: float, process: Process) -> None:
    """x_s = ... + alpha_s int (1 + tau^2) e^{(1 + tau^2) (lam - lam_s)} x_0 dlam."""
    before, earlier, t, s = process.time(torch.tensor([-1.6, -0.9, -0.5, 0.1], dtype=torch.float64))
    lam, rate, n = torch.linspace(-0.5, 0.1, 20_001, dtype=torch.float64), 1 + tau**2, 20_000
    for nodes in ((t, earlier, before), (s, t, earlier, before)):
        _, _, *weights = adams(SASolver(3, 4, tau, **EVERYWHERE), process, tau, t, s, *nodes)
        for power in range(len(nodes)):
            values = rate * torch.exp(rate * (lam - 0.1)) * lam**power
            exact = process.alpha(s) * (values[1:] + values[:-1]).sum() / 2 * 0.6 / n
            found = sum(w * process.lam(node) ** power for w, node in zip(weights, nodes, strict=True))
            assert math.isclose(found, exact, rel_tol=1e-6, abs_tol=1e-9)


@PROCESSES
def test_its_special_cases(process: Process) -> None:
    """With one estimate ancestral sampling or DDIM; without noise UniPC's rule, which is exact for as many points."""
    solver, times = SASolver(3, 4, 1.0, **EVERYWHERE), even(process, 3)
    x, z, *known = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    t, s = times[2:]
    for tau, other in ((1.0, StochasticDDIM(1.0)), (0.0, DDIM())):
        step, _ = other.step(lambda *_: known[0], process, x, t, s, None, Given(z))
        assert torch.allclose(solver.moved(process, tau, x, z if tau else None, t, s, [(t, known[0])]), step)
    seen = list(zip(times.flip(0)[1:], known, strict=True))
    assert torch.allclose(solver.moved(process, 0.0, x, None, t, s, seen), moved(process, x, s, seen[0], seen[1:]))


@pytest.mark.parametrize(("predictor", "corrector"), [(3, 4), (2, 2), (4, 2)])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_it_is_diffusers_sa_solver(tau: float, predictor: int, corrector: int) -> None:
    """On the grids that diffusers chooses, and so no worse."""
    denoiser, settings = in_the_plane(0.2), {"predictor_order": predictor, "corrector_order": corrector}
    scheduler = diffusers.SASolverScheduler(
        **settings, prediction_type="sample", tau_func=lambda t: torch.tensor(tau, dtype=torch.float64)
    )
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        times = Cosine().time(-torch.log(scheduler.sigmas.double()))
        other = from_noise(Theirs(scheduler), denoiser, times, 50)
        ours = from_noise(SASolver(predictor, corrector, tau, **EVERYWHERE), denoiser, times, 50)
        assert apart(ours, other) < 1e-6


def test_the_interval_is_the_middle_of_the_linear_schedule() -> None:
    """0.2 <= t <= 0.8 with beta from 0.1 to 20: log alpha = -19.9 t^2 / 4 - 0.1 t / 2."""
    sampler = sa_solver().edits["sampler"]
    for t, ratio in ((0.2, sampler.lowest), (0.8, sampler.highest)):
        assert ratio == pytest.approx(math.sqrt(math.expm1(2 * (19.9 * t**2 / 4 + 0.1 * t / 2))), rel=2e-3)
