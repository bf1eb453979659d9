"""Takes the first and the last steps in bfloat16, and those between in eight-bit integers.

Sampling is most sensitive where it begins and where it ends, and there are few such steps; so a network in integers,
trained under quantization by the one it replaces, does the rest. Both networks ship.

Source: Chang et al. 2023 "Effective Quantization for Diffusion Models on CPUs" (2311.16133), quantization-aware
training with distillation (abstract), five high-precision steps at either end as in the pipeline of its official code.
Limits: integers are simulated, in convolutions as in linear layers, where the paper runs integer kernels; distils on
states of the network's own sampling, not on noised photographs; the kept average of weights is left out. Norms,
embeddings and attention's own products stay in 32 bits at every step.
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
from methods.deployment.quantization._calibration import asked_while_sampling, calibrate
from methods.deployment.quantization._inputs import Clock, Rounding
from methods.deployment.quantization._layers import Layer, Quantization, Quantized, Trainable, rewrite_layers
from methods.deployment.quantization._training import distil, settle, trained
from methods.deployment.quantization._weights import nearest


class TwoPrecisions(nn.Module):
    """A layer in integers where the noise level lies inside of `middle`, in bfloat16 elsewhere."""

    middle: Tensor

    def __init__(self, layer: Layer, clock: Clock) -> None:
        super().__init__()
        self.integers = Quantized(layer, nearest(layer.weight, 8), Rounding(8))
        self.short = nn.Parameter(layer.weight.detach().bfloat16(), requires_grad=False)
        self.clock = clock
        self.register_buffer("middle", torch.tensor([-1.0, 2.0]))

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *t"]:
        outer = (self.clock.level < self.middle[0]) | (self.clock.level > self.middle[1])
        count("rows_in_bfloat16", int(outer.sum()))
        count("rows_in_int8", int((~outer).sum()))
        if outer.all():
            return self.in_half(x)
        y = self.integers(x)
        return torch.where(outer.reshape(-1, *[1] * (y.ndim - 1)), self.in_half(x), y) if outer.any() else y

    def in_half(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *t"]:
        bias = None if self.integers.bias is None else self.integers.bias.bfloat16()
        return self.integers.multiply(x.bfloat16(), self.short, bias).to(x.dtype)


def between(levels: Float[Tensor, "n"], ends: int) -> Float[Tensor, "2"]:
    """The range that leaves out `ends` of the increasing noise levels on either side: empty if none is left."""
    if 2 * ends >= len(levels):
        return levels.new_tensor([2.0, -1.0])
    edges = torch.cat([levels.new_tensor([-1.0]), levels, levels.new_tensor([2.0])])
    return torch.stack([edges[ends : ends + 2].mean(), edges[len(levels) - ends :][:2].mean()])


@dataclass(frozen=True)
class MixedSchedule(Quantization, Calibrated):
    """`ends` noise levels on either side in bfloat16; the integers are trained for `fraction` of the base training."""

    ends: int
    fraction: float

    def __call__(self, module: nn.Module) -> nn.Module:
        clock = Clock()
        return clock.listening(rewrite_layers(module, lambda layer, _: TwoPrecisions(layer, clock)))

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pool, rng = asked_while_sampling(recipe, before, model, data, seed), torch.Generator().manual_seed(seed)
        batch, iterations = recipe.fit.batch, math.ceil(self.fraction * recipe.fit.iterations)
        chosen = pool.rows(torch.randint(len(pool.x), (4 * batch,), generator=rng).to(pool.x.device))
        calibrate(model.net, chosen)
        seen = len(pool.x) + len(chosen.x)
        if iterations:
            origin = {f"{path}.integers": part for path, part in before.named_modules() if isinstance(part, Layer)}
            training = trained(model.net, lambda path, layer: Trainable(layer, origin[path].weight))
            weights = {"params": [part.weight for part in training.values()], "lr": recipe.fit.learning_rate / 10}
            seen += distil(model.net, pool, [weights], iterations, batch, rng, report)
            settle(model.net, training)
        for part in model.net.modules():
            if isinstance(part, TwoPrecisions):
                part.middle.copy_(between(pool.level.unique(), self.ends))
        return seen


def cpu_int8_intel(ends: int = 5, fraction: float = 0.1) -> Method:
    """Sample in integers but for `ends` steps on either side; train them for `fraction` of the base training."""
    return edit(transforms=MixedSchedule(ends, fraction))
