"""Data parallelism: the rows of every evaluation are shared out over the processes that `torchrun` started.

Every process draws the same batch, times and noise, runs the network on its own rows and is given the predictions of
all; so an objective sees the whole batch, and couplings over a batch are what they are in one process.
"""

import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_single
from torch.nn.parallel import DistributedDataParallel

from methods.core.denoiser import Network


class SharedOut(Network):
    """A network of which each process evaluates an equal part of the rows; gradients are those of the whole batch.

    Each process has the same loss. The backward pass of `all_gather_single` adds up its gradient over the processes,
    and DistributedDataParallel takes their mean: together, the gradient of one loss.
    """

    def __init__(self, inner: Network) -> None:
        super().__init__(inner.net, inner.process, inner.parameterization, inner.bounds)
        self.replica = DistributedDataParallel(inner.net)

    def evaluate(self, x: Float[Tensor, "b *s"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"]) -> Tensor:
        part, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
        assert group is not None, "a network is shared out in a process group"
        assert len(x) % world == 0, f"a batch of {len(x)} cannot be shared out over {world} processes"
        own = self.replica(*(rows.chunk(world)[part] for rows in (x, u, labels)))
        return all_gather_single(own, 0, group)


def shared_out(network: Network) -> Network:
    """The network shared out over the processes of a group, if this one belongs to one."""
    return SharedOut(network) if dist.is_available() and dist.is_initialized() else network
