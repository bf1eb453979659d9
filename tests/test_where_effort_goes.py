"""Where guidance, tokens, steps, weight and bits are spent, against closed forms and by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import tallied
from methods.core.denoiser import NULL, Denoiser, Labels
from methods.core.process import Cosine
from methods.core.sampling import SampleNoise, UniformAngle
from methods.deployment.distributed_inference.xdit_usp import USP
from methods.deployment.serving.dynamic_batching import Admission, Queued
from methods.inference.guidance_cost.adaptive_guidance import UntilAlike
from methods.inference.token_reduction.todo import CoarselyAttending, ToDo, nearest
from methods.inference.token_reduction.tome_sd import ToMe
from methods.nets.dit import DiTConfig, SelfAttention
from methods.training.guidance.classifier_free_guidance import ClassifierFree

# Guidance -------------------------------------------------------------------------------------------------------------


class Turning(Denoiser):
    """Without a label e_1; with label k a vector that has turned away from it by opening(k, t). Keeps what is asked."""

    process = Cosine()

    def __init__(self, opening: list[float]) -> None:
        self.opening = torch.tensor(opening, dtype=torch.float64)
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Tensor, labels: Labels = None) -> Tensor:
        assert labels is not None
        self.asked.append((t, labels))
        turned = torch.where(labels == NULL, 0.0, self.opening[labels] * t)
        return torch.stack([turned.cos(), turned.sin()], dim=1)


LABELS = torch.tensor([0, 1, 2, 1])
OPENING = [0.2, 0.5, 2.0]
"""cos(0.5 t) exceeds 0.991 below t = 0.2685, cos(0.2 t) below 0.67, cos(2 t) below 0.067."""


def steps_down(denoiser: Denoiser, times: list[float]) -> list[Tensor]:
    return [denoiser(torch.zeros(4, 2).double(), torch.tensor(t).double(), LABELS) for t in times]


def test_a_sample_is_guided_until_its_estimates_agree_and_never_again() -> None:
    times = [0.9, 0.7, 0.6, 0.5, 0.3, 0.25, 0.2, 0.1]
    inner, plain = Turning(OPENING), Turning(OPENING)
    with tallied() as counters:
        found = steps_down(UntilAlike(3.0, 0.991)(inner), times)
    full, alone = steps_down(ClassifierFree(3.0)(plain), times), steps_down(plain, times)
    first = [next(i for i, t in enumerate(times) if math.cos(opening * t) > 0.991) for opening in OPENING[:2]] + [8]
    assert first == [2, 5, 8], "the call that finds them alike is guided still"
    for i, (x0, guided, conditional) in enumerate(zip(found, full, alone, strict=True)):
        for row, label in enumerate(LABELS.tolist()):
            assert torch.allclose(x0[row], (guided if i <= first[label] else conditional)[row]), (i, row)
    unguided = sum(i > first[label] for i in range(8) for label in LABELS.tolist())
    assert sum(len(labels) for _, labels in inner.asked) == 2 * 4 * 8 - unguided
    assert counters["guidance_skipped"] == unguided == 9


def test_what_cannot_be_reached_is_guidance_throughout() -> None:
    times, inner = [0.9, 0.4, 0.1], Turning(OPENING)
    for x0, guided in zip(
        steps_down(UntilAlike(1.5, 2.0)(inner), times),
        steps_down(ClassifierFree(1.5)(Turning(OPENING)), times), strict=True,
    ):  # fmt: skip
        assert torch.allclose(x0, guided)
    assert all((labels == NULL).sum() == 4 for _, labels in inner.asked)


def test_more_noise_and_a_new_trajectory_ask_again() -> None:
    for again in (lambda guided: guided.reset(), lambda guided: steps_down(guided, [0.8])):
        inner = Turning([0.1, 0.1, 0.1])
        guided = UntilAlike(1.0, 0.991)(inner)
        steps_down(guided, [0.6, 0.5])
        assert [len(labels) for _, labels in inner.asked] == [8, 4]
        again(guided)
        steps_down(guided, [0.4])
        assert len(inner.asked[2][1]) == 8


def test_rows_at_other_times_are_guided_as_nobody_knows_which_was_which() -> None:
    """Requests come and go between the calls of a server, which may have as many rows as the call before."""
    process, x = Cosine(), torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner, labels = Turning([0.1, 0.1, 0.1]), torch.tensor([0, 1, 2, 0, 1, 2])
    queued, times = Queued(Admission(3, 0.0), 2.0), UniformAngle()(process, 5)
    with tallied() as counters:
        queued(UntilAlike(1.0, 0.991)(inner), x, times, labels, SampleNoise(range(6)))
    apart = [asked for times, asked in inner.asked if (times != times[0]).any()]
    assert apart and all(2 * (asked == NULL).sum() == len(asked) for asked in apart)
    assert counters["guidance_skipped"] == 60 - len(torch.cat([asked for _, asked in inner.asked]))


# Tokens ---------------------------------------------------------------------------------------------------------------


def shaken(net: nn.Module) -> nn.Module:
    """A network none of whose layers is silent, as those that start at zero are."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rng))
    return net.requires_grad_(False).eval()


