"""Networks and spaces: what each of them computes, held to closed forms, and what it costs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from methods.architecture.conditional_compute.timestep_early_exit import ExitingDiT, ExitingDiTConfig, blocks_at
from methods.architecture.multiscale.simple_diffusion import multiscale, simple_diffusion
from methods.architecture.transform_space.wavelet_diffusion import Haar
from methods.core.activation import tallied
from methods.core.process import Cosine, Process
from methods.measure.cost import macs, parameters
from methods.nets.adm import ADM, ADMConfig, ResamplingBlock
from methods.nets.deep_unet import DeepUNetConfig
from methods.nets.dit import DiTConfig, SelfAttention
from methods.nets.efficient_unet import EfficientUNetConfig, Resampled
from methods.nets.linear_dit import LinearAttention, LinearDiTConfig, MixFFN, attend
from methods.nets.routed_dit import RoutedDiT, RoutedDiTConfig, window
from methods.nets.unet import Attention, ResidualBlock, UNetConfig
from methods.nets.uvit import EXTRAS, UViT, UViTConfig

SHAPE, CLASSES = (1, 8, 8), 10
BASELINE = UNetConfig(24, (1, 2), 1)
"""The network of the digits."""


def shaken(net: nn.Module, std: float = 0.1) -> nn.Module:
    """Every parameter moved, so that nothing is zero because it began so."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += std * torch.randn(parameter.shape, generator=rng)
    return net.eval()


def asked(n: int = 2, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise levels and labels."""
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=rng), torch.rand(n, generator=rng), torch.arange(n) % CLASSES


def work(net: nn.Module, shape: tuple[int, ...] = SHAPE) -> int:
    """Multiply-accumulates of one evaluation."""
    with torch.inference_mode():
        return macs(lambda: net(*asked(1, shape)))[0]


def test_sizes_are_those_of_the_baseline() -> None:
    """Within a factor of two, so that what is compared is a design and not a size; one in its usual order."""
    reference = BASELINE.build(SHAPE, CLASSES)
    for config in (
        UViTConfig(),
        LinearDiTConfig(),
        EfficientUNetConfig(low=False),
        ADMConfig(),
        DeepUNetConfig(width=16, deepest=4),
    ):
        net = config.build(SHAPE, CLASSES)
        assert 0.5 < parameters(net) / parameters(reference) < 2, type(net).__name__
        assert 0.5 < work(net) / work(reference) < 2, type(net).__name__


# U-ViT ----------------------------------------------------------------------------------------------------------------


def uvit(skips: bool = True) -> UViT:
    net = shaken(UViTConfig(width=16, pairs=2, heads=2, skips=skips).build(SHAPE, CLASSES))
    assert isinstance(net, UViT)
    return net


def test_noise_level_and_class_are_tokens_of_their_own() -> None:
    """Seventeen and eighteen of an 8x8 image in patches of 2: each hears one of the two, and both reach the answer."""
    net, (x, u, labels) = uvit(), asked()
    seen: list[Tensor] = []
    net.get_submodule("shallow.0").register_forward_pre_hook(lambda block, given: seen.append(given[0]))
    plain, other_level, other_class = net(x, u, labels), net(x, 1 - u, labels), net(x, u, labels + 1)
    assert seen[0].shape[1] == 16 + EXTRAS
    level, label = ((a - b).abs().amax((0, 2)) > 1e-6 for a, b in ((seen[0], seen[1]), (seen[0], seen[2])))
    assert level.nonzero().flatten().tolist() == [16] and label.nonzero().flatten().tolist() == [17]
    assert not torch.allclose(plain, other_level) and not torch.allclose(plain, other_class)


def test_long_skips_join_block_i_to_block_n_minus_1_minus_i() -> None:
    """With W = [0, 1] a deep block is given what the shallow block opposite to it returned, and nothing else."""
    net, width = uvit(), 16
    with torch.no_grad():
        for join in net.joins:
            assert isinstance(join, nn.Linear)
            join.weight.copy_(torch.cat([torch.zeros(width, width), torch.eye(width)], dim=1))
            join.bias.zero_()
    left: list[Tensor] = []
    given: list[Tensor] = []
    for block in net.shallow:
        block.register_forward_hook(lambda block, inputs, output: left.append(output))  # pyright: ignore[reportArgumentType]
    for block in net.deep:
        block.register_forward_pre_hook(lambda block, inputs: given.append(inputs[0]))
    net(*asked())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(given, reversed(left), strict=True))
    assert not torch.allclose(left[0], left[1])


def test_without_long_skips_only_their_linear_layers_go() -> None:
    difference = parameters(uvit()) - parameters(uvit(skips=False))
    assert difference == 2 * (2 * 16 * 16 + 16)


# Linear attention -----------------------------------------------------------------------------------------------------


def drawn(n: int, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of n tokens and two heads, in double precision."""
    rng = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, 2, n, width, generator=rng, dtype=torch.float64) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("n", [1, 5, 40])
