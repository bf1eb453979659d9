"""Minimising an objective by Adam, with a moving average of the weights. Only here is autocast decided."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.average import Averaging, Exponential
from methods.core.calibration import Report
from methods.core.denoiser import Denoiser, Labels, Network
from methods.core.fit import Fit, Precision
from methods.core.models import device
from methods.core.objective import Objective

DTYPES: Mapping[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def quiet(what: str, done: int, total: int, loss: float) -> None:
    """Report progress to nobody."""


def optimise(
    student: Network, teacher: Denoiser, objective: Objective, x0: Float[Tensor, "n *s"], labels: Labels,
    fit: Fit, seed: int, report: Report = quiet, what: str = "network",
    keep: Mapping[int, Callable[[nn.Module], None]] | None = None, averaging: Averaging | None = None,
) -> nn.Module:  # fmt: skip
    """Minimise an objective by Adam and return the average of the student's network: by default the exponential one.

    Order of the data and noise come from two generators, so methods that draw noise differently see the same images.
    Whoever wants to see that average on the way says in `keep` after how many updates.
    """
    order = torch.Generator().manual_seed(seed)
    rng = torch.Generator(x0.device).manual_seed(seed + 1)
    learner = Learner(student.net, fit, averaging)
    queue = torch.empty(0, dtype=torch.long)
    for i in range(fit.iterations):
        while len(queue) < fit.batch:
            queue = torch.cat([queue, torch.randperm(len(x0), generator=order)])
        batch, queue = queue[: fit.batch].to(x0.device), queue[fit.batch :]
        with autocast(fit.precision):
            loss = objective(student, teacher, x0[batch], None if labels is None else labels[batch], rng).mean()
        learner.step(loss)
        if keep and i + 1 in keep:
            keep[i + 1](learner.averaging.net)
        if (i + 1) % 50 == 0 or i + 1 == fit.iterations:
            report(what, i + 1, fit.iterations, loss.item())
    return learner.finished()


class Learner:
    """A network in training: Adam with a linear warm-up, and beside it the average of the weights."""

    def __init__(self, net: nn.Module, fit: Fit, averaging: Averaging | None = None) -> None:
        self.net = net.train()
        self.averaging = averaging or Exponential().begin(net, fit, nn.Module())
        self.optimizer = torch.optim.Adam(net.parameters(), lr=fit.learning_rate, fused=True)
        self.warmup = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda i: min(1.0, (i + 1) / fit.warmup))

    def step(self, loss: Tensor) -> None:
        """One update along the gradient of a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.warmup.step()
        self.averaging.update()

    def finished(self) -> nn.Module:
        """The average, which is what ships."""
        return self.averaging.net.eval().requires_grad_(False)


def autocast(precision: Precision) -> torch.autocast | nullcontext[None]:
    """The context in which a network runs at a precision; float32 needs none."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device().type, DTYPES[precision])


class Cast(Network):
    """A network run under autocast; its prediction, and the sampler's state, stay float32."""

    def __init__(self, inner: Network, precision: Precision) -> None:
        super().__init__(inner.net, inner.process, inner.parameterization, inner.bounds)
        self.precision: Precision = precision

    def evaluate(self, x: Float[Tensor, "b *s"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Tensor:
        with autocast(self.precision):
            prediction = super().evaluate(x, u, labels)
        count(f"calls_{self.precision}", prediction.dtype == DTYPES[self.precision])
        return prediction
