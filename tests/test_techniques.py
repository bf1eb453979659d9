"""Every technique fires, goes with or refuses every other by name, and is what its catalog entry says it is."""

import inspect
import math
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from small import BASE, CLASSES, IDS, SHAPE, TECHNIQUES, images, method, recipe_of, trained, walk
from torch import Tensor, nn

from catalog import Technique
from methods.core import learning, models, run
from methods.core.activation import tallied
from methods.core.calibration import Fitted
from methods.core.denoiser import NULL, Mixture, Network
from methods.core.errors import NothingMatched
from methods.core.identity import training_fingerprint
from methods.core.process import angle
from methods.core.recipe import TRAINING, Method, compose
from methods.core.sampling import SampleNoise, transfer
from methods.inference.ode_solver.ddim import DDIM
from methods.inference.trajectory_distillation.progressive_distillation import TwoStepsInOne
from methods.inference.truncated_chain.es_ddpm import RoughStart
from methods.nets.unet import UNetConfig

ROOT = Path(__file__).parents[1]
AREAS = ("architecture", "training", "inference", "deployment")
pytestmark = pytest.mark.usefixtures("less_work")

SHARED = {"ddim": "the baseline samples with DDIM already"}
"""Techniques whose counters also count in their control, and why; the list may only shrink."""
EXACT = {
    "gradient_checkpointing": "what is computed again is what was computed before",
    "sdpa_flash": "PyTorch takes the kernel in tiles as it is",
    "torch_compile": "here, not in earnest, graphs are run operator by operator",
}
"""Techniques whose samples are those of their control, bit for bit, and why."""


@cache
def cell(ids: tuple[str, ...]) -> tuple[Tensor, Counter[str]]:
    """The samples and counters of a cell with its own steps."""
    first, _, counters = walk(recipe_of(*ids))
    return first, counters


# Together ------------------------------------------------------------------------------------------------------------


def test_all_that_go_together_go_together() -> None:
    """One large set that no pair forbids, from an autoencoder to integers, with caches and guidance on top."""
    ids = (
        "latent_diffusion", "v_prediction", "min_snr_weighting", "immiscible_diffusion", "guidance_interval",
        "deepcache", "karras_rho_schedule", "dpm_solver_pp_2m", "es_ddpm", "diff_pruning", "int8_dynamic", "bf16_amp",
    )  # fmt: skip
    first, again, counters = walk(recipe_of(*ids))
    assert first.isfinite().all() and torch.equal(first, again)
    for id in ids:
        assert all(counters[name] > 0 for name in TECHNIQUES[id].counters), id


# Firing ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", IDS)
def test_a_technique_fires_and_changes_the_samples(id: str) -> None:
    """Its counters are positive in its default cell and zero in its control; and the images differ, where they do."""
    technique = TECHNIQUES[id]
    samples, counters = cell(tuple(technique.default.methods))
    without, idle = cell(tuple(technique.control.methods))
    assert all(counters[name] > 0 for name in technique.counters), counters
    assert any(idle[name] > 0 for name in technique.counters) == (id in SHARED), idle
    assert samples.shape == without.shape and torch.equal(samples, without) == (id in EXACT)


@pytest.mark.parametrize("id", [id for id in IDS if not method(id).edits.keys() & {*TRAINING, "phases"}])
def test_what_changes_sampling_alone_uses_its_controls_weights(id: str) -> None:
    technique = TECHNIQUES[id]
    default, control = recipe_of(*technique.default.methods), recipe_of(*technique.control.methods)
    assert training_fingerprint(default) == training_fingerprint(control)
    a, b = trained(default)[0].net.state_dict(), trained(control)[0].net.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_guidance_costs_two_evaluations_inside_of_its_interval_and_one_outside() -> None:
    rows = {}
    for id in ("classifier_free_guidance", "guidance_interval"):
        recipe = recipe_of(id)
        deployed = run.deploy(recipe, trained(recipe)[0])
        run.generate(recipe, deployed, torch.tensor([0]), [0])
        rows[id] = deployed.network.rows
    times = BASE.grid(BASE.process, BASE.steps)[:-1]
    ratio = torch.exp(-BASE.process.lam(times))
    inside = int(((ratio > 0.19) & (ratio <= 1.61)).sum())
    assert rows == {"classifier_free_guidance": 2 * BASE.steps, "guidance_interval": BASE.steps + inside}
    assert 0 < inside < BASE.steps


