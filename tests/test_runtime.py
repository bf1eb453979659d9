"""Runtimes: the same numbers as the plain network, the same counts of its work, and what they do to time or memory."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import small
import torch
from small import IDS
from torch import Tensor, nn

from catalog import load
from methods.baseline import baseline
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.denoiser import Remembering
from methods.core.errors import Conflict, NothingMatched
from methods.core.fit import Fit
from methods.core.recipe import Recipe, compose
from methods.core.surgery import Transform
from methods.deployment.runtime import torch_compile
from methods.deployment.runtime._onnx import TRACED, structure
from methods.deployment.runtime._shared import Handed
from methods.deployment.runtime.channels_last import ChannelsLast
from methods.deployment.runtime.onnxruntime import InONNXRuntime
from methods.deployment.runtime.sdpa_flash import Attending
from methods.measure import cost
from methods.nets.dit import DiTConfig, SelfAttention
from methods.nets.unet import UNet, UNetConfig

TECHNIQUES = load().techniques
BASE = baseline(UNetConfig(8), Fit(2, batch=8, warmup=1))
SHAPE, CLASSES = (1, 8, 8), 3
GRAPHS = ("onnxruntime", "openvino")
RUNTIMES = ("channels_last", "sdpa_flash", "torch_compile", *GRAPHS)
LAX = {"teacache": {"threshold": 1.0}}
"""A threshold that random weights stay below for some steps."""
COUNTERS = {id: TECHNIQUES[id].counters[0] for id in RUNTIMES}


def transform(id: str) -> Transform:
    return TECHNIQUES[id].call({}).edits["transforms"]


def recipe_of(*ids: str) -> Recipe:
    return compose(BASE, *(TECHNIQUES[id].call(LAX.get(id, {})) for id in ids))


def filled(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with weights of which none is zero."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    return net.eval().requires_grad_(False)


@cache
def network(name: str, seed: int = 0) -> nn.Module:
    config = {"unet": UNetConfig(8), "dit": DiTConfig(width=32, depth=2)}[name]
    return filled(config.build(SHAPE, CLASSES), seed)


def asked(rows: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs in which every row has a noise level of its own."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *SHAPE, generator=rng), torch.rand(rows, generator=rng), torch.arange(rows) % 4 - 1


def answer(net: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.inference_mode():
        return net(*inputs).clone()


@pytest.fixture(autouse=True)
def graphs_run_as_they_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the tests in earnest, which want the compiler."""
    if "in_earnest" not in request.node.name:
        monkeypatch.setattr(torch_compile, "BACKEND", "aot_eager")


# The same numbers -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """A compiler that has read nothing yet: it gives up on code that it read several times, for whomever."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["unet", "dit"])
@pytest.mark.parametrize("id", RUNTIMES)
def test_the_network_answers_as_the_plain_one(id: str, name: str) -> None:
    """For one row, for seven, and for seven again; every row with its own noise level or all with one."""
    if (id, name) == ("channels_last", "dit"):
        pytest.skip("refuses transformers: it would reorder one convolution of patches")
    plain, handed = network(name), transform(id)(network(name))
    for rows in (7, 1, 4):
        x, u, labels = asked(rows)
        for level in (u, u[:1].expand(rows)):
            expected = answer(plain, (x, level, labels))
            with tallied() as counters:
                found = answer(handed, (x, level, labels))
            assert found.shape == expected.shape and found.dtype == torch.float32
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
            assert counters[COUNTERS[id]] > 0
    first = answer(handed, asked(7))
    kept = first.clone()
    answer(handed, asked(7, seed=2))
    assert torch.equal(first, kept), "an answer is nobody else's memory"


@pytest.mark.parametrize(
    "ids", [("deepcache",), ("dit", "fora"), ("dit", "teacache"), ("dit", "tome_sd")], ids="+".join
)
@pytest.mark.parametrize("id", ["torch_compile", *GRAPHS])
def test_caches_keep_their_memory_beside_what_is_handed_over(id: str, ids: tuple[str, ...]) -> None:
    """The samples are those of the cache alone, and it skips as much."""
    found: dict[tuple[str, ...], Tensor] = {}
    counted: dict[tuple[str, ...], int] = {}
    technique = TECHNIQUES[ids[-1]]
    for cell in (ids, (*ids, id)):
        recipe = recipe_of(*cell, "dpm_solver_pp_2m")
        model = models.build(recipe, SHAPE, CLASSES)
        net = filled(model.net)
        for shipping in (t for t in recipe.transforms if t.ships):
            net = shipping(net)  # a cache with the polynomial it begins with
        model.net = net
        deployed = run.deploy(recipe, model)
        with tallied() as counters, torch.compiler.set_stance("force_eager" if id == "torch_compile" else "default"):
            found[cell] = run.generate(recipe, deployed, torch.tensor([0, 1, 2]), [0, 1, 2])
        counted[cell] = counters[technique.counters[0]]
        if cell != ids:
            parts = [part for part in deployed.network.net.modules() if isinstance(part, Handed)]
            assert parts and not any(isinstance(m, Remembering) for p in parts for m in p.hidden[0].modules())
    assert counted[ids] == counted[(*ids, id)] > 0
    assert torch.allclose(found[ids], found[(*ids, id)], atol=1e-3)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_structure_is_traced_once_and_has_the_weights_of_whoever_asks(name: str) -> None:
    inputs = asked(5)
    answer(transform("onnxruntime")(network(name)), inputs)
    traced = len(TRACED)
    for id in GRAPHS:
        for seed in (1, 2):
            expected = answer(network(name, seed), inputs)
            found = answer(transform(id)(network(name, seed)), inputs)
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert len(TRACED) == traced
    few, many = (filled(DiTConfig(width=32, depth=2, heads=heads).build(SHAPE, CLASSES)) for heads in (2, 4))
    assert structure(few, inputs) != structure(many, inputs), "heads are in no shape of a weight"


