"""A U-Net with more blocks at its lowest resolution, where they are cheap, than at the others."""

from dataclasses import dataclass

from methods.nets.unet import Level, ResidualBlock, UNet, UNetConfig


@dataclass(frozen=True)
class DeepUNetConfig(UNetConfig):
    """As a U-Net, but for the `deepest` blocks each way at the lowest resolution."""

    deepest: int = 3

    def build(self, shape: tuple[int, ...], classes: int) -> UNet:
        net = super().build(shape, classes)
        lowest = [part for part in net.modules() if isinstance(part, Level)][-1]
        first = lowest.down[0]
        assert isinstance(first, ResidualBlock)
        widths = first.conv_in.in_channels, first.conv_in.out_channels
        deeper = Level(*widths, lowest.below, widths[1], self.deepest, 4 * self.width)
        lowest.down, lowest.up = deeper.down, deeper.up
        return net
