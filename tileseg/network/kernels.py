"""Two kernels for a GPU, in Triton: what neither cuDNN nor torch does in one pass.

Pictures lie channels last: a row of pixels is one line of numbers, pixel by pixel.
`TRITON_INTERPRET=1` runs them on a CPU, slowly. Shape letters as in `unet.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["join", "pool"]

_BLOCK = 1024  # numbers for one program: 8 for each thread of 4 warps, 16 bytes in bf16
_NAN = tl.constexpr(tl.PropagateNan.ALL)  # as torch does: NaN must not vanish


@triton.jit
def _larger(one, other, is_there):
    """Return the larger of what lies at two places, in fp32."""
    one = tl.load(one, is_there).to(tl.float32)
    return tl.maximum(one, tl.load(other, is_there).to(tl.float32), _NAN)


@triton.jit
def _pool_kernel(source, target, line, channels: tl.constexpr, block: tl.constexpr):
    """Make part of a row of the target: the largest of 2 x 2 pixels, by channel.

    Args:
        source, target: where they begin.
        line: numbers in a row of the source.
        channels: of both.
        block: numbers that one program makes.
    """
    row = tl.program_id(0).to(tl.int64)  # of all pictures together: heights are even
    at = tl.program_id(1) * block + tl.arange(0, block)
    is_there = at < line // 2
    # Pixel x of the target begins with pixel 2x of the source.
    first = source + row * 2 * line + at + at // channels * channels
    second = first + line
    upper = _larger(first, first + channels, is_there)
    lower = _larger(second, second + channels, is_there)
    tl.store(target + row * (line // 2) + at, tl.maximum(upper, lower, _NAN), is_there)


@triton.jit
def _join_kernel(  # noqa: PLR0913, PLR0917  (a kernel takes what it needs one by one)
    product, bias, skip, target, width, channels: tl.constexpr, block: tl.constexpr
):
    """Make part of a row of the target: each pixel's own channels, then the skip's.

    Args:
        product, bias, skip, target: where they begin; see `join`.
        width: pixels in a row of the target.
        channels: of the skip.
        block: numbers that one program makes.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    is_there = at < width * 2 * channels
    column, channel = at // (2 * channels), at % (2 * channels)
    is_own = channel < channels
    phase = (row % 2).to(tl.int32) * 2 + column % 2
    # Lines are named by one 64-bit number each, what is in them by 32 bits.
    own_line = product + row // 2 * (width // 2) * 4 * channels
    own_at = (column // 2 * 4 + phase) * channels + channel
    own = tl.load(own_line + own_at, is_there & is_own).to(tl.float32)
    own += tl.load(bias + channel, is_there & is_own).to(tl.float32)
    own = tl.maximum(own, 0.0, _NAN).to(target.dtype.element_ty)
    skip_line = skip + row * width * channels
    is_beside = is_there & (channel >= channels)
    beside = tl.load(skip_line + column * channels + channel - channels, is_beside)
    out = target + row * width * 2 * channels + at
    tl.store(out, tl.where(is_own, own, beside), is_there)


def pool(x_NCHW: Tensor) -> Tensor:
    """Return the largest of every 2 x 2 pixels, (N, C, H/2, W/2), channels last."""
    count, channels, height, width = x_NCHW.shape
    small = x_NCHW.new_empty(count, height // 2, width // 2, channels)
    line = width * channels
    grid = count * height // 2, triton.cdiv(line // 2, _BLOCK)
    with torch.cuda.device_of(x_NCHW):  # Triton goes by the current one
        _pool_kernel[grid](_lines(x_NCHW), small, line, channels, _BLOCK)
    return small.permute(0, 3, 1, 2)


def join(product: Tensor, bias_C: Tensor, skip_NCHW: Tensor) -> Tensor:
    """Return a 2 x 2 transposed convolution's answer, ReLU'd, beside the skip.

    Args:
        product: (N H/2 W/2, 4C), its input's pixels times its weights: the 2 x 2
            pixels that each becomes, in row-major order.
        bias_C: its bias.
        skip_NCHW: channels last.

    Returns:
        (N, 2C, H, W), channels last, the answer first.
    """
    count, channels, height, width = skip_NCHW.shape
    target = skip_NCHW.new_empty(count, height, width, 2 * channels)
    grid = count * height, triton.cdiv(width * 2 * channels, _BLOCK)
    skip = _lines(skip_NCHW)
    with torch.cuda.device_of(skip):  # Triton goes by the current one
        _join_kernel[grid](product, bias_C, skip, target, width, channels, _BLOCK)
    return target.permute(0, 3, 1, 2)


def _lines(x_NCHW: Tensor) -> Tensor:
    """Return a picture as it must lie in memory; no copy of one that does."""
    return x_NCHW.contiguous(memory_format=torch.channels_last)
