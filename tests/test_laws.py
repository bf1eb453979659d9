"""The laws of the core, over all members the catalog reaches: orders, composition, fingerprints, seeds, files."""

import ast
import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from small import BASE, CLASSES, IDS, SHAPE, TECHNIQUES, images, method, recipe_of
from torch import Tensor

from catalog import Technique
from methods.core import identity, models, run
from methods.core.activation import tallied
from methods.core.calibration import SAMPLING
from methods.core.denoiser import Mixture
from methods.core.errors import Conflict, NothingMatched
from methods.core.identity import recipe_fingerprint, shipped_fingerprint, training_fingerprint
from methods.core.process import Cosine, Process
from methods.core.recipe import ADDITIVE, TRAINING, Method, Recipe, compose
from methods.core.sampling import SampleNoise, Solver
from methods.core.surgery import Transform
from methods.inference.feature_caching.deepcache import DeepCache
from methods.inference.ode_solver.ddim import StochasticDDIM
from methods.training.flow.flow_matching import StraightPath

pytestmark = pytest.mark.usefixtures("less_work")


def default(technique: Technique) -> Recipe:
    """The recipe of a technique's default cell."""
    return recipe_of(*technique.default.methods)


def control(technique: Technique) -> Recipe:
    return recipe_of(*technique.control.methods)


def members(slot: str) -> dict[str, object]:
    """What techniques put into a slot, by the technique's id."""
    return {id: method(id).edits[slot] for id in IDS if slot in method(id).edits}


@cache
def shipped(recipe: Recipe) -> tuple[models.Model, dict[str, list[int]]]:
    """Trained, compressed and shipped, with the shapes from before quantization."""
    model, _ = run.train(recipe, images(), 0)
    model, _, shapes = run.compress(recipe, model, images(), 0)
    return model, shapes


def samples(recipe: Recipe, deployed: run.Deployed, seeds: list[int]) -> Tensor:
    return run.generate(recipe, deployed, torch.tensor([seed % CLASSES for seed in seeds]), seeds)


# Solvers --------------------------------------------------------------------------------------------------------------

SOLVERS = {id: s for id, s in members("sampler").items() if isinstance(s, Solver) and s.order > 0}


def mixture(process: Process) -> Mixture:
    means = torch.tensor([[1.0, 0.2], [-0.7, 0.9], [-0.2, -1.1]], dtype=torch.float64)
    return Mixture(means, torch.tensor([0.4, 0.5, 0.3]).double(), torch.tensor([0.5, 0.2, 0.3]).double(), process)


def even(process: Process, steps: int) -> Tensor:
    """Times evenly spaced in lam between two finite noise levels."""
    return process.time(torch.linspace(-2, 2, steps + 1, dtype=torch.float64))


@cache
def flow(process: Process) -> tuple[Tensor, Tensor]:
    """A start at lam = -2 and the end of its flow at lam = 2, by Runge and Kutta's fourth order.

    With y = x / alpha the flow reads dy/dlam = x_0 - y.
    """
    exact, n = mixture(process), 400
    first, last = even(process, 1)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, h = x / process.alpha(first), 4 / n

    def slope(y: Tensor, lam: float) -> Tensor:
        t = process.time(torch.tensor(lam, dtype=torch.float64))
        return exact(process.alpha(t) * y, t) - y

    for i in range(n):
        lam = -2 + i * h
        k1 = slope(y, lam)
        k2 = slope(y + h / 2 * k1, lam + h / 2)
        k3 = slope(y + h / 2 * k2, lam + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, lam + h))
    return x, process.alpha(last) * y


def test_the_catalog_reaches_solvers_of_both_orders() -> None:
    assert {s.order for s in SOLVERS.values()} >= {1, 2}


@pytest.mark.parametrize("process", [Cosine(), StraightPath()], ids=["cosine", "straight"])
@pytest.mark.parametrize("id", SOLVERS)
def test_a_solver_converges_at_its_order(id: str, process: Process) -> None:
    """At numbers of steps that steps over two and over three times of the grid divide."""
    (x, end), steps = flow(process), torch.tensor([42, 84, 168], dtype=torch.float64)
    errors = torch.stack([
        (SOLVERS[id](mixture(process), x, even(process, int(n)), None, SampleNoise(range(len(x)))) - end).norm()
        for n in steps
    ])  # fmt: skip
    slopes = (errors[:-1] / errors[1:]).log() / (steps[1:] / steps[:-1]).log()
    assert abs(slopes[-1] - SOLVERS[id].order) < 0.15, slopes


