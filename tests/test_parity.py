"""Members with a counterpart in diffusers equal it on a fixed denoiser, at times built from its noise levels."""

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from torch import Tensor

from catalog import load
from methods.core.denoiser import Denoiser, Mixture
from methods.core.objective import UnitOnTarget
from methods.core.parameterization import Noise
from methods.core.process import Cosine, Process, like
from methods.core.sampling import SampleNoise, Sampler, UniformAngle
from methods.inference.ode_solver.ddim import DDIM, StochasticDDIM
from methods.inference.ode_solver.dpm_solver import DPMSolver, DPMSolver1, DPMSolver2, DPMSolver3
from methods.inference.ode_solver.dpm_solver_pp_2m import DPMSolverPP2M
from methods.inference.ode_solver.edm_heun import Heun
from methods.inference.ode_solver.pndm_plms import PLMS
from methods.inference.ode_solver.unipc import UniPC
from methods.inference.parallel_sampling.paradigms import ParaDiGMS
from methods.inference.timestep_schedule.karras_rho_schedule import KarrasRho
from methods.nets.dit import DiT, DiTConfig, positions
from methods.training.flow.flow_matching import FlowVelocity, StraightPath
from methods.training.noise_process.immiscible_diffusion import NearestAssignment
from methods.training.objective.edm_preconditioning import SIGMA_MAX, Preconditioned, VarianceExploding
from methods.training.objective.min_snr_weighting import MinSNR
from methods.training.objective.v_prediction import Velocity

CHAIN = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
ALPHA2 = DDPMScheduler(**CHAIN).alphas_cumprod.double()
LABELS = torch.zeros(6, dtype=torch.long)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def exact(process: Process) -> Mixture:
    means = gaussian(4, 3, seed=5)
    return Mixture(means, torch.tensor([0.3, 0.5, 0.2, 0.4]).double(), torch.full((4,), 0.25).double(), process)


def times_of(process: Process, alpha2: Tensor) -> Tensor:
    """The times at which a process has these alpha^2 of a variance-preserving chain, then 0."""
    return torch.cat([process.time(torch.log(alpha2 / (1 - alpha2)) / 2), torch.zeros(1, dtype=torch.float64)])


