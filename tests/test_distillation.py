"""Students, generators and discriminators against closed forms: what each is trained for, and what it costs."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from methods.baseline import baseline
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.data import TrainingSet
from methods.core.denoiser import NULL, Mixture, Network
from methods.core.fit import Fit
from methods.core.objective import Denoising, Independent, UniformTimes, UnitOnTarget
from methods.core.process import Cosine, Process
from methods.core.recipe import Method, NetConfig, compose
from methods.core.sampling import SampleNoise, UniformAngle
from methods.inference._distillation import Informed, Telling, affordable, cost, teacher_pairs
from methods.inference.adversarial._shared import Adversary, forward_step, noisier, posterior
from methods.inference.adversarial.ddgan import ddgan
from methods.inference.distribution_distillation import dmd
from methods.inference.ode_solver.ddim import DDIM, StochasticDDIM
from methods.inference.ode_solver.dpm_solver_pp_2m import DPMSolverPP2M
from methods.inference.trajectory_distillation.guided_distillation import MatchGuided, guided_distillation
from methods.inference.trajectory_distillation.kd_denoising_student import EndPoint, kd_denoising_student
from methods.inference.trajectory_distillation.reflow import Rectify, reflow
from methods.inference.trajectory_distillation.sfd import sfd, waypoints
from methods.nets.discriminator import Discriminator
from methods.nets.embedding import Conditioning
from methods.nets.unet import UNetConfig
from methods.training.flow.flow_matching import FlowVelocity, StraightPath, flow_matching
from methods.training.guidance.classifier_free_guidance import Guided
from methods.training.objective.v_prediction import Velocity

BASE = baseline(UNetConfig(8), Fit(12, batch=8, learning_rate=1e-3, warmup=1, ema=0.5))
SHAPE, CLASSES = (1, 8, 8), 3
PROCESSES = pytest.mark.parametrize("process", [Cosine(), StraightPath()], ids=["cosine", "straight"])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(mean: float, std: float, process: Process) -> Mixture:
    """The exact denoiser of one Gaussian on the line."""
    one = torch.ones(1)
    return Mixture(mean * one[:, None], std * one, one, process)


def data() -> TrainingSet:
    x = torch.randn(24, *SHAPE, generator=rng()).clamp(-1, 1)
    return TrainingSet(x, torch.arange(24) % CLASSES, CLASSES)


class Field(nn.Module):
    """A network given as a function of (x, u, labels)."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return self.function(x, u, labels)


# The budget -----------------------------------------------------------------------------------------------------------


