"""Consistency models, shortcuts and average velocities against the closed flow of a Gaussian.

For data N(m, s^2) the flow keeps (x_t - alpha m) / sqrt(v_t), v_t = alpha^2 s^2 + sigma^2: so the end of a trajectory,
and the average velocity between two of its points, are known.
"""

import math
from dataclasses import replace

import pytest
import torch
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor, nn

from methods.baseline import baseline
from methods.core.denoiser import NULL, Denoiser, Labels, Mixture, Network
from methods.core.fit import Fit
from methods.core.objective import Independent, UniformTimes
from methods.core.process import Cosine, Process, lam_of_angle, like
from methods.core.sampling import SampleNoise, UniformAngle, transfer
from methods.inference.consistency import consistency_training_ict as ict
from methods.inference.consistency._objectives import Trailing, pseudo_huber
from methods.inference.consistency._shared import SIGMA_MIN, MultistepConsistency, consistency, noise_levels, ratio
from methods.inference.consistency.consistency_distillation import NeighbouringLevels
from methods.inference.consistency.ect import EasyTuning, mapping
from methods.inference.consistency.lcm import SkippedSteps
from methods.inference.few_step_training._shared import UNIT, AverageVelocity, Jumps, average_velocity
from methods.inference.few_step_training.meanflow import MeanFlowIdentity, both_sides
from methods.inference.few_step_training.shortcut_models import FINEST, EvenTimes, SelfConsistency, Shortcuts, start
from methods.nets.dit import DiTConfig
from methods.nets.embedding import sinusoid
from methods.nets.unet import UNetConfig
from methods.training.flow.flow_matching import StraightPath
from methods.training.objective.edm_preconditioning import SIGMA_MAX, VarianceExploding
from methods.training.objective.v_prediction import Velocity

MEAN, STD = torch.tensor([0.4, -0.3], dtype=torch.float64), 0.6
NOWHERE = UniformTimes()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(process: Process, mean: Tensor = MEAN) -> Mixture:
    return Mixture(mean[None], torch.tensor([STD]).double(), torch.ones(1).double(), process)


def data(n: int) -> Tensor:
    return MEAN + STD * torch.randn(n, 2, generator=rng(7), dtype=torch.float64)


def moved(process: Process, x: Tensor, t: Tensor, s: Tensor, mean: Tensor = MEAN) -> Tensor:
    """Where the flow takes x from t to s."""

    def spread(t: Tensor) -> Tensor:
        return torch.sqrt((process.alpha(t) * STD) ** 2 + process.sigma(t) ** 2)

    drift = like(process.alpha(s), x) * mean - like(process.alpha(t) * spread(s) / spread(t), x) * mean
    return drift + like(spread(s) / spread(t), x) * x


class Ends(nn.Module):
    """The velocity whose estimate of x_0 is the end of the trajectory."""

    def __init__(self, mean: Tensor = MEAN) -> None:
        super().__init__()
        self.mean, self.process = mean, Cosine()

    def end(self, x: Tensor, t: Tensor) -> Tensor:
        return moved(self.process, x, t, torch.zeros_like(t), self.mean)

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        """v = (alpha x_t - x_0) / sigma, and 0 at t = 0."""
        alpha, sigma = self.process.alpha(u)[:, None], self.process.sigma(u)[:, None]
        return (alpha * x - self.end(x, u)) / sigma.clamp(min=1e-12)


class Expectations(Ends):
    """The diffusion model's own velocity: its estimate of x_0 is the mean of all images x_t may come from."""

    def end(self, x: Tensor, t: Tensor) -> Tensor:
        return gaussian(self.process, self.mean)(x, t)


class Rescaled(Ends):
    """The velocity whose estimate of x_0 is x_t / alpha."""

    def end(self, x: Tensor, t: Tensor) -> Tensor:
        return x / like(self.process.alpha(t), x)


def student(net: nn.Module) -> Network:
    return Network(net, Cosine(), Velocity(), None)


# Consistency ----------------------------------------------------------------------------------------------------------


