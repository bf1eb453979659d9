"""Noise schedules against the tables of diffusers and numbers of their papers, and the identities between them."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]
from small import BASE, recipe_of
from torch import Tensor, nn

from methods.core.denoiser import Mixture, Network
from methods.core.errors import Conflict
from methods.core.parameterization import Noise
from methods.core.process import Cosine, Process
from methods.core.recipe import compose
from methods.core.sampling import SampleNoise
from methods.inference.ode_solver.ddim import DDIM
from methods.training.flow.flow_matching import StraightPath
from methods.training.noise_process._shared import UniformTime, interpolate
from methods.training.noise_process.cosine_schedule import OffsetCosine
from methods.training.noise_process.ddpm_linear_schedule import CHAIN, LinearBeta
from methods.training.noise_process.laplace_logsnr_sampling import LaplaceLam
from methods.training.noise_process.learned_schedule_vdm import Learned, Monotone, Steadied
from methods.training.noise_process.resolution_shifted_schedule import ShiftedCosine
from methods.training.noise_process.sigmoid_schedule_input_scaling import ScaledSigmoid
from methods.training.noise_process.zero_terminal_snr import ZeroTerminal, zero_terminal_snr
from methods.training.objective.p2_weighting import PerceptionPrioritized
from methods.training.objective.score_sde import GeometricVE, PredictorCorrector
from methods.training.objective.v_prediction import Velocity

DDPM = LinearBeta(1e-4, 0.02, 1.0)
STABLE = LinearBeta(0.00085, 0.012, 2.0)
PROCESSES: dict[str, Process] = {
    "ddpm": DDPM, "stable": STABLE, "cosine": OffsetCosine(0.008), "sigmoid": ScaledSigmoid(1.0, 0.5),
    "sharp_sigmoid": ScaledSigmoid(0.3, 0.8), "zero_terminal": ZeroTerminal(STABLE), "shifted": ShiftedCosine(4.0),
    "exploding": GeometricVE(50.0),
}  # fmt: skip
KEEPING_VARIANCE = [name for name, process in PROCESSES.items() if process.preserves_variance]
STEPS = torch.arange(1, CHAIN + 1, dtype=torch.float64) / CHAIN


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(process: Process) -> Mixture:
    """The exact denoiser of a Gaussian of deviation 1/2 in 50 dimensions."""
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(torch.zeros(1, 50, dtype=torch.float64), 0.5 * one, one, process)


# Every process --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_time_is_the_inverse_of_lam(name: str) -> None:
    process = PROCESSES[name]
    lam = torch.linspace(process.lam_start, 6, 57, dtype=torch.float64)
    t = process.time(lam)
    assert (t.diff() < 0).all() and t.min() > 0 and t.max() <= 1
    assert torch.allclose(process.lam(t), lam, rtol=1e-5, atol=1e-8)
    inner = f64(0.9, 0.5, 0.1, 0.01)
    assert torch.allclose(process.time(process.lam(inner)), inner, rtol=1e-7)
    assert process.time(lam.reshape(3, 19)).shape == (3, 19)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_begins_with_clean_data_and_only_adds_noise(name: str) -> None:
    process, t = PROCESSES[name], torch.linspace(0, 1, 501, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    assert alpha[0] == 1 and sigma[0] == 0 and process.lam(t)[0] == math.inf and process.angle(t)[0] == 0
    assert (sigma.diff() >= 0).all() and (alpha.diff() <= 0).all() and (process.lam(t)[:-1].diff() < 0).all()
    assert (name in KEEPING_VARIANCE) == torch.allclose(alpha**2 + sigma**2, torch.ones_like(t))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_grid_steps_evenly_from_the_start_to_clean_data(name: str) -> None:
    process = PROCESSES[name]
    times = UniformTime()(process, 20)
    assert len(times) == 21 and times[-1] == 0 and torch.allclose(times.diff(), -times[0] / 20)
    assert math.isclose(process.lam(times[0]), process.lam_start, rel_tol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_samples_drawn_along_the_grid_have_the_deviation_of_the_data(name: str) -> None:
    """The exact denoiser of a Gaussian, from noise to data in steps of the process's own time."""
    process = PROCESSES[name]
    times = UniformTime()(process, 200)
    x = process.sigma(times[0]) * torch.randn(400, 50, generator=torch.Generator().manual_seed(0)).double()
    end = DDIM()(gaussian(process), x, times, None, SampleNoise(range(400)))
    assert abs(end.std() / 0.5 - 1) < 0.06


