"""Denoises the frames of a stream in one batch, each a step behind the one before, so that every call finishes a frame.

A frame of a live stream cannot wait for others to come, but it can share calls with those that came just before it.
Guidance adds next to nothing: the unconditional estimate is made once, when a frame begins, and from then on only the
residual noise that leads to it is recomputed. Frames that hardly differ from the last one are skipped at random.

Source: Kodaira et al. 2023 "StreamDiffusion" (2312.12491): stream batch, residual classifier-free guidance
eps = delta n + g (eps_c - delta n) with one negative step a frame or none, and the stochastic similarity filter, as in
its official code.
Limits: deterministic DDIM steps, where the official code takes those of a latent consistency model, which add noise.
In the residual guidance without any negative step, n leads to the image a frame was made from, so it is for streams
that have one; samples from noise take one step. Queues, the tiny decoder and compiled engines are left out.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels
from methods.core.recipe import Method, edit
from methods.core.sampling import SampleNoise, Sampler
from methods.deployment.serving._residual import Residual, ResidualGuided
from methods.deployment.serving._shared import UnderWay


class SimilarityFilter:
    """Leaves out a frame with probability 1 - (1 - cos) / (1 - threshold), cos to the last frame that was let through.

    At most `longest` in a row are left out.
    """

    def __init__(self, threshold: float = 0.98, longest: int = 10, seed: int = 0) -> None:
        self.threshold, self.longest, self.rng = threshold, longest, random.Random(seed)
        self.last: Tensor | None = None
        self.skipped = 0

    def skips(self, frame: Float[Tensor, "*s"]) -> bool:
        """Whether the frame is left out."""
        if self.last is not None and self.skipped < self.longest:
            likeness = F.cosine_similarity(self.last.flatten(), frame.flatten(), dim=0).item()
            if self.rng.random() < 1 - (1 - likeness) / (1 - self.threshold):
                self.skipped += 1
                count("frames_skipped")
                return True
        self.last, self.skipped = frame, 0
        return False


@dataclass(frozen=True)
class Stream(Sampler):
    """Samples are frames; one comes at every call, which up to `together` of them share."""

    together: int

    def __call__(
        self, denoiser: Denoiser, x: Float[Tensor, "b *s"], times: Float[Tensor, "n"], labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:  # fmt: skip
        denoiser.reset()
        under_way, done, coming = UnderWay(denoiser, times), torch.empty_like(x), 0
        while coming < len(x) or len(under_way):
            if coming < len(x) and len(under_way) < self.together:
                rows = slice(coming, coming + 1)
                under_way.join([coming], x[rows], None if labels is None else labels[rows])
                coming += 1
            for name, row in under_way.advance().items():
                done[name] = row
        return done


def translate(
    frames: Iterable[Float[Tensor, "*s"]], denoiser: ResidualGuided, times: Float[Tensor, "n"],
    label: Int[Tensor, "1"], noise: SampleNoise, likeness: SimilarityFilter,
) -> Iterator[Float[Tensor, "*s"] | None]:  # fmt: skip
    """From image to image, live: every frame is noised up to the first time and joins the stream.

    Gives the latest image that is done after each frame; None before there is one. The frame itself is the negative.
    """
    denoiser.reset()
    under_way, latest = UnderWay(denoiser, times), None
    for name, frame in enumerate(frames):
        if not likeness.skips(frame):
            denoiser.origins.append(frame)
            x_t = denoiser.process.diffuse(frame[None], noise(tuple(frame.shape)), times[0])
            under_way.join([name], x_t, label)
            latest = next(iter(under_way.advance().values()), latest)
        yield latest


def streamdiffusion(
    steps: int = 4, scale: float = 0.2, delta: float = 1.0, dropout: float = 0.1, together: int = 4
) -> Method:
    """Take `steps`, of up to `together` frames in a call; guide with weight `scale`, one negative a frame."""
    return edit(sampler=Stream(together), guidance=Residual(scale, delta), label_dropout=dropout, steps=steps)
