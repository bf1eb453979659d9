"""Parts of one evaluation that run side by side and send each other tensors: in turn in one process, or one in each.

A technique is written once, over the parts that live in this process. Without a process group these are all parts, and
what one sends another is handed over; in a group of as many processes each has one part, and the same tensors travel.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_to_all_single

from methods.core.activation import count


class Parts(ABC):
    """So many parts, of which those in `own` live in this process. All tensors of an exchange have one shape."""

    def __init__(self, number: int, own: range) -> None:
        self.number, self.own = number, own

    def exchange(self, outgoing: Sequence[Sequence[Tensor]], to: Callable[[int], Sequence[int]]) -> list[Tensor]:
        """Every own part i sends its tensors to the parts to(i); returns what each was sent, by sender: [s, *shape]."""
        sent = [
            t.nbytes
            for i, tensors in zip(self.own, outgoing, strict=True)
            for t, j in zip(tensors, to(i), strict=True)
            if i != j
        ]
        count("bytes_sent", sum(sent))
        return self.move(outgoing, to)

    @abstractmethod
    def move(self, outgoing: Sequence[Sequence[Tensor]], to: Callable[[int], Sequence[int]]) -> list[Tensor]: ...

    def gather(self, mine: Sequence[Tensor]) -> list[Tensor]:
        """For each own part, what all parts have: [parts, *shape]."""
        return self.exchange([[tensor] * self.number for tensor in mine], lambda i: range(self.number))

    def settle(self, travelling: Iterable[Tensor]) -> None:  # noqa: B027 - what is handed over has arrived
        """Wait for what nobody will look at."""

    def split(self, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        """What each own part has of a tensor that holds theirs alone."""
        size = x.shape[dim]
        assert size % len(self.own) == 0, f"{size} rows or tokens cannot be shared out over {len(self.own)} parts"
        return x.chunk(len(self.own), dim)

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """What this process has of a tensor that holds the whole."""
        if len(self.own) == self.number:
            return x
        assert x.shape[dim] % self.number == 0, f"{x.shape[dim]} rows cannot be shared out over {self.number} processes"
        return torch.cat([x.chunk(self.number, dim)[i] for i in self.own], dim)


class InTurn(Parts):
    """All parts in this process, one after the other."""

    def __init__(self, number: int) -> None:
        super().__init__(number, range(number))

    def move(self, outgoing: Sequence[Sequence[Tensor]], to: Callable[[int], Sequence[int]]) -> list[Tensor]:
        arrived: list[list[Tensor]] = [[] for _ in self.own]
        for i, tensors in zip(self.own, outgoing, strict=True):
            for tensor, j in zip(tensors, to(i), strict=True):
                arrived[j].append(tensor)
        return [torch.stack(tensors) for tensors in arrived]


class AcrossProcesses(Parts):
    """One part in each process of the default group. What is sent travels until it is looked at."""

    def __init__(self) -> None:
        super().__init__(dist.get_world_size(), range(dist.get_rank(), dist.get_rank() + 1))

    def move(self, outgoing: Sequence[Sequence[Tensor]], to: Callable[[int], Sequence[int]]) -> list[Tensor]:
        (me,), (tensors,), group = self.own, outgoing, dist.group.WORLD
        assert group is not None, "parts travel in a process group"
        addressed, shape, size = dict(zip(to(me), tensors, strict=True)), tensors[0].shape, tensors[0].numel()
        leaving = torch.cat([addressed[j].flatten() for j in sorted(addressed)])
        senders = [i for i in range(self.number) if me in to(i)]
        coming, going = ([size * (j in known) for j in range(self.number)] for known in (senders, addressed))
        return [all_to_all_single(leaving, coming, going, group).view(len(senders), *shape)]

    def settle(self, travelling: Iterable[Tensor]) -> None:
        for tensor in travelling:
            if isinstance(tensor, AsyncCollectiveTensor):
                tensor.wait()


def parts(number: int) -> Parts:
    """So many parts: across the processes of the default group if there is one, else in turn."""
    if not (dist.is_available() and dist.is_initialized()):
        return InTurn(number)
    assert dist.get_world_size() == number, f"{dist.get_world_size()} processes cannot take {number} parts"
    return AcrossProcesses()
