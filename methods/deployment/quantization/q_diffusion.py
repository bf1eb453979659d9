"""Learns for each weight whether to round up or down, and quantizes the two halves of a U-Net's shortcuts apart.

Rounding to the nearest is not what keeps a block's output: up or down is chosen so that whole blocks answer as before
to states of the network's own sampling, taken evenly from all steps. Where features from above and from below are
concatenated they have ranges of their own, so each half gets its own scales: Q(X1) Q(W1) + Q(X2) Q(W2).

Source: Li et al. 2023 "Q-Diffusion: Quantizing Diffusion Models" (2302.04304), split shortcuts, even calibration and
block reconstruction as in its official code; rounding by AdaRound, Nagel et al. 2020 (2004.10568), whose stretched
sigmoid, regularizer, weight and annealing of its exponent it takes.
Limits: few iterations with a rate that keeps the length of the path, where the paper takes 20,000; blocks are shown
floating-point inputs; input ranges are of least square error and not learned. Attention's own products stay in
floating point. All arithmetic is simulated.
Cost: two batches of samples, and `fraction` of the base training.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.models import Model
from methods.core.recipe import Method, Recipe, edit
from methods.core.surgery import rewrite_type
from methods.deployment.quantization._adaround import reconstruct
from methods.deployment.quantization._calibration import asked_while_sampling, calibrate, heard_by
from methods.deployment.quantization._layers import Quantization, Quantized, simulated
from methods.nets.unet import Attention, Level, ResidualBlock, UNetConfig


class Split(nn.Module):
    """A 1x1 convolution as the sum of two, of the first `at` channels and of the rest."""

    def __init__(self, layer: nn.Conv2d, at: int) -> None:
        super().__init__()
        self.at = at
        self.first = nn.Conv2d(at, layer.out_channels, 1)
        self.second = nn.Conv2d(layer.in_channels - at, layer.out_channels, 1, bias=False)
        self.first.weight, self.second.weight = (
            nn.Parameter(part) for part in layer.weight.detach().tensor_split([at], 1)
        )
        self.first.bias = layer.bias

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b c h w"]:
        return self.first(x[:, : self.at]) + self.second(x[:, self.at :])


def split(level: Level) -> Level:
    """A level whose first block on the way up knows where its input was joined, in place."""
    shortcut, above = level.up[0], level.down[-1]
    if isinstance(shortcut.skip, nn.Conv2d):
        shortcut.skip = Split(shortcut.skip, above.conv_out.out_channels)  # pyright: ignore
        count("shortcuts_split")
    return level


@dataclass(frozen=True)
class QDiffusion(Quantization, Calibrated):
    """Blocks are reconstructed for `fraction` of the base training's iterations each."""

    weight_bits: int
    input_bits: int
    shortcuts: int
    fraction: float

    def opened(self, network: nn.Module) -> nn.Module:
        """The network with its shortcuts split, which changes nothing yet."""
        return rewrite_type(network, Level, split) if self.shortcuts else network

    def __call__(self, module: nn.Module) -> nn.Module:
        return simulated(self.opened(module), self.weight_bits, self.input_bits)

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pool, rng = asked_while_sampling(recipe, before, model, data, seed), torch.Generator().manual_seed(seed)
        n, iterations = 4 * recipe.fit.batch, math.ceil(self.fraction * recipe.fit.iterations)
        chosen = pool.rows(torch.randint(len(pool.x), (n,), generator=rng).to(pool.x.device))
        source = self.opened(before)
        blocks = units(model.net) if iterations else []
        for path, (given, answer) in heard_by(source, blocks, chosen).items():
            rows = [torch.randint(len(answer), (recipe.fit.batch,), generator=rng) for _ in range(iterations)]
            reconstruct(source.get_submodule(path), model.net.get_submodule(path), given, answer, iterations, rows)
            report(f"roundings of {path}", iterations, iterations, 0.0)
        calibrate(model.net, chosen)
        return len(pool.x) + n + iterations * recipe.fit.batch


def units(network: nn.Module) -> list[str]:
    """Residual and attention blocks, and the quantized layers outside of them."""
    blocks = [path for path, part in network.named_modules() if isinstance(part, ResidualBlock | Attention)]
    alone = [path for path, part in network.named_modules() if isinstance(part, Quantized)]
    return blocks + [path for path in alone if not any(path.startswith(f"{block}.") for block in blocks)]


def q_diffusion(weight_bits: int = 4, input_bits: int = 8, shortcuts: int = 1, fraction: float = 0.15) -> Method:
    """Quantize with learned roundings (`fraction` of the base training) and, unless `shortcuts` is 0, split ones."""
    return edit(transforms=QDiffusion(weight_bits, input_bits, shortcuts, fraction), needs={"net": UNetConfig})
