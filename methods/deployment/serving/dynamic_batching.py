"""Lets requests that come at different times share calls of the network: they join and leave a batch between steps.

A call on eight samples takes less time than eight calls, so a server that has several requests should answer them
together. A step needs only x_t and t, which differ from row to row; so a request need not wait until others are done,
but joins them at the next step.

Source: Crankshaw et al. 2017 "Clipper" (1612.03079), batches of whole requests up to a size, and a delay for them to
fill; Yu et al. 2022 "Orca" (OSDI), iteration-level scheduling, for joining between steps.
Limits: steps of deterministic DDIM; all requests take the same steps at the same size. The size of the batch is given,
not adapted to a bound on latency as in Clipper. As a sampler, requests arrive on a clock that counts calls, so that it
is the same on every machine; for time by the clock there is a server in `_server.py`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import Denoiser, Labels
from methods.core.recipe import Method, edit
from methods.core.sampling import SampleNoise, Sampler
from methods.deployment.serving._shared import UnderWay


@dataclass(frozen=True)
class Admission:
    """How many of the waiting may join now. An idle server waits for a full batch, or until the first is `due`."""

    capacity: int
    deadline: float
    """The longest an idle server waits for its batch to fill."""

    def admits(self, waiting: int, under_way: int, due: bool) -> int:
        """Step by step: whenever there is room."""
        begins = under_way or due or waiting >= self.capacity
        return min(waiting, self.capacity - under_way) if begins else 0


@dataclass(frozen=True)
class RequestLevel(Admission):
    """A batch is done before the next one begins."""

    def admits(self, waiting: int, under_way: int, due: bool) -> int:
        return 0 if under_way else super().admits(waiting, under_way, due)


@dataclass(frozen=True)
class Queued(Sampler):
    """Samples are requests, which arrive at random, `load` of them in the time of one request's steps."""

    admission: Admission
    load: float

    def arrivals(self, requests: int, steps: int) -> Float[Tensor, "n"]:
        """Times of a Poisson process, in calls of the network."""
        gaps = torch.empty(requests, dtype=torch.float64)
        return gaps.exponential_(self.load / steps, generator=torch.Generator().manual_seed(0)).cumsum(0)

    def __call__(
        self, denoiser: Denoiser, x: Float[Tensor, "b *s"], times: Float[Tensor, "n"], labels: Labels,
        noise: SampleNoise,
    ) -> Float[Tensor, "b *s"]:  # fmt: skip
        denoiser.reset()
        arrival = self.arrivals(len(x), len(times) - 1).tolist()
        under_way, done = UnderWay(denoiser, times), torch.empty_like(x)
        clock, first, answered = 0.0, 0, 0  # `first` is the first request that has not joined
        while answered < len(x):
            waiting = sum(time <= clock for time in arrival[first:])
            due = bool(waiting) and clock >= arrival[first] + self.admission.deadline
            joining = range(first, first + self.admission.admits(waiting, len(under_way), due))
            if joining:
                rows = slice(joining.start, joining.stop)
                under_way.join(list(joining), x[rows], None if labels is None else labels[rows])
                count("calls_waited", sum(math.ceil(clock - arrival[i]) for i in joining))
                first = joining.stop
            if len(under_way):
                for name, row in under_way.advance().items():
                    done[name], answered = row, answered + 1
                clock += 1
            else:
                coming = arrival[first + waiting : first + waiting + 1]
                clock = min(coming + [arrival[first] + self.admission.deadline] * bool(waiting))
        return done


def dynamic_batching(capacity: int = 8, load: float = 6.0, deadline: float = 0.0, level: int = 2) -> Method:
    """Batch up to `capacity` requests: by steps (level 2), whole requests (1), or one alone (0), at a `load`."""
    admission = Admission(capacity, deadline) if level == 2 else RequestLevel(capacity if level else 1, deadline)
    return edit(sampler=Queued(admission, load))
