"""Takes the error of a quantized network apart: what follows the noise is scaled away, the rest replaces fresh noise.

Where the whole network says eps, the quantized one says (1 + k) eps + r. The correlated part is undone by a division,
the mean of the residual r by a subtraction, and what is left acts like noise; a stochastic step, which adds noise
anyway, adds that much less. All three are measured once at every step, against the whole network.

Source: He et al. 2023 "PTQD" (2305.10657): correlated noise by regression with negative k ignored, bias by channel,
residual variance taken from that of the step; coefficients compared with `ddim.py` and `analyze_error.py` of the
official code. Ranges of the least square error on its own sampling's states, as in Shang et al. 2023 (2211.15736).
Limits: one width of bits at all steps, without the choice by signal-to-noise ratio; roundings to the nearest, where the
code learns them. The bias is that of the residual, as in the paper; the code subtracts that of the whole error, and
also renews the direction of a step for its smaller variance. Estimates of x_0 are clipped here, not in the code, and an
error is passed on no further than their bounds. Guidance changes the error, and conflicts. All arithmetic is simulated.
Cost: two batches of samples, evaluated once more by the quantized network, and the states that its ranges are set on.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Network, Unguided
from methods.core.models import Model
from methods.core.parameterization import Noise
from methods.core.process import Process, combine, remembered
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import SampleNoise, Sampler
from methods.deployment.quantization._calibration import asked_while_sampling, calibrate
from methods.deployment.quantization._correction import BUCKETS, Correction, bucket
from methods.deployment.quantization._layers import Quantization, simulated
from methods.inference.ode_solver.ddim import posterior


@dataclass(frozen=True)
class PTQD(Quantization, Calibrated):
    """Quantized and corrected: for what is `correlated` with the noise, and for the `residual`."""

    weight_bits: int
    input_bits: int
    correlated: int
    residual: int

    def __call__(self, module: nn.Module) -> nn.Module:
        correction = Correction(next(module.parameters()).device)
        return correction.correcting(simulated(module, self.weight_bits, self.input_bits))

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pool, rng = asked_while_sampling(recipe, before, model, data, seed), torch.Generator().manual_seed(seed)
        chosen = pool.rows(torch.randint(len(pool.x), (4 * recipe.fit.batch,), generator=rng).to(pool.x.device))
        calibrate(model.net, chosen)
        for part in model.net.modules():
            if isinstance(part, Correction):
                part.measure(model.net, pool, recipe.fit.batch, bool(self.correlated), bool(self.residual))
        return 2 * len(pool.x) + len(chosen.x)


@dataclass(frozen=True)
class CalibratedVariance(Sampler):
    """Stochastic DDIM (eta = 1 is DDPM) that adds only the noise which the error of the network leaves to be added."""

    eta: float
    order: ClassVar[int] = 0

    def __call__(
        self, denoiser: Denoiser, x: Float[Tensor, "b *s"], times: Float[Tensor, "n"], labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:  # fmt: skip
        denoiser.reset()
        parts = denoiser.net.modules() if isinstance(denoiser, Network) else ()
        error = next((part.left for part in parts if isinstance(part, Correction)), torch.zeros(BUCKETS))
        for t, s in pairwise(times):
            kept, added, fresh = posterior(denoiser.process, self.eta, t, s)
            x = combine(kept, x, added, denoiser(x, t, labels))
            if s > 0:
                (passed_on,) = error_factor(denoiser.process, self.eta, t, s)
                there = passed_on**2 * error[bucket(denoiser.process.angle(t))].item()
                if denoiser.bounds is not None:
                    there = min(there, (added * (denoiser.bounds[1] - denoiser.bounds[0])) ** 2)
                count("variances_calibrated", min(fresh, there) > 0)
                x = combine(1.0, x, max(0.0, fresh**2 - there) ** 0.5, noise(tuple(x.shape[1:])))
        return x


@remembered
def error_factor(process: Process, eta: float, t: Tensor, s: Tensor) -> tuple[Tensor]:
    """What an error of eps is multiplied by in x_s: x_0 = (x - sigma eps) / alpha passes it on."""
    _, added, _ = posterior(process, eta, t, s)
    return (added * process.sigma(t) / process.alpha(t),)


def ptqd(weight_bits: int = 4, input_bits: int = 8, eta: float = 1.0, correlated: int = 1, residual: int = 1) -> Method:
    """Quantize, correct for what is `correlated` and for the `residual`, and sample with this share of fresh noise."""
    needs = {"parameterization": Noise, "guidance": Unguided}
    transform = PTQD(weight_bits, input_bits, correlated, residual)
    return edit(needs=needs, transforms=transform, sampler=CalibratedVariance(eta))