def test_guidance_in_an_interval_treats_every_row_by_its_own_time() -> None:
    """A parallel sampler asks for many times at once."""
    interval, always, never = recipe_of("guidance_interval"), recipe_of("classifier_free_guidance"), BASE
    model = trained(always)[0]
    x, labels = torch.randn(3, *SHAPE), torch.tensor([0, 1, 2])
    t = BASE.process.time(-torch.log(torch.tensor([10.0, 0.5, 0.05], dtype=torch.float64)))
    mixed, guided, plain = (run.deploy(recipe, model).denoiser(x, t, labels) for recipe in (interval, always, never))
    assert torch.allclose(mixed[1], guided[1], atol=1e-6) and not torch.allclose(guided[1], plain[1], atol=1e-6)
    assert torch.allclose(mixed[[0, 2]], plain[[0, 2]], atol=1e-6)


def test_pruning_leaves_groups_whole_or_says_that_it_removed_nothing() -> None:
    """The official code's share of every layer, in channels that group norms can still divide."""
    recipe = compose(BASE, TECHNIQUES["diff_pruning"].call({"ratio": 0.5, "fraction": 0.5}))
    wide = replace(recipe, net=UNetConfig(16))
    model, *_ = run.compress(wide, trained(wide)[0], images(), 0)
    norms = [part.num_channels for part in model.net.modules() if isinstance(part, torch.nn.GroupNorm)]
    full = models.build(wide, SHAPE, CLASSES).net
    assert norms == [part.num_channels // 2 for part in full.modules() if isinstance(part, torch.nn.GroupNorm)]
    nothing = compose(BASE, TECHNIQUES["diff_pruning"].call({"ratio": 0.1}))
    with pytest.raises(NothingMatched, match=r"0\.1"):
        run.compress(nothing, trained(nothing)[0], images(), 0)


class TwoStepsOfTheTeacher(nn.Module):
    """The student that distillation is after: v of the one step that ends where two DDIM steps of the teacher do."""

    def __init__(self, teacher: Mixture, times: Tensor) -> None:
        super().__init__()
        self.teacher, self.times, self.seen = teacher, times, set()

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        process, answers = self.teacher.process, []
        for row, level in zip(x.double(), u.double(), strict=True):
            start = int((self.times[:-2:2] - level).abs().argmin()) * 2  # the cosine process: the level is the time
            t, s = self.times[start], self.times[start + 2]
            assert abs(t - level) < 1e-6, "the student is asked on its own grid"
            self.seen.add(start)
            two = DDIM()(self.teacher, row[None], self.times[start : start + 3], None, SampleNoise([0]))
            kept, moved = transfer(process, row[None], 0 * two, t, s), transfer(process, 0 * two, 0 * two + 1, t, s)
            x0 = (two - kept) / moved
            eps = (row - process.alpha(t) * x0) / process.sigma(t)
            answers.append(process.alpha(t) * eps - process.sigma(t) * x0)
        return torch.cat(answers).float()


def test_the_target_of_distillation_is_two_steps_of_the_teacher() -> None:
    recipe = recipe_of("progressive_distillation")
    process, times = recipe.process, recipe.grid(recipe.process, 8)
    teacher = Mixture(torch.tensor([[0.5, 0.1], [-0.6, 0.4]]), torch.tensor([0.3, 0.5]), torch.ones(2) / 2, process)
    net = TwoStepsOfTheTeacher(teacher, times)
    student = Network(net, process, recipe.parameterization, None)
    x0, rng = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0)
    losses = TwoStepsInOne(times)(student, teacher, x0, None, rng)
    assert losses.max() < 1e-6 and net.seen == {0, 2, 4, 6}


