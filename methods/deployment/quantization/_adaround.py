"""Learns for every weight of a block whether to round up or down, so that the block answers as it did before.

Source: AdaRound, Nagel et al. 2020 "Up or Down? Adaptive Rounding for Post-Training Quantization" (2004.10568), in the
form of Q-Diffusion's official code: stretched sigmoid, penalty on what is undecided, exponent annealed after a warm-up.
"""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from methods.core.activation import count
from methods.deployment.quantization._layers import Quantized, put
from methods.deployment.quantization._weights import grouped, limits, store, ungrouped

STRETCH, PENALTY, EXPONENTS, WARM_UP = (-0.1, 1.1), 0.01, (20.0, 2.0), 0.2
PATH, FASTEST = 20.0, 0.1
"""Learning rate times iterations in the official code, and the largest rate that a shorter training takes for it."""


class Undecided(nn.Module):
    """A quantized layer, without rounding of its inputs, whose weights lie between down (0) and up (1)."""

    def __init__(self, layer: Quantized, weight: Tensor) -> None:
        super().__init__()
        self.layer, (low, high) = layer, STRETCH
        self.scale, self.bits = layer.weight.scale, layer.weight.bits
        parts = grouped(weight) / self.scale[..., None]
        self.floor = parts.floor()
        self.lean = nn.Parameter(-torch.log((high - low) / (parts - self.floor - low) - 1))

    def up(self) -> Tensor:
        low, high = STRETCH
        return (self.lean.sigmoid() * (high - low) + low).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        q = (self.floor + self.up()).clamp(*limits(self.bits))
        return self.layer.multiply(x, ungrouped(q, self.scale, self.layer.weight.shape), self.layer.bias)

    def penalty(self, exponent: float) -> Tensor:
        """How far the weights are from a decision."""
        return (1 - (2 * self.up() - 1).abs() ** exponent).sum()

    @torch.no_grad()
    def decide(self) -> None:
        """Write the decision into the quantized layer."""
        q, before = self.floor + (self.lean >= 0), self.layer.weight.dequantize()
        self.layer.weight = store(q, self.scale, self.bits, self.layer.weight.shape)
        count("weights_turned", int((self.layer.weight.dequantize() != before).sum()))


def reconstruct(before: nn.Module, after: nn.Module, given: tuple[Tensor, ...], answer: Tensor, iterations: int,
                rows: list[Tensor]) -> None:  # fmt: skip
    """Decide the roundings of a quantized block, so that it answers what the block answered before."""
    student = nn.Sequential(deepcopy(after))
    undecided = {
        path: Undecided(part, before.get_submodule(path).weight.detach())  # pyright: ignore[reportArgumentType, reportCallIssue]
        for path, part in after.named_modules()
        if isinstance(part, Quantized)
    }
    for path, part in undecided.items():
        put(student, f"0.{path}".rstrip("."), part)
    optimizer = torch.optim.Adam([part.lean for part in undecided.values()], lr=min(FASTEST, PATH / iterations))
    for i in range(iterations):
        error = student[0](*(part[rows[i]] for part in given)) - answer[rows[i]]
        loss = error.square().sum(1).mean()
        if i >= WARM_UP * iterations:
            loss = loss + PENALTY * sum(part.penalty(annealed(i / iterations)) for part in undecided.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    for part in undecided.values():
        part.decide()


def annealed(done: float) -> float:
    """The exponent of the penalty after a share of the iterations: a cosine from the first to the last."""
    first, last = EXPONENTS
    return last + (first - last) * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