def test_interpolation_meets_its_points_and_is_straight_between_them() -> None:
    xs, ys = f64(0, 1, 3), f64(5, 6, 0)
    assert torch.equal(interpolate(f64(0, 1, 3), xs, ys), ys)
    assert torch.equal(interpolate(f64(0.5, 2, 9, -1), xs, ys), f64(5.5, 3, 0, 5))


# Against tables -------------------------------------------------------------------------------------------------------


def table(schedule: str, start: float, end: float, *, rescaled: bool = False) -> Tensor:
    """alpha^2 after 1 to 1,000 steps, from the betas of diffusers, multiplied in 64 bits."""
    scheduler = DDPMScheduler(
        beta_schedule=schedule, beta_start=start, beta_end=end, rescale_betas_zero_snr=rescaled  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return torch.cumprod(1 - scheduler.betas.double(), 0)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (DDPM, table("linear", 1e-4, 0.02)),
        (STABLE, table("scaled_linear", 0.00085, 0.012)),
        (ZeroTerminal(DDPM), table("linear", 1e-4, 0.02, rescaled=True)),
        (ZeroTerminal(STABLE), table("scaled_linear", 0.00085, 0.012, rescaled=True)),
    ],
    ids=["linear", "scaled_linear", "linear_rescaled", "scaled_linear_rescaled"],
)
def test_the_chain_is_that_of_diffusers(process: Process, expected: Tensor) -> None:
    """Its betas are in 32 bits, and it rescales there."""
    assert torch.allclose(process.alpha(STEPS) ** 2, expected, rtol=1e-4, atol=1e-7)


def test_the_cosine_is_that_of_diffusers_up_to_the_beta_it_caps() -> None:
    process, expected = OffsetCosine(0.008), table("squaredcos_cap_v2", 1e-4, 0.02)
    assert torch.allclose(process.alpha(STEPS[:-1]) ** 2, expected[:-1], rtol=1e-4, atol=0)
    assert not torch.allclose(Cosine().alpha(STEPS[:-1]) ** 2, expected[:-1], rtol=1e-4, atol=0)


def test_the_offset_makes_the_first_noise_about_half_a_grey_level() -> None:
    """Section 3.2 of Nichol and Dhariwal: sqrt(beta_1) slightly below 1 / 127.5; without an offset, far below."""
    first = [process.sigma(STEPS[:1]).item() * 127.5 for process in (OffsetCosine(0.008), Cosine())]
    assert 0.8 < first[0] < 1 and first[1] < 0.25


@pytest.mark.parametrize(("process", "alpha", "snr"), [(DDPM, 0.006353, 4.036e-5), (STABLE, 0.068265, 0.004682)])
def test_chains_end_with_the_signal_the_paper_found_there_and_rescaled_with_none(
    process: LinearBeta, alpha: float, snr: float
) -> None:
    """Table 1 of Lin et al."""
    one = f64(1.0)
    assert math.isclose(process.alpha(one), alpha, rel_tol=1e-3)
    assert math.isclose(torch.exp(2 * process.lam(one)), snr, rel_tol=1e-3)
    assert math.isclose(process.lam_start, math.log(snr) / 2, rel_tol=1e-3)
    rescaled = ZeroTerminal(process)
    assert rescaled.alpha(one) == 0 and rescaled.sigma(one) == 1
    assert torch.equal(rescaled.alpha(STEPS[:1]), process.alpha(STEPS[:1]))
    start = rescaled.time(f64(rescaled.lam_start))
    clean = torch.linspace(-1, 1, 9)
    assert torch.equal(rescaled.diffuse(clean, 0.7 + 0 * clean, start), 0.7 + 0 * clean), "no signal in 32 bits"


def test_the_linear_chain_forgets_the_image_to_a_hundred_thousandth_of_a_bit() -> None:
    """Section 4 of Ho et al.: L_T = KL(q(x_T | x_0) || N(0, I)) is about 1e-5 bits a dimension."""
    alpha2 = DDPM.alpha(f64(1.0)).item() ** 2
    for square in (0.25, 1.0):  # of pixels in [-1, 1]
        nats = (alpha2 * square + (1 - alpha2) - 1 - math.log(1 - alpha2)) / 2
        assert 5e-6 * (square / 0.25) < nats / math.log(2) < 1e-5 * (square / 0.25)