def test_the_weights_that_ship_are_the_moving_average() -> None:
    """decay = min(ema, (1 + i) / (10 + i)), and the first decay is at most 1/10."""
    for ema, first in ((0.0, 0.0), (0.5, 0.1)):
        recipe = replace(BASE, fit=replace(BASE.fit, ema=ema, iterations=1))
        begun = models.build(recipe, SHAPE, CLASSES, 0)
        before = [p.clone() for p in begun.net.parameters()]
        student = models.network(recipe, begun)
        average = learning.optimise(student, student, recipe.objective, images().images, images().labels, recipe.fit, 0)
        moved = False
        for old, new, mean in zip(before, student.net.parameters(), average.parameters(), strict=True):
            assert torch.allclose(mean, first * old + (1 - first) * new, atol=1e-7)
            moved |= not torch.equal(old, new)
        assert moved


def test_the_truncated_chain_begins_where_its_first_time_says() -> None:
    """x = alpha rough + sigma eps at the first time not above the stop: with a silent decoder, noise of that sigma."""
    recipe = recipe_of("es_ddpm")
    starter = models.build(recipe, SHAPE, CLASSES, 0).starter
    for parameter in starter.parameters():
        torch.nn.init.zeros_(parameter)
    times = recipe.grid(recipe.process, 50)
    x, left = starter(recipe.process, times, SHAPE, torch.zeros(64, dtype=torch.long), SampleNoise(range(64)))
    assert torch.equal(left, times[angle(recipe.process.lam(times)) <= 0.5]) and len(left) == 26
    assert abs(x.std() / recipe.process.sigma(left[0]) - 1) < 0.05


def test_rough_samples_are_drawn_where_the_codes_of_their_class_lie() -> None:
    """Their mean and covariance are those of the codes, posterior noise included; unlabelled ones lie among all."""
    start = RoughStart(SHAPE, 2, 1.0)
    rng, k = torch.Generator().manual_seed(0), start.vae.latent
    mix = torch.randn(2, k, k, generator=rng) / k**0.5
    labels = torch.arange(2000) % 2
    means = 5 * labels[:, None] + (mix[labels] @ torch.randn(2000, k, 1, generator=rng)).squeeze(-1)
    start.place(means, torch.full_like(means, math.log(0.3)), labels)
    for label, codes in ((0, means[::2]), (1, means[1::2]), (NULL, means)):
        assert torch.allclose(start.centre[label], codes.mean(0), atol=1e-5)
        covariance = start.spread[label] @ start.spread[label].T
        assert torch.allclose(covariance, codes.T.cov(correction=0) + 0.3 * torch.eye(k), atol=1e-4)

    drawn: list[Tensor] = []
    decode = start.vae.decode
    start.vae.decode = lambda z, known: drawn.append(z) or decode(z, known)
    recipe = recipe_of("es_ddpm")
    asked = torch.tensor([0, 1]).repeat_interleave(500)
    start(recipe.process, recipe.grid(recipe.process, 4), SHAPE, asked, SampleNoise(range(1000)))
    for label in (0, 1):
        assert (drawn[0][asked == label].mean(0) - start.centre[label]).abs().max() < 0.3
        covariance, found = start.spread[label] @ start.spread[label].T, drawn[0][asked == label].T.cov()
        assert (found - covariance).norm() < 0.5 * (covariance - torch.eye(k)).norm()


def test_latents_are_standardized_and_decoded_where_they_were_encoded() -> None:
    recipe = recipe_of("latent_diffusion")
    codec = trained(recipe)[0].codec
    latents = codec.encode(images().images)
    assert latents.shape == (24, 2, 4, 4) and abs(latents.mean()) < 1e-4 and abs(latents.std() - 1) < 1e-4
    autoencoder = codec.get_submodule("autoencoder")
    straight = autoencoder.decode(autoencoder.posterior(images().images)[0])  # pyright: ignore[reportCallIssue]
    assert torch.allclose(codec.decode(latents), straight, atol=1e-5)


