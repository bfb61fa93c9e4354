"""Our U-Net in fewer passes over memory: the same weights, ready at once.

A convolution adds its bias and its ReLU while its answer is at hand, pooling keeps no
indices, and on the way up nothing is written only to be copied beside the skip, nor
computed for pixels that nobody looks at. The plain module stays the one that says what
is right. Shape letters as in `unet.py`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tileseg.network.unet import UNet

__all__ = ["CpuParts", "FusedUNet", "GpuParts", "Parts", "fuse", "pool", "trimmed"]

_DNN: Any = torch.ops.mkldnn  # makes its operators when they are asked for

_REACH = 1e6
"""What inputs must be able to come to: standard deviations of what a network knows."""

Step = Callable[[Tensor], Tensor]
Merge = Callable[[Tensor, Tensor], Tensor]


class Parts(Protocol):
    """How one kind of device does a U-Net's steps; all pictures lie channels last."""

    def conv(self, layer: nn.Conv2d) -> Step:
        """Return x -> relu(layer(x))."""

    def merge(self, up: nn.ConvTranspose2d, layer: nn.Conv2d) -> Merge:
        """Return (x, skip) -> relu(layer(relu(up(x)) beside skip))."""

    def head(self, layer: nn.Conv2d) -> Step:
        """Return x -> layer(x)."""

    def pool(self, x_NCHW: Tensor) -> Tensor:
        """Return the largest of every 2 x 2 pixels."""


class FusedUNet:
    """A U-Net made of a device's parts; tiles (N, B, H, W) -> logits (N, K, H, W).

    H and W of the logits are less by what is trimmed.
    """

    def __init__(
        self, network: UNet, parts: Parts, *, reach: float, trim: int = 0
    ) -> None:
        """Take a network's weights, which lie channels last where they are to work.

        Inputs beyond `reach` may grow beyond their type, and a fused ReLU makes 0 of
        NaN: nobody would see it. See `fuse` for `trim`.
        """
        self._reach = reach
        self._trim, *below = _trims(trim, network.depth)
        self._trims = below[::-1]  # in the order of the way up
        layer: Any = network.get_submodule  # of a type that its name says

        def pair(name: str) -> list[Step]:
            return [parts.conv(layer(f"{name}.{place}")) for place in (0, 2)]

        stages = range(1, network.depth + 1)
        self._down = [pair(f"enc{stage}") for stage in stages]
        self._bottom = pair("bottleneck")
        self._up = [
            (
                parts.merge(layer(f"upconv{stage}.0"), layer(f"dec{stage}.0")),
                parts.conv(layer(f"dec{stage}.2")),
            )
            for stage in reversed(stages)
        ]
        self._head = parts.head(network.final_conv)
        self._pool = parts.pool

    def __call__(self, x_NBHW: Tensor) -> Tensor:
        """Return logits, (N, K, H, W) less the trim; NaN for tiles beyond the reach."""
        is_beyond = ~(x_NBHW.abs().amax(dim=(1, 2, 3), keepdim=True) <= self._reach)
        x, skips = x_NBHW, []
        for first, second in self._down:
            x = second(first(x))  # (N, C, H, W)
            skips.append(x)
            x = self._pool(x)  # (N, C, H/2, W/2)
        for step in self._bottom:
            x = step(x)  # (N, 2C, H, W)
        cut = 0  # pixels a side that x lacks
        for (merge, second), trim in zip(self._up, self._trims, strict=True):
            x, skip = _centre(x, trim - cut), _centre(skips.pop(), 2 * trim)
            x, cut = second(merge(x, skip)), 2 * trim  # (N, C, 2H, 2W)
        logits = self._head(x).masked_fill_(is_beyond, torch.nan)
        return trimmed(logits, self._trim - cut)


def _trims(trim: int, depth: int) -> Iterator[int]:
    """Yield what is not needed of each stage's answer, the highest first.

    Pixels a side: the two convolutions of a stage reach two pixels further, and below
    there are half as many.
    """
    for _ in range(depth + 1):
        yield trim
        trim = max(0, trim - 2) // 2


