"""The network's names, sizes and shapes are those that everyone's weights expect."""

import io

import pytest
import torch
from torch import nn

from tileseg.network.unet import UNet, trace

TRACE = """\
Input: [1, 3, 128, 128]
enc1: [1, 64, 128, 128]
enc2: [1, 128, 64, 64]
enc3: [1, 256, 32, 32]
enc4: [1, 512, 16, 16]
bottleneck: [1, 1024, 8, 8]
dec4: [1, 512, 16, 16]
dec3: [1, 256, 32, 32]
dec2: [1, 128, 64, 64]
dec1: [1, 64, 128, 128]
Output: [1, 1, 128, 128]
"""


class TutorialUNet(nn.Module):
    """The U-Net of the tutorials, written out stage by stage."""

    def __init__(self, width=64):
        super().__init__()
        self.enc1 = self.conv_block(3, width)
        self.enc2 = self.conv_block(width, width * 2)
        self.enc3 = self.conv_block(width * 2, width * 4)
        self.enc4 = self.conv_block(width * 4, width * 8)
        self.bottleneck = self.conv_block(width * 8, width * 16)
        self.upconv4 = self.up_block(width * 16, width * 8)
        self.dec4 = self.conv_block(width * 16, width * 8)
        self.upconv3 = self.up_block(width * 8, width * 4)
        self.dec3 = self.conv_block(width * 8, width * 4)
        self.upconv2 = self.up_block(width * 4, width * 2)
        self.dec2 = self.conv_block(width * 4, width * 2)
        self.upconv1 = self.up_block(width * 2, width)
        self.dec1 = self.conv_block(width * 2, width)
        self.final_conv = nn.Conv2d(width, 1, kernel_size=1)
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)

    @staticmethod
    def conv_block(inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
        )

    @staticmethod
    def up_block(inputs, outputs):
        return nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        enc1 = self.enc1(x)
        enc2 = self.enc2(self.pool(enc1))
        enc3 = self.enc3(self.pool(enc2))
        enc4 = self.enc4(self.pool(enc3))
        bottleneck = self.bottleneck(self.pool(enc4))
        dec4 = self.dec4(torch.cat((self.upconv4(bottleneck), enc4), dim=1))
        dec3 = self.dec3(torch.cat((self.upconv3(dec4), enc3), dim=1))
        dec2 = self.dec2(torch.cat((self.upconv2(dec3), enc2), dim=1))
        dec1 = self.dec1(torch.cat((self.upconv1(dec2), enc1), dim=1))
        return self.final_conv(dec1)


@pytest.fixture(scope="module")
def full():
    torch.manual_seed(0)
    return UNet()


def test_the_default_network_has_the_known_number_of_parameters(full):
    assert sum(weights.numel() for weights in full.parameters()) == 31_031_745


def test_trace_says_the_shape_of_every_stage(full):
    assert TRACE.splitlines() == list(trace(full, 3, 128))


def test_trace_takes_a_network_that_normalises_a_pooled_tile():
    """As DeepLabV3+ does: in training that needs two tiles, and would change it."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))

    assert list(trace(network, 3, 48))[-1] == "Output: [1, 3, 1, 1]"
    assert network[1].num_batches_tracked == 0


def test_trace_leaves_the_network_as_it_was(full):
    list(trace(full, 3, 32))
    assert list(trace(full, 3, 32)) == list(trace(full, 3, 32))

    assert not any(module._forward_hooks for module in full.modules())


def test_the_keys_are_those_of_the_tutorial(full):
    double = [f"enc{stage}" for stage in range(1, 5)] + ["bottleneck"]
    double += [f"dec{stage}" for stage in range(1, 5)]
    layers = {f"{name}.{layer}" for name in double for layer in (0, 2)}
    layers |= {f"upconv{stage}.0" for stage in range(1, 5)} | {"final_conv"}

    assert full.state_dict().keys() == {
        f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("width", [1, 4])
def test_saved_tutorial_weights_load_and_give_the_same_logits(width):
    """The whole way through a file, strictly, to the last bit."""
    torch.manual_seed(width)
    tutorial, file = TutorialUNet(width), io.BytesIO()
    torch.save(tutorial.state_dict(), file)
    file.seek(0)
    ours = UNet(width=width)
    tiles = torch.randn(2, 3, 48, 32)

    ours.load_state_dict(torch.load(file, weights_only=True), strict=True)

    with torch.inference_mode():
        torch.testing.assert_close(tutorial(tiles), ours(tiles), rtol=0, atol=0)


def test_a_full_size_tutorial_network_has_our_shapes(full):
    shapes = {key: value.shape for key, value in TutorialUNet().state_dict().items()}

    assert shapes == {key: value.shape for key, value in full.state_dict().items()}


def test_a_forward_prints_nothing(capfd):
    UNet(width=2)(torch.zeros(1, 3, 16, 16))

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("bands", "classes", "width", "depth"),
    [(1, 1, 1, 1), (4, 8, 3, 2), (13, 2, 2, 3), (2, 5, 1, 5)],
)
def test_shape_in_is_shape_out(bands, classes, width, depth):
    network = UNet(bands, classes, width=width, depth=depth)
    height, width = 3 << depth, 2 << depth

    logits = network(torch.randn(2, bands, height, width))

    assert (2, classes, height, width) == logits.shape


@pytest.mark.parametrize("depth", [1, 2])
def test_the_deepest_stage_has_the_most_channels(depth):
    network = UNet(width=3, depth=depth)

    assert network.get_parameter("bottleneck.2.weight").shape[0] == 3 << depth


@pytest.mark.parametrize("depth", [1, 2])
def test_shifting_by_two_to_the_depth_shifts_the_logits(depth):
    """Away from the borders, where zeros are padded, place does not matter."""
    torch.manual_seed(depth)
    network, step = UNet(2, 3, width=4, depth=depth).double(), 1 << depth
    reach = 12 << depth
    height, width = 3 * reach, 2 * reach + 8 * step
    scene = torch.randn(1, 2, height + step, width + 2 * step, dtype=torch.double)
    inner = (..., slice(reach, -reach), slice(reach, -reach))

    with torch.inference_mode():
        here = network(scene[..., step:, 2 * step :])
        there = network(scene[..., :height, :width])

    shifted = there.roll((-step, -2 * step), dims=(2, 3))
    torch.testing.assert_close(here[inner], shifted[inner], rtol=0, atol=1e-12)
    assert here[inner].std() > 1e-6