def test_a_network_that_is_told_more_is_asked_both_ways() -> None:
    """One number a row, or two: the graphs are different."""
    net, (x, u, labels) = network("dit"), asked(3)
    handed = transform("onnxruntime")(net)
    for told in (u, torch.stack([u, u], dim=1)):
        assert torch.allclose(answer(handed, (x, told, labels)), answer(net, (x, told, labels)), atol=1e-4)
    (part,) = (part for part in handed.modules() if isinstance(part, InONNXRuntime))
    assert len(part.ready) == 2


# The same work, and refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [(), ("dit",)], ids=["unet", "dit"])
@pytest.mark.parametrize("id", RUNTIMES)
def test_work_and_parameters_are_those_of_the_plain_network(id: str, base: tuple[str, ...]) -> None:
    if (id, base) == ("channels_last", ("dit",)):
        pytest.skip("refuses transformers")
    counts = []
    for ids in (base, (*base, id)):
        recipe = recipe_of(*ids, "dpm_solver_pp_2m")
        model = models.build(recipe, SHAPE, CLASSES)
        filled(model)
        deployed = run.deploy(recipe, model)

        def draw(recipe: Recipe = recipe, deployed: run.Deployed = deployed) -> object:
            return run.generate(recipe, deployed, torch.tensor([0, 1]), [0, 1])

        draw()
        net = deployed.network.net
        counts.append((
            cost.macs(draw), cost.active_parameters(net, draw), cost.parameters(net), cost.nbytes(model),
            cost.parameters(model),
        ))  # fmt: skip
    assert counts[0] == counts[1]
    assert counts[0][0][0] > 0 and counts[0][0][1] == []


def test_one_network_goes_to_one_compiler_and_graphs_are_in_32_bits() -> None:
    for first, second in (("onnxruntime", "torch_compile"), ("openvino", "torch_compile")):
        with pytest.raises(Conflict, match="both hand the network to a compiler"):
            recipe_of(first, second)
    for id in GRAPHS:
        with pytest.raises(Conflict, match="both set `precision`"):
            recipe_of(id, "bf16_amp")


@pytest.mark.parametrize("id", GRAPHS)
def test_what_cannot_be_exported_is_refused_with_a_sentence(id: str) -> None:
    for chosen in ("channels_last", "sdpa_flash"):
        with pytest.raises(NothingMatched, match="chooses layouts and kernels itself"):
            transform(id)(transform(chosen)(network("unet")))
    for quantized in ("int8_dynamic", "weight_only_int8_int4"):
        with pytest.raises(NothingMatched, match="no part of plain layers and plain weights"):
            transform(id)(transform(quantized)(network("dit")))


def test_integers_of_pytorchs_own_library_are_compiled() -> None:
    net = transform("int8_dynamic")(network("dit"))
    compiled = transform("torch_compile")(net)
    with tallied() as counters:
        found = answer(compiled, asked(3))
    assert torch.allclose(found, answer(net, asked(3)), atol=1e-4) and counters["graphs_run"] > 0


def test_half_precision_is_kept_under_a_compiler() -> None:
    recipe = recipe_of("torch_compile", "bf16_amp")
    model = models.build(recipe, SHAPE, CLASSES)
    filled(model)
    with tallied() as counters:
        run.generate(recipe, run.deploy(recipe, model), torch.tensor([0, 1]), [0, 1])
    assert counters["calls_bfloat16"] == counters["graphs_run"] == recipe.steps


# Each one's own -------------------------------------------------------------------------------------------------------


def test_activations_have_their_channels_last() -> None:
    """In every convolution that has more than one channel, and nowhere outside of the network."""
    handed, formats = ChannelsLast()(network("unet")), []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape[1] > 1 and output.shape[2] > 1:
            formats.append(output.is_contiguous(memory_format=torch.channels_last) and not output.is_contiguous())

    for part in handed.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(note)
    outside = answer(handed, asked(3))
    assert len(formats) > 10 and all(formats) and outside.is_contiguous()


