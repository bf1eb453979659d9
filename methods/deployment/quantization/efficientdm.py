"""Trains low-rank adapters under quantization and merges them into the integers, taught by the network as it was.

W_q = Q(W + B A): the adapter is rounded together with the weights, so nothing of it is left when it has done its work.
The teacher's own sampling gives the states to learn from, so no images are needed; and since activations change along
the chain, every bucket of noise levels learns an input scale of its own.

Source: He et al. 2024 "EfficientDM" (2310.03270), quantization-aware low-rank adapters on dequantized weights, learning
rates in proportion to a layer's weight scale and temporal activation scales, as in the official code.
Limits: batches mix noise levels, where the official code takes an optimizer step per sampling step; buckets of levels
stand for steps; zero points and weight scales are not trained. Attention's own products stay in floating point. All
arithmetic is simulated.
Cost: two batches of samples, and `fraction` of the base training.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.models import Model
from methods.core.recipe import Method, Recipe, edit
from methods.deployment.quantization._calibration import Asked, asked_while_sampling, calibrate
from methods.deployment.quantization._inputs import Clock, Rounding
from methods.deployment.quantization._layers import Quantization, Quantized, Trainable, simulated
from methods.deployment.quantization._training import distil, settle, trained
from methods.deployment.quantization._weights import SMALLEST

PATH, FASTEST = 16_000 / 2500, 0.1
"""Iterations of the official code times its learning rate, and the largest rate, in units of a layer's weight scale."""
STEP_RATE = 0.01
"""Learning rate of input steps, in units of their mean."""


class Adapted(Trainable):
    """W + B A, with A random and B zero at first."""

    def __init__(self, layer: Quantized, rank: int, rng: torch.Generator) -> None:
        super().__init__(layer, layer.weight.dequantize())
        self.weight.requires_grad_(False)
        rows = self.weight.flatten(1)
        spread = rows.shape[1] ** -0.5
        self.down = nn.Parameter(spread * (2 * torch.rand(rank, rows.shape[1], generator=rng) - 1).to(rows))
        self.up = nn.Parameter(rows.new_zeros(len(rows), rank))

    @property
    def step(self) -> Float[Tensor, "k"]:
        """The input scales of the layer."""
        assert isinstance(self.layer.rounding, Rounding)
        return self.layer.rounding.step

    def current(self) -> Float[Tensor, "o *i"]:
        return self.weight + (self.up @ self.down).reshape(self.weight.shape)

    def groups(self, iterations: int) -> list[dict[str, Any]]:
        """What is trained, with rates that suit the scales of this layer."""
        step = self.step.requires_grad_(True)
        adapter = {"params": [self.down, self.up], "lr": min(FASTEST, PATH / iterations) * self.scale.mean().item()}
        return [adapter, {"params": [step], "lr": STEP_RATE * step.mean().item()}]

    def settle(self) -> Quantized:
        self.step.requires_grad_(False).clamp_(min=SMALLEST)
        count("adapters_merged")
        return super().settle()


@dataclass(frozen=True)
class EfficientDM(Quantization, Calibrated):
    """Adapters of a rank, trained for `fraction` of the base training; input scales for `buckets` of noise levels."""

    weight_bits: int
    input_bits: int
    rank: int
    buckets: int
    fraction: float

    def __call__(self, module: nn.Module) -> nn.Module:
        clock = Clock()
        rounding = partial(Rounding, buckets=self.buckets, clock=clock)
        return clock.listening(simulated(module, self.weight_bits, self.input_bits, rounding))

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pool, rng = asked_while_sampling(recipe, before, model, data, seed), torch.Generator().manual_seed(seed)
        batch, iterations = recipe.fit.batch, math.ceil(self.fraction * recipe.fit.iterations)
        seen = self.calibrate(model.net, pool, 2 * batch, rng)
        if iterations:
            training = trained(model.net, lambda _, layer: Adapted(layer, self.rank, rng))
            groups = [group for part in training.values() for group in part.groups(iterations)]
            seen += distil(model.net, pool, groups, iterations, batch, rng, report)
            settle(model.net, training)
        return len(pool.x) + seen

    def calibrate(self, network: nn.Module, pool: Asked, n: int, rng: torch.Generator) -> int:
        """Begin with ranges of each bucket's own rows, and those of all rows where a bucket has none."""
        shuffled = pool.rows(torch.randperm(len(pool.x), generator=rng).to(pool.x.device))
        bucket = (shuffled.level * self.buckets).long().clamp(0, self.buckets - 1)
        parts = [shuffled.rows((bucket == i).nonzero().flatten()[:n]) for i in bucket.unique()]
        for part in (shuffled.rows(torch.arange(min(n, len(bucket)))), *parts):
            calibrate(network, part)
        return n * (1 + len(parts))


def efficientdm(
    weight_bits: int = 4, input_bits: int = 4, rank: int = 8, buckets: int = 10, fraction: float = 0.3
) -> Method:
    """Quantize, then train adapters of `rank` for `fraction` of the base training, with `buckets` input scales."""
    return edit(transforms=EfficientDM(weight_bits, input_bits, rank, buckets, fraction))
