"""Parts that take turns and processes that send each other tensors give the same, and what one process gives."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from group import BASE, CASES, CLASSES, ROWS, SHAPE, member, recipe_of, sampled, shaken
from torch import Tensor, nn
from torch.nn import functional as F

from flows.parallel import loopback
from methods.core.activation import tallied
from methods.core.denoiser import Network
from methods.deployment.distributed_inference._parts import InTurn
from methods.deployment.distributed_inference.distrifusion import Displaced, DistriFusion, NaivePatches
from methods.deployment.distributed_inference.xdit_usp import USP, RunningSoftmax
from methods.deployment.quantization.weight_only_int8_int4 import WeightOnly
from methods.nets.dit import DiT, DiTConfig
from methods.nets.unet import UNet, UNetConfig

FLOAT = 4


def unet() -> UNet:
    net = shaken(UNetConfig(8, (1, 2, 2), 2).build(SHAPE, CLASSES))
    assert isinstance(net, UNet)
    return net


def transformer() -> DiT:
    net = shaken(DiTConfig(width=32, depth=3, heads=4).build(SHAPE, CLASSES))
    assert isinstance(net, DiT)
    return net


def given(seed: int, n: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=rng), torch.rand(n, generator=rng), torch.arange(n) % CLASSES


# Sequence parallelism -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 300.0])
@pytest.mark.parametrize("blocks", [[12], [4, 4, 4], [1, 8, 3]])
def test_a_softmax_that_is_never_seen_whole(blocks: list[int], size: float) -> None:
    """Scores of hundreds overflow without the running maximum."""
    q, k, v = torch.randn(3, 2, 3, 12, 4, generator=torch.Generator().manual_seed(0))
    softmax = RunningSoftmax(size * q)
    for keys, values in zip(k.split(blocks, 2), v.split(blocks, 2), strict=True):
        softmax.add(keys, values)
    expected = F.scaled_dot_product_attention(size * q, k, v)
    assert torch.allclose(softmax.mixed / softmax.total, expected, atol=1e-5)


@pytest.mark.parametrize(("ulysses", "ring"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (1, 4)])
def test_tokens_over_a_mesh_give_what_one_device_gives_for_the_bytes_of_the_formulas(ulysses: int, ring: int) -> None:
    """A layer of N devices: Ulysses sends 4 / N (p hs), Ring 2 (p hs), of which a device keeps its own share."""
    net, (x, u, labels) = transformer(), given(0)
    with tallied() as counters:
        answer = USP(ulysses, ring)(net)(x, u, labels)
    assert torch.allclose(answer, net(x, u, labels), atol=1e-5)
    devices, tokens = ulysses * ring, ROWS * 64 * 32 * FLOAT
    swapped = 4 / devices * tokens * (ulysses - 1) / ulysses
    round_the_ring = 2 / devices * tokens * (ring - 1)
    gathered = x.nbytes / devices * (devices - 1)
    assert counters["bytes_sent"] == devices * (3 * (swapped + round_the_ring) + gathered)


def test_heads_that_cannot_be_shared_out_are_one_sentence() -> None:
    with pytest.raises(AssertionError, match="4 heads cannot be shared out over 3 parts"):
        USP(3, 1)(shaken(DiTConfig(width=48, heads=4).build((1, 12, 12), CLASSES)))(
            torch.randn(1, 1, 12, 12), *given(0, 1)[1:]
        )


# Bands ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_bands_that_wait_for_each_other_are_the_whole_image(bands: int) -> None:
    net = unet()
    waiting = DistriFusion(bands, warmup=2)(net)
    for seed in range(3):
        assert torch.allclose(waiting(*given(seed)), net(*given(seed)), atol=1e-5)
    if bands > 1:
        assert not torch.allclose(waiting(*given(3)), net(*given(3)), atol=1e-3)


@pytest.mark.parametrize("bands", [2, 4])
def test_a_naive_band_is_the_network_on_its_rows_alone(bands: int) -> None:
    net, (x, u, labels) = unet(), given(0)
    expected = torch.cat([net(band, u, labels) for band in x.chunk(bands, 2)], 2)
    with tallied() as counters:
        assert torch.allclose(NaivePatches(bands)(net)(x, u, labels), expected, atol=1e-5)
    assert counters["bytes_sent"] == x.nbytes * (bands - 1), "only the answer is gathered"
    assert not torch.allclose(expected, net(x, u, labels), atol=1e-2)


def displaced(inner: nn.Module, bands: int = 2) -> Displaced:
    return Displaced(inner.requires_grad_(False), InTurn(bands), fresh=1)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_sees_the_borders_of_the_call_before(stride: int) -> None:
    conv = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
    layer, old, new = displaced(conv), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    assert torch.allclose(layer(old), conv(old), atol=1e-6)
    top, bottom = torch.cat([new[:, :, :4], old[:, :, 4:]], 2), torch.cat([old[:, :, :4], new[:, :, 4:]], 2)
    expected = torch.cat([conv(top).chunk(2, 2)[0], conv(bottom).chunk(2, 2)[1]], 2)
    with tallied() as counters:
        assert torch.allclose(layer(new), expected, atol=1e-6)
    assert counters == {"bytes_sent": 2 * 2 * (2 * 3 * 8) * FLOAT, "bands_displaced": 2}


def test_attention_has_its_own_keys_fresh_and_those_of_others_a_call_old() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = k = v = x.flatten(2).transpose(1, 2)[:, None]
            return F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])

    layer, old, new = displaced(Plain()), torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    assert torch.allclose(layer(old), Plain()(old), atol=1e-6)
    top, bottom = torch.cat([new[:, :, :2], old[:, :, 2:]], 2), torch.cat([old[:, :, :2], new[:, :, 2:]], 2)
    expected = torch.cat([Plain()(top)[:, :, :2], Plain()(bottom)[:, :, 2:]], 2)
    assert torch.allclose(layer(new), expected, atol=1e-6)


def test_moments_are_corrected_by_what_a_band_knows_of_its_own() -> None:
    """m = mean of the old (E[x], E[x^2]) + (new own - old own); the own variance where that of m is negative."""
    norm = shaken(nn.GroupNorm(2, 4))
    layer, old = displaced(norm), torch.randn(3, 4, 4, 4)
    new = old + 0.5 * torch.randn(3, 4, 4, 4)
    new[0, :, :2], new[0, :, 2:] = 5.0, 0.1 * new[0, :, 2:]  # of this sample, one band was moved far
    assert torch.allclose(layer(old), norm(old), atol=1e-5)
    answer, negative = layer(new), 0
    for i, rows in enumerate((slice(0, 2), slice(2, 4))):
        for sample in range(3):
            for group in (slice(0, 2), slice(2, 4)):
                was = [old[sample, group, r] for r in (slice(0, 2), slice(2, 4))]
                now = new[sample, group, rows]
                mean = sum(band.mean() for band in was) / 2 + now.mean() - was[i].mean()
                square = sum((band**2).mean() for band in was) / 2 + (now**2).mean() - (was[i] ** 2).mean()
                variance = square - mean**2
                if variance < 0:
                    variance, negative = now.var(correction=0), negative + 1
                scale, shift = (p[group, None, None] for p in (norm.weight, norm.bias))
                expected = (now - mean) / (variance + norm.eps).sqrt() * scale + shift
                assert torch.allclose(answer[sample, group, rows], expected, rtol=1e-3, atol=1e-4)
    assert negative > 0


def test_a_batch_of_another_size_waits_and_a_new_trajectory_forgets() -> None:
    net = unet()
    layers = DistriFusion(2, warmup=0)(net)
    for n in (2, 3, 2):
        assert torch.allclose(layers(*given(n, n)), net(*given(n, n)), atol=1e-5)
    first = layers(*given(5))
    assert not torch.allclose(first, net(*given(5)), atol=1e-3)
    Network(layers, BASE.process, BASE.parameterization, None).reset()
    assert torch.allclose(layers(*given(5)), net(*given(5)), atol=1e-5)


def test_layers_that_were_quantized_ask_each_other_too() -> None:
    quantized = WeightOnly(8, 32)(unet())
    with tallied() as counters:
        answer = DistriFusion(2, warmup=0)(quantized)(*given(0))
    with tallied() as plain:
        DistriFusion(2, warmup=0)(unet())(*given(0))
    assert torch.allclose(answer, quantized(*given(0)), atol=1e-5) and counters["bytes_sent"] == plain["bytes_sent"]


def test_rows_that_cannot_be_halved_are_one_sentence() -> None:
    with pytest.raises(AssertionError, match="bands of 1 rows cannot be halved"):
        DistriFusion(8, warmup=0)(unet())(*given(0))


# Processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_give_what_parts_in_turn_give_and_send_as_much(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same samples in every process, and in turn up to how kernels round for another number of rows: nothing here.

    What torch is about to take away fails in the processes too.
    """
    monkeypatch.setenv("PYTHONWARNINGS", "error::FutureWarning")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", loopback())
    mp.spawn(member, (world, str(tmp_path)), nprocs=world)  # pyright: ignore[reportPrivateImportUsage]
    for name, (needed, id, params) in CASES.items():
        if needed == world:
            answers = [torch.load(tmp_path / f"{name} {rank}", weights_only=True) for rank in range(world)]
            samples, counters = sampled(recipe_of(id, params))
            for theirs, _ in answers:
                assert torch.equal(theirs, answers[0][0]), name
                assert (theirs - samples).abs().max() < 1e-6, name
            assert sum(counted["bytes_sent"] for _, counted in answers) == counters["bytes_sent"] > 0, name
            one, _ = sampled(recipe_of(id, params, alone=True))
            exact = id == "xdit_usp"
            assert ((samples - one).abs().max() < 1e-4) == exact, name