def test_the_boundary_condition_holds_whatever_the_network_says() -> None:
    net = UNetConfig(8).build((1, 8, 8), 3)
    nn.init.normal_(net.head.weight)
    x, labels = torch.randn(5, 1, 8, 8, generator=rng()), torch.arange(5) % 3
    clean, noisy = (torch.full((5,), t, dtype=torch.float64) for t in (0.0, 0.5))
    assert torch.equal(consistency(student(net), x, clean, labels), x)
    assert not torch.allclose(consistency(student(net), x, noisy, labels), x)


def test_distillation_is_at_rest_at_the_ends_of_the_trajectories() -> None:
    """The loss there is the squared error of one step of Heun, of third order; elsewhere it is not small."""
    teacher, x0 = gaussian(Cosine()), data(400)

    def loss(levels: int, net: nn.Module) -> float:
        return NeighbouringLevels(levels, 0.95)(student(net), teacher, x0, None, rng()).mean().item()

    assert loss(160, Ends()) < 1e-8 and loss(20, Ends()) / loss(40, Ends()) > 20
    assert loss(160, Expectations()) > 1000 * loss(160, Ends())


class Labelled(Denoiser):
    """A Gaussian for each label, the last of them for none."""

    def __init__(self, means: list[Tensor]) -> None:
        self.process = Cosine()
        self.exact = [gaussian(self.process, mean) for mean in means]

    def __call__(self, x_t: Tensor, t: Tensor, labels: Labels = None) -> Tensor:
        assert labels is not None
        known = torch.stack([exact(x_t, t) for exact in self.exact])
        return known[labels, torch.arange(len(x_t))]


def test_lcm_is_at_rest_at_the_ends_of_guided_trajectories() -> None:
    """The estimate is linear in the mean, so guidance by w leads to the Gaussian around (1 + w) m_c - w m."""
    means = [MEAN, MEAN + 0.5, MEAN - 0.5]
    teacher, labels = Labelled(means), torch.arange(300) % 2
    guided = torch.stack([2.5 * mean - 1.5 * means[NULL] for mean in means])[labels]

    def loss(mean: Tensor, skip: int) -> float:
        objective = SkippedSteps(skip, 1.5, 0.95)
        return objective(student(Ends(mean)), teacher, data(300), labels, rng()).mean().item()

    assert loss(guided, 5) < 1e-5 and 8 < loss(guided, 20) / loss(guided, 5) < 512  # h^4 for h four times as large
    assert loss(torch.stack(means)[labels], 5) > 10 * loss(guided, 5)


def test_the_pairs_of_lcm_lie_skip_steps_of_the_chain_apart_and_reach_both_ends() -> None:
    t, s = SkippedSteps(20, 1.0, 0.95).times(Cosine(), 20_000, rng())
    first = UniformAngle()(Cosine(), 1000)[0]
    assert torch.allclose((t - s) / first, torch.full_like(t, 0.02)) and s.min() == 0 and t.max() == first


def test_tuning_weighs_by_the_gap_and_shares_the_noise() -> None:
    """f = x_t / alpha = x_0 + rho eps: the difference is the gap of levels times eps, so the loss is || eps ||."""
    objective = EasyTuning(iterations=8, stages=8)
    for _ in range(8):
        losses = objective(student(Rescaled()), student(Rescaled()), data(4000), None, rng())
        eps = torch.randn(4000, 2, generator=rng())
        assert torch.allclose(losses.float(), eps.norm(dim=1), rtol=1e-2, atol=1e-3)


def test_the_second_level_of_ect_rises_from_zero_towards_the_first() -> None:
    t = torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=torch.float64)
    gaps = torch.stack([(t - mapping(t, stage)) / t for stage in range(1, 9)])
    assert (gaps.diff(dim=0) <= 0).all() and (gaps <= 1).all()
    assert gaps[0, :2].tolist() == [1.0, 1.0] and gaps[0, 3] == 0.5  # a diffusion model but for high noise
    assert torch.allclose(gaps[-1], (1 + 8 / (1 + torch.exp(t))) / 256)
    objective, seen = EasyTuning(iterations=16, stages=4), []
    for _ in range(16):
        late, early = objective.times(Cosine(), 500, rng())
        seen.append((ratio(Cosine(), early) / ratio(Cosine(), late)).max().item())
        assert (early < late).all() and late.max() <= Cosine().time(torch.tensor(-5.0))
    assert seen == pytest.approx([1 - 1 / 2**stage for stage in (1, 2, 3, 4) for _ in range(4)], abs=1e-2)