class Scripted(SampleNoise):
    """A given value for every sample."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return self.values.reshape(-1, *[1] * len(shape)).expand(-1, *shape)


@pytest.mark.parametrize("process", [Cosine(), StraightPath()], ids=["cosine", "straight"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_stochastic_ddim_keeps_the_marginals_of_a_gaussian(eta: float, process: Process) -> None:
    """For one Gaussian a step is a x + b + c z: mean and variance follow without sampling, to O(1/steps)."""
    mean, std, one = 0.75, 0.625, torch.ones(1, dtype=torch.float64)
    exact = Mixture(mean * one[:, None], std * one, one, process)
    probes, noise = torch.tensor([[0.0], [1.0], [0.0]]).double(), Scripted(torch.tensor([0.0, 0.0, 1.0]).double())

    def errors(steps: int) -> Tensor:
        times = even(process, steps)
        alpha, sigma = process.alpha(times), process.sigma(times)
        m, v = alpha[0] * mean, (alpha[0] * std) ** 2 + sigma[0] ** 2
        for t, s in pairwise(times):
            b, ab, cb = StochasticDDIM(eta).step(exact, process, probes, t, s, None, noise)[0].flatten()
            m, v = (ab - b) * m + b, (ab - b) ** 2 * v + (cb - b) ** 2
        truth = torch.stack([alpha[-1] * mean, (alpha[-1] * std) ** 2 + sigma[-1] ** 2])
        return (torch.stack([m, v]) - truth).abs()

    coarse, fine = errors(100), errors(200)
    assert (fine < 0.01).all()
    assert ((coarse / fine > 1.8) & (coarse / fine < 2.2) | (fine < 1e-12)).all(), (coarse, fine)


# Composition ----------------------------------------------------------------------------------------------------------


def compatible(*methods: Method) -> bool:
    try:
        compose(BASE, *methods)
    except Conflict:
        return False
    return True


def test_composition_does_not_depend_on_order() -> None:
    """All pairs both ways, and shuffles of sets that are as large as they can be."""
    methods = [method(id) for id in IDS]
    for a, b in combinations(methods, 2):
        if compatible(a, b):
            assert compose(BASE, a, b) == compose(BASE, b, a)
    shuffle = random.Random(0)
    for _ in range(30):
        together: list[Method] = []
        for one in shuffle.sample(methods, len(methods)):
            if compatible(*together, one):
                together.append(one)
        assert len(together) > 5
        recipe = compose(BASE, *together)
        assert compose(BASE, *shuffle.sample(together, len(together))) == recipe
        assert recipe_fingerprint(compose(BASE, *reversed(together))) == recipe_fingerprint(recipe)


def test_two_edits_of_one_exclusive_slot_conflict_by_name() -> None:
    met = 0
    for a, b in combinations(map(method, IDS), 2):
        shared = (a.edits.keys() & b.edits.keys()) - set(ADDITIVE)
        if shared:
            met += 1
            for pair in ((a, b), (b, a)):
                with pytest.raises(Conflict) as raised:
                    compose(BASE, *pair)
                text = str(raised.value)
                assert a.name in text and b.name in text and any(f"`{slot}`" in text for slot in shared)
    assert met > 10


def test_an_unmet_need_names_both_methods_and_the_slot() -> None:
    met = 0
    for a in map(method, IDS):
        base = control(TECHNIQUES[a.name])
        assert all(issubclass(base.kind(slot), kinds) for slot, kinds in a.needs.items()), (
            "its control meets every need"
        )
        for b in map(method, IDS):
            if (a.edits.keys() & b.edits.keys()) - set(ADDITIVE):  # they conflict before needs are looked at
                continue
            held = {slot: kinds for slot, kinds in a.needs.items() if slot in b.edits}
            made = compose(control(TECHNIQUES[b.name]), b) if held else BASE
            unmet = [slot for slot, kinds in held.items() if not issubclass(made.kind(slot), kinds)]
            if unmet:
                met += 1
                with pytest.raises(Conflict) as raised:
                    compose(base, a, b)
                text = str(raised.value)
                assert a.name in text and b.name in text and any(f"`{slot}`" in text for slot in unmet)
    assert met > 0


def test_additive_slots_add_up() -> None:
    both = recipe_of("deepcache", "int8_dynamic")
    assert {type(t).__name__ for t in both.transforms} == {"DeepCache", "Int8Linear"}
    assert len(recipe_of("diff_pruning", "progressive_distillation").phases) == 2


# Fingerprints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", IDS)
def test_the_training_fingerprint_sees_what_training_sees(id: str) -> None:
    technique, edits = TECHNIQUES[id], method(id).edits
    trains = training_fingerprint(default(technique)) != training_fingerprint(control(technique))
    assert trains == bool(edits.keys() & set(TRAINING))
    assert set(technique.changes) == edits.keys()
    assert technique.retrains == (trains or "phases" in edits)
    assert recipe_fingerprint(default(technique)) != recipe_fingerprint(control(technique))
    recipe = default(technique)
    ships = bool(recipe.phases or recipe.fitted or "start" in edits or any(t.ships for t in recipe.transforms))
    changed = shipped_fingerprint(default(technique)) != shipped_fingerprint(control(technique))
    assert changed == (trains or ships)


@pytest.mark.parametrize("id", [id for id in IDS if TECHNIQUES[id].parameters])
def test_fingerprints_change_with_every_parameter(id: str) -> None:
    technique, base = TECHNIQUES[id], control(TECHNIQUES[id])
    plain = compose(base, replace(technique.call({}), name=id))
    for name, parameter in technique.parameters.items():
        value = parameter.default
        candidates = [2 * value, value + 1, value / 2 if isinstance(value, float) else value - 1, value + 0.1]
        other = next(c for c in candidates if c != value and type(value)(c) == c
                     and (parameter.max is None or c <= parameter.max))  # fmt: skip
        changed = compose(base, replace(technique.call({name: other}), name=id))
        assert recipe_fingerprint(changed) != recipe_fingerprint(plain), name
        slots = [slot for slot in method(id).edits if getattr(changed, slot) != getattr(plain, slot)]
        assert (training_fingerprint(changed) != training_fingerprint(plain)) == bool(set(slots) & set(TRAINING))


def rewritten(tmp_path: Path, module: str, edit: Callable[[str], str]) -> Callable[[str], Path]:
    """`source_file` with one module's source replaced."""
    original = identity.source_file
    copy = tmp_path / "module.py"
    copy.write_text(edit(original(module).read_text()))
    ast.parse(copy.read_text())
    return lambda name: copy if name == module else original(name)


