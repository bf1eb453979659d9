"""Splits the tokens of one image over several devices, which attend to all of them by passing tensors around.

Everything in a transformer but attention looks at one token. For attention, Ulysses lets devices swap tokens for heads,
so that each has all tokens of a few heads; Ring lets keys and values go round, and adds up a softmax that is never seen
whole. A mesh of both splits further than there are heads, and the result is that of one device.

Source: Fang et al. 2024 "xDiT" (2411.01738), sequence parallelism by USP: Fang and Zhao 2024 (2405.07719), after
DeepSpeed-Ulysses (2309.14509) and Ring Attention (2310.01889); the running softmax is Milakov and Gimelshein's
(1805.02867), algorithm 3.
Limits: sequence parallelism alone, neither PipeFusion nor a split of guidance's branches or of a decoder. Without a
process group the parts run in turn, and save no time. In processes, the rows of patches must divide by their number,
and a cache that looks at tokens would decide for each process alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.recipe import Method, edit
from methods.core.surgery import Stage, Transform, rewrite_type
from methods.deployment.distributed_inference._parts import Parts, parts
from methods.deployment.distributed_inference._shared import InBands, Rerouted
from methods.nets.dit import DiT, DiTConfig, SelfAttention


class RunningSoftmax:
    """softmax(q k^T / sqrt(d)) v = mixed / total, a block of keys and values after the other."""

    def __init__(self, q: Float[Tensor, "b h n d"]) -> None:
        self.q = q.float() / math.sqrt(q.shape[-1])
        self.mixed, self.total = torch.zeros_like(self.q), self.q.new_zeros(*q.shape[:-1], 1)
        self.largest = torch.full_like(self.total, -torch.inf)

    def add(self, k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h m d"]) -> None:
        """Take in a block."""
        scores = self.q @ k.float().transpose(-1, -2)
        largest = torch.maximum(self.largest, scores.amax(-1, keepdim=True))
        weights, kept = torch.exp(scores - largest), torch.exp(self.largest - largest)
        self.mixed = kept * self.mixed + weights @ v.float()
        self.total = kept * self.total + weights.sum(-1, keepdim=True)
        self.largest = largest


@dataclass(frozen=True)
class Mesh:
    """Part r * ulysses + u stands in row r and column u: heads are swapped along rows, keys go round along columns."""

    ulysses: int
    ring: int

    def row(self, part: int) -> range:
        """The parts that swap tokens for heads with this one."""
        first = part - part % self.ulysses
        return range(first, first + self.ulysses)

    def onwards(self, part: int) -> list[int]:
        """The part that this one's keys and values go to."""
        return [(part + self.ulysses) % (self.ulysses * self.ring)]


class SequenceParallel(Rerouted):
    """A self-attention of which every part has a share of the tokens."""

    def __init__(self, inner: nn.Module, mesh: Mesh, parts: Parts) -> None:
        super().__init__(inner, parts)
        self.mesh = mesh

    def instead(self) -> Mapping[Callable[..., Tensor], Callable[..., Tensor]]:
        return {F.scaled_dot_product_attention: self.attend}

    def swap(self, mine: list[Tensor], cut: int, joined: int) -> list[Tensor]:
        """Along every row: cut each tensor along one dimension, and join what arrives along another."""
        pieces = [tensor.chunk(self.mesh.ulysses, cut) for tensor in mine]
        return [torch.cat(list(arrived), joined) for arrived in self.parts.exchange(pieces, self.mesh.row)]

    def attend(self, *qkv: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Attention over the tokens of all parts, for those of the own parts."""
        heads = qkv[0].shape[1]
        assert heads % self.mesh.ulysses == 0, f"{heads} heads cannot be shared out over {self.mesh.ulysses} parts"
        mine = self.swap(list(self.parts.split(torch.stack(qkv), 3)), 2, 3)
        running, going = [RunningSoftmax(q) for q, _, _ in mine], [qkv[1:] for qkv in mine]
        for left in reversed(range(self.mesh.ring)):
            coming = self.parts.exchange([[kv] for kv in going], self.mesh.onwards) if left else []
            for softmax, (k, v) in zip(running, going, strict=True):
                softmax.add(k, v)
            going = [kv[0] for kv in coming]
        mixed = [(softmax.mixed / softmax.total).to(qkv[0].dtype) for softmax in running]
        return torch.cat(self.swap(mixed, 2, 1), 2)


@dataclass(frozen=True)
class USP(Transform):
    """Makes every self-attention that of ulysses x ring parts."""

    ulysses: int
    ring: int
    stage: ClassVar[Stage] = Stage.REUSE

    def __call__(self, module: nn.Module) -> nn.Module:
        group, mesh = parts(self.ulysses * self.ring), Mesh(self.ulysses, self.ring)
        net = rewrite_type(module, SelfAttention, lambda inner: SequenceParallel(inner, mesh, group))
        for part in net.modules():
            if isinstance(part, DiT):
                rows, columns = part.grid
                part.position = group.cut(part.position, 0)
                part.grid = (rows * len(group.own) // group.number, columns)
        return InBands(net, group)


def xdit_usp(ulysses: int = 2, ring: int = 2) -> Method:
    """Share the tokens out over ulysses x ring parts; `ulysses` must divide the heads."""
    return edit(transforms=USP(ulysses, ring), needs={"net": DiTConfig})