def test_linear_attention_is_attention_with_relu_kernels(n: int) -> None:
    """The order of the products changes nothing: with the matrix of all pairs the answer is the same."""
    q, k, v = drawn(n)
    pairs = F.relu(q) @ F.relu(k).transpose(2, 3)
    assert torch.allclose(attend(q, k, v), pairs @ v / (pairs.sum(3, keepdim=True) + 1e-8), atol=1e-12)


def test_the_answer_is_a_mean_of_values_that_knows_no_order() -> None:
    q, k, v = drawn(12)
    seen = (F.relu(q) @ F.relu(k).transpose(2, 3)).sum(3) > 0
    assert torch.allclose(attend(q, k, torch.ones_like(v))[seen], torch.ones(1, dtype=torch.float64), atol=1e-6)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(attend(q, k[:, :, order], v[:, :, order]), attend(q, k, v), atol=1e-12)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


def spent(attention: nn.Module, n: int) -> tuple[int, int]:
    """Multiply-accumulates of an attention on n tokens, without those of its four layers; its largest tensor."""
    x = torch.randn(1, n, 16, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode(), Largest() as largest:
        attention(x)
    with torch.inference_mode():
        return macs(lambda: attention(x))[0] - 4 * n * 16 * 16, largest.numbers


def test_work_and_memory_grow_with_the_first_power_of_the_tokens() -> None:
    """Where softmax attention, that keeps the matrix of all pairs, grows with the second."""
    tokens = (256, 1024)

    def exponents(attention: nn.Module) -> list[float]:
        few, many = (spent(attention, n) for n in tokens)
        return [math.log(b / a) / math.log(tokens[1] / tokens[0]) for a, b in zip(few, many, strict=True)]

    class Pairs(SelfAttention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
            )
            mixed = torch.softmax(q @ k.transpose(2, 3), dim=3) @ v
            return self.out(mixed.transpose(1, 2).flatten(2))

    assert exponents(LinearAttention(16, 2)) == pytest.approx([1, 1], abs=0.02)
    assert exponents(Pairs(16, 2)) == pytest.approx([2, 2], abs=0.02)


def test_a_token_is_mixed_with_its_eight_neighbours_or_with_none() -> None:
    """A pulse at row 2, column 1 of a 5x4 grid."""
    for kernel, reached in ((3, [(r, c) for r in (1, 2, 3) for c in (0, 1, 2)]), (1, [(2, 1)])):
        part = shaken(MixFFN(8, (5, 4), kernel))
        x = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(5))
        other = x.clone()
        other[0, 2 * 4 + 1] += 1
        moved = (part(x) - part(other)).abs().amax(2).reshape(5, 4) > 1e-6
        assert [tuple(place) for place in moved.nonzero().tolist()] == reached


def test_a_linear_dit_without_neighbours_is_told_places_and_else_could_not_tell_them_apart() -> None:
    """Moving the patches about moves its answer about; with positions or the 3x3 convolution it does not."""
    x, u, labels = asked()
    for kernel, told, same in ((1, False, True), (1, True, False), (3, True, False)):
        net = shaken(LinearDiTConfig(width=16, depth=2, kernel=kernel).build(SHAPE, CLASSES))
        position = net.get_buffer("position")
        assert (position.abs().sum() > 0) == (kernel == 1)
        position.mul_(told)
        turned = net(x.roll((2, 2), (2, 3)), u, labels).roll((-2, -2), (2, 3))
        assert torch.allclose(turned, net(x, u, labels), atol=1e-5) == same


