"""Computes with fewer bits while the image is still mostly noise, and with more once details are drawn.

What early steps get wrong, later ones still repair: they only lay out the image. So inputs of layers are rounded
coarsely while the noise is high, and finely from a switch on; the weights are the same integers at every step, and
each stage has input ranges of its own.

Source: Kim et al. 2023 "Leveraging Early-Stage Robustness in Diffusion Models for Efficient and High-Quality Image
Synthesis" (NeurIPS 2023), abstract: low-bit activations early, high-bit later, after training; ranges of the least
square error on states of the network's own sampling, as in Shang et al. 2023 (2211.15736).
Limits: the abstract gives neither bits nor switch: both are parameters here. Roundings of the weights are to the
nearest, not learned. The outer layers keep eight bits. Attention's own products stay in floating point. All arithmetic
is simulated.
Cost: two batches of samples, and eight batches of evaluations.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.models import Model
from methods.core.recipe import Method, Recipe, edit
from methods.deployment.quantization._calibration import asked_while_sampling, calibrate
from methods.deployment.quantization._inputs import Clock, Rounding
from methods.deployment.quantization._layers import Layer, Quantization, Quantized, rewrite_layers
from methods.deployment.quantization._weights import nearest


class Staged(nn.Module):
    """Inputs of rows above a noise level with some bits, and of the others with others."""

    switch: Tensor

    def __init__(self, early_bits: int, late_bits: int, clock: Clock) -> None:
        super().__init__()
        self.early, self.late, self.clock = Rounding(early_bits), Rounding(late_bits), clock
        self.register_buffer("switch", torch.zeros(()))

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        early = self.clock.level > self.switch
        count("rows_early", int(early.sum()))
        count("rows_late", int((~early).sum()))
        if early.all():
            return self.early(x)
        if not early.any():
            return self.late(x)
        return torch.where(early.reshape(-1, *[1] * (x.ndim - 1)), self.early(x), self.late(x))


def switch_after(levels: Float[Tensor, "n"], share: float) -> Float[Tensor, ""]:
    """The noise level above which this share of the increasing levels lies."""
    edges = torch.cat([levels.new_tensor([-1.0]), levels, levels.new_tensor([2.0])])
    late = len(levels) - round(share * len(levels))
    return edges[late : late + 2].mean()


@dataclass(frozen=True)
class TwoStages(Quantization, Calibrated):
    """Inputs in `early_bits` for the first `share` of the noise levels, in `late_bits` for the rest."""

    weight_bits: int
    early_bits: int
    late_bits: int
    share: float

    def __call__(self, module: nn.Module) -> nn.Module:
        clock = Clock()

        def make(layer: Layer, outer: bool) -> Quantized:
            low = 8 if outer else 2
            staged = Staged(max(low, self.early_bits), max(low, self.late_bits), clock).to(layer.weight.device)
            return Quantized(layer, nearest(layer.weight, max(low, self.weight_bits)), staged)

        return clock.listening(rewrite_layers(module, make))

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pool, rng = asked_while_sampling(recipe, before, model, data, seed), torch.Generator().manual_seed(seed)
        switch = switch_after(pool.level.unique(), self.share)
        for part in model.net.modules():
            if isinstance(part, Staged):
                part.switch.copy_(switch)
        seen = len(pool.x)
        for stage in (pool.level > switch, pool.level <= switch):
            rows = stage.nonzero().flatten()
            if len(rows):
                chosen = torch.randint(len(rows), (4 * recipe.fit.batch,), generator=rng).to(rows.device)
                calibrate(model.net, pool.rows(rows[chosen]))
                seen += len(chosen)
        return seen


def early_stage_low_precision(
    weight_bits: int = 8, early_bits: int = 4, late_bits: int = 8, share: float = 0.5
) -> Method:
    """Round inputs to `early_bits` in the first `share` of the chain, to `late_bits` after it."""
    return edit(transforms=TwoStages(weight_bits, early_bits, late_bits, share))