@pytest.mark.parametrize(
    ("module", "seen"), [("methods.core.objective", True), ("methods.inference.ode_solver.edm_heun", False)]
)
def test_fingerprints_see_code_but_no_comments(
    module: str, seen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("edm_heun")

    def forget() -> None:
        for cached in (identity._tree, identity._imports, identity._code, identity.code_digest):
            cached.cache_clear()

    def now(edit: Callable[[str], str]) -> tuple[str, str]:
        with monkeypatch.context() as patch:
            patch.setattr(identity, "source_file", rewritten(tmp_path, module, edit))
            forget()
            digests = training_fingerprint(recipe), recipe_fingerprint(recipe)
        forget()
        return digests

    plain = now(lambda text: text)
    assert plain == (training_fingerprint(recipe), recipe_fingerprint(recipe))
    assert now(lambda text: "# a comment\n" + text + "\n# another\n") == plain
    assert now(lambda text: text.replace('"""', '"""Other words. ', 1)) == plain
    changed = now(lambda text: text + "\nNEW = 1\n")
    assert (changed[0] != plain[0]) == seen and changed[1] != plain[1]


WRITTEN = """
class A(B, key=1):
    x: int = 0
    async def f(self, a=1, *b, c, **d):
        return [f"{a!r:>4} and {d['e']}" for _ in b if not (yield)], lambda: None
    def g(self): pass
"""


def test_code_has_one_digest_on_every_python() -> None:
    """The digest that 3.10 to 3.13 gave: a record from a machine with another Python must not look stale here."""
    assert hashlib.sha256(identity.dumped(ast.parse(WRITTEN)).encode()).hexdigest()[:16] == "55c77022536eccff"


HEEDING = [id for id in IDS if any(phase.heeds != SAMPLING for phase in default(TECHNIQUES[id]).phases)]


@pytest.mark.parametrize("id", HEEDING)
def test_a_phase_that_heeds_less_makes_the_same_weights(id: str) -> None:
    """Recipes that differ only in what its phases do not heed ship the same weights, under one fingerprint."""
    recipe = replace(default(TECHNIQUES[id]), steps=3)
    other = replace(recipe, steps=5, sampler=StochasticDDIM(0.5))
    if not any("grid" in phase.heeds for phase in recipe.phases):
        other = replace(other, grid=recipe_of("karras_rho_schedule").grid)
    assert shipped_fingerprint(other) == shipped_fingerprint(recipe)
    assert recipe_fingerprint(other) != recipe_fingerprint(recipe)
    first, second = (shipped(r)[0].state_dict() for r in (recipe, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_fitted_or_heeded_tells_weights_apart() -> None:
    for ids in (("progressive_distillation",), ("bk_sdm", "ptq4dm")):
        recipe = recipe_of(*ids)
        assert shipped_fingerprint(replace(recipe, steps=2 * recipe.steps)) != shipped_fingerprint(recipe)
    recipe = recipe_of("kd_denoising_student")
    other = replace(recipe, grid=recipe_of("karras_rho_schedule").grid)
    assert shipped_fingerprint(other) != shipped_fingerprint(recipe)


def test_fingerprints_depend_on_their_context() -> None:
    assert training_fingerprint(BASE, "seed 0") != training_fingerprint(BASE, "seed 1")


# Caches, seeds, transforms, files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 5])
def test_a_cache_of_period_one_is_no_cache_and_a_new_trajectory_forgets(steps: int) -> None:
    recipe = replace(recipe_of(), steps=steps)
    model, _ = shipped(recipe_of())
    plain = samples(recipe, run.deploy(recipe, model), [0, 1])
    always = replace(recipe, transforms=(DeepCache(period=1, depth=1),))
    with tallied() as counters:
        assert torch.equal(samples(always, run.deploy(always, model), [0, 1]), plain)
    assert counters["calls_skipped"] == 0
    sometimes = replace(recipe, transforms=(DeepCache(period=3, depth=1),))
    deployed = run.deploy(sometimes, model)
    with tallied() as counters:
        first = samples(sometimes, deployed, [0, 1])
    assert counters["calls_skipped"] == steps - -(-steps // 3)
    samples(sometimes, deployed, [5, 6])
    assert torch.equal(samples(sometimes, deployed, [0, 1]), first) and not torch.equal(first, plain)


@pytest.mark.parametrize("id", IDS)
def test_samples_depend_on_their_seed_alone(id: str) -> None:
    """Again the same; in another batch the same up to rounding; with another seed another."""
    recipe = replace(default(TECHNIQUES[id]), steps=4)
    deployed = run.deploy(recipe, shipped(recipe)[0])
    together = samples(recipe, deployed, [0, 1, 2, 3])
    assert together.shape == (4, *SHAPE) and together.isfinite().all()
    assert torch.equal(samples(recipe, deployed, [0, 1, 2, 3]), together)
    quantized = any(t.does == "quantize the weights" for t in recipe.transforms)
    # Kernels differ with the batch, and what is rounded to 8 bits or to bfloat16 may fall to another side.
    tolerance = 0.05 if recipe.precision != "float32" else 5e-3 if quantized else 1e-4
    assert (samples(recipe, deployed, [2]) - together[2:3]).abs().max() < tolerance
    assert (samples(recipe, deployed, [2, 0]) - together[[2, 0]]).abs().max() < tolerance
    assert not torch.equal(samples(recipe, deployed, [3 + CLASSES])[0], together[3])


def test_training_repeats_itself() -> None:
    for ids in ((), ("immiscible_diffusion", "latent_diffusion"), ("edm_preconditioning",)):
        recipe = recipe_of(*ids)
        first, second = (run.train(recipe, images(), 3)[0].state_dict() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        other = run.train(recipe, images(), 4)[0].state_dict()
        assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("id", members("transforms"))
def test_a_transform_leaves_its_argument_as_it_was(id: str) -> None:
    transform = members("transforms")[id]
    assert isinstance(transform, Transform)
    net = models.build(default(TECHNIQUES[id]), SHAPE, CLASSES).net
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    parts = [type(part) for part in net.modules()]
    changed = transform(net)
    assert changed is not net and parts == [type(part) for part in net.modules()]
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(type(a) is type(before[name]) for name, a in net.state_dict().items())
    with pytest.raises(NothingMatched):
        transform(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)))


@pytest.mark.parametrize(
    "ids",
    [
        (), ("int8_dynamic",), ("dit", "int8_dynamic"), ("diff_pruning",), ("diff_pruning", "int8_dynamic"),
        ("es_ddpm",), ("latent_diffusion", "es_ddpm", "diff_pruning"), ("progressive_distillation", "int8_dynamic"),
    ],
    ids="+".join,
)  # fmt: skip
def test_a_file_gives_back_the_model(ids: tuple[str, ...], tmp_path: Path) -> None:
    recipe = replace(recipe_of(*ids), steps=4)
    model, shapes = shipped(recipe)
    path = tmp_path / "model.safetensors"
    models.save(model, path, {"note": "kept"}, shapes)
    assert list(tmp_path.iterdir()) == [path] and models.read_note(path)["note"] == "kept"
    loaded = models.load(recipe, path, SHAPE, CLASSES, shipped=True)
    assert {n: t.shape for n, t in loaded.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    expected = samples(recipe, run.deploy(recipe, model), [0, 1])
    assert torch.equal(samples(recipe, run.deploy(recipe, loaded), [0, 1]), expected)
