"""Rectified flows against closed forms; and what cheaper training saves: bytes, multiply-accumulates, nothing else."""

import math
from dataclasses import replace
from itertools import pairwise

import torch
from small import BASE, CLASSES, SHAPE, images, recipe_of
from torch import Tensor, nn

from catalog import load
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.denoiser import Labels, Mixture, Network
from methods.core.identity import training_fingerprint
from methods.core.process import like
from methods.core.recipe import compose
from methods.core.sampling import SampleNoise
from methods.inference.ode_solver.ddim import DDIM
from methods.training.flow.flow_matching import FlowVelocity, StraightPath
from methods.training.flow.rectified_flow import StraightPairs, UShaped, inverted

TECHNIQUES = load().techniques
STRAIGHT = StraightPath()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Rectified flows ------------------------------------------------------------------------------------------------------

MEAN, STD = torch.tensor([0.4, -0.3], dtype=torch.float64), 0.6
GAUSSIAN = Mixture(MEAN[None], torch.tensor([STD]).double(), torch.ones(1).double(), STRAIGHT)
TWO_MODES = Mixture(
    torch.tensor([[1.5, 0.0], [-1.0, 1.0]]).double(), torch.tensor([0.3, 0.4]).double(), torch.ones(2).double() / 2,
    STRAIGHT,
)  # fmt: skip


class FirstFlow(Network):
    """The exact velocity E[eps - x_0 | x_t] of a mixture."""

    def __init__(self, exact: Mixture) -> None:
        super().__init__(nn.Identity(), STRAIGHT, FlowVelocity(), None)
        self.exact = exact

    def predict(self, x_t: Tensor, t: Tensor, labels: Labels = None) -> Tensor:
        if not t.ndim and t == 0:
            return -x_t
        return (x_t - self.exact(x_t, t)) / like(t, x_t)


class SecondFlow(Network):
    """The exact velocity on the pairs (w, m + s w) of the Gaussian's first flow, whose lines do not cross."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), STRAIGHT, FlowVelocity(), None)

    def predict(self, x_t: Tensor, t: Tensor, labels: Labels = None) -> Tensor:
        mean, spread = like(1 - t, x_t) * MEAN, like((1 - t) * STD + t, x_t)
        return (1 - STD) * (x_t - mean) / spread - MEAN


def along(flow: Network, x: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
    """The points that Euler's steps visit from t = 1, or as near to it as the flow is known, to 0."""
    times, path = torch.linspace(1 - 1e-6, 0, steps + 1, dtype=torch.float64), [x]
    for t, s in pairwise(times):
        path.append(path[-1] + (s - t) * flow.predict(path[-1], t))
    return path, times


def straightness(path: list[Tensor], times: Tensor) -> float:
    """S = int E || (Z_1 - Z_0) - v ||^2 dt over the steps of a path."""
    whole = path[0] - path[-1]
    speeds = [(a - b) / h for (a, b), h in zip(pairwise(path), -times.diff(), strict=True)]
    return sum(
        float(h * (v - whole).square().sum(1).mean()) for v, h in zip(speeds, -times.diff(), strict=True)
    )  # fmt: skip


def test_the_first_rectified_flow_is_flow_matching() -> None:
    """Straightening starts from the weights of `flow_matching`: nothing of the first flow is measured a second time."""
    both = recipe_of("flow_matching", "rectified_flow")
    assert training_fingerprint(both) == training_fingerprint(recipe_of("flow_matching"))
    assert both.objective == recipe_of("flow_matching").objective


def test_times_follow_the_mixture_of_two_exponentials_of_the_official_code() -> None:
    """Half of its draws have the density a e^(at) / (e^a - 1) and half that of 1 - t."""
    a, n = 4.0, 200_000
    t = UShaped(a)(STRAIGHT, n, seeded()).sort().values
    rising, falling = torch.expm1(a * t), torch.expm1(a * (1 - t))
    cumulative = (rising / math.expm1(a) + 1 - falling / math.expm1(a)) / 2
    even = (torch.arange(n) + 0.5) / n
    assert (cumulative - even).abs().max() < 1.63 / math.sqrt(n)  # Kolmogorov and Smirnov, at one in a hundred
    assert (UShaped(0.0)(STRAIGHT, n, seeded()).sort().values - even).abs().max() < 1.63 / math.sqrt(n)
    assert t.min() > 0 and t.max() < 1


def test_the_loss_is_the_square_of_small_errors_and_the_size_of_large_ones() -> None:
    recipe, difference = recipe_of("flow_matching"), torch.randn(5, *SHAPE, generator=seeded())
    n, c = math.prod(SHAPE), 0.00054
    norm = difference.flatten(1).norm(dim=1)
    robust, squared = (StraightPairs(recipe, 4.0, huber).error(difference) for huber in (c, 1.0))
    assert torch.allclose(robust, ((norm**2 + (c * n) ** 2).sqrt() - c * n) / n, rtol=1e-4)
    assert torch.allclose(robust, norm / n, rtol=0.01) and torch.allclose(squared, (norm / n) ** 2 / 2, rtol=0.02)