def attention(kernel: int) -> nn.Module:
    net = nn.Sequential(SelfAttention(32, 4))
    filled(net)
    return TECHNIQUES["sdpa_flash"].call({"kernel": kernel}).edits["transforms"](net)


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1) @ v


@pytest.mark.parametrize("n", [16, 256, 2048])
def test_attention_in_tiles_is_exact(n: int) -> None:
    """Against softmax(Q K' / sqrt d) V in 64 bits: over one tile of keys and over more."""
    x = torch.randn(1, n, 32, generator=torch.Generator().manual_seed(n))
    precise = attention(1)[0].attention.double()
    q, k, v = (
        part(x.double()).unflatten(2, (4, -1)).transpose(1, 2) for part in (precise.query, precise.key, precise.value)
    )
    truth = precise.out(naive(q, k, v).transpose(1, 2).flatten(2))
    errors = [(attention(kernel)(x) - truth).abs().max() / truth.abs().max() for kernel in (0, 1)]
    assert max(errors) < 1e-5
    assert not torch.equal(attention(0)(x), attention(1)(x)), "they are different kernels"


def peak(call: Callable[[], object]) -> int:
    """Resident bytes that a call needs at most, beyond those at its beginning."""

    def resident(field: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs the peak memory that Linux keeps")
def test_memory_grows_with_the_tokens_in_tiles_and_with_their_square_without() -> None:
    """Four heads: the whole matrix of 4,096 tokens alone takes 256 MiB, and every doubling takes four times as much."""
    sizes = (1024, 2048, 4096)
    layers, peaks = [attention(kernel) for kernel in (0, 1)], {}
    for n in sizes:
        x = torch.randn(1, n, 32, generator=torch.Generator().manual_seed(n))
        for kernel, layer in enumerate(layers):
            layer(x)
            peaks[kernel, n] = peak(lambda layer=layer, x=x: layer(x))
    matrix = {n: 4 * 4 * n * n for n in sizes}
    assert all(peaks[0, n] > 0.9 * matrix[n] for n in sizes[1:])
    assert 3 < peaks[0, 4096] / peaks[0, 2048] < 5
    assert all(peaks[1, n] < matrix[n] / 8 for n in sizes[1:])
    assert peaks[1, 4096] < 64 * 4096 * 32 * 4, "a few times what goes in and comes out"


def test_every_attention_attends_by_the_chosen_kernel() -> None:
    net = transform("sdpa_flash")(network("dit"))
    assert sum(isinstance(part, Attending) for part in net.modules()) == 2
    with tallied() as counters:
        answer(net, asked(3))
    assert counters == {"tiled_attentions": 2, "tokens": 48}
    whole = TECHNIQUES["sdpa_flash"].call({"kernel": 0}).edits["transforms"](network("dit"))
    with tallied() as counters:
        answer(whole, asked(3))
    assert counters["whole_attentions"] == 2 and counters["tiled_attentions"] == 0


def test_code_is_read_for_one_row_for_few_and_for_many_and_no_more() -> None:
    read: list[int] = []
    plain = torch_compile.counted

    def reading(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        read.append(len(graph.graph.nodes))
        return plain(graph, inputs)

    handed = torch_compile.Compiled(network("unet"))
    handed.graphs = torch.compile(handed.hidden[0].forward, backend=reading)
    for rows in (3, 7, 1, 64, 1, 2, 33, 16, 8, 5):
        answer(handed, asked(rows))
    assert 2 <= len(read) <= 3


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_code_is_compiled_in_earnest() -> None:
    """By Inductor, for as small a network as there is: as the plain one up to rounding, in kernels of its own."""
    net = filled(UNetConfig(8, (1,), blocks=1).build((1, 4, 4), CLASSES))
    compiled = transform("torch_compile")(net)
    x, u, labels = torch.randn(3, 1, 4, 4), torch.rand(3), torch.tensor([0, 1, -1])
    with tallied() as counters:
        found = answer(compiled, (x, u, labels))
    expected = answer(net, (x, u, labels))
    assert isinstance(net, UNet) and counters["graphs_run"] == 1
    assert torch.allclose(found, expected, atol=1e-5) and not torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("id", [id for id in IDS if id not in GRAPHS])
def test_an_exported_graph_answers_as_whatever_it_goes_with(id: str) -> None:
    """The pairs of test_pairs, here in earnest: what is exported beside any other technique gives the same samples."""
    try:
        recipe = small.recipe_of(*dict.fromkeys((*small.standing(id), "onnxruntime")))
        exported, *_ = small.walk(replace(recipe, steps=4))
    except (Conflict, NothingMatched):
        return
    plain, *_ = small.walk(replace(small.recipe_of(*small.standing(id)), steps=4))
    assert torch.allclose(exported, plain, atol=1e-3)