def test_the_curriculum_of_ict_doubles_in_equal_shares() -> None:
    """Song and Dhariwal's K' = floor(K / (log2(1280 / 10) + 1)) is an eighth of training."""
    found = [ict.curriculum(k, 800, 10, 1280) for k in range(800)]
    assert found == [10 * 2**stage + 1 for stage in range(8) for _ in range(100)]
    assert [ict.curriculum(k, 2, 10, 1280) for k in range(2)] == [11, 21]


def test_the_levels_of_ict_are_a_discretised_log_normal() -> None:
    """At the finest grid mean and deviation of log rho are those of the normal cut to the grid."""
    grid = noise_levels(Cosine(), 1281)
    assert ratio(Cosine(), grid[[0, -1]]).tolist() == pytest.approx([SIGMA_MIN, math.exp(5)])
    objective = ict.ConsistencyTraining(1, 1280, 1280, Independent())
    t, s = objective.times(Cosine(), 40_000, rng())
    assert (grid[torch.searchsorted(grid, s) + 1] == t).all()
    logs = torch.log(ratio(Cosine(), t))
    normal = -1.1 + 2.0 * torch.randn(400_000, generator=rng(1), dtype=torch.float64)
    kept = normal[(normal > math.log(SIGMA_MIN)) & (normal < 5)]
    assert abs(logs.mean() - kept.mean()) < 0.05 and abs(logs.std() - kept.std()) < 0.05


def test_pseudo_huber_is_a_norm_far_away_and_a_square_nearby() -> None:
    far, near = torch.full((1, 4), 3.0), torch.full((1, 4), 1e-3)
    assert pseudo_huber(far, 0.01).item() == pytest.approx(6.0 - 0.01, abs=1e-4)
    assert pseudo_huber(near.double(), 1.0).item() == pytest.approx(4e-6 / 2, rel=1e-3)


def test_a_target_network_trails_its_student() -> None:
    net = nn.Linear(1, 1, bias=False)
    trailing = Trailing(0.9)
    values = []
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(net.weight, value)
        values.append(next(trailing(student(net)).net.parameters()).item())
    assert values == pytest.approx([1.0, 0.9 * 1.0 + 0.1 * 2.0, 0.9 * 1.1 + 0.1 * 3.0])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_multistep_samples_of_the_exact_function_have_the_right_spread(steps: int) -> None:
    n, grid = 4000, UniformAngle()(Cosine(), steps)
    x = torch.randn(n, 2, generator=rng()).double() * Cosine().sigma(grid[0])
    found = MultistepConsistency()(student(Ends()), x, grid, None, SampleNoise(range(n)))
    assert (found.mean(0) - MEAN).abs().max() < 4 * STD / n**0.5 + 0.01
    assert (found.std(0) / STD - 1).abs().max() < 4 / (2 * n) ** 0.5 + 0.01


class Scripted(SampleNoise):
    """Noise from one generator, in the order in which it is asked for."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.generator = n, rng(seed)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn((self.n, *shape), generator=self.generator)


def test_multistep_sampling_is_that_of_diffusers() -> None:
    """Their boundary lies at sigma_min, which is put near ours at 0; the model's output is told to be the estimate."""
    process = VarianceExploding()
    scheduler = CMStochasticIterativeScheduler(40, sigma_min=2**-16, sigma_max=SIGMA_MAX, sigma_data=1e-9)
    scheduler.set_timesteps(timesteps=[39, 22, 7])
    times = process.time(-torch.log(scheduler.sigmas[:3].double()))
    exact, generator = gaussian(process), rng(1)
    x = torch.randn(6, 2, generator=rng()) * SIGMA_MAX
    ours = MultistepConsistency()(exact, x, torch.cat([times, times.new_zeros(1)]), None, Scripted(6, 1))
    for timestep, t in zip(scheduler.timesteps, times, strict=True):
        scheduler.scale_model_input(x, timestep)
        estimate = exact(x, t) / 1e-9  # c_out is sigma_data for a vanishing sigma_data
        x = scheduler.step(estimate, timestep, x, generator=generator).prev_sample  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.allclose(ours, x, atol=1e-3)


