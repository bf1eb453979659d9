"""Solvers against flows that are known in closed form, and against integrals that their weights stand for."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from methods.core.activation import tallied
from methods.core.denoiser import Mixture
from methods.core.process import Cosine, Process
from methods.core.sampling import SampleNoise, Sampler, UniformAngle
from methods.inference.ode_solver._shared import along, noise_of
from methods.inference.ode_solver.ddim import DDIM
from methods.inference.ode_solver.dpm_solver import DPMSolver1, DPMSolver2, DPMSolver3, allocation, tilted
from methods.inference.ode_solver.edm_heun import Heun
from methods.inference.ode_solver.pndm_plms import ADAMS, PLMS
from methods.inference.ode_solver.unipc import UniPC, moved
from methods.inference.sde_solver.gotta_go_fast import AdaptiveSDE
from methods.inference.sde_solver.restart_sampling import Restart
from methods.inference.timestep_schedule.karras_rho_schedule import KarrasRho
from methods.training.flow.flow_matching import StraightPath

MEAN, STD = 0.75, 0.4
PROCESSES = pytest.mark.parametrize("process", [Cosine(), StraightPath()], ids=["cosine", "straight"])
KARRAS = KarrasRho(7.0, 0.002, 80.0)


def one_gaussian(process: Process, d: int = 1) -> Mixture:
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(MEAN * one[:, None].expand(1, d), STD * one, one, process)


def even(process: Process, steps: int, low: float = -2.0, high: float = 2.0) -> Tensor:
    return process.time(torch.linspace(low, high, steps + 1, dtype=torch.float64))


def standard(process: Process, x: Tensor, t: Tensor) -> Tensor:
    """Along the flow of a Gaussian the deviation from the mean, in units of the standard deviation, stays."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return (x - alpha * MEAN) / torch.sqrt((alpha * STD) ** 2 + sigma**2)


def error(solver: Sampler, process: Process, times: Tensor) -> float:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    end = solver(one_gaussian(process), x, times, None, SampleNoise(range(9)))
    return float((standard(process, end, times[-1]) - standard(process, x, times[0])).norm())


@PROCESSES
@pytest.mark.parametrize(
    ("solver", "order"),
    [(DPMSolver1(), 1), (DPMSolver2(), 2), (DPMSolver3(), 3), (UniPC(2), 3), (UniPC(3), 3), (PLMS(), 2)],
    ids=str,
)
def test_every_order_that_can_be_chosen(solver: Sampler, order: int, process: Process) -> None:
    coarse, fine = (error(solver, process, even(process, n)) for n in (60, 120))
    assert math.log2(coarse / fine) > order - 0.15


