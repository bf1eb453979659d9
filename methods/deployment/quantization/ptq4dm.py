"""Quantizes weights and inputs without training, with input ranges measured at many noise levels at once.

What a denoiser computes with changes with the noise level, so ranges from one level cut off or waste bits at others.
The calibration set holds what the network really meets: states of its own sampling, more of them close to the image
than close to the noise.

Source: Shang et al. 2023 "Post-training Quantization on Diffusion Models" (2211.15736), normally distributed time-step
calibration with the mean 0.4 T, deviation 0.4 T and 8-bit outer layers of the official code; ranges of the least
square error.
Limits: the official code clamps levels drawn outside of [0, 1], here they are drawn again; it also learns roundings in
the way of QDrop, left out. Attention's own products stay in floating point. All arithmetic is simulated.
Cost: two batches of samples, and a forward pass.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.models import Model
from methods.core.recipe import Method, Recipe, edit
from methods.deployment.quantization._calibration import asked_while_sampling, calibrate, near
from methods.deployment.quantization._layers import Quantization, simulated


def truncated_normal(mean: float, std: float, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
    """Normal draws, given that they lie in [0, 1]: a single number for std 0, uniform for a large one."""
    std = max(std, 1e-6)
    low, high = torch.special.ndtr((torch.tensor([0.0, 1.0], dtype=torch.float64) - mean) / std)
    share = low + (high - low) * torch.rand(n, generator=rng, dtype=torch.float64)
    return (mean + std * torch.special.ndtri(share)).clamp(0, 1)


@dataclass(frozen=True)
class PTQ4DM(Quantization, Calibrated):
    """Ranges from rows whose noise levels are normal with `mean` and `std`."""

    weight_bits: int
    input_bits: int
    mean: float
    std: float

    def __call__(self, module: nn.Module) -> nn.Module:
        return simulated(module, self.weight_bits, self.input_bits)

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pool = asked_while_sampling(recipe, before, model, data, seed)
        rng = torch.Generator().manual_seed(seed)
        chosen = near(pool, truncated_normal(self.mean, self.std, 4 * recipe.fit.batch, rng), rng)
        calibrate(model.net, chosen)
        return len(pool.x) + len(chosen.x)


def ptq4dm(weight_bits: int = 8, input_bits: int = 8, mean: float = 0.4, std: float = 0.4) -> Method:
    """Quantize with ranges from noise levels around `mean` with deviation `std` (0 clean, 1 noise)."""
    return edit(transforms=PTQ4DM(weight_bits, input_bits, mean, std))