def test_patches_are_moved_and_not_mixed() -> None:
    codec = models.build(recipe_of("patched_pixel_diffusion"), SHAPE, CLASSES, 0).codec
    x = images().images
    assert codec.encode(x).shape == (24, 4, 4, 4) and torch.equal(codec.decode(codec.encode(x)), x)
    assert torch.equal(codec.encode(x)[:, :, 0, 0], x[:, 0, :2, :2].flatten(1))


def test_distillation_halves_down_to_its_steps_or_says_that_it_cannot() -> None:
    technique = TECHNIQUES["progressive_distillation"]
    for steps, start in ((3, 8), (8, 8), (16, 8)):
        recipe = compose(BASE, technique.call({"steps": steps, "start_steps": start}))
        with pytest.raises(AssertionError, match=f"{start} steps cannot be halved to {steps}"):
            run.compress(recipe, trained(recipe)[0], images(), 0)
    recipe = compose(BASE, technique.call({"steps": 2, "start_steps": 16, "fraction": 0.5}))
    with tallied() as counters:
        run.compress(recipe, trained(recipe)[0], images(), 0)
    assert counters["halvings"] == 3


# Catalog and code -----------------------------------------------------------------------------------------------------


def technique_files() -> list[Path]:
    return [p for area in AREAS for p in sorted((ROOT / "methods" / area).glob("*/*.py")) if p.stem[0] != "_"]


def test_the_catalog_and_the_code_have_the_same_techniques() -> None:
    entries = {Path(t.area, t.family, f"{id}.py") for id, t in TECHNIQUES.items()}
    assert {path.relative_to(ROOT / "methods") for path in technique_files()} == entries


@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=IDS)
def test_the_signature_is_the_catalogs(technique: Technique) -> None:
    function = getattr(import_module(technique.module), technique.id)
    signature = inspect.signature(function)
    assert {name: p.default for name, p in signature.parameters.items()} == {
        name: p.default for name, p in technique.parameters.items()
    }
    for name, parameter in signature.parameters.items():
        assert parameter.annotation is type(technique.parameters[name].default), name
    assert signature.return_annotation is Method
    assert (function.__doc__ or "").strip(), "the function says what its parameters do"


@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=IDS)
def test_the_module_is_an_exposition(technique: Technique) -> None:
    """A sentence, the source with its arXiv number, and one screen."""
    path = ROOT / (technique.module.replace(".", "/") + ".py")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120
    doc = inspect.getdoc(import_module(technique.module)) or ""
    first, _, rest = doc.partition("\n")
    sentence = first if first.endswith(".") else doc.partition("\n\n")[0]
    assert sentence[0].isupper() and sentence.endswith("."), sentence
    source = re.search(r"^Source: (.+?)(?=^\w+:|\Z)", rest, re.M | re.S)
    assert source, "no `Source:`"
    cited = re.findall(r"\d{4}\.\d{4,5}", source[1])
    assert cited and (technique.paper.arxiv is None or technique.paper.arxiv in cited)


OPEN: dict[str, str] = {}
"""Techniques whose bounds are known to be too wide, and why; the list may only shrink."""


@pytest.mark.parametrize(
    "technique",
    [
        pytest.param(t, id=id, marks=[pytest.mark.xfail(reason=OPEN[id], strict=True)] if id in OPEN else [])
        for id, t in TECHNIQUES.items()
    ],
)
def test_every_permitted_extreme_can_be_composed(technique: Technique) -> None:
    """A bound of the catalog is a value that the code takes, up to grids and guidance."""
    for name, parameter in technique.parameters.items():
        for value in (parameter.min, parameter.max):
            if value is not None:
                recipe = compose(recipe_of(*technique.control.methods), technique.call({name: value}))
                grid = recipe.grid.build(recipe) if isinstance(recipe.grid, Fitted) else recipe.grid
                times = grid(recipe.process, recipe.steps)
                assert (times.diff() < 0).all() and times.isfinite().all(), (name, value)
                recipe.guidance(models.network(recipe, models.build(BASE, SHAPE, CLASSES)))
