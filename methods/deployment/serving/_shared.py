"""Samples under way in one batch, each at a step of its own: what servers of diffusion models share.

A step of a deterministic sampler needs x_t and t, and both may differ from row to row; so whatever is under way can be
advanced by one call of the network, and samples come and go between calls.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from methods.core.activation import count
from methods.core.denoiser import NULL, Denoiser, Labels
from methods.core.sampling import transfer


class UnderWay:
    """Rows of a batch in the order in which they joined; `advance` takes a step of DDIM with each, in one call."""

    def __init__(self, denoiser: Denoiser, times: Float[Tensor, "n"]) -> None:
        self.denoiser, self.times = denoiser, times
        self.names: list[int] = []
        self.at = torch.empty(0, dtype=torch.long)
        self.x = self.labels = torch.empty(0)

    def __len__(self) -> int:
        return len(self.names)

    def join(self, names: list[int], x: Float[Tensor, "b *s"], labels: Labels) -> None:
        """Take in rows that begin at the first time."""
        if labels is None:
            labels = torch.full((len(x),), NULL, device=x.device)
        self.x, self.labels = (
            torch.cat([old, new]) if len(self) else new for old, new in ((self.x, x), (self.labels, labels))
        )
        self.at = torch.cat([self.at, torch.zeros(len(x), dtype=torch.long)])
        self.names = self.names + names

    def advance(self) -> dict[int, Float[Tensor, "*s"]]:
        """One step of every row; returns the rows that have arrived, by name, which leave."""
        count("rows_at_other_steps", int((self.at != self.at.mode().values).sum()))
        t, s = self.times[self.at], self.times[self.at + 1]
        self.x = transfer(self.denoiser.process, self.x, self.denoiser(self.x, t, self.labels), t, s)
        self.at = self.at + 1
        there = self.at == len(self.times) - 1
        arrived = {name: row for name, row, done in zip(self.names, self.x, there.tolist(), strict=True) if done}
        left = (~there).to(self.x.device)
        self.names = [name for name in self.names if name not in arrived]
        self.x, self.labels, self.at = self.x[left], self.labels[left], self.at[~there]
        return arrived