class Scripted(SampleNoise):
    """Noise from one generator in float64, in the order in which it is asked for."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.generator = n, rng(seed)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn((self.n, *shape), generator=self.generator, dtype=torch.float64)


def ours(sampler: Sampler, denoiser: Denoiser, x: Tensor, times: Tensor, seed: int = 1) -> Tensor:
    return sampler(denoiser, x, times, LABELS[: len(x)], Scripted(len(x), seed))


def noise_of(denoiser: Mixture, x: Tensor, t: Tensor) -> Tensor:
    """The noise prediction that stands for the exact denoiser."""
    process = denoiser.process
    return (x - like(process.alpha(t), x) * denoiser(x, t)) / like(process.sigma(t), x)


def theirs(step: Callable[[Tensor, Tensor, int], Tensor], timesteps: Tensor, x: Tensor) -> Tensor:
    for i, t in enumerate(timesteps):
        x = step(x, t, i)
    return x


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(steps: int, eta: float) -> None:
    scheduler = DDIMScheduler(**CHAIN, clip_sample=False)
    scheduler.set_timesteps(steps)
    denoiser, x, noise = exact(Cosine()), gaussian(6, 3), Scripted(6, 1)
    times = times_of(Cosine(), ALPHA2[scheduler.timesteps])

    def step(x: Tensor, t: Tensor, i: int) -> Tensor:
        eps = noise_of(denoiser, x, times[i])
        fresh = noise((3,)) if eta else None
        return scheduler.step(eps, t, x, eta=eta, variance_noise=fresh).prev_sample

    solver = StochasticDDIM(eta) if eta else DDIM()
    close(ours(solver, denoiser, x, times), theirs(step, scheduler.timesteps, x))


def test_eta_one_is_ancestral_sampling() -> None:
    """DDPM's sampler with the small posterior variance, through 25 of its 1,000 steps."""
    scheduler = DDPMScheduler(**CHAIN, clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(25)
    denoiser, x, generator = exact(Cosine()), gaussian(6, 3), rng(1)
    times = times_of(Cosine(), ALPHA2[scheduler.timesteps])

    def step(x: Tensor, t: Tensor, i: int) -> Tensor:
        return scheduler.step(noise_of(denoiser, x, times[i]), t, x, generator=generator).prev_sample

    close(ours(StochasticDDIM(1.0), denoiser, x, times), theirs(step, scheduler.timesteps, x))


@pytest.mark.parametrize("steps", [4, 10, 25])
def test_dpm_solver_pp_2m(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        **CHAIN, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    denoiser, x = exact(Cosine()), gaussian(6, 3)
    sigmas = scheduler.sigmas.double()[:-1]
    times = times_of(Cosine(), 1 / (1 + sigmas**2))

    def step(x: Tensor, t: Tensor, i: int) -> Tensor:
        return scheduler.step(noise_of(denoiser, x, times[i]), t, x).prev_sample

    close(ours(DPMSolverPP2M(), denoiser, x, times), theirs(step, scheduler.timesteps, x))


def both_singlestep(solver: DPMSolver, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where a solver ends, where diffusers' does with as many evaluations, and where the flow does.

    Theirs predicts noise only down to a last level of some, and its final estimate of x_0 is taken here; it takes the
    inner points of a step from the grid.
    """
    settings = {**CHAIN, "solver_order": solver.order, "solver_type": "midpoint", "lower_order_final": True}
    clean = DPMSolverSinglestepScheduler(**settings, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    scheduler = DPMSolverSinglestepScheduler(**settings, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(len(times) - 2)
    scheduler.sigmas = torch.exp(-Cosine().lam(times[:-1]))
    scheduler.order_list = clean.get_order_list(len(times) - 1)[:-1]
    denoiser, x = exact(Cosine()), gaussian(6, 3)

    def step(x: Tensor, t: Tensor, i: int) -> Tensor:
        return scheduler.step(noise_of(denoiser, x, times[i]), t, x).prev_sample

    end = denoiser(theirs(step, scheduler.timesteps, x), times[-2])
    first, last = Cosine().lam(times[[0, -2]]).tolist()
    fine = Cosine().time(torch.linspace(first, last, 1001, dtype=torch.float64))
    truth = denoiser(ours(DPMSolverPP2M(), denoiser, x, fine), times[-2])
    return ours(solver, denoiser, x, times), end, truth


@pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning")
@pytest.mark.parametrize("solver", [DPMSolver1(), DPMSolver2()], ids=str)
@pytest.mark.parametrize("steps", [5, 6, 9, 10])
def test_dpm_solver(solver: DPMSolver, steps: int) -> None:
    """On a grid that is even in lam, inner points are points of the grid."""
    levels = torch.linspace(-3.5, 3.5, steps, dtype=torch.float64)
    end, expected, _ = both_singlestep(solver, torch.cat([Cosine().time(levels), torch.zeros(1).double()]))
    close(end, expected)


@pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning")
@pytest.mark.parametrize("solver", [DPMSolver2(), DPMSolver3()], ids=str)
@pytest.mark.parametrize("steps", range(5, 11))
def test_dpm_solver_is_no_worse_than_theirs_on_the_baselines_grid(solver: DPMSolver, steps: int) -> None:
    end, expected, truth = both_singlestep(solver, UniformAngle()(Cosine(), steps))
    assert (end - truth).norm() <= (expected - truth).norm()


@pytest.mark.parametrize("steps", [4, 5, 10, 25])
def test_plms(steps: int) -> None:
    """Theirs names the second time twice: once for the end of the first step, once for the step that begins there."""
    scheduler = PNDMScheduler(**CHAIN, skip_prk_steps=True, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    denoiser, x = exact(Cosine()), gaussian(6, 3)
    times = times_of(Cosine(), ALPHA2[torch.unique(scheduler.timesteps).flip(0)])

    def step(x: Tensor, t: Tensor, i: int) -> Tensor:
        return scheduler.step(noise_of(denoiser, x, times[max(i - 1, min(i, 1))]), int(t), x).prev_sample

    assert len(scheduler.timesteps) == steps + 1 and len(times) == steps + 1
    close(ours(PLMS(), denoiser, x, times), theirs(step, scheduler.timesteps, x))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("steps", [3, 5, 7, 10, 25])
def test_unipc(order: int, steps: int) -> None:
    scheduler = UniPCMultistepScheduler(
        **CHAIN, solver_order=order, solver_type="bh2", predict_x0=True, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    denoiser, x = exact(Cosine()), gaussian(6, 3)
    times = times_of(Cosine(), 1 / (1 + scheduler.sigmas.double()[:-1] ** 2))

    def step(x: Tensor, t: Tensor, i: int) -> Tensor:
        return scheduler.step(noise_of(denoiser, x, times[i]), t, x).prev_sample

    close(ours(UniPC(order), denoiser, x, times), theirs(step, scheduler.timesteps, x))


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("steps", [3, 10])
def test_heun(steps: int, karras: bool) -> None:
    """Theirs works on x / alpha with the noise-to-signal ratio as time, which is our variance-exploding process."""
    scheduler = HeunDiscreteScheduler(**CHAIN, use_karras_sigmas=karras)
    scheduler.set_timesteps(steps)
    process = VarianceExploding()
    denoiser, x = exact(process), scheduler.init_noise_sigma * gaussian(6, 3)
    sigmas = scheduler.sigmas.double()
    times = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]]) / SIGMA_MAX

    def step(x: Tensor, t: Tensor, i: int) -> Tensor:
        eps = noise_of(denoiser, x, sigmas[i] / SIGMA_MAX)
        return scheduler.step(eps, t, x).prev_sample

    assert len(times) == steps + 1 and len(scheduler.timesteps) == 2 * steps - 1
    close(ours(Heun(), denoiser, x, times), theirs(step, scheduler.timesteps, x))


def test_ddim_on_the_straight_path_is_euler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(12)
    denoiser, x, process = exact(StraightPath()), gaussian(6, 3), StraightPath()
    times = scheduler.sigmas.double()
    times[0] = 1 - 1e-9  # theirs starts where lam is not finite

    def step(x: Tensor, t: Tensor, i: int) -> Tensor:
        x0 = denoiser(x, times[i])
        velocity = FlowVelocity().target(process, x0, noise_of(denoiser, x, times[i]), times[i])
        return scheduler.step(velocity, t, x, return_dict=False)[0].double()

    close(ours(DDIM(), denoiser, x, times), theirs(step, scheduler.timesteps, x))


def test_karras_levels() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_schedule="karras", rho=7.0)
    for steps in (4, 18, 40):
        scheduler.set_timesteps(steps)
        times = KarrasRho(7.0, 0.002, 80.0)(VarianceExploding(), steps)
        assert torch.allclose(VarianceExploding().sigma(times), scheduler.sigmas.double(), rtol=1e-4)
        ratio = torch.exp(-Cosine().lam(KarrasRho(7.0, 0.002, 80.0)(Cosine(), steps)))
        assert torch.allclose(ratio, scheduler.sigmas.double(), rtol=1e-4)


def test_edm_noise_levels() -> None:
    """ln sigma ~ N(-1.2, 1.2^2)."""
    density = load().technique("edm_preconditioning").call({}).edits["times"]
    drawn = torch.log(VarianceExploding().sigma(density(VarianceExploding(), 40_000, rng())))
    assert abs(drawn.mean() + 1.2) < 0.03 and abs(drawn.std() - 1.2) < 0.03


def test_edm_preconditioning() -> None:
    scheduler, process, scaling = EDMEulerScheduler(sigma_data=0.5), VarianceExploding(), Preconditioned(0.5)
    x, output = gaussian(6, 3), gaussian(6, 3, seed=1)
    for sigma in torch.tensor([0.002, 0.1, 0.5, 1.0, 7.0, 80.0], dtype=torch.float64):
        t = sigma / SIGMA_MAX
        assert torch.allclose(like(scaling.input_scale(process, t), x) * x, scheduler.precondition_inputs(x, sigma))
        assert torch.allclose(scaling.clean(process, x, output, t), scheduler.precondition_outputs(x, output, sigma))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr(gamma: float) -> None:
    """min(SNR, gamma) / SNR on the noise and / (SNR + 1) on v, as diffusers' training scripts have it."""
    timesteps = torch.arange(0, 1000, 7)
    snr = compute_snr(DDPMScheduler(**CHAIN), timesteps).double()
    t = times_of(Cosine(), ALPHA2[timesteps])[:-1]
    clamped = snr.clamp(max=gamma)
    for parameterization, expected in ((Noise(), clamped / snr), (Velocity(), clamped / (snr + 1))):
        weight = MinSNR(gamma).on_target(Cosine().lam(t), parameterization.gain(Cosine(), t))
        assert torch.allclose(weight, expected, rtol=1e-4)
    assert (UnitOnTarget().on_target(Cosine().lam(t), t) == 1).all()


def test_velocity() -> None:
    scheduler, timesteps = DDPMScheduler(**CHAIN), torch.tensor([0, 3, 200, 500, 900, 999])
    x0, eps, t = gaussian(6, 3), gaussian(6, 3, seed=1), times_of(Cosine(), ALPHA2[timesteps])[:-1]
    close(Velocity().target(Cosine(), x0, eps, t), scheduler.get_velocity(x0, eps, timesteps))
    close(Cosine().diffuse(x0, eps, t), scheduler.add_noise(x0, eps, timesteps))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7)])