def test_the_linear_chain_drowns_images_earlier_than_the_cosine() -> None:
    """Nichol and Dhariwal: a fifth of it and more has less signal than the cosine has before its last twentieth."""
    t = f64(0.8)
    assert DDPM.lam(t) < OffsetCosine(0.008).lam(f64(0.95)) < OffsetCosine(0.008).lam(t)


# The same under other names -------------------------------------------------------------------------------------------


def test_one_shift_of_lam_goes_by_three_names() -> None:
    """log(64 / d) of simple diffusion, log b of input scaling, and the time shift of rectified flows."""
    t, k = f64(0.05, 0.3, 0.5, 0.8), 4.0
    assert torch.allclose(ShiftedCosine(k).lam(t), Cosine().lam(t) + math.log(1 / k))
    assert torch.allclose(ScaledSigmoid(0.9, 1 / k).lam(t), ScaledSigmoid(0.9, 1.0).lam(t) - math.log(k))
    later = k * t / (1 + (k - 1) * t)  # eq. 23 of Esser et al. with sqrt(n / m) = k
    assert torch.allclose(StraightPath().lam(later), StraightPath().lam(t) - math.log(k))


def test_averaging_pixels_under_the_shifted_schedule_gives_the_noise_of_the_reference() -> None:
    """2 x 2 means of constant images at twice the reference resolution: deviation of the noise over the signal."""
    t, shifted = f64(0.4), ShiftedCosine(2.0)
    eps = torch.randn(1, 1, 512, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pooled = torch.nn.functional.avg_pool2d(shifted.diffuse(torch.ones_like(eps), eps, t), 2)
    assert math.isclose(pooled.std() / pooled.mean(), torch.exp(-Cosine().lam(t)), rel_tol=0.02)


def test_the_sigmoid_is_the_papers() -> None:
    """gamma(t) of its algorithm 1 for tau = 1: half the signal is left in the middle, and the ends are stretched."""
    process, t = ScaledSigmoid(1.0, 0.5), f64(0.25, 0.5)
    start, end = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
    gamma = (end - 1 / (1 + math.exp(1.5))) / (end - start)
    b = 0.5  # here x_t is that of the paper over b
    assert torch.allclose(b * process.alpha(t), b * f64(gamma, 0.5).sqrt())
    assert torch.allclose(b * process.sigma(t), f64(1 - gamma, 0.5).sqrt())
    scale = Noise().input_scale(process, t)
    assert scale is not None
    assert torch.allclose(scale**2 * (process.alpha(t) ** 2 + process.sigma(t) ** 2), f64(1, 1)), "variance one"


def test_laplace_draws_are_laplace() -> None:
    """Half of log SNR; against the quantiles at which the distribution is known, and its mean distance from mu."""
    drawn = LaplaceLam(0.6, 0.5)(Cosine(), 40_000, torch.Generator().manual_seed(0))
    log_snr = 2 * Cosine().lam(drawn)
    assert abs(log_snr.median() - 0.6) < 0.02 and abs((log_snr - 0.6).abs().mean() - 0.5) < 0.02
    assert abs((log_snr > 0.6 + 0.5 * math.log(5)).double().mean() - 0.1) < 0.01
    other = LaplaceLam(0.6, 0.5)(StraightPath(), 40_000, torch.Generator().manual_seed(0))
    assert torch.allclose(2 * StraightPath().lam(other), log_snr), "the same levels on any process"


def test_the_laplace_schedule_is_that_of_diffusers() -> None:
    """Which multiplies alpha, not alpha^2, out of its betas, so that log SNR is the logit of the square."""
    kept = table("laplace", 1e-4, 0.02)[100:900]
    first = math.sqrt(1 / (1 + math.exp(0.5 * math.log(1e-6))))  # its alpha at time 0, where the logarithm is cut off
    lam = torch.logit((kept * first) ** 2) / 2
    assert torch.allclose(lam, LaplaceLam(0.0, 0.5).at(STEPS[100:900]), atol=1e-3)


def test_p2_is_the_papers_weight_on_the_noise_loss() -> None:
    """1 / (k + SNR)^gamma on eps; with k = gamma = 1: sigma^2, which is alpha^2 on x_0 and their product on v."""
    process, t = Cosine(), f64(0.1, 0.5, 0.9)
    lam, gain = process.lam(t), Noise().gain(process, t)
    for gamma, k in ((0.5, 1.0), (1.0, 1.0), (2.0, 0.3)):
        expected = 1 / (k + torch.exp(2 * lam)) ** gamma
        assert torch.allclose(PerceptionPrioritized(gamma, k).on_target(lam, gain), expected)
    plain = PerceptionPrioritized(1.0, 1.0)
    assert torch.allclose(plain.on_target(lam, gain), process.sigma(t) ** 2)
    assert torch.allclose(plain(lam), process.alpha(t) ** 2)
    on_velocity = plain.on_target(lam, Velocity().gain(process, t))
    assert torch.allclose(on_velocity, (process.alpha(t) * process.sigma(t)) ** 2), "largest where they are equal"


def test_zero_terminal_snr_wants_the_velocity() -> None:
    with pytest.raises(Conflict, match="Velocity"):
        compose(BASE, replace(zero_terminal_snr(), name="zero_terminal_snr"))
    recipe = recipe_of("v_prediction", "zero_terminal_snr")
    first = recipe.grid(recipe.process, 25)[0]  # pyright: ignore[reportCallIssue]
    a, b = recipe.parameterization.pair(recipe.process, first)
    assert math.isclose(a, -1, rel_tol=1e-6) and abs(b) < 1e-8, "at the first step it predicts minus the image"


# The stochastic differential equation ---------------------------------------------------------------------------------


def test_the_exploding_process_solves_its_equation() -> None:
    """d sigma^2 / dt = g^2 with g = s(t) sqrt(2 log(sigma_max / sigma_min)), appendix C of Song et al."""
    process, t, h = GeometricVE(50.0), f64(0.2, 0.5, 0.9), 1e-5
    slope = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    assert torch.allclose(slope, (0.01 * 5000**t) ** 2 * 2 * math.log(5000), rtol=1e-6)
    assert math.isclose(process.sigma(f64(1.0)), 50.0, rel_tol=1e-7)


class Given(SampleNoise):
    """The same given noise at every call."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return self.z


def test_a_step_is_the_papers_algorithm() -> None:
    """x + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) z, after x + e score + sqrt(2 e) z."""
    process, exact = GeometricVE(50.0), gaussian(GeometricVE(50.0))
    x, z = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, s = f64(0.7, 0.6)
    before, after = (process.sigma(u).item() ** 2 for u in (t, s))

    def score(x: Tensor) -> Tensor:
        return -x / (0.25 + before)

    step = 2 * (0.16 * z.norm(dim=1, keepdim=True) / score(x).norm(dim=1, keepdim=True)) ** 2
    moved = x + step * score(x) + (2 * step).sqrt() * z
    expected = moved + (before - after) * score(moved) + math.sqrt(before - after) * z
    found, _ = PredictorCorrector(1, 0.16).step(lambda x, t: exact(x, t), process, x, t, s, None, Given(z))
    assert torch.allclose(found, expected)
    last, _ = PredictorCorrector(0, 0.16).step(lambda x, t: exact(x, t), process, x, t, f64(0.0)[0], None, Given(z))
    assert torch.allclose(last, exact(x, t)), "the last step adds no noise"


def test_corrections_do_not_depend_on_the_process_and_repair_what_few_predictions_leave() -> None:
    """Deviation of a Gaussian after twelve steps of prediction, with and without a correction before each."""
    ends = {}
    for process in (GeometricVE(50.0), Cosine()):
        exact = gaussian(process)
        times = torch.cat([process.time(torch.linspace(-3, 3, 13, dtype=torch.float64)), f64(0.0)])
        x = process.sigma(times[0]) * torch.randn(400, 50, generator=torch.Generator().manual_seed(1)).double()
        for corrections in (0, 1):
            noise = SampleNoise(range(400))
            end = PredictorCorrector(corrections, 0.16)(exact, x, times, None, noise)
            ends[type(process).__name__, corrections] = end.std().item()
    assert math.isclose(ends["GeometricVE", 1], ends["Cosine", 1], rel_tol=1e-6)
    assert abs(ends["GeometricVE", 1] - 0.5) < abs(ends["GeometricVE", 0] - 0.5) - 0.01, ends


def test_without_corrections_a_sample_costs_half_the_evaluations() -> None:
    process = GeometricVE(50.0)
    calls = []
    for corrections in (0, 1, 2):
        exact = gaussian(process)
        x = torch.zeros(2, 50, dtype=torch.float64) + 0.1
        PredictorCorrector(corrections, 0.16)(exact, x, UniformTime()(process, 5), None, SampleNoise([0, 1]))
        calls.append(exact.calls)
    assert calls == [5, 10, 15]


# A learned schedule ---------------------------------------------------------------------------------------------------


def drawn(rate: float, updates: int, loss: Callable[[Tensor], Tensor]) -> tuple[Learned, Tensor, Tensor]:
    """A schedule after some updates on a loss of lam alone, and lam and what the estimate says of it, over all u."""
    learned, rng = Learned(low=1e-3, features=16, rate=rate), torch.Generator().manual_seed(0)
    for _ in range(updates):
        estimate = loss(Cosine().lam(learned(Cosine(), 32, rng))) * learned.slope
        learned.loss = estimate.detach()
        estimate.mean().backward()
    with torch.no_grad():
        lam = Cosine().lam(learned(Cosine(), 4096, rng))
        return learned, lam, loss(lam) * learned.slope


def test_a_monotone_network_rises_from_end_to_end() -> None:
    schedule, u = Monotone(16, torch.Generator().manual_seed(0)), torch.linspace(0, 1, 101, dtype=torch.float64)
    with torch.no_grad():
        schedule.rise.fill_(-5)
        schedule.slope.uniform_(-20, 20)
        schedule.place.uniform_(-5, 5)
        bent = schedule(u)
    assert bent[0] == 0 and bent[-1] == 1 and (bent.diff() > 0).all()
    assert (bent - u).abs().max() > 0.02


def test_the_bound_is_the_same_under_every_schedule_and_steadier_under_the_learned_one() -> None:
    """Its variance is least, zero, where the slope is as large as the loss is small."""
    _, straight, before = drawn(0.0, 1, lambda lam: 0.05 + torch.sigmoid(lam))
    learned, bent, after = drawn(0.02, 400, lambda lam: 0.05 + torch.sigmoid(lam))
    assert [straight.min().item(), straight.max().item()] == pytest.approx(
        [bent.min().item(), bent.max().item()], abs=0.1
    )
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=1e-3)
    assert after.var() / before.var() < 0.2
    assert (learned.slope[bent > 2].mean() / learned.slope[bent < -2].mean()).item() < 0.5


def test_the_schedule_learns_from_the_square_of_the_loss_and_the_denoiser_from_the_loss() -> None:
    """The gradients that one pass backwards leaves, against those of both sums apart."""
    recipe = recipe_of("learned_schedule_vdm")
    net = Scaled()
    student = Network(net, recipe.process, recipe.parameterization, None)
    x0 = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for power in (1, 1, 2):
        objective = recipe.objective
        assert isinstance(objective, Steadied)
        losses = objective(student, student, x0, None, torch.Generator().manual_seed(2))
        schedule = objective.drawn.schedule
        assert schedule is not None
        if len(found):  # without the hooks' factor
            objective.drawn.loss = torch.full_like(losses, 0.5)
        of = [net.share, schedule.rise, schedule.slope, schedule.place]
        found.append(torch.autograd.grad(losses.pow(power).mean(), of))
    both, plain, squared = found
    assert torch.equal(both[0], plain[0])
    for got, wanted in zip(both[1:], squared[1:], strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-12)
    assert not torch.allclose(both[1], plain[1], rtol=0.1)


def test_times_are_evenly_spaced_on_a_straight_schedule() -> None:
    learned, lam, _ = drawn(0.0, 1, torch.ones_like)
    spaced = lam.sort().values.diff()
    assert torch.allclose(spaced, spaced.mean(), rtol=1e-2)
    assert learned.slope.mean().item() == pytest.approx(4096 * spaced.mean().item(), rel=1e-2)


class Scaled(nn.Module):
    """Answers with a share of its input, which it can learn."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return self.share * x
