"""The discrete schedule of a checkpoint as a continuous process, and what else its scheduler's config decides.

A schedule gives the signal left at T timesteps. Here timestep k is the time (k + 1) / T, and between two timesteps the
noise level runs straight in the angle u = 2/pi atan(sigma / alpha): exact at every timestep, and finite from clean data
to a schedule that ends without any signal, where log-SNR is not.

Source: Ho et al. 2020 (2006.11239), eq. 4, for alpha^2 = prod (1 - beta); Lin et al. 2024 (2305.08891), algorithm 1,
for schedules that end without signal; both as diffusers' schedulers compute them.
Limits: below the first timestep, whose noise is small and not zero, a network is told the first timestep. Chains begin
at sigma eps, where diffusers' pipelines begin at eps, and end at zero noise, also where `set_alpha_to_one` is false.
Estimates are clipped before the noise is taken from them, which is `use_clipped_model_output=True` in diffusers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.checkpoints.errors import Unusable
from methods.core.codec import Codec, Identity, Space
from methods.core.parameterization import Clean, Noise, Parameterization
from methods.core.process import Process, angle
from methods.training.objective.v_prediction import Velocity

PREDICTS: Mapping[str, Parameterization] = {"epsilon": Noise(), "sample": Clean(), "v_prediction": Velocity()}


def interpolate(x: Float[Tensor, "*s"], xs: Float[Tensor, "n"], ys: Float[Tensor, "n"]) -> Float[Tensor, "*s"]:
    """y at x, straight between the points (xs, ys), which rise; at a point exactly its y."""
    x, xs, ys = x.double().contiguous(), xs.to(x.device), ys.to(x.device)
    above = torch.searchsorted(xs, x, right=True).clamp(1, len(xs) - 1)
    share = (x - xs[above - 1]) / (xs[above] - xs[above - 1])
    return torch.lerp(ys[above - 1], ys[above], share)


@dataclass(frozen=True)
class Discrete(Process):
    """`angles` are the noise levels u of the timesteps, rising."""

    angles: tuple[float, ...]
    lam_start: float
    preserves_variance: ClassVar[bool] = True

    @classmethod
    def of(cls, signal: Float[Tensor, "n"]) -> "Discrete":
        """From alpha^2 at every timestep."""
        signal = signal.double()
        u = torch.atan2((1 - signal).sqrt(), signal.sqrt()) * (2 / math.pi)
        last = u[-1] * (math.pi / 2)
        return cls(tuple(u.tolist()), torch.log(last.cos() / last.sin()).item())

    @cached_property
    def levels(self) -> Float[Tensor, "n"]:
        """u at clean data, then at every timestep."""
        return torch.tensor([0.0, *self.angles], dtype=torch.float64)

    @cached_property
    def times(self) -> Float[Tensor, "n"]:
        """Clean data, then the timesteps."""
        return torch.arange(len(self.levels), dtype=torch.float64) / len(self.angles)

    def angle(self, t: Tensor) -> Tensor:
        return interpolate(t, self.times, self.levels)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self.angle(t) * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self.angle(t) * (math.pi / 2))

    def time(self, lam: Tensor) -> Tensor:
        return interpolate(angle(lam), self.levels, self.times)


class Timestep(nn.Module):
    """The noise level u, as networks are told it here, back to the timestep: whole where the schedule has one there."""

    levels: Tensor

    def __init__(self, process: Discrete) -> None:
        super().__init__()
        self.register_buffer("levels", process.levels.float(), persistent=False)

    def forward(self, u: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """As many steps of the schedule as lie below u, the last one in part; written so that any exporter reads it."""
        below, widths = self.levels[:-1].double(), self.levels.double().diff().clamp(min=1e-12)
        passed = ((u.double()[:, None] - below) / widths).clamp(0, 1).sum(1)
        return (passed - 1).clamp(min=0).float()


@dataclass(frozen=True)
class Clipped(Space):
    """What the network works on, as it is; estimates of x_0 are clipped to `bounds`, if there are any."""

    bounds: tuple[float, float] | None

    def build(self, shape: tuple[int, ...], classes: int) -> Codec:
        codec = Identity()
        codec.bounds = self.bounds  # pyright: ignore[reportAttributeAccessIssue] - of this one alone
        return codec


@dataclass(frozen=True)
class Schedule:
    """What a scheduler's config decides."""

    process: Discrete
    parameterization: Parameterization
    space: Clipped


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule of one of diffusers' schedulers. Raises Unusable."""
    name, config = type(scheduler).__name__, scheduler.config
    signal, predicts = getattr(scheduler, "alphas_cumprod", None), config.get("prediction_type", "epsilon")
    if signal is None:
        raise Unusable(f"{name} has no discrete noise schedule, and nothing else is read here.")
    if predicts not in PREDICTS:
        raise Unusable(f"The checkpoint predicts {predicts!r}; what is known here is {', '.join(PREDICTS)}.")
    if config.get("thresholding"):
        raise Unusable(f"{name} thresholds its estimates dynamically, which is not done here.")
    process = Discrete.of(signal)
    if predicts == "epsilon" and process.angles[-1] == 1:
        raise Unusable("The schedule ends without signal, where predicted noise says nothing about the image.")
    reach = float(config.get("clip_sample_range", 1.0))
    bounds = (-reach, reach) if config.get("clip_sample") else None
    return Schedule(process, PREDICTS[predicts], Clipped(bounds))