@PROCESSES
def test_order_one_is_ddim(process: Process) -> None:
    denoiser, times = one_gaussian(process), UniformAngle()(process, 7)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    ends = [solver(denoiser, x, times, None, SampleNoise(range(9))) for solver in (DPMSolver1(), DDIM())]
    assert torch.allclose(*ends, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_evaluation_is_dealt_out(order: int) -> None:
    """The table of the official code's docstring, which always ends low; before zero noise a 2 becomes two 1."""
    for n in range(4, 40):
        orders = allocation(order, n, clean=True)
        assert sum(orders) == n and orders[-1] == 1 and max(orders) == order
        if order == 3 and n % 3 != 2:
            k = n // 3 + 1
            assert orders == ([3] * (k - 2) + [2, 1] if n % 3 == 0 else [3] * (k - 1) + [1])
    denoiser = one_gaussian(Cosine())
    DPMSolver3()(denoiser, torch.zeros(1, 1).double(), UniformAngle()(Cosine(), 10), None, SampleNoise([0]))
    assert denoiser.calls == 10


def integral(process: Process, t: Tensor, s: Tensor, power: int, sign: int) -> Tensor:
    """Of e^{sign lam} lam^power from t to s, by Simpson's rule."""
    lam = torch.linspace(process.lam(t).item(), process.lam(s).item(), 2001, dtype=torch.float64)
    weights = torch.ones(2001, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return (weights * torch.exp(sign * lam) * lam**power).sum() * (lam[1] - lam[0]) / 3


@PROCESSES
def test_a_tilted_step_is_exact_for_noise_linear_in_lam(process: Process) -> None:
    """x_s / alpha_s = x_t / alpha_t - integral of e^{-lam} eps."""
    t, later, s = even(process, 2, -1.0, 0.8)
    x, lam = torch.tensor([[1.3]]).double(), process.lam(torch.stack([t, later])).reshape(2, 1, 1)
    end = along(process, x, tilted(process, lam[0], lam[1], t, s, 0.5), t, s)
    exact = process.alpha(s) * (x / process.alpha(t) - integral(process, t, s, 1, -1))
    assert torch.allclose(end, exact, rtol=1e-9)


@PROCESSES
@pytest.mark.parametrize("power", [0, 1, 2])
def test_unipc_is_exact_for_estimates_that_are_polynomials_in_lam(power: int, process: Process) -> None:
    """x_s / sigma_s = x_t / sigma_t + integral of e^lam x_0; two earlier or later points determine a parabola."""
    before, earlier, t, s = process.time(torch.tensor([-1.6, -0.9, -0.5, 0.1], dtype=torch.float64))
    x = torch.tensor([[1.3]]).double()
    exact = process.sigma(s) * (x / process.sigma(t) + integral(process, t, s, power, 1))
    seen = {node: (node, process.lam(node).reshape(1, 1) ** power) for node in (before, earlier, t, s)}
    predicted = moved(process, x, s, seen[t], [seen[earlier], seen[before]])
    corrected = moved(process, x, s, seen[t], [seen[earlier], seen[s]])
    assert torch.allclose(predicted, exact, rtol=1e-9) and torch.allclose(corrected, exact, rtol=1e-9)


def test_the_rules_of_adams_integrate_polynomials() -> None:
    for rule in ADAMS:
        for power in range(len(rule)):
            assert math.isclose(sum(w * (-i) ** power for i, w in enumerate(rule)), 1 / (power + 1), rel_tol=1e-12)


@PROCESSES
def test_the_noise_and_the_clean_image_tell_the_same_move(process: Process) -> None:
    t, s = even(process, 1)
    x, x0 = torch.tensor([[1.3]]).double(), torch.tensor([[0.2]]).double()
    eps = noise_of(process, x, x0, t)
    assert torch.allclose(along(process, x, eps, t, s), process.alpha(s) * x0 + process.sigma(s) * eps)


def drawn(sampler: Sampler, process: Process, times: Tensor, n: int, d: int = 1, shift: float = 0.0) -> Tensor:
    """End points from noise, moved aside by `shift`."""
    noise = SampleNoise(range(n))
    x = process.sigma(times[0]) * (noise((d,)).double() + shift)
    return sampler(one_gaussian(process, d), x, times, None, noise)


@PROCESSES
@pytest.mark.parametrize(
    "sampler", [AdaptiveSDE(0.05, 0.01), Restart(0, 2, 0.06, 0.3), Restart(6, 8, 0.1, 1.0)], ids=str
)
def test_stochastic_samplers_keep_the_marginals_of_a_gaussian(sampler: Sampler, process: Process) -> None:
    """In many dimensions, where the error of a step is hardly chance."""
    x = drawn(sampler, process, KARRAS(process, 40), 32, 256)
    assert abs(x.mean() - MEAN) < 0.02 and abs(x.std() / STD - 1) < 0.03


def test_no_restart_is_heun_and_each_costs_twice_its_steps() -> None:
    process, times = Cosine(), KARRAS(Cosine(), 8)
    assert torch.equal(drawn(Restart(0, 2, 0.06, 0.3), process, times, 5), drawn(Heun(), process, times, 5))
    denoiser = one_gaussian(process)
    Restart(3, 2, 0.06, 0.3)(denoiser, torch.zeros(2, 1).double(), times, None, SampleNoise([0, 1]))
    assert denoiser.calls == 2 * 8 - 1 + 3 * 2 * 2
    Restart(3, 2, 0.06, 0.01)(denoiser, torch.zeros(2, 1).double(), times, None, SampleNoise([0, 1]))
    assert denoiser.calls == 2 * (2 * 8 - 1) + 3 * 2 * 2, "an interval that is empty is left out"


def test_restarts_forget_an_error_made_above_them() -> None:
    """Every return through the interval shrinks an offset by the same factor."""
    offsets = [
        float((drawn(Restart(k, 8, 0.1, 1.0), Cosine(), KARRAS(Cosine(), 20), 50, shift=0.1)
               - drawn(Restart(k, 8, 0.1, 1.0), Cosine(), KARRAS(Cosine(), 20), 50)).mean())
        for k in range(4)
    ]  # fmt: skip
    factors = [after / before for before, after in pairwise(offsets)]
    top, bottom = (math.sqrt(STD**2 + ratio**2) for ratio in (1.0, 0.1))
    assert all(factor < 0.75 for factor in factors), offsets
    assert factors == pytest.approx([bottom / top] * 3, rel=0.1)


def test_adaptive_steps_follow_the_tolerance_and_nobodys_neighbours() -> None:
    denoiser, rows = one_gaussian(Cosine()), []
    x, times = torch.randn(20, 1, generator=torch.Generator().manual_seed(0)).double(), UniformAngle()(Cosine(), 5)
    for tolerance in (0.5, 0.1, 0.02):
        before = denoiser.rows
        with tallied() as counters:
            together = AdaptiveSDE(tolerance, 0.01)(denoiser, x, times, None, SampleNoise(range(20)))
        rows.append(denoiser.rows - before)
        assert rows[-1] == 2 * counters["steps_attempted"] + len(x), "whoever has arrived is not evaluated"
        alone = AdaptiveSDE(tolerance, 0.01)(denoiser, x[7:8], times, None, SampleNoise([7]))
        assert torch.allclose(alone, together[7:8], atol=1e-9)
    assert rows == sorted(rows)