# Wavelets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_haar_bands_are_an_orthonormal_transform_halved(channels: int) -> None:
    x = torch.rand(5, channels, 8, 8, generator=torch.Generator().manual_seed(6)) * 2 - 1
    bands = Haar().encode(x)
    assert bands.shape == (5, 4 * channels, 4, 4)
    assert torch.allclose((2 * bands).square().sum((1, 2, 3)), x.square().sum((1, 2, 3)), rtol=1e-5)
    assert torch.allclose(Haar().decode(bands), x, atol=1e-6) and bands.abs().max() <= 1


def test_bands_are_average_and_differences() -> None:
    """[[1, 2], [3, 5]] / 8 in every cell: the average first, then right from left, below from above, diagonal."""
    x = (torch.tensor([[1.0, 2.0], [3.0, 5.0]]) / 8).tile(1, 1, 4, 4)
    expected = torch.tensor([11.0, -3.0, -5.0, 1.0]) / 32
    assert torch.allclose(Haar().encode(x), expected.reshape(1, 4, 1, 1).expand(1, 4, 4, 4))
    flat = Haar().encode(torch.full((1, 3, 8, 8), 0.5))
    assert torch.allclose(flat[:, :3], torch.tensor(0.5)) and flat[:, 3:].abs().max() == 0


# Efficient U-Net ------------------------------------------------------------------------------------------------------


def test_blocks_run_at_the_lower_resolution_and_double_in_number() -> None:
    sizes: dict[bool, list[int]] = {}
    for low in (True, False):
        net = shaken(EfficientUNetConfig(8, levels=2, low=low).build(SHAPE, CLASSES))
        seen = sizes[low] = []
        for part in net.modules():
            if isinstance(part, ResidualBlock):
                part.register_forward_hook(lambda block, given, out, seen=seen: seen.append(out.shape[2]))  # pyright: ignore
        assert net(*asked()).shape == (2, *SHAPE)
    assert sizes == {True: [4, 2, 2, 2, 2, 4], False: [8, 4, 4, 4, 4, 8]}


def test_reversing_the_order_moves_work_and_not_parameters() -> None:
    low, high = (EfficientUNetConfig(low=low).build(SHAPE, CLASSES) for low in (True, False))
    assert abs(parameters(low) / parameters(high) - 1) < 0.02 and work(low) < work(high) / 2


def test_skips_are_scaled_by_the_root_of_one_half() -> None:
    """What the last stage is given: below, as it is, and beside it what the first stage returned, over sqrt 2."""
    net = shaken(EfficientUNetConfig(8, levels=2).build(SHAPE, CLASSES))
    stages = [part for part in net.modules() if isinstance(part, Resampled)]
    heard: list[tuple[Tensor, Tensor]] = []
    for stage in stages:
        stage.register_forward_hook(lambda stage, given, out: heard.append((given[0], out)))  # pyright: ignore
    net(*asked())
    (_, first), _, (_, below), (given, _) = heard
    assert torch.allclose(given, torch.cat([below, first / math.sqrt(2)], dim=1))


# ADM ------------------------------------------------------------------------------------------------------------------


def test_every_block_hands_a_skip_across_and_resolution_changes_inside_of_blocks() -> None:
    """Two levels of two blocks: six skips (stem, four blocks, one halving) for three blocks a level on the way up."""
    net = shaken(ADMConfig(8, levels=2, blocks=2, head=4).build(SHAPE, CLASSES))
    assert isinstance(net, ADM)
    assert len([*net.up.children()]) == 6 and len([*net.down.children()]) == 5
    with tallied() as counters:
        assert net(*asked()).shape == (2, *SHAPE)
    assert counters["resampled_in_a_block"] == 4  # a halving and a doubling, each of the block's input and of its skip
    strided = [part for part in net.modules() if isinstance(part, nn.Conv2d) and part.stride != (1, 1)]
    assert not strided


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_resampling_block_begins_as_resampling_alone(scale: float) -> None:
    x, condition = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(7)), torch.randn(2, 32)
    block = ResamplingBlock(8, 8, 32, True, scale)
    nn.init.zeros_(block.conv_out.bias)  # pyright: ignore[reportArgumentType]
    expected = F.avg_pool2d(x, 2) if scale < 1 else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(block(x, condition), expected)


