"""A U-Net on bands of rows: the layers that mix rows, whatever they are made of, ask what they lack of other bands."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.core.denoiser import Remembering
from methods.core.errors import NothingMatched
from methods.deployment.distributed_inference._shared import Rerouted
from methods.nets.unet import Attention, Below, Middle, ResidualBlock, UNet

MIXING = {
    ResidualBlock: ("norm_in", "conv_in", "norm_out", "conv_out"), Attention: ("norm",), Middle: ("attention",),
    Below: ("down", "up"), UNet: ("stem", "norm", "head"),
}  # fmt: skip
"""The layers that mix rows, by the part of the network that holds them."""

Pair = int | tuple[int, int]


class Banded(Remembering, Rerouted):
    """A layer that mixes rows, on those bands that live in this process: `seen` says what it knows of the others."""

    def instead(self) -> Mapping[Callable[..., Tensor], Callable[..., Tensor]]:
        return {F.conv2d: self.convolve, F.group_norm: self.normalise, F.scaled_dot_product_attention: self.attend}

    @abstractmethod
    def seen(self, mine: list[Tensor]) -> Sequence[Tensor | None]:
        """Of each own band, what it knows of all bands: [parts, *shape]; None if it knows of no other."""

    def convolve(
        self, x: Float[Tensor, "b i h w"], weight: Float[Tensor, "o k y z"], bias: Tensor | None = None,
        stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1,
    ) -> Float[Tensor, "b o g v"]:  # fmt: skip
        """Every band between the last rows of the one above and the first of the one below; zeros at the ends."""
        (edge, side), (step, _) = ((a, a) if isinstance(a, int) else a for a in (padding, stride))
        if edge == 0:
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        bands = self.parts.split(x, 2)
        assert bands[0].shape[2] % step == 0, f"bands of {bands[0].shape[2]} rows cannot be halved"
        known = self.seen([torch.stack([band[:, :, :edge], band[:, :, -edge:]]) for band in bands])
        done, outside = [], torch.zeros_like(bands[0][:, :, :edge])
        for i, band, edges in zip(self.parts.own, bands, known, strict=True):
            above = outside if edges is None or i == 0 else edges[i - 1][1]
            below = outside if edges is None or i == self.parts.number - 1 else edges[i + 1][0]
            whole = torch.cat([above, band, below], 2)
            done.append(F.conv2d(whole, weight, bias, stride, (0, side), dilation, groups))
        return torch.cat(done, 2)

    def normalise(
        self, x: Float[Tensor, "b c h w"], groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Float[Tensor, "b c h w"]:
        """With the moments E[x] and E[x^2] of the groups, as `moments` makes them from what is known of all bands."""
        bands = [band.float().unflatten(1, (groups, -1)) for band in self.parts.split(x, 2)]
        own = [torch.stack([g.flatten(2).mean(2), g.square().flatten(2).mean(2)]) for g in bands]
        done = []
        for i, band, mine, known in zip(self.parts.own, bands, own, self.seen(own), strict=True):
            mean, square = mine if known is None else self.moments(mine, known, i)
            local, variance = mine[1] - mine[0] ** 2, square - mean**2
            scale = torch.rsqrt(torch.where(variance < 0, local, variance) + eps)
            done.append(((band - mean[..., None, None, None]) * scale[..., None, None, None]).flatten(1, 2))
        return (torch.cat(done, 2) * weight[:, None, None] + bias[:, None, None]).to(x.dtype)

    @abstractmethod
    def moments(self, mine: Tensor, known: Float[Tensor, "p 2 b g"], place: int) -> Float[Tensor, "2 b g"]:
        """The moments of the whole image, from those of this band and what it knows of all."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "b h n d"]:
        """Own queries over the keys and values of all bands, of which a band's own are always fresh."""
        own, mixed = list(self.parts.split(torch.stack([k, v]), 3)), []
        for i, queries, mine, known in zip(self.parts.own, self.parts.split(q, 2), own, self.seen(own), strict=True):
            every = [mine] if known is None else [mine if j == i else other for j, other in enumerate(known)]
            keys, values = torch.cat(every, 3)
            mixed.append(F.scaled_dot_product_attention(queries, keys, values))
        return torch.cat(mixed, 2)


def banded(module: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of `module` in which every layer that mixes rows is made anew. Raises NothingMatched if there is none."""
    net = copy.deepcopy(module)
    found = [
        (host, name) for host in net.modules() for name in MIXING.get(type(host), ()) if hasattr(host, name)
    ]  # fmt: skip
    if not found:
        raise NothingMatched(f"{type(module).__name__} holds no U-Net to cut into bands")
    for host, name in found:
        setattr(host, name, make(getattr(host, name)))
    return net
