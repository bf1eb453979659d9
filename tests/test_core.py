"""Closed forms of the nouns in `methods.core`, over every process and parameterization the catalog reaches."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from catalog import load
from methods.baseline import baseline
from methods.core import models, run
from methods.core.activation import count, tallied
from methods.core.calibration import Fitted, Part, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Mixture, Network
from methods.core.errors import Conflict, NothingMatched
from methods.core.fit import Fit
from methods.core.identity import recipe_fingerprint, shipped_fingerprint, training_fingerprint
from methods.core.objective import Denoising, Independent, NormalLam, UniformTimes, UnitOnTarget, Weight
from methods.core.parameterization import Clean, Parameterization
from methods.core.process import Cosine, Process, angle, lam_of_angle, like
from methods.core.recipe import Recipe, compose, edit
from methods.core.sampling import Grid, SampleNoise, Sampler, Solver, transfer
from methods.core.surgery import flatten, rewrite_path, rewrite_type, unflatten
from methods.inference.feature_caching.deepcache import DeepCache
from methods.inference.ode_solver.ddim import DDIM, StochasticDDIM
from methods.inference.trajectory_distillation.progressive_distillation import TruncatedSNR
from methods.nets.unet import UNetConfig
from methods.training.guidance.classifier_free_guidance import ClassifierFree, Guided
from methods.training.objective.edm_preconditioning import Preconditioned, VarianceExploding

CATALOG = load()
BASE = baseline(UNetConfig(8), Fit(1))


def members(slot: str) -> list[object]:
    """Every value the baseline or a technique of the catalog puts into a slot."""
    recipes = [BASE, *(compose(BASE, CATALOG.technique(id).call({})) for id, t in CATALOG.techniques.items()
                       if set(t.builds_on) == set())]  # fmt: skip
    found: dict[str, object] = {}
    for recipe in recipes:
        found.setdefault(repr(getattr(recipe, slot)), getattr(recipe, slot))
    return list(found.values())


PROCESSES: list[Process] = members("process")  # pyright: ignore[reportAssignmentType]
PARAMETERIZATIONS: list[Parameterization] = [*members("parameterization"), Clean()]  # pyright: ignore
WEIGHTS: list[Weight] = [*members("weight"), TruncatedSNR()]  # pyright: ignore[reportAssignmentType]
GRIDS: list[Grid] = [grid for grid in members("grid") if isinstance(grid, Grid)]
PAIRS = list(product(PROCESSES, PARAMETERIZATIONS))
LAMS = torch.linspace(-4.3, 6, 40, dtype=torch.float64)


def named(value: object) -> str:
    return type(value).__name__


def gaussian(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(process: Process) -> Mixture:
    means = torch.tensor([[1.0, 0.2], [-0.7, 0.9], [-0.2, -1.1]], dtype=torch.float64)
    return Mixture(means, torch.tensor([0.3, 0.45, 0.25]).double(), torch.tensor([0.5, 0.2, 0.3]).double(), process)


def test_the_members_are_all_there() -> None:
    assert {named(p) for p in PROCESSES} == {
        "Cosine",
        "GeometricVE",
        "LinearBeta",
        "OffsetCosine",
        "ScaledSigmoid",
        "ShiftedCosine",
        "StraightPath",
        "VarianceExploding",
    }
    assert {named(p) for p in PARAMETERIZATIONS} == {
        "Noise",
        "Clean",
        "Velocity",
        "FlowVelocity",
        "Preconditioned",
        "AverageVelocity",
    }


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_time_inverts_lam_and_lam_falls(process: Process) -> None:
    lams = LAMS.clamp(min=process.lam_start).unique()
    t = process.time(lams)
    assert torch.allclose(process.lam(t), lams, atol=1e-9)
    assert (t.diff() < 0).all() and (t > 0).all() and (t <= 1).all()
    assert torch.allclose(process.lam(t), torch.log(process.alpha(t) / process.sigma(t)))
    assert process.lam(torch.tensor(0.0)) == math.inf
    ends = process.time(torch.tensor(process.lam_start, dtype=torch.float64))
    assert 0 < ends <= 1 + 1e-12 and torch.isclose(process.lam(ends), ends.new_tensor(process.lam_start))


def test_angle_is_the_time_of_the_cosine_process() -> None:
    assert torch.allclose(lam_of_angle(angle(LAMS)), LAMS, atol=1e-9)
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    assert torch.allclose(angle(Cosine().lam(t)), t)
    assert angle(torch.tensor(math.inf)) == 0


@pytest.mark.parametrize("grid", GRIDS, ids=named)
@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_grids_fall_from_within_the_process_to_zero(grid: Grid, process: Process) -> None:
    for steps in (1, 2, 5, 64):
        times = grid(process, steps)
        assert len(times) == steps + 1 and times.dtype == torch.float64
        assert (times.diff() < 0).all() and times[-1] == 0
        assert process.lam(times[0]) >= process.lam_start - 1e-9


@pytest.mark.parametrize(("process", "parameterization"), PAIRS, ids=named)
def test_target_and_clean_are_inverse(process: Process, parameterization: Parameterization) -> None:
    x0, eps, t = gaussian((40, 3)), gaussian((40, 3), 1), process.time(LAMS)
    x_t = process.diffuse(x0, eps, t)
    target = parameterization.target(process, x0, eps, t)
    assert torch.allclose(parameterization.clean(process, x_t, target, t), x0, atol=1e-8)
    scalar = t[7]
    target = parameterization.target(process, x0, eps, scalar)
    x_t = process.diffuse(x0, eps, scalar)
    assert torch.allclose(parameterization.clean(process, x_t, target, scalar), x0, atol=1e-8)


@pytest.mark.parametrize(("process", "parameterization"), PAIRS, ids=named)
def test_gain_is_the_slope_of_the_clean_estimate(process: Process, parameterization: Parameterization) -> None:
    t, x_t = process.time(LAMS), gaussian((40, 1))
    slope = parameterization.clean(process, x_t, x_t + 1, t) - parameterization.clean(process, x_t, x_t, t)
    assert torch.allclose(parameterization.gain(process, t), slope[:, 0].abs(), rtol=1e-6)


@pytest.mark.parametrize(("process", "parameterization"), PAIRS, ids=named)
def test_a_weight_means_the_same_on_x0_and_on_the_target(process: Process, parameterization: Parameterization) -> None:
    """w(lam) |x_0 - x_0'|^2 = w_F |F - F'|^2, for every weight; the simple loss is 1 on F."""
    t, x_t, wrong = process.time(LAMS), gaussian((40, 3)), gaussian((40, 3), 1)
    right = gaussian((40, 3), 2)
    on_target = (right - wrong).square().sum(1)
    estimates = [parameterization.clean(process, x_t, prediction, t) for prediction in (right, wrong)]
    on_clean = (estimates[0] - estimates[1]).square().sum(1)
    gain = parameterization.gain(process, t)
    for weight in WEIGHTS:
        if isinstance(weight, UnitOnTarget):
            assert (weight.on_target(LAMS, gain) == 1).all()
        else:
            assert torch.allclose(weight(LAMS) * on_clean, weight.on_target(LAMS, gain) * on_target, rtol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_transfer_is_a_semigroup_with_the_ends_of_the_process(process: Process) -> None:
    """t -> r -> s is t -> s, t -> t stays, t -> 0 is x_0, and the pair (x_0, eps) keeps its eps."""
    x0, eps = gaussian((5, 2)), gaussian((5, 2), 1)
    t, r, s = process.time(torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64))
    x = process.diffuse(x0, eps, t)
    once = transfer(process, x, x0, t, s)
    assert torch.allclose(transfer(process, transfer(process, x, x0, t, r), x0, r, s), once)
    assert torch.allclose(once, process.diffuse(x0, eps, s))
    assert torch.allclose(transfer(process, x, x0, t, t), x)
    assert torch.allclose(transfer(process, x, x0, t, torch.zeros_like(t)), x0)
    batched = transfer(process, x, x0, t.expand(5), s.expand(5))
    assert torch.allclose(batched, once)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_the_mixture_denoises_by_tweedie(process: Process) -> None:
    """E[x_0 | x_t] = (x_t + sigma^2 score) / alpha, the score by autograd of the log density."""
    exact = mixture(process)
    x_t, t = gaussian((40, 2)).requires_grad_(), process.time(LAMS)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    components = torch.distributions.MultivariateNormal(
        alpha[..., None] * exact.means,
        covariance_matrix=((alpha * exact.stds) ** 2 + sigma**2)[..., None, None] * torch.eye(2).double(),
    )
    log_density = torch.logsumexp(components.log_prob(x_t[:, None]) + exact.weights.log(), dim=1)
    (score,) = torch.autograd.grad(log_density.sum(), x_t)
    x_t = x_t.detach()
    assert torch.allclose(exact(x_t, t), (x_t + sigma**2 * score) / alpha, atol=1e-8)
    assert torch.allclose(exact(x_t, t[3])[3], exact(x_t, t)[3])


class Silent(nn.Module):
    """A network that says zero."""

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_the_edm_loss_begins_at_one_at_every_level() -> None:
    """Karras et al. 2022, appendix B.6: with data of deviation sigma_data, F has unit variance, so a zero F costs 1."""
    x0, eps = 0.5 * torch.randn(60_000, 1), torch.randn(60_000, 1)
    process, scaling = VarianceExploding(), Preconditioned(0.5)
    for lam in (-4.0, -1.0, 0.0, 1.2, 3.0, 6.0):
        t = process.time(torch.tensor(lam, dtype=torch.float64))
        target = scaling.target(process, x0, eps, t)
        assert abs(target.square().mean() - 1) < 0.03
        scaled = like(scaling.input_scale(process, t), x0) * process.diffuse(x0, eps, t)
        assert abs(scaled.var() - 1) < 0.03
    objective = Denoising(NormalLam(1.2, 1.2), UnitOnTarget(), Independent())
    student = Network(Silent(), process, scaling, None)
    losses = objective(student, student, x0, None, torch.Generator().manual_seed(0))
    assert losses.shape == (60_000,) and abs(losses.mean() - 1) < 0.03


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_times_stay_within_the_process(process: Process) -> None:
    for density in [*members("times"), UniformTimes(), NormalLam(0.0, 3.0)]:
        t = density(process, 4000, torch.Generator().manual_seed(0))  # pyright: ignore[reportCallIssue]
        assert t.dtype == torch.float64 and (t > 0).all() and (t <= 1).all()
    lam = process.lam(NormalLam(0.3, 0.7)(process, 40_000, torch.Generator().manual_seed(0)))
    assert abs(lam.mean() - 0.3) < 0.02 and abs(lam.std() - 0.7) < 0.02


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_fresh_noise_has_the_variance_of_the_posterior(process: Process) -> None:
    """eta = 1 draws from q(x_s | x_t, x_0): its mean and variance by conditioning the joint Gaussian."""
    t, s = process.time(torch.tensor([-1.0, 0.4], dtype=torch.float64))
    x0, x = gaussian((1, 1)), gaussian((1, 1), 1)
    a_t, s_t, a_s, s_s = process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)
    cross = a_t / a_s * s_s**2  # Cov(x_t, x_s | x_0), since x_t = a_t / a_s x_s + fresh noise
    mean = a_s * x0 + cross / s_t**2 * (x - a_t * x0)
    variance = s_s**2 - cross**2 / s_t**2

    class Fixed(SampleNoise):
        def __init__(self, value: float) -> None:
            self.value = value

        def __call__(self, shape: tuple[int, ...]) -> Tensor:
            return torch.full((1, *shape), self.value, dtype=torch.float64)

    solver = StochasticDDIM(1.0)
    still, moved = (solver.step(lambda x, t: x0, process, x, t, s, None, Fixed(z))[0] for z in (0.0, 1.0))
    assert torch.allclose(still, mean) and torch.allclose((moved - still) ** 2, variance.reshape(1, 1))


def test_every_sample_has_its_own_noise() -> None:
    together, alone = SampleNoise([3, 4, 5]), SampleNoise([4])
    for shape in ((2, 2), (7,)):
        assert torch.equal(together(shape)[1:2], alone(shape))


def test_label_dropout_drops_at_its_rate() -> None:
    class Listening(Silent):
        def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
            self.null = (labels == -1).float().mean()
            return torch.zeros_like(x)

    net = Listening()
    student = Network(net, BASE.process, BASE.parameterization, None)
    objective = replace(BASE.objective, label_dropout=0.25)
    objective(student, student, torch.zeros(8000, 1), torch.ones(8000, dtype=torch.long), torch.Generator())
    assert abs(net.null - 0.25) < 0.02


def test_counts_are_kept_only_inside_a_block_and_nest() -> None:
    count("lost")
    with tallied() as outer:
        with tallied() as inner:
            count("kept", 2)
        count("kept")
    assert inner == {"kept": 2} and outer == {"kept": 3}


def test_surgery_copies_and_complains() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = rewrite_type(rewrite_path(net, "1", lambda _: nn.Tanh()), nn.Linear, lambda _: nn.Linear(2, 3))
    assert isinstance(net[1], nn.ReLU) and isinstance(other.get_submodule("1"), nn.Tanh)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    with pytest.raises(NothingMatched, match=r"absent\.part"):
        rewrite_path(net, "absent.part", lambda part: part)
    with pytest.raises(NothingMatched, match="Conv2d"):
        rewrite_type(net, nn.Conv2d, lambda part: part)
    with pytest.raises(KeyError, match="differ"):
        unflatten(net, flatten(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))))


def test_a_network_tells_level_scale_and_label() -> None:
    """The net sees the scaled x_t, the angle of the noise level and NULL; the answer is turned into x_0 and clipped."""

    class Looking(nn.Module):
        def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
            self.seen = (x, u, labels)
            return torch.zeros_like(x)

    net, process = Looking(), VarianceExploding()
    denoiser: Denoiser = Network(net, process, Preconditioned(0.5), (-1.0, 1.0))
    x, t = torch.tensor([[8.0], [-3.0]]), process.time(torch.tensor(-1.0, dtype=torch.float64))
    estimate = denoiser(x, t)
    sigma = math.e
    assert torch.allclose(net.seen[0], x / math.sqrt(sigma**2 + 0.25))
    assert torch.allclose(net.seen[1], torch.full((2,), 2 / math.pi * math.atan(sigma)))
    assert (net.seen[2] == -1).all()
    assert torch.allclose(estimate, (x * 0.25 / (sigma**2 + 0.25)).clamp(-1, 1))


def test_a_recipe_is_an_edit_away_from_the_baseline() -> None:
    assert isinstance(compose(BASE), Recipe) and compose(BASE) == BASE


@pytest.mark.parametrize(("process", "parameterization"), PAIRS, ids=lambda value: named(value))
def test_a_single_time_gives_what_the_same_time_for_every_sample_gives(
    process: Process, parameterization: Parameterization
) -> None:
    """Coefficients are remembered at single times and computed for [b]: asked twice, and for others in between."""
    x, prediction = gaussian((5, 1, 2, 2)), gaussian((5, 1, 2, 2), seed=1)
    times = process.time(torch.linspace(-3, 4, 4, dtype=torch.float64))
    for t, s in [*pairwise(times)] * 2:
        each_t, each_s = t.expand(5), s.expand(5)
        estimate = parameterization.clean(process, x, prediction, t)
        assert torch.allclose(estimate, parameterization.clean(process, x, prediction, each_t), atol=1e-12)
        moved = transfer(process, x, prediction, t, s)
        assert torch.allclose(moved, transfer(process, x, prediction, each_t, each_s), atol=1e-12)


def test_what_is_remembered_belongs_to_its_owner() -> None:
    x, prediction, t = gaussian((2, 1, 2, 2)), gaussian((2, 1, 2, 2), seed=1), torch.tensor(0.5, dtype=torch.float64)
    found = [Preconditioned(deviation).clean(Cosine(), x, prediction, t) for deviation in (0.5, 1.0, 0.5)]
    assert not torch.allclose(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_is_remembered_counts_each_time() -> None:
    """Counters of a run do not depend on what another one asked for before it in the same process."""
    x, prediction, t = gaussian((2, 1, 2, 2)), gaussian((2, 1, 2, 2), seed=1), torch.tensor(0.37, dtype=torch.float64)
    seen = []
    for _ in range(3):
        with tallied() as counters:
            Preconditioned(0.77).clean(Cosine(), x, prediction, t)
        seen.append(dict(counters))
    assert seen[0] and seen == seen[:1] * 3


# Parts that are fitted to the finished model --------------------------------------------------------------------------


class Threefold(Grid, Part):
    """Two steps, the time between them a share of what the denoiser makes of the data."""

    middle: Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("middle", torch.zeros(1, dtype=torch.float64))

    def fit(
        self, recipe: Recipe, denoiser: Denoiser, x0: Tensor, labels: Labels, rng: torch.Generator, report: Report
    ) -> int:
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        t = torch.tensor(0.5, dtype=torch.float64)
        known = denoiser(denoiser.process.diffuse(x0, noise, t), t, labels)
        self.middle.fill_(self.share * (0.1 + known.double().square().mean().sigmoid()))
        self.given = denoiser
        return len(x0)

    def __call__(self, process: Process, steps: int) -> Tensor:
        return torch.cat([torch.tensor([0.99]).double(), self.middle.cpu(), torch.zeros(1).double()])


@dataclass(frozen=True)
class MadeUpGrid(Fitted):
    share: float = 0.5
    becomes: ClassVar[type[Part]] = Threefold

    def build(self, recipe: Recipe) -> Threefold:
        return Threefold(self.share)


@dataclass(frozen=True)
class Fixed(Grid):
    """The same grid, told the time between."""

    middle: float

    def __call__(self, process: Process, steps: int) -> Tensor:
        return torch.tensor([0.99, self.middle, 0.0], dtype=torch.float64)


class Stubborn(Sampler, Part):
    """A sampler that is no solver, and learns nothing."""

    def fit(self, *given: object) -> int:
        return 0

    def __call__(self, denoiser: Denoiser, x: Tensor, times: Tensor, labels: Labels, noise: SampleNoise) -> Tensor:
        return DDIM()(denoiser, x, times, labels, noise)


class StubbornSolver(DDIM, Stubborn):
    """The same as a solver."""


@dataclass(frozen=True)
class MadeUpSampler(Fitted):
    becomes: ClassVar[type[Part]] = Stubborn

    def build(self, recipe: Recipe) -> Part:
        return self.becomes()


@dataclass(frozen=True)
class MadeUpSolver(MadeUpSampler):
    becomes: ClassVar[type[Part]] = StubbornSolver


SMALL = replace(BASE, fit=Fit(1, batch=8), parameterization=Clean(), steps=2)
DATA = TrainingSet(gaussian((24, 1, 8, 8)).float().clamp(-1, 1), torch.arange(24) % 3, 3)


def fitted(recipe: Recipe, seed: int = 0) -> tuple[models.Model, int]:
    """A model trained without the part, and compressed with it; and the images that compression saw."""
    trained, _ = run.train(replace(recipe, grid=BASE.grid, sampler=BASE.sampler), DATA, seed)
    model = models.build(recipe, DATA.shape, DATA.classes, seed)
    model.net, model.codec = trained.net, trained.codec
    model, seen, _ = run.compress(recipe, model, DATA, seed)
    return model, seen


def drawn(recipe: Recipe, model: models.Model) -> Tensor:
    return run.generate(recipe, run.deploy(recipe, model), torch.arange(3), [0, 1, 2])


def test_a_fitted_grid_is_fitted_saved_loaded_and_used(tmp_path: Path) -> None:
    recipe = replace(SMALL, grid=MadeUpGrid())
    assert models.build(recipe, DATA.shape, DATA.classes).parts["grid"].middle == 0
    model, seen = fitted(recipe)
    part = model.parts["grid"]
    assert isinstance(part, Threefold) and 0 < part.middle < 1 and seen == len(DATA.images)
    assert not part.middle.requires_grad and torch.equal(fitted(recipe)[0].parts["grid"].middle, part.middle)
    path = tmp_path / "model.safetensors"
    models.save(model, path, {})
    loaded = models.load(recipe, path, DATA.shape, DATA.classes, shipped=True)
    assert torch.equal(loaded.parts["grid"].middle, part.middle)
    samples = drawn(recipe, model)
    assert torch.equal(drawn(recipe, loaded), samples)

    assert torch.equal(part(recipe.process, 2)[1:2], part.middle)
    for middle, same in ((part.middle.item(), True), (0.9, False)):
        plain = models.Model(model.net, model.codec, model.starter, {}, model.shape)
        assert torch.equal(drawn(replace(SMALL, grid=Fixed(middle)), plain), samples) is same


def test_a_part_is_fitted_to_the_denoiser_that_samples() -> None:
    """With guidance, and with the caches that are not there before deployment."""
    recipe = replace(SMALL, grid=MadeUpGrid(), guidance=ClassifierFree(1.0), transforms=(DeepCache(2, 1),))
    given = fitted(recipe)[0].parts["grid"].given
    assert isinstance(given, Guided) and isinstance(given.inner, Network)
    assert "Cached" in {type(module).__name__ for module in given.inner.net.modules()}


def test_a_need_is_met_by_what_a_choice_becomes() -> None:
    asks = edit(transforms=DeepCache(2, 1), needs={"sampler": Solver, "net": UNetConfig})
    both = replace(edit(sampler=MadeUpSolver()), name="a solver")
    assert compose(BASE, asks, both).kind("sampler") is StubbornSolver
    neither = replace(edit(sampler=MadeUpSampler()), name="another")
    with pytest.raises(
        Conflict, match=r"another cannot be combined: .* needs a Solver in `sampler`, which is Stubborn"
    ):
        compose(BASE, replace(asks, name="asking"), neither)
    assert BASE.kind("grid") is type(BASE.grid) and not BASE.fitted
    assert list(replace(BASE, sampler=MadeUpSampler(), grid=MadeUpGrid()).fitted) == ["grid", "sampler"]


def test_what_ships_changes_with_a_fitted_part_and_training_does_not() -> None:
    """And with everything the part was fitted to; without one, steps and guidance change nothing that ships."""
    recipe = replace(SMALL, grid=MadeUpGrid())
    changes = {"steps": 4, "sampler": StochasticDDIM(1.0), "guidance": ClassifierFree(1.0), "precision": "bfloat16",
               "transforms": (DeepCache(2, 1),)}  # fmt: skip
    assert training_fingerprint(recipe) == training_fingerprint(SMALL)
    shipped = {shipped_fingerprint(r) for r in (SMALL, recipe, replace(recipe, grid=MadeUpGrid(0.25)))}
    assert len(shipped) == 3
    for field, value in changes.items():
        other = replace(recipe, **{field: value})
        assert training_fingerprint(other) == training_fingerprint(recipe), field
        assert shipped_fingerprint(other) != shipped_fingerprint(recipe), field
        assert recipe_fingerprint(other) != recipe_fingerprint(recipe), field
        assert shipped_fingerprint(replace(SMALL, **{field: value})) == shipped_fingerprint(SMALL), field


def test_parts_are_fitted_to_an_exact_denoiser_too() -> None:
    """To samples of it, without a label; what fitting evaluates is not counted as sampling."""
    recipe, exact = replace(BASE, grid=MadeUpGrid(), steps=2), mixture(BASE.process)
    x0 = gaussian((100, 2)).float()
    deployed = run.deploy_exact(recipe, exact, x0)
    part = deployed.model.parts["grid"]
    assert isinstance(part, Threefold) and part.middle > 0
    assert isinstance(deployed.network, Mixture) and deployed.network.rows == 0
    again = run.deploy_exact(recipe, exact, 2 * x0).model.parts["grid"]
    assert again.middle != part.middle
    samples = run.generate(recipe, deployed, torch.zeros(5, dtype=torch.long), range(5))
    assert samples.shape == (5, 2) and deployed.network.rows == 10


def test_base_training_is_not_shown_what_is_withheld() -> None:
    """The weights are those of a training on the other classes alone."""
    whole, seen = run.train(BASE, replace(DATA, withheld=(2,)), 0)
    rest, _ = run.train(BASE, DATA[(DATA.labels != 2).nonzero()[:, 0]], 0)
    assert seen == BASE.fit.iterations * BASE.fit.batch
    everything, _ = run.train(BASE, DATA, 0)
    weights = [torch.cat([part.flatten() for part in model.parameters()]) for model in (whole, rest, everything)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
