"""Caches, merged tokens, stitched and shortened networks, against independent formulations of what they do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tomesd.merge import bipartite_soft_matching_random2d
from torch import Tensor, nn
from torch.nn import functional as F

from catalog import load
from methods.baseline import baseline
from methods.core import learning, models, run
from methods.core.activation import tallied
from methods.core.data import TrainingSet
from methods.core.denoiser import Network
from methods.core.fit import Fit
from methods.core.objective import Denoising, Independent, UniformTimes, UnitOnTarget
from methods.core.recipe import Recipe, compose
from methods.deployment.compact_network.bk_sdm import BlockDistillation, BlockRemoval, Through, listening
from methods.inference.feature_caching.fora import FORA
from methods.inference.feature_caching.teacache import STEPS, TeaCache, TeaCached
from methods.inference.model_schedule.t_stitch import Stitched
from methods.inference.token_reduction.tome_sd import ToMe, destinations, match
from methods.nets.dit import Block, DiT, DiTConfig, modulate
from methods.nets.unet import UNet, UNetConfig

TECHNIQUES = load().techniques
BASE = baseline(UNetConfig(8), Fit(2, batch=8, learning_rate=1e-2, warmup=1, ema=0.5))
SHAPE, CLASSES = (1, 8, 8), 3


def recipe_of(*ids: str) -> Recipe:
    return compose(BASE, *(replace(TECHNIQUES[id].call({}), name=id) for id in ids))


def shaken(net: nn.Module) -> nn.Module:
    """A network none of whose layers is silent, as those that start at zero are."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rng))
    return net.requires_grad_(False).eval()


def transformer() -> DiT:
    net = shaken(DiTConfig(width=16, depth=3, heads=2).build(SHAPE, CLASSES))
    assert isinstance(net, DiT)
    return net


def given(seed: int, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=rng), torch.rand(n, generator=rng), torch.arange(n) % CLASSES


def images() -> TrainingSet:
    x = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    return TrainingSet(x, torch.arange(24) % CLASSES, CLASSES)


# Caches of transformers -----------------------------------------------------------------------------------------------


def test_fora_adds_what_it_kept_through_the_gates_of_now() -> None:
    net = transformer()
    kept: list[Tensor] = []
    hooks = [part.register_forward_hook(lambda _, x, out: kept.append(out))
             for block in net.blocks for part in (block.attention, block.mlp)]  # fmt: skip
    first = net(*given(0))
    for hook in hooks:
        hook.remove()
    cached = FORA(period=3)(net)
    assert torch.equal(cached(*given(0)), first)
    x, u, labels = given(1)
    condition = net.conditioning(u, labels)
    h = net.tokens(x).flatten(2).transpose(1, 2) + net.position
    for i, block in enumerate(net.blocks):
        gates = block.modulation(F.silu(condition)).chunk(6, dim=1)
        h = h + gates[2][:, None] * kept[2 * i] + gates[5][:, None] * kept[2 * i + 1]
    expected = F.pixel_shuffle(net.head(h, condition).transpose(1, 2).unflatten(2, net.grid), net.patch)
    assert torch.allclose(cached(x, u, labels), expected, atol=1e-5)
    cached(x, u, labels)
    assert torch.equal(cached(*given(2)), net(*given(2))), "the fourth call is whole again"