def transformer() -> nn.Module:
    return shaken(DiTConfig(width=16, depth=2, heads=2).build((1, 8, 8), 3))


def given(n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 8, 8, generator=rng), torch.rand(n, generator=rng), torch.arange(n) % 3


@pytest.mark.parametrize(("rows", "columns", "factor"), [(4, 4, 2), (5, 7, 2), (8, 8, 3), (3, 3, 8), (2, 6, 1)])
def test_the_tokens_that_are_looked_at_are_the_nearest_neighbours(rows: int, columns: int, factor: int) -> None:
    places = torch.arange(rows * columns, dtype=torch.float32).reshape(1, 1, rows, columns)
    size = max(rows // factor, 1), max(columns // factor, 1)
    assert (
        nearest(rows, columns, factor).tolist() == F.interpolate(places, size=size, mode="nearest").flatten().tolist()
    )


def test_a_factor_of_one_is_plain_attention_to_the_bit() -> None:
    net, images = transformer(), given()
    with tallied() as counters:
        assert torch.equal(ToDo(1)(net)(*images), net(*images))
    assert counters["keys_left_out"] == 0


def test_every_query_attends_to_the_softmax_over_the_coarse_grid() -> None:
    """Token by token and head by head, from the layers' own weights."""
    plain = transformer().get_submodule("blocks.0.attention")
    assert isinstance(plain, SelfAttention)
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2))
    coarse = x.unflatten(1, (4, 4))[:, ::2, ::2].flatten(1, 2)
    q, k, v = (layer(tokens).chunk(2, dim=-1) for layer, tokens in
               ((plain.query, x), (plain.key, coarse), (plain.value, coarse)))  # fmt: skip
    heads = [
        torch.stack([torch.softmax(qs[:, i, None] @ ks.transpose(1, 2) / 8**0.5, -1)[:, 0, None] @ vs
                     for i in range(16)], 1)[:, :, 0]
        for qs, ks, vs in zip(q, k, v, strict=True)
    ]  # fmt: skip
    with tallied() as counters:
        found = CoarselyAttending(plain, 4, 2)(x)
    assert torch.allclose(found, plain.out(torch.cat(heads, -1)), atol=1e-5)
    assert not torch.allclose(found, plain(x), atol=1e-2) and counters["keys_left_out"] == 2 * 12


def test_where_all_tokens_of_a_cell_are_equal_nothing_is_lost() -> None:
    plain = transformer().get_submodule("blocks.1.attention")
    assert isinstance(plain, SelfAttention)
    cells = torch.randn(3, 2, 2, 16, generator=torch.Generator().manual_seed(3))
    tokens = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    assert torch.allclose(CoarselyAttending(plain, 4, 2)(tokens), plain(tokens), atol=1e-5)


def test_merging_takes_the_queries_and_downsampling_the_keys() -> None:
    """Whichever is applied first."""
    net, images = transformer(), given()
    one, other = ToMe(0.5)(ToDo(2)(net)), ToDo(2)(ToMe(0.5)(net))
    with tallied() as counters:
        first = one(*images)
    assert torch.equal(first, other(*images)) and first.isfinite().all()
    assert counters["tokens_merged"] == 2 * 2 * 8 and counters["keys_left_out"] == 2 * 2 * 12
    assert not torch.allclose(first, ToDo(2)(net)(*images), atol=1e-3)


@pytest.mark.parametrize(("ulysses", "ring"), [(2, 1), (1, 2), (2, 2)])
def test_parts_that_share_the_tokens_out_attend_to_the_same_coarse_grid(ulysses: int, ring: int) -> None:
    coarse, images = ToDo(2)(transformer()), given()
    assert torch.allclose(USP(ulysses, ring)(coarse)(*images), coarse(*images), atol=1e-5)