def test_logit_normal_times(mean: float, std: float) -> None:
    """The two samples agree in every percentile between the 5th and the 95th."""
    technique = load().technique("logit_normal_timesteps")
    density = technique.call({"mean": mean, "std": std}).edits["times"]
    drawn = density(StraightPath(), 100_000, rng())
    expected = compute_density_for_timestep_sampling("logit_normal", 100_000, mean, std, generator=rng(1))
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    assert torch.allclose(drawn.quantile(levels), expected.double().quantile(levels), atol=0.01)


@pytest.mark.parametrize("window", [1, 4, 7, 40])
@pytest.mark.parametrize("process", [Cosine(), StraightPath()], ids=["cosine", "straight"])
def test_paradigms_with_tolerance_zero_is_ddim(window: int, process: Process) -> None:
    denoiser, x, times = exact(process), gaussian(6, 3), UniformAngle()(process, 20)
    sequential = ours(DDIM(), denoiser, x, times)
    before = denoiser.rows
    close(ours(ParaDiGMS(window, 0.0), denoiser, x, times), sequential, 1e-10)
    if window == 1:
        assert denoiser.rows - before == 20 * len(x)


def test_paradigms_approaches_ddim_as_the_tolerance_falls() -> None:
    """Fewer rounds than steps at a loose tolerance, and an error that falls with it."""
    denoiser, x, times = exact(Cosine()), gaussian(6, 3), UniformAngle()(Cosine(), 50)
    sequential = ours(DDIM(), denoiser, x, times)
    errors, rounds = [], []
    for tolerance in (0.3, 0.1, 0.03, 0.001):
        before = denoiser.calls
        errors.append(float((ours(ParaDiGMS(16, tolerance), denoiser, x, times) - sequential).norm()))
        rounds.append(denoiser.calls - before)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-2
    assert rounds == sorted(rounds) and rounds[1] < 50