def _centre(x: Tensor, trim: int) -> Tensor:
    """Return a picture without its border, in one piece."""
    if not trim:
        return x
    return trimmed(x, trim).contiguous(memory_format=torch.channels_last)


def trimmed(x: Tensor, trim: int) -> Tensor:
    """Return (..., H, W) without `trim` pixels on each side."""
    height, width = x.shape[-2:]
    return x[..., trim : height - trim, trim : width - trim]


def fuse(network: UNet, trim: int = 0) -> FusedUNet:
    """Return the fused form of a network, for the device where its weights are.

    Args:
        network: channels last.
        trim: pixels on each side of a tile of which nobody wants the logits. On the way
            up nothing is computed for their sake alone: of 128 pixels and 16 to trim
            the last stage, which takes most of the memory's time, sees 100.

    Raises:
        ImportError: Triton is not installed, which a GPU's form needs.
        ValueError: its numbers soon grow beyond their type.
        RuntimeError: the device cannot.
    """
    dtype = network.final_conv.weight.dtype
    reach = torch.finfo(dtype).max / _growth(network)
    if not reach >= _REACH:
        msg = f"inputs beyond {reach:.2g} may grow beyond {dtype}"
        raise ValueError(msg)
    is_cpu = network.final_conv.weight.device.type == "cpu"
    parts = CpuParts() if is_cpu else GpuParts()
    return FusedUNet(network, parts, reach=reach, trim=trim)


@torch.inference_mode()
def _growth(network: UNet) -> float:
    """Return a bound on every number within a network whose inputs are at most 1.

    That of the network with the sizes of its weights on an input of ones: no sum can be
    larger than that of sizes. Inputs up to r >= 1 give at most r times it.
    """
    largest: list[Tensor] = []
    hooks = [
        part.register_forward_hook(lambda _part, _in, out: largest.append(out.amax()))
        for part in network.modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
    ]
    sizes = {name: weight.abs() for name, weight in network.named_parameters()}
    bands = network.get_parameter("enc1.0.weight").shape[1]
    side = 2 << network.depth
    ones = torch.ones_like(network.final_conv.weight[:1, :1]).expand(
        1, bands, side, side
    )
    try:
        torch.func.functional_call(network, sizes, (ones,))
    finally:
        for hook in hooks:
            hook.remove()
    bound = float(torch.stack(largest).float().amax())
    return 1.0 if bound < 1 else bound  # NaN stays NaN


