"""Where guidance, tokens, steps, weight and bits are spent, against closed forms and by hand."""

import math

import torch
from torch import Tensor

from methods.core.activation import tallied
from methods.core.denoiser import NULL, Denoiser, Labels
from methods.core.process import Cosine
from methods.core.sampling import SampleNoise, UniformAngle
from methods.deployment.serving.dynamic_batching import Admission, Queued
from methods.inference.guidance_cost.adaptive_guidance import UntilAlike
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
