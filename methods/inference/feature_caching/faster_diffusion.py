"""Runs the encoder of the U-Net at a few key steps only; in between, the decoder works on what the encoder said then.

From step to step the features of the way down change little, those of the way up much. So the decoder runs at every
step and is told its noise level, while skips and bottleneck come from the last key step. The encoder changes most in
the beginning, and so most key steps are early ones.

Source: Li et al. 2024 "Faster Diffusion: Rethinking the Role of the Encoder for Diffusion Model Inference"
(2312.09608), section 3.3, with the key steps for DDIM in 50 steps (table 5, IV; `50ls` of the official code).
Limits: between key steps the network does not see x_t, so the paper decodes such steps in one batch; here they run one
after another, and only the operations saved can be shown. Its prior noise injection, a bit of the first noise added to
x_t in the second half, would take the sampler's slot, and is left out. Key steps count network calls; the paper has
them for 50 and, the same first ones, for 20; every tenth beyond 50 is ours. A control network's own encoder runs at
every step. Needs a sampler that walks the grid in order.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from methods.core.activation import count
from methods.core.denoiser import Remembering
from methods.core.errors import NothingMatched
from methods.core.recipe import Method, edit
from methods.core.sampling import Solver
from methods.core.surgery import Stage, Transform
from methods.nets.unet import Below, Level, Middle, UNet, UNetConfig

KEY_STEPS, KNOWN, BEYOND = (0, 1, 2, 3, 5, 10, 15, 25, 35), 50, 10


def is_key(step: int, stride: int) -> bool:
    """Whether the encoder runs at a step, counted from the first: every `stride`-th, or for 0 as in the paper."""
    if stride:
        return step % stride == 0
    return step in KEY_STEPS if step < KNOWN else step % BEYOND == 0


def encoder(net: UNet) -> Iterator[tuple[nn.Module, str]]:
    """Everything on the way down, bottleneck included: which module holds it, and under which name."""
    yield net, "stem"
    for part in net.modules():
        for name, child in part.named_children():
            if isinstance(child, Middle) or (isinstance(part, Below) and name == "down"):
                yield part, name
            elif isinstance(part, Level) and name == "down":
                yield from ((child, block) for block, _ in child.named_children())


class Propagated(Remembering):
    """Calls `inner` at key steps, and when the batch has changed; else returns what it remembers."""

    def __init__(self, inner: nn.Module, stride: int) -> None:
        super().__init__()
        self.inner, self.stride = inner, stride
        self.reset()

    def reset(self) -> None:
        self.calls = 0
        self.kept: Tensor | None = None

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        kept = self.kept
        if kept is None or len(kept) != len(x) or is_key(self.calls, self.stride):
            kept = self.inner(x, *condition)
        else:
            count("encoder_calls_skipped")
        self.kept, self.calls = kept, self.calls + 1
        return kept


@dataclass(frozen=True)
class EncoderPropagation(Transform):
    """Puts every part of the encoder behind a cache; all of them run at the same steps."""

    stride: int
    stage: ClassVar[Stage] = Stage.REUSE

    def __call__(self, module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module)
        nets = [part for part in module.modules() if isinstance(part, UNet)]
        if not any(isinstance(part, Level) for net in nets for part in net.modules()):
            raise NothingMatched(f"{type(module).__name__} holds no Level of a U-Net")
        for host, name in [place for net in nets for place in encoder(net)]:
            setattr(host, name, Propagated(host.get_submodule(name), self.stride))
        return module


def faster_diffusion(stride: int = 0) -> Method:
    """Run the encoder at the paper's key steps, or at every `stride`-th network call."""
    return edit(transforms=EncoderPropagation(stride), needs={"net": UNetConfig, "sampler": Solver})