def test_multistep_sampling_is_that_of_the_lcm_scheduler() -> None:
    """Its scaling of the timestep leaves the estimate as it is but near t = 0."""
    scheduler = LCMScheduler(prediction_type="sample", clip_sample=False, timestep_scaling=1e6)
    scheduler.set_timesteps(4)
    alpha2 = scheduler.alphas_cumprod[scheduler.timesteps].double()
    times = torch.cat([Cosine().time(torch.log(alpha2 / (1 - alpha2)) / 2), torch.zeros(1).double()])
    exact, generator = gaussian(Cosine()), rng(1)
    x = torch.randn(6, 2, generator=rng())
    ours = MultistepConsistency()(exact, x, times, None, Scripted(6, 1))
    for timestep, t in zip(scheduler.timesteps, times[:-1], strict=True):
        x = scheduler.step(exact(x, t), int(timestep), x, generator=generator).prev_sample  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.allclose(ours, x, atol=1e-5)


# Jumps ----------------------------------------------------------------------------------------------------------------


class Averages(nn.Module):
    """The average velocity of the Gaussian's flow along straight paths."""

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        process = StraightPath()
        t = process.time(lam_of_angle(u[:, 0] / UNIT))
        r = t - u[:, 1] / UNIT
        x_t = x * like(torch.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2), x)
        return (x_t - moved(process, x_t, t, r, MEAN.to(x))) / like(t - r, x)


def jumper(net: nn.Module) -> Network:
    return Network(net, StraightPath(), AverageVelocity(), None)


def test_the_exact_average_velocity_obeys_the_identity() -> None:
    """u = v - (t - r) du/dt with v = (x_t - E[x_0 | x_t]) / t; with a third of the gap it is another's target."""
    network, process = jumper(Averages()), StraightPath()
    t = torch.linspace(0.2, 0.99, 40, dtype=torch.float64)
    r = t * torch.rand(40, generator=rng(), dtype=torch.float64) * 0.9
    x = process.diffuse(data(40), torch.randn(40, 2, generator=rng(1), dtype=torch.float64), t).float()
    velocity = (x - gaussian(process)(x, t)) / like(t, x)
    u, target = both_sides(network, x, t, r, velocity, None)
    assert torch.allclose(u, target, atol=2e-3), (u - target).abs().max()
    assert (both_sides(network, x, t, r, velocity + 0.5, None)[1] - u).abs().min() > 0.01


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_exact_jumps_end_where_the_flow_does(steps: int) -> None:
    process = StraightPath()
    grid = EvenTimes()(process, steps)
    assert grid[0] == start(process) and grid[-1] == 0 and torch.allclose(grid.diff(), grid.diff()[0])
    x = torch.randn(50, 2, generator=rng())
    end = moved(process, x, grid[0], grid[-1], MEAN.float())
    assert torch.allclose(Jumps()(jumper(Averages()), x, grid, None, SampleNoise(range(50))), end, atol=1e-3)


def test_two_exact_halves_make_the_exact_jump() -> None:
    objective, network = SelfConsistency(NOWHERE, Independent(), 0.25, 0.9), jumper(Averages())
    length, t = objective.jumps(StraightPath(), 400, rng())
    long = length > 3 * start(StraightPath()) / FINEST  # the halves of the shortest are told to be of length 0
    x, length, t = torch.randn(400, 2, generator=rng())[long], length[long], t[long]
    whole = average_velocity(network, x, t, (t - length).clamp(min=0), None)
    assert torch.allclose(objective.halves(network, x, t, length, None), whole, atol=5e-3)


class Told(nn.Module):
    """Answers with the length of the jump it is told."""

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return (u[:, 1:] / UNIT).expand_as(x)


