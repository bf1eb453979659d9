"""Quantizes weights and inputs to four bits after a low-rank branch in 16 bits has taken what four bits cannot hold.

Outliers of the inputs are first moved into the weights, channel by channel; the largest singular directions of the
weights, which now hold all outliers, go into the branch; what is left is small and even, and loses little in four bits:
X W = (X / l) (l W) ~ (X / l) L1 L2 + Q(X / l) Q(l W - L1 L2).

Source: Li et al. 2025 "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models" (2411.05007);
smoothing from spans of inputs and weights with a strength searched by the layer's output error, plain SVD, signed
four-bit groups of 64 with input scales found on the fly, as in the official code, deepcompressor.
Limits: the outer layers keep eight bits (16 in the paper), and convolutions are quantized as well; the branch is not
refined again after rounding. All arithmetic is simulated, so the fused kernels' speed is not there.
Cost: two batches of samples, and a decomposition of each layer for each strength.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.models import Model
from methods.core.recipe import Method, Recipe, edit
from methods.deployment.quantization._calibration import asked_while_sampling, heard_by
from methods.deployment.quantization._inputs import GroupRounding, channels_last
from methods.deployment.quantization._layers import Layer, Quantization, Quantized, rewrite_layers
from methods.deployment.quantization._weights import SMALLEST, nearest, widest


class Branched(nn.Module):
    """A quantized residual, and a branch of low rank in 16 bits, on smoothed inputs."""

    smooth: Tensor

    def __init__(self, layer: Layer, bits: int, rank: int, group: int) -> None:
        super().__init__()
        self.bits, self.group, rows = bits, group, layer.weight.flatten(1)
        rank = min(rank, *rows.shape)
        self.residual = Quantized(layer, nearest(layer.weight, bits, group, widest), GroupRounding(bits, group))
        self.register_buffer("smooth", layer.weight.new_ones(layer.weight.shape[1]))
        self.down = nn.Parameter(layer.weight.new_zeros(rank, *layer.weight.shape[1:]).bfloat16(), requires_grad=False)
        self.up = nn.Parameter(rows.new_zeros(len(rows), rank).bfloat16(), requires_grad=False)

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *t"]:
        x = x / (self.smooth[:, None, None] if x.ndim == 4 else self.smooth)
        y = self.residual(x)
        if len(self.down) == 0:
            return y
        low, up = self.residual.multiply(x, self.down.float(), None), self.up.float()
        return y + (F.conv2d(low, up[..., None, None]) if x.ndim == 4 else F.linear(low, up))

    def decompose(self, weight: Float[Tensor, "o i *k"], smooth: Float[Tensor, "i"]) -> None:
        """Take over a weight: smoothed, its largest singular directions into the branch, the rest into integers."""
        self.smooth.copy_(smooth)
        weight = weight * smooth.reshape(-1, *[1] * (weight.ndim - 2))
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        rank = len(self.down)
        self.up.copy_(u[:, :rank] * s[:rank])
        self.down.copy_(v[:rank].reshape(self.down.shape))
        branch = (self.up.float() @ self.down.float().flatten(1)).reshape(weight.shape)
        self.residual.weight = nearest(weight - branch, self.bits, self.group, widest)

    @torch.no_grad()
    def fit(self, weight: Float[Tensor, "o i *k"], x: Float[Tensor, "b *s"], y: Float[Tensor, "b *t"], strengths: int
            ) -> None:  # fmt: skip
        """Smooth with the strength of the least error of the output, among none at all and those between 0 and 1."""
        largest = channels_last(x).flatten(0, -2).abs().amax(0).clamp(min=SMALLEST)
        span = weight.transpose(0, 1).flatten(1).abs().amax(1).clamp(min=SMALLEST)
        tried = [largest ** (k / strengths) / span ** (1 - k / strengths) for k in range(1, strengths)]
        errors = [self.error(weight, smooth, x, y) for smooth in (*tried, torch.ones_like(span))]
        best = min(range(strengths), key=errors.__getitem__)
        if best < len(tried):
            self.decompose(weight, tried[best])

    def error(self, weight: Tensor, smooth: Tensor, x: Tensor, y: Tensor) -> float:
        """The mean square error of the output with this smoothing."""
        self.decompose(weight, smooth)
        return (self(x) - y).square().mean().item()


@dataclass(frozen=True)
class SVDQuant(Quantization, Calibrated):
    """Every layer in `bits` with a branch of `rank`; `strengths` of smoothing are tried."""

    bits: int
    rank: int
    group: int
    strengths: int

    def __call__(self, module: nn.Module) -> nn.Module:
        def make(layer: Layer, outer: bool) -> nn.Module:
            if outer:
                return Quantized(layer, nearest(layer.weight, 8), GroupRounding(8, self.group))
            return Branched(layer, self.bits, self.rank, self.group)

        return rewrite_layers(module, make)

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pool, rng = asked_while_sampling(recipe, before, model, data, seed), torch.Generator().manual_seed(seed)
        chosen = pool.rows(torch.randint(len(pool.x), (recipe.fit.batch,), generator=rng).to(pool.x.device))
        parts = {path: part for path, part in model.net.named_modules() if isinstance(part, Branched)}
        for path, ((x,), y) in heard_by(before, list(parts), chosen).items():
            parts[path].fit(before.get_submodule(path).weight, x, y, self.strengths)  # pyright: ignore
        count("branches_fitted", len(parts))
        return len(pool.x) + len(chosen.x)


def svdquant(bits: int = 4, rank: int = 4, group: int = 64, strengths: int = 2) -> Method:
    """Quantize to `bits` in groups of `group` beside a branch of `rank`, trying `strengths` of smoothing."""
    return edit(transforms=SVDQuant(bits, rank, group, strengths))
