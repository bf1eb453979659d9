"""Guides a sample until its two estimates point the same way, and from then on evaluates the conditional network alone.

The longer a sample has been denoised, the less its label adds to what is seen in it, and the less guidance changes. How
much it still does shows in the angle between the estimates with and without the label, which guidance makes anyway.

Source: Castillo et al. 2023 "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models"
(2312.12487), the abstract; the rule, cosine > threshold and then conditional steps to the end, as in public ports to
ComfyUI (asagi4/ComfyUI-Adaptive-Guidance); the paper's threshold 0.991 by the manual of another (CFG Megapack).
Limits: the cosine is that of the two estimates of x_0, as those ports take it, after they are clipped. The paper takes
the noise, but where the first step of a chain is nearly pure noise both predictions of it are x_t itself, and guidance
would never begin. Every sample decides for itself. A decision is forgotten where the noise rises again, and not made
where a call asks for several times at once, as servers and parallel samplers do. LinearAG, which extrapolates past
evaluations with fitted coefficients, is left out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.core.activation import count
from methods.core.denoiser import NULL, Denoiser, Guidance, Labels, clip
from methods.core.recipe import Method, edit


class AdaptivelyGuided(Denoiser):
    """One batched call, which ends with the rows that are still guided, without a label."""

    def __init__(self, inner: Denoiser, rule: "UntilAlike") -> None:
        self.inner, self.rule = inner, rule
        self.process, self.bounds = inner.process, inner.bounds
        self.reset()

    def reset(self) -> None:
        self.inner.reset()
        self.alike, self.time = torch.empty(0, dtype=torch.bool), -torch.inf

    def __call__(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        assert labels is not None, "guidance needs labels"
        t = t.expand(len(x_t))
        highest, lowest = t.max().item(), t.min().item()
        if len(self.alike) != len(x_t) or highest > self.time:
            self.alike = torch.zeros(len(x_t), dtype=torch.bool, device=x_t.device)
        self.time = lowest if lowest == highest else -torch.inf
        guided = (~self.alike).nonzero().flatten()
        count("guidance_skipped", len(x_t) - len(guided))
        null = torch.full_like(labels[guided], NULL)
        asked = torch.cat([x_t, x_t[guided]]), torch.cat([t, t[guided.to(t.device)]]), torch.cat([labels, null])
        x0, unconditional = self.inner(*asked).split([len(x_t), len(guided)])
        likeness = F.cosine_similarity(x0[guided].flatten(1), unconditional.flatten(1))
        self.alike = self.alike.index_put((guided,), likeness > self.rule.threshold)
        return clip(x0.index_add(0, guided, x0[guided] - unconditional, alpha=self.rule.scale), self.bounds)


@dataclass(frozen=True)
class UntilAlike(Guidance):
    """Guide with weight w = scale until the cosine of both estimates of x_0 exceeds the threshold."""

    scale: float
    threshold: float

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return AdaptivelyGuided(denoiser, self)


def adaptive_guidance(scale: float = 1.0, dropout: float = 0.1, threshold: float = 0.991) -> Method:
    """Classifier-free guidance with weight `scale`, until the estimates' cosine exceeds `threshold`."""
    return edit(label_dropout=dropout, guidance=UntilAlike(scale, threshold))