def entering(net: DiT, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
    """What the first attention of a plain transformer is given."""
    block, condition = net.blocks[0], net.conditioning(u, labels)
    shift, scale = block.modulation(F.silu(condition)).chunk(6, dim=1)[:2]
    h = net.tokens(x).flatten(2).transpose(1, 2) + net.position
    return modulate(block.norm_attention(h), shift, scale)


def test_teacache_decides_as_the_official_loop_does_for_one_sample() -> None:
    net, polynomial, threshold = transformer(), [0.5, -0.2, 0.3, 0.4, 0.01], 0.25
    cached = TeaCache(threshold)(net)
    cache = cached.get_submodule("blocks.0")
    assert isinstance(cache, TeaCached)
    cache.coefficients.copy_(torch.tensor(polynomial[::-1]))
    start, move, _ = (g[0] for g in (given(0, 1), given(1, 1), given(2, 1)))
    drift, previous, skipped = 0.0, None, []
    for i in range(20):
        one = (start + 0.01 * i**1.5 * move, torch.tensor([1 - 0.04 * i]), torch.tensor([1]))
        now = entering(net, *one)
        if previous is not None:
            drift += np.poly1d(polynomial)(((now - previous).abs().mean() / previous.abs().mean()).item())
        whole = previous is None or drift >= threshold
        drift, previous = 0.0 if whole else drift, now
        with tallied() as counters:
            answer = cached(*one)
        assert (counters["blocks_skipped"] == 0) == whole
        assert torch.allclose(answer, net(*one), atol=1e-5) == whole
        skipped.append(not whole)
    assert 0 < sum(skipped) < 19


def test_teacache_fits_the_change_of_the_output_by_least_squares() -> None:
    recipe = recipe_of("dit", "teacache")
    model = models.build(recipe, SHAPE, CLASSES, 0)
    net = model.net = shaken(model.net)
    assert isinstance(net, DiT)
    plain = Network(net, recipe.process, recipe.parameterization, None)
    transform = TeaCache(0.1)
    model.net = transform(net)
    assert transform.fit(recipe, model.net, model, images(), 0, learning.quiet) == STEPS
    cache = model.net.get_submodule("blocks.0")
    assert isinstance(cache, TeaCached) and len(cache.previous) == 0
    eps = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    moved, answered, before = [], [], None
    for t in recipe.grid(recipe.process, STEPS)[:-1]:
        x_t = recipe.process.diffuse(images().images[:1], eps, t)
        u = recipe.process.angle(t).float().reshape(1)
        now = entering(net, x_t, u, images().labels[:1]), plain.predict(x_t, t, images().labels[:1])
        if before is not None:
            a, b = (((new - old).abs().mean() / old.abs().mean()).item() for new, old in zip(now, before, strict=True))
            moved.append(a)
            answered.append(b)
        before = now
    expected = np.polyfit(moved, answered, 4)
    fitted = np.polyval(cache.coefficients.double().numpy()[::-1], moved)
    assert np.abs(fitted - np.polyval(expected, moved)).max() < 0.01 * np.abs(answered).max()


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "r"), [(4, 8), (4, 12), (5, 9), (8, 1)])
def test_tokens_merge_as_in_the_package(side: int, r: int) -> None:
    n = side**2
    x = torch.randn(3, n, 6, generator=torch.Generator().manual_seed(1))
    merge, unmerge = bipartite_soft_matching_random2d(
        x, side, side, 2, 2, r, generator=torch.Generator().manual_seed(7)
    )
    choice = torch.randint(4, (side // 2, side // 2), generator=torch.Generator().manual_seed(7))
    places = match(x, destinations(side, choice), r)
    assert places.max() == n - r - 1
    y = torch.randn(3, n, 6, generator=torch.Generator().manual_seed(2))
    matching = ToMe(0.5)(transformer()).get_submodule("blocks.0.matching")
    matching.places, matching.length = places, n - r
    merged = matching.merge(nn.Identity(), (y,))  # pyright: ignore[reportCallIssue]
    assert merged.shape == merge(y).shape
    restored = matching.unmerge(nn.Identity(), (), merged)  # pyright: ignore[reportCallIssue]
    assert torch.allclose(restored, unmerge(merge(y)), atol=1e-6)
    assert torch.allclose(merged.sort(dim=1).values, merge(y).sort(dim=1).values, atol=1e-6)


def test_merging_equal_tokens_changes_nothing() -> None:
    """Four copies of a token in each cell: attention over one of each is attention over all."""
    block = shaken(Block(16, 2))
    merging = ToMe(0.75)(nn.Sequential(block))[0]  # pyright: ignore[reportIndexIssue]
    cells = torch.randn(2, 2, 2, 16, generator=torch.Generator().manual_seed(0))
    tokens = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    condition = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    with tallied() as counters:
        assert torch.allclose(merging(tokens, condition), block(tokens, condition), atol=1e-5)
    assert counters["tokens_merged"] == 2 * 12
    other = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(merging(other, condition), block(other, condition), atol=1e-3)


def test_destinations_are_drawn_anew_at_each_call_and_again_after_a_reset() -> None:
    merging = ToMe(0.5)(transformer())
    first, second = merging(*given(0)), merging(*given(0))
    assert not torch.equal(first, second)
    Network(merging, BASE.process, BASE.parameterization, None).reset()
    assert torch.equal(merging(*given(0)), first) and torch.equal(merging(*given(0)), second)


# Two networks, and less of one ----------------------------------------------------------------------------------------


class Says(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        return torch.full_like(x, self.value) + labels[:, None]


def test_a_stitched_network_asks_the_small_one_above_the_switch() -> None:
    net, u = Stitched(Says(10.0), Says(20.0), 0.6), torch.tensor([0.2, 0.9, 0.6, 0.7])
    labels = torch.arange(4)
    expected = torch.tensor([10.0, 21.0, 12.0, 23.0])[:, None]
    assert torch.equal(net(torch.zeros(4, 1), u, labels), expected)
    assert torch.equal(net(torch.zeros(4, 1), torch.stack([u, u.flip(0)], dim=1), labels), expected)
    for rows in (torch.tensor([1, 3]), torch.tensor([0, 2])):
        assert torch.equal(net(torch.zeros(2, 1), u[rows], labels[rows]), expected[rows])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_small_network_takes_its_share_of_the_steps(share: float) -> None:
    recipe = compose(recipe_of("dit"), TECHNIQUES["t_stitch"].call({"share": share}))
    model = models.build(recipe, SHAPE, CLASSES)
    model.net = recipe.transforms[0](model.net)
    with tallied() as counters:
        run.generate(recipe, run.deploy(replace(recipe, transforms=()), model), torch.tensor([0, 1]), [0, 1])
    assert counters["small_calls"] == 2 * round(share * recipe.steps)


@pytest.mark.parametrize("config", [UNetConfig(16), DiTConfig(width=32, heads=4)])
def test_the_small_network_is_smaller(config: UNetConfig | DiTConfig) -> None:
    net = TECHNIQUES["t_stitch"].call({}).edits["transforms"](config.build(SHAPE, CLASSES))
    large, small = (sum(p.numel() for p in part.parameters()) for part in (net.large, net.small))
    assert type(net.small) is type(net.large) and small < large / 4
    assert net.small(*given(0)).shape == (2, *SHAPE)


def test_the_second_block_of_a_stage_and_the_middle_stage_go() -> None:
    net = shaken(UNetConfig(8, blocks=3).build(SHAPE, CLASSES))
    with tallied() as counters:
        small = BlockRemoval()(net)
    assert counters["blocks_removed"] == 2 + 4
    removed = [path for path, part in small.named_modules() if isinstance(part, Through)]
    assert len(removed) == 5 and all(path.endswith((".1", ".below")) for path in removed)
    assert small.state_dict().keys() < net.state_dict().keys()
    assert small(*given(0)).isfinite().all()


def test_distillation_adds_the_errors_of_every_stage_and_of_the_answer() -> None:
    net = shaken(UNetConfig(8).build(SHAPE, CLASSES))
    assert isinstance(net, UNet)
    small = BlockRemoval()(net)
    student, teacher = (Network(n, BASE.process, BASE.parameterization, None) for n in (small, net))
    task = Denoising(UniformTimes(), UnitOnTarget(), Independent())
    data = images()

    def loss(learner: Network, weight: float) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        return BlockDistillation(task, weight)(learner, teacher, data.images, data.labels, rng)

    assert torch.allclose(loss(teacher, 3.0), loss(teacher, 0.0), atol=1e-6), "nothing to learn from oneself"
    rng = torch.Generator().manual_seed(0)
    eps, t = Independent()(data.images, rng), UniformTimes()(BASE.process, len(data.images), rng)
    x_t, u = BASE.process.diffuse(data.images, eps, t), BASE.process.angle(t).float()

    def stages(n: nn.Module) -> list[Tensor]:
        top, low = n.get_submodule("level"), n.get_submodule("level.below.level")
        heard = {}
        hooks = [part.register_forward_hook(lambda m, i, out: heard.update({m: out}))
                 for part in (top.get_submodule("down.0"), low.get_submodule("down.0"), low, top)]  # fmt: skip
        answer = n(x_t, u, data.labels)
        for hook in hooks:
            hook.remove()
        return [*heard.values(), answer]

    errors = sum((a - b).square().mean() for a, b in zip(stages(small), stages(net), strict=True))
    assert torch.allclose(loss(student, 2.0) - loss(student, 0.0), 2 * torch.as_tensor(errors), rtol=1e-4)
    with listening(net) as heard:
        net(x_t, u, data.labels)
    assert len(heard) == 5 and not any(part._forward_hooks for part in net.modules())


@pytest.mark.parametrize(
    "ids",
    [("bk_sdm",), ("t_stitch",), ("dit", "t_stitch", "teacache"), ("bk_sdm", "t_stitch", "deepcache")],
    ids="+".join,
)
def test_a_file_gives_back_what_was_fitted(ids: tuple[str, ...], tmp_path: Path) -> None:
    recipe = replace(recipe_of(*ids), steps=4)
    model, _ = run.train(recipe, images(), 0)
    model, seen, shapes = run.compress(recipe, model, images(), 0)
    assert seen > 0
    models.save(model, tmp_path / "model", {}, shapes)
    loaded = models.load(recipe, tmp_path / "model", SHAPE, CLASSES, shipped=True)
    one, two = (run.generate(recipe, run.deploy(recipe, m), torch.tensor([0, 1]), [0, 1]) for m in (model, loaded))
    assert torch.equal(one, two)
