"""Cuts one image into bands of rows, one for each device, that see of each other what was true a step ago.

A band alone would show a seam, and waiting for the others in every layer would eat the gain. But the inputs of
neighbouring steps are much alike: so borders, keys and values, and the moments of normalisation of the other bands are
taken from the step before, and travel while the step is computed. Only the first steps wait.

Source: Li et al. 2024 "DistriFusion" (2402.19481): displaced patch parallelism, with the corrected asynchronous group
normalisation and the warm-up of the official code.
Limits: moments give the biased variance of torch's norm, where the official code has the unbiased one. The branches of
guidance stay in one batch. Steps are calls of the network, so a solver of two evaluations warms up in half of them.
Needs a sampler that walks the grid in order, and rows that divide at every resolution; a batch of another size than
the last waits. Without a process group the bands run in turn, and save no time.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.control import Uncontrolled
from methods.core.recipe import Method, edit
from methods.core.sampling import Solver
from methods.core.surgery import Stage, Transform
from methods.deployment.distributed_inference._bands import Banded, banded
from methods.deployment.distributed_inference._parts import Parts, parts
from methods.deployment.distributed_inference._shared import InBands
from methods.nets.unet import UNetConfig


class Displaced(Banded):
    """What it knows of other bands is fresh for the first `fresh` calls, and a call old from then on."""

    def __init__(self, inner: nn.Module, parts: Parts, fresh: int) -> None:
        super().__init__(inner, parts)
        self.fresh, self.calls = fresh, 0
        self.kept: list[list[Tensor]] = []
        self.sent: list[list[Tensor]] = []

    def reset(self) -> None:
        for gathered in self.kept:
            self.parts.settle(gathered)
        self.calls, self.kept = 0, []

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o g v"]:
        self.sent = []
        y = super().forward(x)
        self.kept, self.calls = self.sent, self.calls + 1
        return y

    def seen(self, mine: list[Tensor]) -> list[Tensor]:
        place, gathered = len(self.sent), self.parts.gather(mine)
        self.sent.append(gathered)
        if self.calls < self.fresh or place >= len(self.kept) or self.kept[place][0].shape != gathered[0].shape:
            return gathered
        count("bands_displaced", len(mine))
        return self.kept[place]

    def moments(self, mine: Tensor, known: Float[Tensor, "p 2 b g"], place: int) -> Float[Tensor, "2 b g"]:
        """The mean of what is known, to which the band adds how much its own have changed since."""
        return known.mean(0) + (mine - known[place])


class Alone(Banded):
    """Knows of no other band: the naive split."""

    def reset(self) -> None:
        pass

    def seen(self, mine: list[Tensor]) -> list[None]:
        return [None] * len(mine)

    def moments(self, mine: Tensor, known: Tensor, place: int) -> Tensor:
        raise AssertionError("nothing is known")


@dataclass(frozen=True)
class DistriFusion(Transform):
    """A U-Net in `bands`, of which the first step and `warmup` more wait for each other."""

    bands: int
    warmup: int
    stage: ClassVar[Stage] = Stage.REUSE

    def __call__(self, module: nn.Module) -> nn.Module:
        group = parts(self.bands)
        return InBands(banded(module, lambda inner: Displaced(inner, group, 1 + self.warmup)), group)


@dataclass(frozen=True)
class NaivePatches(Transform):
    """A U-Net in `bands`, each on its own."""

    bands: int
    stage: ClassVar[Stage] = Stage.REUSE

    def __call__(self, module: nn.Module) -> nn.Module:
        group = parts(self.bands)
        return InBands(banded(module, lambda inner: Alone(inner, group)), group)


def distrifusion(bands: int = 2, warmup: int = 4, exchange: int = 1) -> Method:
    """Cut images into `bands`; without `exchange` (0), the naive split, a band knows of no other."""
    transform = DistriFusion(bands, warmup) if exchange else NaivePatches(bands)
    return edit(transforms=transform, needs={"net": UNetConfig, "sampler": Solver, "control": Uncontrolled})
