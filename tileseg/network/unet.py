"""The classic U-Net, in one file. Knows nothing of scenes, cards or devices.

Ronneberger, Fischer, Brox: "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015, with same-padded convolutions and transposed ones on the
way up. Shape letters: N tiles, B bands, C channels, K classes, H rows, W columns.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["UNet", "trace"]


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
    )


def _upconv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Tiles (N, bands, H, W) -> logits (N, classes, H, W).

    H and W must be multiples of 2^depth. The names of the submodules (`enc1.0`,
    `bottleneck.2`, `upconv4.0`, `dec4.0`, `final_conv`) are the keys of the
    `state_dict` that the common tutorial saves, and must not change.
    """

    def __init__(
        self, bands: int = 3, classes: int = 1, *, width: int = 64, depth: int = 4
    ) -> None:
        """Build the network with random weights.

        Args:
            bands: input channels.
            classes: output channels; 1 means one logit against background.
            width: channels of the first stage; each stage below has twice as many.
            depth: number of poolings.
        """
        super().__init__()
        self.depth = depth
        channels = [width << stage for stage in range(depth)]
        inputs = bands
        for stage, outputs in enumerate(channels, start=1):
            self.add_module(f"enc{stage}", _double_conv(inputs, outputs))
            inputs = outputs
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = _double_conv(inputs, width << depth)
        for stage in range(depth, 0, -1):
            outputs = channels[stage - 1]
            self.add_module(f"upconv{stage}", _upconv(2 * outputs, outputs))
            self.add_module(f"dec{stage}", _double_conv(2 * outputs, outputs))
        self.final_conv = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, x_NBHW: Tensor) -> Tensor:
        """Return logits, (N, classes, H, W)."""
        x = x_NBHW
        skips: list[Tensor] = []
        for stage in range(1, self.depth + 1):
            x = self.get_submodule(f"enc{stage}")(x)  # (N, C, H, W)
            skips.append(x)
            x = self.pool(x)  # (N, C, H/2, W/2)
        x = self.bottleneck(x)  # (N, 2C, H/2^depth, W/2^depth)
        for stage in range(self.depth, 0, -1):
            x = self.get_submodule(f"upconv{stage}")(x)  # (N, C, 2H, 2W)
            x = torch.cat((x, skips.pop()), dim=1)  # (N, 2C, 2H, 2W)
            x = self.get_submodule(f"dec{stage}")(x)  # (N, C, 2H, 2W)
        logits_NKHW: Tensor = self.final_conv(x)
        return logits_NKHW


def trace(network: nn.Module, bands: int, tile: int) -> Iterator[str]:
    """Yield one line `stage: [shape]` for each stage of one forward of one tile.

    The network is put to inference: a batch of one has no normalisation of its own.
    """
    lines: list[str] = []
    if isinstance(network, UNet):
        stages = [f"enc{stage}" for stage in range(1, network.depth + 1)]
        stages += ["bottleneck"]
        stages += [f"dec{stage}" for stage in range(network.depth, 0, -1)]
    else:
        stages = [name for name, _ in network.named_children()]

    def note(stage: str, output: object) -> None:
        parts = output if isinstance(output, list | tuple) else [output]
        shapes = [str(list(part.shape)) for part in parts if isinstance(part, Tensor)]
        lines.append(f"{stage}: {' '.join(shapes)}")

    hooks = [
        network.get_submodule(stage).register_forward_hook(
            lambda _module, _inputs, output, stage=stage: note(stage, output)
        )
        for stage in stages
    ]
    tiles = torch.zeros(1, bands, tile, tile)
    network.eval()
    with torch.inference_mode():
        output = network(tiles)
    for hook in hooks:
        hook.remove()
    yield f"Input: {list(tiles.shape)}"
    yield from lines
    yield f"Output: {list(output.shape)}"
