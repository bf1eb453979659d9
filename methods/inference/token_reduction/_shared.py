"""What reducing tokens needs: the attentions of either network, and the layers by which tokens enter and leave them."""

import copy
from collections.abc import Callable

from torch import nn

from methods.core.errors import NothingMatched
from methods.nets.dit import Block
from methods.nets.unet import Attention

PROJECTIONS = ("query", "key", "value")


def rewrite_attention(module: nn.Module, rewrite: Callable[[nn.Module, nn.Module], None]) -> nn.Module:
    """A copy of `module` with every self-attention changed in place by `rewrite(host, attention)`.

    The host is the part whose input are the tokens before any norm; the attention holds query, key, value and out.
    """
    module = copy.deepcopy(module)
    hosts = [part for part in module.modules() if isinstance(part, (Block, Attention))]
    if not hosts:
        raise NothingMatched(f"{type(module).__name__} holds no self-attention")
    for host in hosts:
        rewrite(host, next(part for part in host.modules() if hasattr(part, PROJECTIONS[0])))
    return module
