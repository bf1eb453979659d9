"""Runs the blocks of a diffusion transformer only when their input, as the noise level modulates it, has moved enough.

What enters the first block shows how far the output has moved. A polynomial, fitted once for a network, turns its
relative change into the output's; until these add up to a threshold, what the blocks added to their input is added.

Source: Liu et al. 2024 "Timestep Embedding Tells" (2411.19108), as in its official code for FLUX.
Limits: decides for every sample, the official code for a batch. The polynomial is fitted along diffused training
images, not samples. The last step may be left out. Cost: as many evaluations as base training has updates.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Remembering
from methods.core.models import Model, encode, network
from methods.core.recipe import Method, Recipe, edit
from methods.core.sampling import Solver, UniformAngle
from methods.core.surgery import Stage, rewrite_path
from methods.inference.feature_caching._blocks import BLOCKS, change
from methods.nets.dit import DiT, DiTConfig, modulate

STEPS, DEGREE = 50, 4


def powers(x: Float[Tensor, "b"]) -> Float[Tensor, "b d"]:
    """1, x, x^2, ... up to the degree of the polynomial."""
    return x[:, None] ** torch.arange(DEGREE + 1, device=x.device)


class TeaCached(Remembering):
    """All blocks as one: runs them for the samples that are due, and adds what it remembers for the others."""

    coefficients: Tensor

    def __init__(self, inner: nn.ModuleList, threshold: float) -> None:
        super().__init__()
        self.inner, self.threshold = inner, threshold
        identity = torch.tensor([0.0, 1.0] + [0.0] * (DEGREE - 1), device=next(inner.parameters()).device)
        self.register_buffer("coefficients", identity)
        self.reset()

    def reset(self) -> None:
        self.previous = self.residual = self.drift = torch.empty(0)

    def modulated(self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b c"]) -> Float[Tensor, "b n c"]:
        """What the attention of the first block is given."""
        shift, scale, *_ = self.inner[0].get_submodule("modulation")(F.silu(condition)).chunk(6, dim=1)
        return modulate(self.inner[0].get_submodule("norm_attention")(h), shift, scale)

    def due(self, entering: Float[Tensor, "b n c"]) -> Bool[Tensor, "b"]:
        """Which samples have drifted up to the threshold since their blocks last ran."""
        if len(self.previous) != len(entering):
            self.drift, self.residual = entering.new_zeros(len(entering)), torch.zeros_like(entering)
            due = torch.ones_like(self.drift, dtype=torch.bool)
        else:
            self.drift = self.drift + powers(change(self.previous, entering)) @ self.coefficients
            due = self.drift >= self.threshold
        self.previous, self.drift = entering, torch.where(due, 0.0, self.drift)
        return due

    def forward(self, h: Float[Tensor, "b n c"], condition: Float[Tensor, "b c"]) -> Float[Tensor, "b n c"]:
        due = self.due(self.modulated(h, condition))
        count("blocks_skipped", len(self.inner) * int((~due).sum()))
        if due.any():
            for part in self.inner.modules():
                if isinstance(part, Remembering):
                    part.reset()  # other samples than at its last call
            fresh = h[due]
            for block in self.inner:
                fresh = block(fresh, condition[due])
            self.residual = self.residual.index_put((due,), fresh - h[due])
        return h + self.residual


@dataclass(frozen=True)
class TeaCache(Calibrated):
    """Puts all blocks behind one cache, and fits its polynomial."""

    threshold: float
    stage: ClassVar[Stage] = Stage.REUSE
    does: ClassVar[str | None] = BLOCKS

    def __call__(self, module: nn.Module) -> nn.Module:
        return rewrite_path(module, "blocks", lambda blocks: nn.ModuleList([TeaCached(blocks, self.threshold)]))  # pyright: ignore

    @torch.no_grad()
    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        """Least squares over neighbouring levels of the same diffused image: input's change -> output's change."""
        n, t = max(1, recipe.fit.iterations // STEPS), UniformAngle()(recipe.process, STEPS)[:-1]
        x0, labels = encode(model, data[:n])
        noise = torch.randn(x0.shape, generator=torch.Generator(x0.device).manual_seed(seed), device=x0.device)
        net, pairs = network(recipe, model), []
        net.net = whole = next(part for part in model.net.modules() if isinstance(part, DiT))
        cache = whole.blocks[0]
        assert isinstance(cache, TeaCached)
        for image, eps, label in zip(x0, noise, labels, strict=True):
            net.reset()
            x_t = recipe.process.diffuse(image.expand(STEPS, *image.shape), eps.expand(STEPS, *eps.shape), t)
            output, entered = net.predict(x_t, t, label.expand(STEPS)), cache.previous
            pairs.append((change(entered[:-1], entered[1:]), change(output[:-1], output[1:])))
        net.reset()
        moved, answered = (torch.cat(part).double().cpu() for part in zip(*pairs, strict=True))
        cache.coefficients.copy_(torch.linalg.lstsq(powers(moved), answered[:, None]).solution[:, 0])
        return n * STEPS


def teacache(threshold: float = 0.05) -> Method:
    """Run the blocks whenever the estimated relative change of the output since they last ran reaches `threshold`."""
    return edit(transforms=TeaCache(threshold), needs={"net": DiTConfig, "sampler": Solver})