def sliding_window(denoiser: Mixture, x: Tensor, times: Tensor, window: int, tolerance: float) -> tuple[Tensor, int]:
    """Shih et al. 2023, algorithm 1, for one sample and a DDIM drift, state by state: the end and the rounds."""
    process, last = denoiser.process, len(times) - 1
    path, first, rounds = [x] * (last + 1), 0, 0
    while first < last:
        end, rounds = min(first + window, last), rounds + 1
        drifts = []
        for j in range(first, end):
            moved = DDIM().step(denoiser, process, path[j], times[j], times[j + 1], None, Scripted(1, 0))[0]
            drifts.append(moved - path[j])
        new = [path[first] + torch.stack(drifts[: j + 1]).sum(0) for j in range(len(drifts))]
        stride = end - first
        for j in reversed(range(len(new))):
            t, s = times[first + j], times[first + j + 1]
            variance = process.sigma(s) ** 2 * (1 - torch.exp(2 * (process.lam(t) - process.lam(s))))
            if (new[j] - path[first + j + 1]).square().mean() > tolerance**2 * variance:
                stride = j + 1
        path[first + 1 :] = new + [new[-1]] * (last - end)
        first += stride
    return path[-1], rounds


@pytest.mark.parametrize(("window", "tolerance"), [(4, 0.1), (16, 0.1), (16, 0.5), (50, 0.3)])
def test_paradigms_follows_the_algorithm_sample_by_sample(window: int, tolerance: float) -> None:
    denoiser, x, times = exact(Cosine()), gaussian(6, 3), UniformAngle()(Cosine(), 30)
    alone = [sliding_window(denoiser, row[None], times, window, tolerance) for row in x]
    before = denoiser.calls
    close(ours(ParaDiGMS(window, tolerance), denoiser, x, times), torch.cat([end for end, _ in alone]), 1e-10)
    assert denoiser.calls - before == max(rounds for _, rounds in alone)