def test_shortcuts_begin_at_multiples_of_their_length_and_rest_on_plain_velocities() -> None:
    objective, whole = SelfConsistency(NOWHERE, Independent(), 0.25, 0.9), start(StraightPath())
    length, t = objective.jumps(StraightPath(), 2000, rng())
    assert sorted(set((whole / length).round().int().tolist())) == [1, 2, 4, 8, 16, 32, 64]
    assert torch.allclose((t / length).round(), t / length) and (t >= length).all() and t.max() <= whole
    told = objective.halves(jumper(Told()), torch.zeros(2000, 2), t, length, None)[:, 0].double()
    assert torch.allclose(told, torch.where(length > 1.5 * whole / 64, length / 2, 0.0), atol=1e-6)


@pytest.mark.parametrize("iterations", [2, 1_560, 410_000])
def test_what_the_longest_shortcut_is_taught_arrives_early(iterations: int) -> None:
    """Seven doublings, each of which waits for the average of the one before, take a fiftieth of a training."""
    trained = replace(baseline(UNetConfig(8), Fit(iterations)), loss=Shortcuts(0.25))
    decay = trained.objective.target.decay
    assert 0 <= decay <= 0.999
    assert 7 / (1 - decay) <= max(7, iterations / 50)


def test_a_share_of_pairs_lies_apart() -> None:
    objective = MeanFlowIdentity(UniformTimes(), Independent(), 0.25)
    t, r = objective.pairs(StraightPath(), 400, rng())
    assert (r < t).sum() == 100 and (r[100:] == t[100:]).all()


def test_adaptive_weights_take_the_size_of_the_error_out_of_the_gradient() -> None:
    """error / (sg(error) + C): the loss is nearly 1 where the error is large, whatever its size."""
    objective = MeanFlowIdentity(UniformTimes(), Independent(), 0.25)
    large = objective(jumper(Told()), jumper(Told()), 50 * data(64).float(), None, rng())
    assert ((large > 0.99) & (large <= 1)).all()


@pytest.mark.parametrize("config", [UNetConfig(8), DiTConfig(2, 32, 1, 4)], ids=["unet", "dit"])
def test_networks_hear_both_numbers(config: UNetConfig | DiTConfig) -> None:
    """A plain evaluation is a jump of length 0; a jump of another length gives another answer."""
    net = config.build((1, 8, 8), 3)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    network, x = jumper(net), torch.randn(4, 1, 8, 8, generator=rng())
    t = torch.full((4,), 0.6, dtype=torch.float64)
    at_rest = average_velocity(network, x, t, t, None)
    assert torch.allclose(network.predict(x, t), at_rest, atol=1e-5)
    assert not torch.allclose(average_velocity(network, x, t, t - 0.5, None), at_rest, atol=1e-3)


def test_one_number_is_embedded_as_ever_and_two_share_the_channels() -> None:
    u = torch.rand(5, 2, generator=rng())
    one, other = sinusoid(u[:, 0], 16), sinusoid(u[:, 1], 16)
    assert torch.equal(one, sinusoid(u[:, :1], 16))
    waves = sinusoid(u, 32).unflatten(1, (2, 2, 8))  # (sine, cosine), number, frequency
    assert torch.equal(waves[:, :, 0].flatten(1), one) and torch.equal(waves[:, :, 1].flatten(1), other)


def test_transfer_with_the_mean_estimate_is_where_a_pair_leads_on_average() -> None:
    """Why tuning needs no teacher: regressing x_s on x_t over shared noise gives one Euler step of the flow."""
    process, n = Cosine(), 200_000
    t, s = torch.tensor(0.5).double(), torch.tensor(0.4).double()
    eps, x0 = torch.randn(n, 2, generator=rng(), dtype=torch.float64), data(n)
    x_t, x_s = process.diffuse(x0, eps, t), process.diffuse(x0, eps, s)
    euler = transfer(process, x_t, gaussian(process)(x_t, t), t, s)
    centred = x_t - x_t.mean(0)
    assert (x_s - euler).mean(0).abs().max() < 2e-3 and ((x_s - euler) * centred).mean(0).abs().max() < 2e-3