def test_norms_are_scaled_and_shifted_after_they_normalise_or_are_added_to_before() -> None:
    """A constant added to a whole channel group goes under in a norm: only adaptive norms can pass it on."""
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(8))
    heard: list[Tensor] = []
    for adaptive in (True, False):
        block = shaken(ResamplingBlock(8, 8, 32, adaptive))
        with torch.no_grad():
            scale_shift = block.get_submodule("scale_shift")
            assert isinstance(scale_shift, nn.Linear)
            scale_shift.weight.zero_()
        block.get_submodule("conv_out").register_forward_pre_hook(lambda conv, given: heard.append(given[0]))
        plain = block(x, torch.zeros(2, 32))
        with torch.no_grad():
            scale_shift.bias.add_(1)
        changed = block(x, torch.zeros(2, 32))
        assert torch.allclose(plain, changed, atol=1e-4) != adaptive


def test_heads_have_a_width_and_attention_is_at_the_lowest_resolutions() -> None:
    for attended, count in ((0, 1), (1, 6), (2, 11)):
        net = ADMConfig(16, levels=2, blocks=2, attended=attended, head=8).build(SHAPE, CLASSES)
        attentions = [part for part in net.modules() if isinstance(part, Attention)]
        assert len(attentions) == count
        assert all(part.query.in_features // part.heads == 8 for part in attentions)


# Task routing ---------------------------------------------------------------------------------------------------------


def test_the_window_is_that_of_the_official_mask() -> None:
    """Of T levels, the i-th opens int(beta C) channels from round((i / (T - 1))^alpha (C - int(beta C))) on."""
    for levels, channels, share, bend in ((1000, 96, 0.8, 4.0), (10, 7, 0.35, 1.0)):
        opened = window(torch.linspace(0, 1, levels, dtype=torch.float64), channels, share, bend)
        width = int(share * channels)
        assert (opened.sum(1) == width).all()
        starts = opened.float().argmax(1)
        expected = [round((i / (levels - 1)) ** bend * (channels - width)) for i in range(levels)]
        assert starts.tolist() == expected and starts[0] == 0 and starts[-1] == channels - width
    early, late = window(torch.tensor([0.0, 0.3, 0.7, 1.0]), 96, 0.8, 4.0).split(2)
    assert (early[0] ^ early[1]).sum() < (late[0] ^ late[1]).sum(), "neighbours at high noise share fewer"


def test_closed_channels_pass_a_block_by_and_are_not_seen_by_it() -> None:
    net = shaken(RoutedDiTConfig(width=16, depth=1, heads=2, share=0.5).build(SHAPE, CLASSES))
    block = net.get_submodule("blocks.0")
    x, condition = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(9)), torch.randn(2, 16)
    opened = window(torch.tensor([0.0, 1.0]), 16, 0.5, 4.0).float()
    other = x + (1 - opened[:, None])  # other values in closed channels alone
    a, b = block(x, condition, opened), block(other, condition, opened)
    closed = (opened[:, None] == 0).expand_as(a)
    given = (x * opened[:, None])[closed]
    assert given.abs().max() == 0
    assert torch.allclose(b - a, 1 - opened[:, None].expand_as(a), atol=1e-5)


def test_routes_have_no_parameters_and_with_all_channels_open_there_are_none() -> None:
    routed, plain = (
        config(width=16, depth=2, heads=2).build(SHAPE, CLASSES) for config in (RoutedDiTConfig, DiTConfig)
    )
    assert parameters(routed) == parameters(plain)
    plain.load_state_dict(shaken(routed).state_dict())
    x, u, labels = asked(4)
    assert not torch.allclose(routed(x, u, labels), plain(x, u, labels))
    assert isinstance(routed, RoutedDiT)
    routed.share = 1.0
    assert torch.allclose(routed(x, u, labels), plain(x, u, labels), atol=1e-5)


# Early exits ----------------------------------------------------------------------------------------------------------


def test_the_schedule_is_the_official_one() -> None:
    """For 28 blocks: 28 near the data, then 24, 20, 16, and 12 near noise, in five equal parts of the levels."""
    middles = (torch.arange(10) + 0.5) / 10
    assert blocks_at(middles, 28, 12 / 28).tolist() == [28, 28, 24, 24, 20, 20, 16, 16, 12, 12]
    assert blocks_at(torch.tensor([0.0, 1.0]), 28, 12 / 28).tolist() == [28, 12]
    assert blocks_at(middles, 8, 0.43).double().mean() / 8 == pytest.approx(0.725)


