"""Rectified flows against closed forms; and what cheaper training saves: bytes, multiply-accumulates, nothing else."""

import math
import weakref
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from small import BASE, CLASSES, SHAPE, images, recipe_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from catalog import load
from methods.architecture.conditional_compute.timestep_early_exit import ExitingDiTConfig
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.denoiser import Labels, Mixture, Network
from methods.core.errors import Conflict, NothingMatched
from methods.core.fit import Precision
from methods.core.identity import training_fingerprint
from methods.core.learning import autocast
from methods.core.objective import Denoising, UniformTimes
from methods.core.process import Cosine, like
from methods.core.recipe import NetConfig, Recipe, compose
from methods.core.sampling import SampleNoise
from methods.inference.ode_solver.ddim import DDIM
from methods.measure import cost
from methods.nets.adm import ADMConfig
from methods.nets.deep_unet import DeepUNetConfig
from methods.nets.dit import DiT, DiTConfig, positions
from methods.nets.efficient_unet import EfficientUNetConfig
from methods.nets.linear_dit import LinearDiTConfig
from methods.nets.routed_dit import RoutedDiTConfig
from methods.nets.unet import UNetConfig
from methods.nets.uvit import UViTConfig
from methods.training.cost_reduction.gradient_checkpointing import recomputed, segments
from methods.training.cost_reduction.progressive_resolution_training import LessNoise, SmallFirst, shrunk, untrained
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
    for dear in (lambda d: d.square().sum(1), lambda d: d.abs().sum(1), lambda d: d.norm(dim=1) ** 3):
        assert dear(noise - path[-1]).mean() < 0.9 * dear(noise - shuffled).mean()


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

    def straightened(real: float) -> tuple[int, int, int]:
        call = TECHNIQUES["rectified_flow"].call({"real": real, "teacher_steps": 2})
        recipe = replace(compose(recipe_of("flow_matching"), call), fit=fit, phases=())
        (phase,) = compose(recipe_of("flow_matching"), call).phases
        model = models.build(recipe, SHAPE, CLASSES, 0)
        with tallied() as counters:
            seen = phase(replace(recipe, fit=fit), model, images(), 0, lambda *_: None)
        return seen, counters["teacher_pairs"], counters["images_inverted"]

    (plain, drawn, none), (mixed, fewer, real) = straightened(0.0), straightened(0.5)
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


# Gradient checkpointing -----------------------------------------------------------------------------------------------

NETS: dict[str, NetConfig] = {
    "unet": UNetConfig(8, (1, 2), 2), "deep_unet": DeepUNetConfig(8, (1, 2), deepest=4), "adm": ADMConfig(8, blocks=1),
    "efficient_unet": EfficientUNetConfig(8), "dit": DiTConfig(2, 16, 4, 2), "u_vit": UViTConfig(2, 16, 2, 2),
    "linear_dit": LinearDiTConfig(2, 16, 4, 2), "routed_dit": RoutedDiTConfig(2, 16, 3, 2),
    "exiting_dit": ExitingDiTConfig(2, 16, 4, 2, 0.4),
}  # fmt: skip


def alive(net: nn.Module) -> nn.Module:
    """The network with no weight at zero, so that every gradient has something to say."""
    for i, parameter in enumerate(net.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=seeded(i))
    return net.train()


def stepped(recipe: Recipe, net: nn.Module) -> Network:
    return Network(net, recipe.process, recipe.parameterization, None)


