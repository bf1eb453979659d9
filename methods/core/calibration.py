"""What is fitted beside the base training: phases that train on, transforms with numbers of their own, grids, samplers.

A part is described by a frozen config in the recipe; `build` makes its module, and the module's `fit` is given what was
decided elsewhere. A part that needs no fitting inherits a `fit` that does nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.core.denoiser import Denoiser, Labels
from methods.core.surgery import Transform

if TYPE_CHECKING:
    from methods.core.data import TrainingSet
    from methods.core.models import Model
    from methods.core.recipe import Recipe


Report = Callable[[str, int, int, float], None]
"""(what is being fitted, steps done, steps in all, current loss): progress for whoever wants to show it."""

BATCH = 128
"""Samples of a step of `descend`."""


def descend(
    module: nn.Module, loss: Callable[[Int[Tensor, "b"]], Tensor], n: int, iterations: int, rate: float,
    rng: torch.Generator, report: Report, what: str,
) -> int:  # fmt: skip
    """Minimise `loss(rows)` over random rows of n samples by Adam with a cosine decay; returns how many were seen."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for i in range(iterations):
        value = loss(torch.randint(n, (BATCH,), generator=rng, device=rng.device))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        schedule.step()
        if (i + 1) % 50 == 0 or i + 1 == iterations:
            report(what, i + 1, iterations, value.item())
    module.requires_grad_(False)
    return iterations * BATCH


SAMPLING = ("sampler", "grid", "steps")
"""How samples will be drawn, which a phase may need to know: it distils for a number of steps, or on a grid."""


class Phase(ABC):
    """Something done to the trained network before it ships: distillation, pruning with fine-tuning, ..."""

    heeds: ClassVar[tuple[str, ...]] = SAMPLING
    """What it reads of SAMPLING: one that reads less serves every recipe that agrees on the rest."""
    first: ClassVar[bool] = False
    """True if it completes base training, and so comes before those that start from a trained network."""

    @abstractmethod
    def __call__(self, recipe: "Recipe", model: "Model", data: "TrainingSet", seed: int, report: Report) -> int:
        """Change model.net in place or replace it; returns how many images were seen."""


class Calibrated(Transform):
    """A transform that ships and is fitted after it was applied: a quantizer's ranges, the weights of a new part."""

    ships: ClassVar[bool] = True

    @abstractmethod
    def fit(
        self, recipe: "Recipe", before: nn.Module, model: "Model", data: "TrainingSet", seed: int, report: Report
    ) -> int:
        """Calibrate or train what it has made of the network `before`, which is model.net now, in place.

        Returns how many images were seen.
        """


class Part(nn.Module, ABC):
    """What a `Fitted` choice becomes for one model; its numbers are buffers, and ship with the weights."""

    @abstractmethod
    def fit(
        self, recipe: "Recipe", denoiser: Denoiser, x0: Float[Tensor, "n *s"], labels: Labels, rng: torch.Generator,
        report: Report,
    ) -> int:  # fmt: skip
        """Fit to the denoiser as it is deployed and to clean samples; returns how many images were seen."""


class Fitted(ABC):
    """A grid or a sampler that is fitted to the finished model: the recipe holds the choice, the model its part.

    The part is itself a `Grid` or a `Sampler`, and takes the place of the choice when samples are drawn.
    """

    becomes: ClassVar[type[Part]]
    """The class of the part, by which other techniques find what they need in its slot."""

    @abstractmethod
    def build(self, recipe: "Recipe") -> Part: ...
