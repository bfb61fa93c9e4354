"""The fused network is the plain one, on a CPU and as a GPU runs it."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (everybody's name for it)
from hypothesis import given
from hypothesis import strategies as st
from making import lively

from tileseg.network.fused import CpuParts, FusedUNet, GpuParts, fuse, pool, trimmed
from tileseg.network.unet import UNet

ROOT = Path(__file__).parents[1]
SHAPES = [(2, 4, 6, 10), (1, 7, 4, 700)]


def tidy(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def make(bands=3, classes=3, **shape):
    torch.manual_seed(0)
    network = UNet(bands, classes, **shape)
    lively(network)
    return network.eval().to(memory_format=torch.channels_last)


def join(product, bias, skip):
    """What `kernels.join` is to be, in plain torch."""
    count, channels, height, width = skip.shape
    phases = (product + bias.repeat(4)).relu()
    phases = phases.view(count, height // 2, width // 2, 2, 2, channels)
    own_NHWC = phases.transpose(2, 3).reshape(count, height, width, channels)
    return tidy(torch.cat((own_NHWC.permute(0, 3, 1, 2), skip), dim=1))


class Twins(GpuParts):
    """A GPU's parts on a CPU: its arrangement, with plain torch in its kernels' place.

    `kernels` takes the module with the real ones, which Triton can interpret.
    """

    def __init__(self, kernels=None):
        self._kernels = kernels or Twins

    pool = staticmethod(pool)
    join = staticmethod(join)

    def conv(self, layer):
        return lambda x: layer(x).relu()


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (3, 2), (8, 4)])
@torch.inference_mode()
def test_the_fused_network_gives_the_plain_ones_logits(width, depth):
    """For odd numbers of channels and pictures that are not square, too."""
    network = make(2, 5, width=width, depth=depth)
    tiles = tidy(torch.randn(3, 2, 3 << depth, 2 << depth))

    plain, fused = network(tiles), fuse(network)(tiles)

    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [CpuParts, Twins], ids=["cpu", "gpu"])
@given(st.integers(1, 4), st.integers(0, 40), st.booleans())
def test_what_is_trimmed_changes_nothing_else(parts, depth, trim, is_wide):
    """Not a bit: nothing beyond it is computed that would have had a say."""
    network = make(2, 5, width=3, depth=depth)
    unit = 1 << depth
    most = unit * (2 * trim // unit + 2)
    tiles = tidy(torch.randn(2, 2, most, most + unit * is_wide))
    whole, some = (
        FusedUNet(network, parts(), reach=1e9, trim=off) for off in (0, trim)
    )

    with torch.inference_mode():
        expected, got = trimmed(whole(tiles), trim), some(tiles)

    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@torch.inference_mode()
def test_a_tile_beyond_all_data_is_not_hidden_by_a_relu():
    """Where the plain network may give NaN, the fused one does, for that tile."""
    fused = fuse(make(width=4, depth=2))
    for value in (-3.4e38, torch.inf, torch.nan):
        tiles = tidy(torch.randn(3, 3, 16, 24))
        tiles[1, 2, 3, 4] = value

        is_finite = fused(tiles).isfinite().flatten(1).all(dim=1)

        assert is_finite.tolist() == [True, False, True]


@pytest.mark.parametrize("spoil", [1e30, torch.nan])
def test_a_network_whose_numbers_may_overflow_is_not_fused(spoil):
    network = make(width=4, depth=2)
    with torch.inference_mode():
        network.get_parameter("enc2.0.weight").mul_(spoil)

    with pytest.raises(ValueError, match=r"may grow beyond torch\.float32"):
        fuse(network)


@torch.inference_mode()
def test_one_fused_network_takes_every_shape():
    """Its weights are put in order again for each: those of the last shape are kept."""
    network = make(width=4, depth=2)
    fused = fuse(network)
    for shape in [(2, 3, 8, 16), (5, 3, 32, 24), (2, 3, 8, 16)]:
        tiles = tidy(torch.randn(shape))

        torch.testing.assert_close(fused(tiles), network(tiles), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_tile_does_not_depend_on_its_neighbours_or_the_threads(dtype):
    """To the last bit, so that a plan's shards are the same wherever they are made."""
    fused = fuse(make(width=8, depth=3).to(dtype))
    tiles = tidy(torch.randn(7, 3, 64, 64, dtype=dtype))
    order = torch.tensor([3, 6, 0, 5, 2, 1, 4])

    here = fused(tiles)
    there = fused(tidy(tiles[order]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    alone = fused(tiles)
    torch.set_num_threads(threads)

    torch.testing.assert_close(here[order], there, rtol=0, atol=0)
    torch.testing.assert_close(here, alone, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_tile_is_the_same_in_a_batch_of_any_size(dtype):
    """To the last bit: an area has other batches than the scene that it is of."""
    fused = fuse(make(width=16, depth=4).to(dtype), 16)
    tiles = tidy(torch.randn(16, 3, 128, 128, dtype=dtype))

    whole = fused(tiles)

    for size in range(1, 16):
        parts = torch.cat([fused(tidy(part)) for part in tiles.split(size)])
        torch.testing.assert_close(whole, parts, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pooling_is_torchs_own_with_nan(shape, dtype):
    pictures = torch.randn(shape).to(dtype)
    pictures[0, 0, 1, 2] = torch.nan

    pooled = pool(tidy(pictures))

    expected = F.max_pool2d(pictures, 2)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("width", "depth"), [(3, 1), (4, 3)])
@torch.inference_mode()
def test_a_gpus_arrangement_gives_the_plain_ones_logits(width, depth):
    """The transposed convolution as a matrix product, its pixels in their places."""
    network = make(width=width, depth=depth)
    tiles = tidy(torch.randn(2, 3, 3 << depth, 2 << depth))

    arranged = FusedUNet(network, Twins(), reach=1e9)(tiles)

    torch.testing.assert_close(arranged, network(tiles), rtol=1e-4, atol=1e-4)


def test_the_kernels_are_their_twins():
    """In a process of its own: Triton asks its environment when it is imported."""
    program = "import test_fused; test_fused.compare_kernels()"
    here = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TRITON_INTERPRET": "1"}
    path = [str(Path(find_spec("triton").origin).parents[1]), *sys.path]
    here["PYTHONPATH"] += ":" + ":".join(path)

    subprocess.run([sys.executable, "-c", program], env=here, check=True)


@torch.inference_mode()
def compare_kernels():
    """Compare the kernels with their twins, in every type, and the network of them."""
    from tileseg.network import kernels

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for shape in SHAPES:
            count, channels, height, width = shape
            skip = tidy(torch.randn(shape).to(dtype))
            product = torch.randn(count * height * width // 4, 4 * channels).to(dtype)
            bias = torch.randn(channels).to(dtype)
            skip[0, 0, 1, 2] = product[0, 1] = torch.nan
            same = {"rtol": 0, "atol": 0, "equal_nan": True}
            torch.testing.assert_close(kernels.pool(skip), pool(skip), **same)
            got, twin = kernels.join(product, bias, skip), join(product, bias, skip)
            torch.testing.assert_close(got, twin, equal_nan=True)  # fp32 within
            assert got.is_contiguous(memory_format=torch.channels_last)
    network = make(width=3, depth=2)
    tiles = tidy(torch.randn(2, 3, 12, 20))
    run = FusedUNet(network, Twins(kernels), reach=1e9)(tiles)
    torch.testing.assert_close(run, network(tiles), rtol=1e-4, atol=1e-4)
