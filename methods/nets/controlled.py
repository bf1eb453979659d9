"""A U-Net with a copy of its encoder that is shown a control map as well.

Source: Zhang et al. 2023 "Adding Conditional Control to Text-to-Image Diffusion Models" (2302.05543), section 3.
"""

import copy

from jaxtyping import Float, Int
from torch import Tensor, nn

from methods.nets.unet import Below, Level, ResidualBlock, UNet


class Receiving(nn.Module):
    """Adds what it was told last to what `inner` gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.added: Tensor | None = None

    def forward(self, *given: Tensor) -> Tensor:
        h = self.inner(*given)
        return h if self.added is None else h + self.added


def zero(channels_in: int, channels: int) -> nn.Conv2d:
    """A convolution of one pixel that begins at zero."""
    layer = nn.Conv2d(channels_in, channels, 1)
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


class Reader(nn.Module):
    """A copy of a U-Net's way down: (x, u, labels, map) -> what each level and the middle see, from the top."""

    def __init__(self, unet: UNet, maps: int = 1) -> None:
        super().__init__()
        width = unet.stem.out_channels
        self.conditioning, self.stem = copy.deepcopy(unet.conditioning), copy.deepcopy(unet.stem)
        self.hint = nn.Sequential(
            nn.Conv2d(maps, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            zero(width, width),
        )  # fmt: skip
        levels = levels_of(unet)
        self.blocks = nn.ModuleList(copy.deepcopy(level.down) for level in levels)
        ways = [level.below.down for level in levels if isinstance(level.below, Below)]
        self.ways = nn.ModuleList(copy.deepcopy(way) for way in ways)
        self.middle = copy.deepcopy(levels[-1].below)
        last = [block for level in levels for block in level.down[-1:] if isinstance(block, ResidualBlock)]
        widths = [block.conv_out.out_channels for block in last]
        self.tell = nn.ModuleList(zero(width, width) for width in [*widths, widths[-1]])

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"],
                told: Float[Tensor, "b k h w"]) -> list[Tensor]:  # fmt: skip
        condition = self.conditioning(u, labels)
        h = self.stem(x) + self.hint(told)
        seen: list[Tensor] = []
        for depth, blocks in enumerate(self.blocks):
            h = self.ways[depth - 1](h) if depth else h
            for block in blocks.children():
                h = block(h, condition)
            seen.append(h)
        seen.append(self.middle(h, condition))
        return [tell(h) for tell, h in zip(self.tell, seen, strict=True)]


def levels_of(unet: UNet) -> list[Level]:
    """The levels of a U-Net, from the top."""
    found: list[Level] = []
    body = unet.level
    while isinstance(body, (Level, Below)):
        if isinstance(body, Level):
            found.append(body)
        body = body.below if isinstance(body, Level) else body.level
    return found


class ControlledUNet(nn.Module):
    """The U-Net as it was where there is no map; with one, what the reader says is added on the way up."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.reader, self.net = Reader(unet), unet
        levels = levels_of(unet)
        self.places = [Receiving(place) for place in [*(level.skip for level in levels), levels[-1].below]]
        for level, place in zip(levels, self.places, strict=False):
            level.skip = place
        levels[-1].below = self.places[-1]

    def begin(self) -> None:
        """Let the reader learn, and nothing else."""
        self.requires_grad_(False)
        self.reader.requires_grad_(True)

    def forward(self, x: Float[Tensor, "b c h w"], u: Float[Tensor, "b *k"], labels: Int[Tensor, "b"],
                told: Float[Tensor, "b k h w"] | None = None) -> Float[Tensor, "b d h w"]:  # fmt: skip
        said = [None] * len(self.places) if told is None else self.reader(x, u, labels, told)
        for place, added in zip(self.places, said, strict=True):
            place.added = added
        return self.net(x, u, labels)