def gradients(recipe: Recipe, net: nn.Module, precision: Precision = "float32") -> list[Tensor]:
    """The loss of a batch, and what a step of training would be given."""
    student = stepped(recipe, net)
    with autocast(precision):
        loss = recipe.objective(student, student, images().images[:6], images().labels[:6], seeded()).mean()
    net.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def checkpointed(recipe: Recipe, segment: int = 0) -> Recipe:
    return compose(recipe, TECHNIQUES["gradient_checkpointing"].call({"segment": segment}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_the_same_to_the_bit(name: str, precision: Precision) -> None:
    recipe = replace(BASE, net=NETS[name])
    net = alive(NETS[name].build(SHAPE, CLASSES))
    plain, before = gradients(recipe, net, precision), [*net.state_dict()]
    for segment in (0, 1, 3):
        with tallied() as counters:
            again = gradients(checkpointed(recipe, segment), net, precision)
        assert len(again) == len(plain) > 20 and all(map(torch.equal, plain, again))
        assert counters["blocks_recomputed"] == sum(map(len, segments(net, segment))) > 2
    assert [*net.state_dict()] == before and not any("forward" in vars(part) for part in net.modules())


def test_an_open_exit_leaves_its_blocks_out_of_both_passes() -> None:
    recipe = replace(BASE, net=NETS["exiting_dit"])
    net = alive(NETS["exiting_dit"].build(SHAPE, CLASSES))
    net.get_buffer("exits").fill_(True)
    plain, again = gradients(recipe, net), gradients(checkpointed(recipe), net)
    assert all(map(torch.equal, plain, again))


def test_segments_are_of_the_square_root_where_blocks_follow_one_another() -> None:
    for depth, size in ((1, 1), (4, 2), (9, 3), (16, 4)):
        cut = segments(DiTConfig(2, 16, depth, 2).build(SHAPE, CLASSES), 0)
        assert [len(segment) for segment in cut] == [size] * (depth // size)
    shapes = [len(segment) for segment in segments(NETS["deep_unet"].build(SHAPE, CLASSES), 0)]
    assert shapes == [1, 1, 2, 2, 2, 2, 1, 1, 1]  # the upper level, four blocks each way at the lower one, the middle
    assert {len(segment) for segment in segments(NETS["u_vit"].build(SHAPE, CLASSES), 0)} == {1}


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(NothingMatched, match="Linear holds no blocks"), recomputed(nn.Linear(1, 1), 0):
        pass


class Living(TorchDispatchMode):
    """Bytes of the storages that operators made and somebody still holds, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self.held:
                storage = leaf.untyped_storage()
                self.held[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.freed, id(storage))
        return made

    def freed(self, key: int) -> None:
        self.now -= self.held.pop(key)


def peak(recipe: Recipe, net: nn.Module) -> int:
    with Living() as living:
        gradients(recipe, net)
    return living.peak


@pytest.mark.parametrize(("segment", "most"), [(0, 0.2), (1, 0.15)])
def test_memory_grows_with_the_square_root_of_the_depth(segment: int, most: float) -> None:
    """Bytes alive in a step of training less those of the gradients it ends with, at 16 and at 64 blocks."""
    plain, less = [], []
    for depth in (16, 64):
        config = DiTConfig(1, 16, depth, 2)
        recipe, net = replace(BASE, net=config), alive(config.build(SHAPE, CLASSES))
        grown = cost.nbytes(net)
        plain.append(peak(recipe, net) - grown)
        less.append(peak(checkpointed(recipe, segment), net) - grown)
    assert 3.8 < plain[1] / plain[0] < 4.1
    assert less[1] < most * plain[1]
    if segment == 0:
        assert less[1] / less[0] < 2.3


@pytest.mark.parametrize(("name", "most"), [("unet", 0.5), ("dit", 0.2), ("u_vit", 0.5)])
def test_a_forward_pass_keeps_less_for_the_backward_one(name: str, most: float) -> None:
    net, recipe = alive(NETS[name].build(SHAPE, CLASSES)), replace(BASE, net=NETS[name])
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}

    def kept(recipe: Recipe) -> int:
        held: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        student = stepped(recipe, net)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = recipe.objective(student, student, images().images, images().labels, seeded()).mean()
        assert loss.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in held.values())

    assert 0 < kept(checkpointed(recipe)) < most * kept(recipe)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_the_price_is_at_most_one_more_forward_pass(name: str) -> None:
    """And nothing is computed twice that no gradient asks for, such as the last convolution of a residual block."""
    net, recipe = alive(NETS[name].build(SHAPE, CLASSES)), replace(BASE, net=NETS[name])
    x, labels = images().images[:6], images().labels[:6]
    plain, again = (cost.macs(lambda r=r: gradients(r, net))[0] for r in (recipe, checkpointed(recipe)))
    forward, _ = cost.macs(lambda: net(x, torch.full((6,), 0.5), labels))
    assert 0.5 * forward < again - plain <= forward


def test_what_is_sampled_from_is_the_plain_network() -> None:
    recipe = checkpointed(BASE)
    model, _ = run.train(recipe, images(), 0)
    plain, _ = run.train(BASE, images(), 0)
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    assert [type(part) for part in model.modules()] == [type(part) for part in plain.modules()]
    with tallied() as counters:
        run.generate(recipe, run.deploy(recipe, model), torch.tensor([0]), [0])
    assert not counters["blocks_recomputed"]


# Progressive resolution -----------------------------------------------------------------------------------------------


def small_first(iterations: int, share: float, halvings: int, net: NetConfig = BASE.net) -> tuple[Recipe, SmallFirst]:
    call = TECHNIQUES["progressive_resolution_training"].call({"share": share, "halvings": halvings})
    recipe = compose(replace(BASE, net=net, fit=replace(BASE.fit, iterations=iterations)), call)
    objective = recipe.objective
    assert isinstance(objective, SmallFirst)
    return recipe, objective


def sizes(recipe: Recipe, objective: SmallFirst, net: nn.Module, calls: int) -> list[int]:
    """The side of the images that the network is asked about, call by call."""
    seen: list[int] = []
    hook = net.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
    student = stepped(recipe, net)
    for _ in range(calls):
        loss = objective(student, student, images().images[:6], images().labels[:6], seeded())
        assert loss.shape == (6,) and loss.isfinite().all()
    hook.remove()
    return seen


def test_sides_double_until_few_updates_are_left() -> None:
    """The smaller sizes share their part evenly; the rest, and whatever comes after it, is at full size."""
    for share, halvings, expected in (
        (0.75, 1, [4] * 6 + [8] * 3),
        (0.75, 2, [2] * 3 + [4] * 3 + [8] * 3),
        (0.0, 2, [8] * 9),
        (1.0, 1, [4] * 8 + [8]),
    ):
        recipe, objective = small_first(8, share, halvings)
        assert sizes(recipe, objective, recipe.net.build(SHAPE, CLASSES), 9) == expected


@pytest.mark.parametrize("iterations", [20, 1560, 3000])
def test_multiply_accumulates_of_training_are_in_proportion_to_its_length(iterations: int) -> None:
    """So that those of a bed's training can be told from those of a short one."""
    for halvings in (1, 2):
        _, objective = small_first(iterations, 0.6, halvings)
        factors = []
        for objective.done in range(iterations):
            factors.append(objective.factor())
        counted = {factor: factors.count(factor) for factor in factors}
        small = {2**k: iterations * 3 // (5 * halvings) for k in range(1, halvings + 1)}
        assert counted == {1: iterations * 2 // 5, **small}
        assert factors == sorted(factors, reverse=True)


def test_a_trained_network_is_trained_on_at_full_size() -> None:
    recipe, _ = small_first(8, 0.75, 1)
    for config in (UNetConfig(8), ADMConfig(8), EfficientUNetConfig(8), DiTConfig(2, 16, 2, 2), RoutedDiTConfig(2, 16)):
        fresh = config.build(SHAPE, CLASSES)
        assert untrained(fresh)
        assert sizes(recipe, small_first(8, 0.75, 1)[1], alive(fresh), 2) == [8, 8] and not untrained(fresh)
    trained, _ = run.train(recipe, images(), 0)
    assert not untrained(trained.net)


def test_at_full_size_it_is_the_denoising_loss() -> None:
    recipe, objective = small_first(8, 0.0, 1)
    net, plain = alive(recipe.net.build(SHAPE, CLASSES)), BASE.objective
    assert isinstance(plain, Denoising)
    student = stepped(recipe, net)
    a, b = (loss(student, student, images().images, images().labels, seeded()) for loss in (objective, plain))
    assert torch.equal(a, b)


def test_at_a_low_resolution_it_is_the_denoising_loss_of_averaged_images_with_less_noise() -> None:
    recipe, objective = small_first(8, 0.75, 1)
    net = recipe.net.build(SHAPE, CLASSES)
    objective.done = 1  # the network is not fresh, and need not be
    student = stepped(recipe, alive(net))
    small = F.avg_pool2d(images().images, 2)
    expected = Denoising(LessNoise(UniformTimes(), 2.0), BASE.weight, BASE.coupling)
    a, b = (
        loss(student, student, x, images().labels, seeded())
        for loss, x in ((objective, images().images), (expected, small))
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize("process", [Cosine(), STRAIGHT], ids=["cosine", "straight"])
def test_averaging_leaves_the_noise_that_the_small_image_is_given(process: Cosine | StraightPath) -> None:
    """The mean of s x s pixels of x_t has the signal-to-noise ratio of the small image's time.

    On straight paths that is the time shift of SD3, t -> r t / (1 + (r - 1) t) with r the square root of the ratio of
    pixels.
    """
    factor = 4
    t = UniformTimes()(process, 64, seeded(5))
    small = LessNoise(UniformTimes(), float(factor))(process, 64, seeded(5))
    averaged = F.avg_pool2d(torch.randn(400, 1, 64, 64, generator=seeded(6)), factor).std().item()
    assert abs(averaged - 1 / factor) < 0.002
    ratio = process.alpha(small) / process.sigma(small) / (process.alpha(t) / process.sigma(t))
    assert torch.allclose(ratio, torch.full_like(ratio, float(factor)))
    if process == STRAIGHT:
        root = 1 / factor
        assert torch.allclose(small, root * t / (1 + (root - 1) * t))


@pytest.mark.parametrize("config", [DiTConfig(2, 16, 2, 2), RoutedDiTConfig(2, 16, 2, 2)], ids=["dit", "routed_dit"])
def test_a_small_image_has_the_positions_of_the_places_it_shows(config: NetConfig) -> None:
    """Those of the official code, i / interpolation of the larger size, up to the unit of length; the rest stays."""
    net = alive(config.build((1, 16, 16), CLASSES))
    assert isinstance(net, DiT)
    before, grid = net.position, net.grid
    frequencies = 10_000 ** -(torch.arange(4) / 4)

    def waves(n: int, step: float) -> Tensor:
        phase = step * torch.arange(n)[:, None] * frequencies
        line = torch.cat([phase.sin(), phase.cos()], dim=1)
        return torch.cat([line[:, None].expand(n, n, 8), line[None].expand(n, n, 8)], dim=2).reshape(n * n, 16)

    assert torch.allclose(waves(8, 1.0), positions(8, 8, 16), atol=1e-6)
    small = config.build((1, 8, 8), CLASSES)
    assert isinstance(small, DiT)
    small.load_state_dict(net.state_dict())
    small.position = waves(4, 2.0)
    x, u = torch.randn(3, 1, 8, 8, generator=seeded()), torch.tensor([0.1, 0.5, 0.9])
    with shrunk(net, 2):
        assert torch.allclose(net.position, waves(4, 2.0), atol=1e-6) and net.grid == (4, 4)
        assert torch.allclose(net(x, u, torch.arange(3)), small(x, u, torch.arange(3)), atol=1e-4)
    assert net.position is before and net.grid == grid and "position" in dict(net.named_buffers())


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_halved_image_costs_a_quarter(name: str) -> None:
    recipe, objective = small_first(8, 0.75, 1, NETS[name])
    net = alive(NETS[name].build(SHAPE, CLASSES))

    def step(objective: SmallFirst, done: int) -> int:
        objective.done = done
        student = stepped(recipe, net)
        x0, labels = images().images, images().labels
        return cost.macs(lambda: objective(student, student, x0, labels, seeded()).mean().backward())[0]

    early, late = step(objective, 1), step(objective, 7)
    assert 0.2 < early / late < 0.3


def test_learned_positions_and_other_spaces_are_refused_by_name() -> None:
    for other, slot in (("u_vit", "net"), ("latent_diffusion", "space")):
        with pytest.raises(Conflict, match=slot):
            recipe_of("progressive_resolution_training", other)
