"""The one currency: a denoiser maps (x_t, t, labels) to E[x_0 | x_t].

Solvers, guidance, caches and distillation meet only here. Only `Network` knows what the network predicts.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.core.control import NULL, Prompts
from methods.core.parameterization import Parameterization
from methods.core.process import Process, like, remembered

Labels = Int[Tensor, "b"] | None


class Denoiser(ABC):
    """E[x_0 | x_t] under `process`. Calls may carry memory of the trajectory; `reset` forgets it."""

    process: Process
    bounds: tuple[float, float] | None = None
    """The range of clean values, to which estimates are clipped."""

    @abstractmethod
    def __call__(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        """Estimate x_0; t is [] or [b], labels [b] (NULL for none) or None."""

    def reset(self) -> None:  # noqa: B027 - most denoisers remember nothing
        """Forget the previous trajectory."""


def clip(x0: Float[Tensor, "b *s"], bounds: tuple[float, float] | None) -> Float[Tensor, "b *s"]:
    """An estimate within the range of clean values, if there is one."""
    return x0 if bounds is None else x0.clamp(*bounds)


@remembered
def _network_input(process: Process, parameterization: Parameterization, t: Tensor) -> tuple[Tensor, Tensor | None]:
    """The noise level that the network is told, and the scale of its input."""
    return process.angle(t), parameterization.input_scale(process, t)


class Network(Denoiser):
    """A network together with what it predicts. `rows` counts evaluated samples, `calls` sequential evaluations.

    A network may answer with more channels than it is shown; what it said `beside` F is kept until it is asked again.
    """

    beside: Float[Tensor, "b *c"] | None = None
    prompts: Prompts | None = None
    """What labels stand for, where they are numbers of prompts."""

    def __init__(
        self, net: nn.Module, process: Process, parameterization: Parameterization, bounds: tuple[float, float] | None
    ) -> None:
        self.net, self.process, self.parameterization, self.bounds = net, process, parameterization, bounds
        self.rows = self.calls = 0

    def predict(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        """F itself, in float32, as the parameterization defines it."""
        u, scale = _network_input(self.process, self.parameterization, t)
        u = u.to(x_t) if isinstance(u, Tensor) else x_t.new_full((len(x_t),), u)
        told = self.parameterization.told(u)
        return self.ask(x_t if scale is None else like(scale, x_t) * x_t, told, labels)

    def ask(self, x: Float[Tensor, "b *s"], u: Float[Tensor, "b *k"], labels: Labels) -> Float[Tensor, "b *s"]:
        """One evaluation on scaled inputs, in float32; u is the noise level in [0, 1], and what else is told."""
        self.rows, self.calls = self.rows + len(x), self.calls + 1
        if labels is None:
            labels = torch.full((len(x),), NULL, device=x.device)
        answer = self.evaluate(x, u, labels).float()
        if answer.shape[1] > x.shape[1]:
            answer, self.beside = answer[:, : x.shape[1]], answer[:, x.shape[1] :]
        return answer

    def evaluate(self, x: Float[Tensor, "b *s"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Tensor:
        """Run the network."""
        return self.net(x, u, labels) if self.prompts is None else self.net(x, u, *self.prompts(labels))

    def __call__(self, x_t: Float[Tensor, "b *s"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b *s"]:
        x0 = self.parameterization.clean(self.process, x_t, self.predict(x_t, t, labels), t)
        return clip(x0, self.bounds)

    def reset(self) -> None:
        for module in self.net.modules():
            if isinstance(module, Remembering):
                module.reset()


class Remembering(nn.Module, ABC):
    """A module that keeps something from one network call to the next, such as a feature cache."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""


class Mixture(Denoiser):
    """The exact denoiser of a mixture of isotropic Gaussians: ground truth for solvers.

    E[x_0 | x_t] = sum_k r_k (m_k + alpha s_k^2 / v_k (x_t - alpha m_k)) with v_k = alpha^2 s_k^2 + sigma^2 and r_k the
    posterior weight of mode k. Labels are ignored. Computed in the dtype of x_t.
    """

    def __init__(self, means: Float[Tensor, "k d"], stds: Float[Tensor, "k"], weights: Float[Tensor, "k"],
                 process: Process) -> None:  # fmt: skip
        self.means, self.stds, self.weights, self.process = means, stds, weights, process
        self.rows = self.calls = 0

    def __call__(self, x_t: Float[Tensor, "b d"], t: Tensor, labels: Labels = None) -> Float[Tensor, "b d"]:
        self.rows, self.calls = self.rows + len(x_t), self.calls + 1
        means, variances = self.means.to(x_t), self.stds.to(x_t) ** 2
        alpha, sigma = self.process.alpha(t).to(x_t).reshape(-1, 1), self.process.sigma(t).to(x_t).reshape(-1, 1)
        v = alpha**2 * variances + sigma**2  # [b or 1, k]
        offset = x_t[:, None, :] - alpha[..., None] * means  # [b, k, d]
        log_density = -offset.square().sum(-1) / (2 * v) - x_t.shape[1] / 2 * torch.log(2 * math.pi * v)
        posterior = torch.softmax(torch.log(self.weights.to(x_t)) + log_density, dim=1)
        centre = means + (alpha * variances / v)[..., None] * offset
        return (posterior[..., None] * centre).sum(1)


class Guidance(ABC):
    """Denoiser -> Denoiser. Calls the inner denoiser exactly once per evaluation, with the rows it needs batched."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser) -> Denoiser: ...


class Unguided(Guidance):
    """The conditional denoiser as it is."""

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return denoiser

    def __eq__(self, other: object) -> bool:
        return type(other) is Unguided

    def __hash__(self) -> int:
        return hash(Unguided)