def exiting(depth: int = 4) -> ExitingDiT:
    net = shaken(ExitingDiTConfig(2, 16, depth, 2, 0.5).build(SHAPE, CLASSES))
    assert isinstance(net, ExitingDiT)
    return net


def test_a_row_leaves_after_the_blocks_of_its_own_level() -> None:
    """Each row of a mixed batch is what a DiT of so many blocks, with the same weights, answers."""
    net = exiting()
    x, _, labels = asked(5)
    u = torch.tensor([0.05, 0.95, 0.5, 0.3, 0.7])
    net.exits.fill_(True)
    answer = net(x, u, labels)
    for row, depth in enumerate(blocks_at(u, 4, 0.5).tolist()):
        short = DiTConfig(2, 16, depth, 2).build(SHAPE, CLASSES)
        short.load_state_dict(net.state_dict(), strict=False)
        assert torch.allclose(short(x, u, labels)[row], answer[row], atol=1e-5), depth
    assert blocks_at(u, 4, 0.5).unique().numel() > 2


def test_blocks_left_out_are_not_run() -> None:
    net = exiting(8)
    x, labels = torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.long)
    spent = []
    for opened, level in ((False, 0.9), (True, 0.9), (True, 0.1)):
        net.exits.fill_(opened)
        with torch.inference_mode():
            spent.append(macs(lambda level=level: net(x, torch.tensor([level]), labels))[0])
    assert spent[0] == spent[2] and 0.4 < spent[1] / spent[0] < 0.6


# Simple diffusion -----------------------------------------------------------------------------------------------------


def shift(ratio: float) -> Process:
    """The process of the technique."""
    return simple_diffusion(ratio=ratio).edits["process"]


def test_the_schedule_is_shifted_by_the_log_of_the_ratio() -> None:
    t, plain = torch.linspace(0.01, 0.99, 50, dtype=torch.float64), Cosine()
    for ratio in (0.25, 0.5, 2.0):
        shifted = shift(ratio)
        assert torch.allclose(shifted.lam(t), plain.lam(t) + math.log(ratio))
        assert torch.allclose(shifted.alpha(t) ** 2 + shifted.sigma(t) ** 2, torch.ones_like(t))
        assert torch.allclose(shifted.time(shifted.lam(t)), t)
    assert torch.allclose(shift(1.0).alpha(t), plain.alpha(t))


def test_an_image_averaged_down_has_the_noise_of_a_small_image() -> None:
    """Why it is shifted: of 2x2 averages of x_t the signal-to-noise ratio is 4 times that of a pixel."""
    t = torch.tensor(0.6, dtype=torch.float64)
    noise = torch.randn(1, 1, 512, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    process = shift(0.5)
    lam = torch.log(process.alpha(t) / F.avg_pool2d(process.sigma(t) * noise, 2).std())
    assert lam.item() == pytest.approx(Cosine().lam(t).item(), abs=0.01)


def test_the_multiscale_loss_weighs_each_side_by_its_inverse() -> None:
    """A constant error counts at every side; one that alternates between neighbours at the finest alone."""
    constant, coarse = torch.full((2, 1, 8, 8), 3.0), (1, 2, 4, 8)
    for coarsest in coarse:
        expected = 9 * sum(1 / side for side in coarse if side >= coarsest)
        assert multiscale(constant, coarsest) == pytest.approx([expected] * 2)
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert multiscale(3 * checks.reshape(1, 1, 8, 8), 1).item() == pytest.approx(9 / 8)


def test_blocks_are_added_at_the_lowest_resolution_alone() -> None:
    sizes: dict[int, list[int]] = {}
    for deepest in (1, 3):
        net = shaken(DeepUNetConfig(8, deepest=deepest).build(SHAPE, CLASSES))
        seen = sizes[deepest] = []
        for part in net.modules():
            if isinstance(part, ResidualBlock):
                part.register_forward_hook(lambda block, given, out, seen=seen: seen.append(out.shape[2]))  # pyright: ignore
        net(*asked())
    assert sizes[3].count(8) == sizes[1].count(8) == 2 and sizes[3].count(4) - sizes[1].count(4) == 4