def test_real_images_are_taken_to_the_noise_of_their_flow() -> None:
    """For one Gaussian the flow keeps (x - alpha m) / sqrt(v)."""
    x0 = MEAN + STD * torch.randn(50, 2, generator=seeded(), dtype=torch.float64)
    last = torch.tensor(0.999, dtype=torch.float64)

    def error(steps: int) -> float:
        noise = inverted(FirstFlow(GAUSSIAN), x0, None, torch.linspace(0, last.item(), steps + 1, dtype=torch.float64))
        spread = ((1 - last) * STD) ** 2 + last**2
        known = ((1 - last) * MEAN + (x0 - MEAN) / STD * spread.sqrt()) / last
        return float((noise - known).abs().max())

    assert error(400) < 0.02 and 1.8 < error(200) / error(400) < 2.2


def test_a_rectified_coupling_costs_no_more_to_transport() -> None:
    """For several convex costs at once, against the independent coupling that the first flow was trained on."""
    noise = torch.randn(4000, 2, generator=seeded(1), dtype=torch.float64)
    path, _ = along(FirstFlow(TWO_MODES), noise, 200)
    shuffled = path[-1][torch.randperm(len(noise), generator=seeded(2))]
    for cost in (lambda d: d.square().sum(1), lambda d: d.abs().sum(1), lambda d: d.norm(dim=1) ** 3):
        assert cost(noise - path[-1]).mean() < 0.9 * cost(noise - shuffled).mean()


def test_straightening_makes_the_flow_of_a_gaussian_straight() -> None:
    """S is int (d sqrt(v)/dt - (1 - s))^2 dt for each coordinate of the first flow, and 0 for the second."""
    w = torch.randn(2000, 2, generator=seeded(3), dtype=torch.float64)
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    slope = (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2).sqrt()
    expected = float(torch.trapezoid((slope - (1 - STD)) ** 2, t) * w.square().sum(1).mean())
    first, second = (straightness(*along(flow, w, 1000)) for flow in (FirstFlow(GAUSSIAN), SecondFlow()))
    assert abs(first / expected - 1) < 0.02 and second < 1e-9
    one_step, _ = along(SecondFlow(), w, 1)
    assert torch.allclose(one_step[-1], MEAN + STD * w, atol=1e-5)


def test_the_objective_is_least_for_the_second_flow() -> None:
    w = torch.randn(300, 2, generator=seeded(4), dtype=torch.float64)
    pairs, objective = torch.stack([w, MEAN + STD * w], dim=1), StraightPairs(recipe_of("flow_matching"), 4.0, 0.00054)
    right, wrong = (objective(flow, flow, pairs, None, seeded()).mean() for flow in (SecondFlow(), FirstFlow(GAUSSIAN)))
    assert right < 1e-12 < 1e-3 < wrong


def test_half_of_the_pairs_begin_at_real_images_for_the_same_budget() -> None:
    fit = replace(BASE.fit, iterations=60)

    def cost(real: float) -> tuple[int, int, int]:
        call = TECHNIQUES["rectified_flow"].call({"real": real, "teacher_steps": 2})
        recipe = replace(compose(recipe_of("flow_matching"), call), fit=fit, phases=())
        (phase,) = compose(recipe_of("flow_matching"), call).phases
        model = models.build(recipe, SHAPE, CLASSES, 0)
        with tallied() as counters:
            seen = phase(replace(recipe, fit=fit), model, images(), 0, lambda *_: None)
        return seen, counters["teacher_pairs"], counters["images_inverted"]

    (plain, drawn, none), (mixed, fewer, real) = cost(0.0), cost(0.5)
    assert none == 0 and real == fewer == drawn // 2 and abs(mixed - plain) <= 1


def test_one_step_is_one_evaluation() -> None:
    recipe = recipe_of("flow_matching", "rectified_flow")
    assert recipe.steps == 1 and isinstance(recipe.sampler, DDIM)
    deployed = run.deploy(recipe, models.build(recipe, SHAPE, CLASSES, 0))
    noise = SampleNoise([0])(SHAPE)
    made = run.generate(recipe, deployed, torch.tensor([0]), [0])
    t = recipe.grid(recipe.process, 1)[0]  # pyright: ignore[reportCallIssue]
    velocity = deployed.network.predict(t * noise, t, torch.tensor([0]))  # pyright: ignore[reportAttributeAccessIssue]
    assert deployed.network.calls == 2
    assert torch.allclose(made, (t * noise - t * velocity).float().clamp(-1, 1), atol=1e-5)