def pool(x_NCHW: Tensor) -> Tensor:
    """Return the largest of every 2 x 2 pixels, (N, C, H/2, W/2), channels last.

    Whole lines at a time: torch's own pooling on a CPU also notes where each was.
    """
    count, channels, height, width = x_NCHW.shape
    x_NHWC = x_NCHW.permute(0, 2, 3, 1)
    lines = x_NHWC.reshape(count, height // 2, 2, width * channels)
    rows = torch.maximum(*lines.unbind(2))
    pixels = rows.view(count, height // 2, width // 2, 2, channels)
    return torch.maximum(*pixels.unbind(3)).permute(0, 3, 1, 2)


class CpuParts:
    """oneDNN's convolutions, which do what follows while their answer is in a cache.

    These operators are those that `torch.compile` itself puts in the place of a
    convolution; they have no public name.
    """

    def conv(self, layer: nn.Conv2d) -> Step:
        """Return x -> relu(layer(x))."""
        return self._conv(layer, "relu")

    def merge(self, up: nn.ConvTranspose2d, layer: nn.Conv2d) -> Merge:
        """Return (x, skip) -> relu(layer(relu(up(x)) beside skip)).

        A convolution of two pictures side by side is the sum of one of each, and the
        second adds itself to the first: the two never need to be put together.
        """
        like, bias = _like(layer), _bias(layer)
        own, beside = (
            _Weight(part, _pack, like)
            for part in layer.weight.split(up.out_channels, dim=1)
        )
        up_like = list(up.padding), [0, 0], list(up.stride), list(up.dilation), 1
        up_weight, up_bias = _Weight(up.weight, _pack_up, up_like), _bias(up)

        def merge(x: Tensor, skip: Tensor) -> Tensor:
            y = _DNN._convolution_transpose_pointwise(
                x, up_weight.of(x), up_bias, *up_like, "relu", [], ""
            )
            out = _DNN._convolution_pointwise(
                skip, beside.of(skip), bias, *like, "none", [], ""
            )
            done: Tensor = _DNN._convolution_pointwise_.binary(
                out, y, own.of(y), None, *like, "add", 1.0, "relu", [], ""
            )
            return done

        return merge

    def head(self, layer: nn.Conv2d) -> Step:
        """Return x -> layer(x); torch's own differs on one thread from on two."""
        return self._conv(layer, "none")

    def pool(self, x_NCHW: Tensor) -> Tensor:
        """Return the largest of every 2 x 2 pixels."""
        return pool(x_NCHW)

    @staticmethod
    def _conv(layer: nn.Conv2d, after: str) -> Step:
        """Return x -> after(layer(x))."""
        like, bias = _like(layer), _bias(layer)
        weight = _Weight(layer.weight, _pack, like)
        return lambda x: _DNN._convolution_pointwise(
            x, weight.of(x), bias, *like, after, [], ""
        )


class _Weight:
    """A layer's weight in the order in which oneDNN reads it, for one shape of input.

    In another order it would be put into that one at every call, by its slowest way.
    """

    def __init__(
        self, weight: Tensor, pack: Callable[..., Tensor], like: tuple[Any, ...]
    ) -> None:
        """Keep a weight as it is; `pack` it, for a layer like this, when first used."""
        self._weight = weight.detach().contiguous(memory_format=torch.channels_last)
        self._pack, self._like = pack, like
        # One value, since forwards run side by side.
        self._packed = torch.Size(), self._weight

    def of(self, x: Tensor) -> Tensor:
        """Return it for an input."""
        shape, packed = self._packed
        if shape != x.shape:
            packed = self._pack(self._weight, *self._like, list(x.shape))
            self._packed = x.shape, packed
        return packed


def _pack(weight: Tensor, *like: object) -> Tensor:
    packed: Tensor = _DNN._reorder_convolution_weight(weight, *like)
    return packed


def _pack_up(weight: Tensor, *like: object) -> Tensor:
    packed: Tensor = _DNN._reorder_convolution_transpose_weight(weight, *like)
    return packed


class GpuParts:
    """cuDNN's convolutions with bias and ReLU, and kernels of our own."""

    def __init__(self) -> None:
        """Need Triton."""
        from tileseg.network import kernels

        self._kernels = kernels

    def conv(self, layer: nn.Conv2d) -> Step:
        """Return x -> relu(layer(x))."""
        weight, bias = layer.weight.detach(), _bias(layer)
        padding, stride, dilation, groups = _like(layer)
        return lambda x: torch.cudnn_convolution_relu(
            x, weight, bias, stride, padding, dilation, groups
        )

    def merge(self, up: nn.ConvTranspose2d, layer: nn.Conv2d) -> Merge:
        """Return (x, skip) -> relu(layer(relu(up(x)) beside skip)).

        A 2 x 2 transposed convolution of stride 2 gives each pixel four of its own: it
        is a matrix product, whose rows only lie in another order.
        """
        conv = self.conv(layer)
        weight = up.weight.detach().permute(0, 2, 3, 1).flatten(1).contiguous()
        bias = _bias(up)

        def merge(x: Tensor, skip: Tensor) -> Tensor:
            product = x.permute(0, 2, 3, 1).flatten(0, 2) @ weight  # (N H/2 W/2, 4C)
            return conv(self._kernels.join(product, bias, skip))

        return merge

    def head(self, layer: nn.Conv2d) -> Step:
        """Return x -> layer(x)."""
        return layer

    def pool(self, x_NCHW: Tensor) -> Tensor:
        """Return the largest of every 2 x 2 pixels."""
        return self._kernels.pool(x_NCHW)


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach()


def _like(layer: nn.Conv2d) -> tuple[list[int], list[int], list[int], int]:
    """Return a layer's padding, stride, dilation and groups."""
    assert not isinstance(layer.padding, str), "our layers say how many pixels"
    sizes = layer.padding, layer.stride, layer.dilation
    padding, stride, dilation = map(list, sizes)
    return padding, stride, dilation, layer.groups
