"""Lets a trained U-Net follow outlines: a copy of its encoder reads them and speaks to its frozen decoder.

The network stays as it is. A copy of its way down is shown x_t together with a control map, and what it sees is added,
through convolutions of one pixel that begin at zero, to what the decoder is given across and from below. So before the
first update nothing has changed, and what the network knows is never at risk.

Source: Zhang et al. 2023 "Adding Conditional Control to Text-to-Image Diffusion Models" (2302.05543), section 3.1:
y_c = F(x; Theta) + Z(F(x + Z(c; Theta_z1); Theta_c); Theta_z2), and section 3.3: half of the prompts are empty while it
learns. What is copied and where it is added, across every skip and after the middle, as `cldm.py` of the official code.
Limits: the map is of the size of x_t, so that two convolutions stand for the small network that shrinks it. A dropped
condition of guidance drops the map as well. The moving average ships, as of every training here.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.codec import Pixels
from methods.core.control import NULL, Control, Prompts
from methods.core.data import TrainingSet
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.errors import NothingMatched
from methods.core.learning import optimise
from methods.core.models import Model, encode, network
from methods.core.objective import Objective, Regression
from methods.core.recipe import Method, Recipe, edit
from methods.core.surgery import Stage
from methods.data.edges import edges
from methods.nets.controlled import ControlledUNet
from methods.nets.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Outlines(Control):
    """Where an image changes, and how much."""

    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        return edges(images)


@dataclass(frozen=True)
class HalfUnlabelled(Objective):
    """An objective on numbers of prompts, half of which are swapped for the same map without its label, `n` further."""

    inner: Objective
    n: int

    def __call__(
        self, student: Network, teacher: Denoiser, x0: Float[Tensor, "b *s"], labels: Labels, rng: torch.Generator
    ) -> Float[Tensor, "b"]:
        assert labels is not None
        silent = torch.rand(len(x0), generator=rng, device=rng.device) < 0.5
        count("maps_followed", len(x0))
        return self.inner(student, teacher, x0, labels + self.n * silent, rng)


def beside(unet: nn.Module, seed: int) -> ControlledUNet:
    """A copy of the U-Net with a copy of its encoder beside it, whose first look at maps is drawn with the seed."""
    assert isinstance(unet, UNet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ControlledUNet(copy.deepcopy(unet)).to(next(unet.parameters()).device)


@dataclass(frozen=True)
class ControlNet(Calibrated):
    """A trainable copy of the encoder beside the frozen U-Net."""

    fraction: float
    stage: ClassVar[Stage] = Stage.STRUCTURE
    does: ClassVar[str | None] = "put a network beside the trained one"

    def __call__(self, module: nn.Module) -> nn.Module:
        if not isinstance(module, UNet):
            raise NothingMatched(f"{type(module).__name__} has no encoder and decoder of a U-Net")
        return beside(module, 0)

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        model.net = controlled = beside(before, seed)
        x0, labels = encode(model, data.shown)
        maps = recipe.control(data.shown.images.to(x0))
        controlled.begin()
        student = network(recipe, model)
        student.prompts = Prompts(torch.cat([labels, torch.full_like(labels, NULL)]), torch.cat([maps, maps]))
        fit, objective = recipe.fit.scaled(self.fraction), HalfUnlabelled(recipe.objective, len(x0))
        numbers = torch.arange(len(x0), device=x0.device)
        model.net = optimise(student, student, objective, x0, numbers, fit, seed, report, "control")
        return fit.iterations * fit.batch


def controlnet(fraction: float = 0.5) -> Method:
    """Learn to follow outlines in `fraction` of the updates of base training."""
    return edit(
        needs={"net": UNetConfig, "space": Pixels, "loss": Regression},
        transforms=ControlNet(fraction),
        control=Outlines(),
    )