def test_paradigms_evaluates_nothing_beyond_the_end() -> None:
    """A loose tolerance makes every window final at once: the windows tile the grid, one evaluation a step."""
    denoiser, x, times = exact(Cosine()), gaussian(6, 3), UniformAngle()(Cosine(), 10)
    before = denoiser.rows
    ours(ParaDiGMS(4, 1e6), denoiser, x, times)

    assert denoiser.rows - before == 10 * len(x)


def test_the_assignment_is_optimal() -> None:
    """No permutation of five noises is nearer in total, and the noises are the batch's own."""
    for seed in range(5):
        x0 = torch.randn(5, 1, 2, 2, generator=rng(seed))
        eps = torch.randn(x0.shape, generator=rng(100 + seed))
        assigned = NearestAssignment()(x0, rng(100 + seed))
        distance = torch.cdist(x0.flatten(1), eps.flatten(1))
        best = min(sum(distance[i, j] for i, j in enumerate(order)) for order in permutations(range(5)))
        assert torch.isclose((x0 - assigned).flatten(1).norm(dim=1).sum(), torch.as_tensor(best), rtol=1e-5)
        assert torch.equal(assigned.flatten().sort().values, eps.flatten().sort().values)


def test_dit_shapes_parameters_and_beginning() -> None:
    """As published: 12 width^2 a block and 6 for its modulation, zero output at first, patches back in their places."""
    config = DiTConfig(patch=2, width=32, depth=3, heads=4)
    net = config.build((3, 8, 8), 10)
    assert isinstance(net, DiT) and len(net.position) == 16
    weights = sum(p.numel() for name, p in net.blocks.named_parameters() if name.endswith("weight"))
    assert weights == 3 * (4 + 8 + 6) * 32**2
    x, u, labels = torch.randn(4, 3, 8, 8), torch.rand(4), torch.tensor([0, 3, 9, -1])
    assert net(x, u, labels).shape == x.shape and (net(x, u, labels) == 0).all()
    torch.nn.init.normal_(net.head.pixels.weight)
    moved = x.clone()
    moved[:, :, 2:4, 4:6] += 1  # blocks are still the identity, so a patch changes itself alone
    changed = (net(moved, u, labels) != net(x, u, labels)).any(dim=1)
    assert changed[:, 2:4, 4:6].all() and changed.sum() == 4 * 4
    for gate in (net.blocks[0].get_submodule("modulation"), net.head.modulation):
        torch.nn.init.normal_(gate.get_parameter("weight"))
    conditioned = net(x, u, labels)
    assert not torch.allclose(conditioned[:1], net(x, u, (labels + 1) % 10)[:1])


def test_dit_positions_equal_diffusers() -> None:
    expected = torch.as_tensor(get_2d_sincos_pos_embed(32, 4, base_size=4, output_type="pt")).float()
    column_first = torch.cat([torch.arange(16, 32), torch.arange(16)])
    assert torch.allclose(positions(4, 4, 32)[:, column_first], expected, atol=1e-5)