class Multiply(nn.Module):
    """By a single weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return self.weight * x


class OneNumber(NetConfig):
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Multiply()


@pytest.mark.parametrize("distillation", [kd_denoising_student, reflow, sfd, dmd.dmd], ids=lambda m: m.__name__)
def test_a_distillation_costs_its_share_of_the_base_training(distillation: Callable[[], Method]) -> None:
    """Counted at the networks: every row evaluated is a third of an image, every row of an update a whole one."""
    fit = Fit(100, batch=16, warmup=10)
    recipe = compose(replace(BASE, fit=fit, net=OneNumber()), flow_matching(), distillation())
    rows = {True: 0, False: 0}

    def seen(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        rows[out.requires_grad] += len(out)

    model = models.build(recipe, SHAPE, CLASSES)
    model.net.requires_grad_(False).register_forward_hook(seen)
    images = run.compress(recipe, model, data(), 0)[1]
    assert abs(images / (rows[True] + rows[False] / 3) - 1) < 0.01
    assert abs(images / (0.5 * fit.iterations * fit.batch) - 1) < 0.05


def test_pairs_join_noise_to_where_the_sampler_takes_it() -> None:
    recipe = replace(BASE, grid=UniformAngle(), steps=5)
    model = models.build(recipe, SHAPE, CLASSES)
    torch.nn.init.normal_(model.net.get_parameter("head.weight"), generator=rng())
    pairs, labels, images = teacher_pairs(recipe, model, data(), DDIM(), 5, 0.5, seed=1)
    assert len(pairs) == len(labels) == int(0.5 * 12 * 8 * 3 / 5) and images == round(cost(0, 5) * len(pairs))

    class Same(SampleNoise):
        def __init__(self) -> None: ...

        def __call__(self, shape: tuple[int, ...]) -> Tensor:
            return pairs[:, 0]

    with torch.no_grad():
        deployed = run.deploy(recipe, model)
        x, times = model.starter(recipe.process, UniformAngle()(recipe.process, 5), SHAPE, labels, Same())
        ends = recipe.sampler(deployed.denoiser, x, times, labels, Same())  # pyright: ignore[reportCallIssue]
    assert torch.allclose(pairs[:, 1], ends, atol=1e-5) and pairs[:, 0].std() - 1 < 0.1


# Trajectories ---------------------------------------------------------------------------------------------------------


def test_the_one_step_student_of_a_gaussian_is_its_flow() -> None:
    """The flow of N(m, s^2) from x at t is known: x_0 = m + s (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    process, parameterization = Cosine(), Velocity()
    first, mean, std = UniformAngle()(process, 1)[0], 0.4, 0.3
    alpha, sigma = process.alpha(first), process.sigma(first)

    def velocity(x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        end = mean + std * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2).sqrt()
        return (alpha * x - end) / sigma  # x_0 = alpha x - sigma v

    student = Network(Field(lambda x, u, c: velocity(x, u, c).float()), process, parameterization, None)
    noise = torch.randn(64, 1, generator=rng())
    many = UniformAngle()(process, 400)
    ends = DDIM()(gaussian(mean, std, process), (sigma * noise).double(), many, None, SampleNoise([])).float()
    loss = EndPoint(first)(student, student, torch.stack([noise, ends], 1), None, rng())
    assert loss.max() < 0.01 and loss.shape == (64,)


def test_reflow_teaches_the_velocity_of_the_line_between_a_pair() -> None:
    """x_1 - x_0 at every point of the line: a network that knows the pairs has no loss, one off by d has d^2."""
    process = StraightPath()
    noise, end = torch.randn(2, 16, 3, generator=rng())
    for off in (0.0, 0.5):
        net = Field(lambda x, u, c, off=off: noise - end + off)
        student = Network(net, process, FlowVelocity(), None)
        regression = Denoising(UniformTimes(), UnitOnTarget(), Independent())
        loss = Rectify(regression)(student, student, torch.stack([noise, end], 1), None, rng())
        assert torch.allclose(loss, torch.full((16,), off**2), atol=1e-5)


@PROCESSES
def test_waypoints_are_on_the_teachers_trajectory(process: Process) -> None:
    """The last is the solver's end point, and every one is the exact flow's to the solver's accuracy."""
    mean, std, n, substeps = 0.4, 0.3, 3, 40
    teacher, times = gaussian(mean, std, process), UniformAngle()(process, n * substeps)
    x = torch.randn(8, 1, generator=rng(), dtype=torch.float64)
    points = waypoints(teacher, x, times, None, substeps)
    end = DPMSolverPP2M()(teacher, x, times, None, SampleNoise([]))
    assert len(points) == n and torch.equal(points[-1], end)

    def scale(t: Tensor) -> Tensor:
        return (process.alpha(t) ** 2 * std**2 + process.sigma(t) ** 2).sqrt()

    for t, point in zip(UniformAngle()(process, n)[1:], points, strict=True):
        exact = process.alpha(t) * mean + scale(t) * (x - process.alpha(times[0]) * mean) / scale(times[0])
        assert torch.allclose(point, exact, atol=1e-2)


def test_sfd_updates_after_every_step_of_every_trajectory() -> None:
    recipe = compose(BASE, sfd(steps=3, substeps=2, fraction=1.0))
    fit, _ = affordable(recipe, 1.0, updates=3, evaluations=6)
    with tallied() as counters:
        run.compress(recipe, models.build(recipe, SHAPE, CLASSES), data(), 0)
    assert counters["steps_taught"] == 3 * fit.iterations > 0


# Guidance -------------------------------------------------------------------------------------------------------------


def linear(x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
    """Some prediction that depends on all it is given."""
    return 0.3 * x + (u + 0.1 * labels)[:, None]


def test_the_guided_student_is_after_what_guidance_gives() -> None:
    """A student that answers as `Guided` would has no loss, whatever the weight."""
    process, parameterization = Cosine(), Velocity()
    teacher = Network(Field(linear), process, parameterization, None)
    asked: list[Tensor] = []

    def guided(x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        asked.append(u[:, 1])
        answers = []
        for row, (level, w), label in zip(x, u.double(), labels, strict=True):  # the cosine process: level is time
            x0 = Guided(teacher, w.item())(row[None], level, label[None])
            answers.append((process.alpha(level) * row - x0) / process.sigma(level))
        return torch.cat(answers).float()

    student = Network(Field(guided), process, parameterization, None)
    x0, labels = torch.randn(32, 4, generator=rng()), torch.arange(32) % 5
    loss = MatchGuided(UniformTimes(), UnitOnTarget(), 4.0)(student, teacher, x0, labels, rng())
    assert loss.max() < 1e-6
    assert asked[0].min() >= 0 and asked[0].max() <= 4 and asked[0].std() > 0.8  # 4 / sqrt(12) = 1.15


def test_a_student_begins_as_its_teacher_and_answers_for_no_guidance_if_it_is_told_none() -> None:
    recipe = compose(BASE, guided_distillation())
    model = models.build(recipe, SHAPE, CLASSES)
    for parameter in model.net.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=rng())
    (transform,) = recipe.transforms
    net = transform(model.net)
    x, u, labels = (
        torch.randn(4, *SHAPE, generator=rng()),
        torch.rand(4, generator=rng()),
        torch.tensor([0, 1, 2, NULL]),
    )
    told = torch.stack([u, torch.tensor([0.0, 1.0, 2.0, 4.0])], dim=1)
    with torch.no_grad():
        assert torch.allclose(net(x, told, labels), model.net(x, u, labels), atol=1e-6)
        torch.nn.init.normal_(net.get_parameter("conditioning.embedding.linear.weight"), generator=rng())
        assert not torch.allclose(net(x, told, labels)[1:], model.net(x, u, labels)[1:], atol=1e-3)
        told[:, 1] = 0
        assert torch.allclose(net(x, told, labels), net(x, u, labels), atol=1e-6)


def test_a_network_is_told_a_row_for_each_sample_or_one_for_all() -> None:
    seen: list[Tensor] = []

    def note(x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        seen.append(u)
        return x

    network = Network(Field(note), Cosine(), Velocity(), None)
    t = torch.tensor(0.25, dtype=torch.float64)
    for more in (torch.tensor([[2.0, 3.0]]), torch.tensor([[2.0, 3.0]]).repeat(3, 1)):
        Telling(network, more)(torch.zeros(3, 2), t)
    assert torch.equal(seen[0], torch.tensor([[0.25, 2.0, 3.0]]).repeat(3, 1)) and torch.equal(*seen)
    assert network.rows == 6 and network.calls == 2


# Distributions --------------------------------------------------------------------------------------------------------


@PROCESSES
def test_the_correction_is_the_difference_of_two_scores(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the log densities of two noised Gaussians, differentiated; at one time, with the noise drawn again."""
    time = 0.6
    monkeypatch.setattr(dmd, "LOW", time)
    monkeypatch.setattr(dmd, "HIGH", time)
    t = torch.tensor(time, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x, (real, fake) = torch.linspace(-1, 1, 9)[:, None], ((0.5, 0.3), (-0.2, 0.6))
    found = dmd.correction(gaussian(*real, process), gaussian(*fake, process), x, None, rng())
    again = rng()
    torch.rand(len(x), generator=again, dtype=torch.float64)
    x_t = process.diffuse(x, torch.randn(x.shape, generator=again), t).requires_grad_()

    def score(mean: float, std: float) -> Tensor:
        density = torch.distributions.Normal(alpha * mean, (alpha**2 * std**2 + sigma**2).sqrt()).log_prob(x_t)
        return torch.autograd.grad(density.sum(), x_t)[0]

    weight = sigma**2 / alpha / (x - gaussian(*real, process)(x_t.detach(), t)).abs()  # one pixel: its mean is itself
    assert torch.allclose(found, (weight * (score(*fake) - score(*real))).float(), atol=1e-4)


def test_the_correction_vanishes_where_both_scores_agree_and_leads_to_the_teacher() -> None:
    process, x = Cosine(), torch.full((2000, 1), -0.2)
    real, fake = gaussian(0.5, 0.3, process), gaussian(-0.2, 0.3, process)
    assert dmd.correction(real, real, x, None, rng()).abs().max() == 0
    assert dmd.correction(real, fake, x, None, rng()).mean() < 0  # descending moves x up, from -0.2 towards 0.5


# Adversaries ----------------------------------------------------------------------------------------------------------


@PROCESSES
def test_the_posterior_is_that_of_ancestral_sampling(process: Process) -> None:
    t, s = torch.tensor([0.7, 0.4], dtype=torch.float64)
    x_t, x0, eps = torch.randn(3, 5, 2, generator=rng(), dtype=torch.float64)

    class Given(SampleNoise):
        def __init__(self) -> None: ...

        def __call__(self, shape: tuple[int, ...]) -> Tensor:
            return eps

    expected = StochasticDDIM(1.0).step(lambda x, t: x0, process, x_t, t, s, None, Given())[0]
    assert torch.allclose(posterior(process, x_t, x0, eps, t, s), expected)
    assert torch.allclose(posterior(process, x_t, x0, eps, t.expand(5), s.expand(5)), expected)
    assert torch.allclose(posterior(process, x_t, x0, eps, t, torch.zeros_like(t)), x0)


@PROCESSES
def test_a_step_forward_keeps_the_marginal(process: Process) -> None:
    t, s = torch.tensor([0.7, 0.4], dtype=torch.float64)
    r, v = forward_step(process, s, t)
    assert torch.isclose(r * process.alpha(s), process.alpha(t)) and v > 0
    assert torch.isclose(r**2 * process.sigma(s) ** 2 + v, process.sigma(t) ** 2)
    x_s, eps = torch.randn(2, 200_000, 1, generator=rng(), dtype=torch.float64)
    assert abs(noisier(process, x_s, eps, s, t).var() - (r**2 + v)) < 0.02


def test_the_penalty_is_the_squared_slope_at_real_samples() -> None:
    """For a discriminator that is linear in x, with slope k at each of d pixels, R1 adds penalty / 2 d k^2."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
            return self.slope * x[:, :1].flatten(1).sum(1)

    u, labels, x = torch.zeros(4), torch.zeros(4, dtype=torch.long), torch.zeros(4, 1, 2, 2)
    slopes = []
    for penalty in (0.0, 2.0):
        judge = Linear()
        Adversary(judge, 1e-3, penalty).teach(x, x, x, u, labels)
        assert judge.slope.grad is not None
        slopes.append(judge.slope.grad.item())
    assert math.isclose(slopes[1] - slopes[0], 2.0 * 4 * 0.3, rel_tol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 4, 4), (1, 16, 16)])
def test_a_discriminator_learns_to_tell_two_levels_apart(shape: tuple[int, int, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Discriminator(2 * shape[0], shape[1], Conditioning(32, CLASSES), 16)
        adversary = Adversary(judge, 2e-3, 0.02)
        real, made = torch.ones(8, *shape), -torch.ones(8, *shape)
        u, labels = torch.rand(8), torch.arange(8) % CLASSES
        for _ in range(15):
            adversary.teach(real, made, torch.randn(8, *shape), u, labels)
        context = torch.randn(8, *shape)
        assert (adversary.logits(real, context, u, labels) > adversary.logits(made, context, u, labels)).all()


def test_every_step_of_the_gan_draws_a_latent_of_its_own() -> None:
    recipe = compose(BASE, ddgan(steps=3, latent=5))
    model = models.build(recipe, SHAPE, CLASSES)
    conditioning = model.net.get_submodule("conditioning")
    assert isinstance(conditioning, Informed) and conditioning.k == 5
    told: list[Tensor] = []
    conditioning.register_forward_hook(lambda module, given, out: told.append(given[0]))
    run.generate(recipe, run.deploy(recipe, model.eval()), torch.zeros(2, dtype=torch.long), [0, 1])
    latents = torch.stack(told)[:, :, 1:].flatten(0, 1)
    assert latents.shape == (6, 5) and len(latents.unique(dim=0)) == 6
    assert torch.allclose(torch.stack(told)[:, 0, 0], recipe.process.angle(recipe.grid(recipe.process, 3)[:3]).float())  # pyright: ignore[reportCallIssue]
