"""What the mask must be, said a second time: whole arrays, integers, no cleverness.

Shares no code with tileseg. With integer pixels and integer weights every number here
is exact, and so is fp32 as long as |logit| < 256: labels must then be equal.
Arrays: N tiles, B bands, C channels, K logits, T tile side, H rows, W columns.
"""

from itertools import product
from math import pi, sin

import numpy as np


def mirrored(start, stop, size):
    """Return the cells that start..stop - 1 show, the scene mirrored without end."""
    there_and_back = [*range(size), *reversed(range(size))]
    return [there_and_back[cell % (2 * size)] for cell in range(start, stop)]


def cut_tiles(values_BHW, tile, halo):
    """Return every tile whose core meets the scene, (rows, columns, B, T, T)."""
    height, width = values_BHW.shape[-2:]
    stride = tile - 2 * halo
    rows, columns = (
        np.array(
            [
                mirrored(core - halo, core - halo + tile, size)
                for core in range(0, size, stride)
            ]
        )
        for size in (height, width)
    )
    tiles = values_BHW[:, rows[:, None, :, None], columns[None, :, None, :]]
    return tiles.transpose(1, 2, 0, 3, 4)


def integer_weights(random, *, bands, outputs, width, fan):
    """Draw small weights, `fan` to each inner channel, by a depth-1 U-Net's names."""
    shapes = {
        "enc1.0": (width, bands, 3, 3),
        "enc1.2": (width, width, 3, 3),
        "bottleneck.0": (2 * width, width, 3, 3),
        "bottleneck.2": (2 * width, 2 * width, 3, 3),
        "upconv1.0": (width, 2 * width, 2, 2),
        "dec1.0": (width, 2 * width, 3, 3),
        "dec1.2": (width, width, 3, 3),
    }
    weights = {
        "final_conv.weight": random.choice([-2, -1, 1, 2], (outputs, width, 1, 1)),
        "final_conv.bias": random.integers(-2, 3, outputs),
    }
    for name, shape in shapes.items():
        kernel = random.choice([-2, -1, 1, 1, 2], shape)
        rank = random.random((shape[0], kernel[0].size)).argsort(axis=1)
        kernel *= (rank < fan).reshape(shape)
        if name == "upconv1.0":
            kernel = kernel.swapaxes(0, 1)
        weights[f"{name}.weight"] = kernel
        weights[f"{name}.bias"] = random.integers(0, 3, shape[0])
    return weights


def conv3x3(x_NCHW, kernel, bias):
    """Correlate with a 3 x 3 kernel, zeros outside."""
    height, width = x_NCHW.shape[-2:]
    padded = np.pad(x_NCHW, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros((len(x_NCHW), len(kernel), height, width), dtype=np.int64)
    y += bias[:, None, None]
    for out, channel, row, col in np.argwhere(kernel):
        seen = padded[:, channel, row : row + height, col : col + width]
        y[:, out] += kernel[out, channel, row, col] * seen
    return y


def double_conv(x_NCHW, weights, name):
    """Correlate and rectify, twice."""
    for layer in (f"{name}.0", f"{name}.2"):
        kernel, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        x_NCHW = np.maximum(conv3x3(x_NCHW, kernel, bias), 0)
    return x_NCHW


def unet(weights, tiles_NBTT):
    """Return the logits of a depth-1 U-Net, (N, K, T, T), in integers."""
    skip = double_conv(tiles_NBTT, weights, "enc1")
    count, channels, side = skip.shape[:3]
    pooled = skip.reshape(count, channels, side // 2, 2, side // 2, 2).max(axis=(3, 5))
    below = double_conv(pooled, weights, "bottleneck")
    up = np.zeros((count, channels, side, side), dtype=np.int64)
    kernel = weights["upconv1.0.weight"]
    for source, out, row, col in np.argwhere(kernel):
        up[:, out, row::2, col::2] += kernel[source, out, row, col] * below[:, source]
    up = np.maximum(up + weights["upconv1.0.bias"][:, None, None], 0)
    x = double_conv(np.concatenate((up, skip), axis=1), weights, "dec1")
    kernel, bias = weights["final_conv.weight"], weights["final_conv.bias"]
    return np.einsum("kc,nchw->nkhw", kernel[:, :, 0, 0], x) + bias[:, None, None]


def profile(blend, tile, halo):
    """Return 256 times the weights of a tile along one axis, (T,)."""
    if blend == "crop":
        ramp, margin = [], [0] * halo
    else:
        ramp = [
            round(256 * sin(pi * (i + 0.5) / (4 * halo)) ** 2) for i in range(2 * halo)
        ]
        margin = []
    flat = [256] * (tile - 2 * len(ramp) - 2 * len(margin))
    return np.array(margin + ramp + flat + ramp[::-1] + margin, dtype=np.int64)


def blended(logits, shape, weights, halo):
    """Return sums of weighted logits, (K, H, W), and of weights, (H, W), in 1/65536.

    `logits` are of every tile of the scene, (rows, columns, K, T, T).
    """
    tile = len(weights)
    stride = tile - 2 * halo
    rows, columns, outputs = logits.shape[:3]
    square = np.outer(weights, weights)
    canvas = (rows * stride + 2 * halo, columns * stride + 2 * halo)
    sums = np.zeros((outputs, *canvas), logits.dtype)
    total = np.zeros(canvas, np.int64)
    for row, column in np.ndindex(rows, columns):
        y, x = row * stride, column * stride
        sums[:, y : y + tile, x : x + tile] += logits[row, column] * square
        total[y : y + tile, x : x + tile] += square
    height, width = shape
    inside = (slice(halo, halo + height), slice(halo, halo + width))
    return sums[:, *inside], total[inside]


def labels(sums, valid):
    """Return the class of the greatest sum, ties to the lowest, 255 where invalid."""
    best = sums[0] > 0 if len(sums) == 1 else sums.argmax(axis=0)
    return np.where(valid, best, 255).astype(np.uint8)


def chances(logits):
    """Return the probabilities of (K, ...) logits; of one its class's, the other's."""
    if len(logits) == 1:
        logits = np.concatenate((logits, np.zeros_like(logits)))
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def confidence(sums, total, valid):
    """Return round(254 p) of the label's probability p, 255 where invalid."""
    best = chances(sums / total).max(axis=0)
    return np.where(valid, np.round(254 * best), 255).astype(np.uint8)


def probabilities(sums, total, valid):
    """Return round(254 p) of every class; of one logit its background comes first."""
    found = chances(sums / total)[:: -1 if len(sums) == 1 else 1]
    return np.where(valid, np.round(254 * found), 255).astype(np.uint8)


def margin(sums, total, valid):
    """Return round(254 m), m the first probability less the second."""
    *_, second, first = np.sort(chances(sums / total), axis=0)
    return np.where(valid, np.round(254 * (first - second)), 255).astype(np.uint8)


def entropy(sums, total, valid):
    """Return round(254 h), h the entropy to the base of the number of classes."""
    likely = chances(sums / total)
    nats = -(likely * np.log(np.maximum(likely, 1e-300))).sum(axis=0)
    share = nats / np.log(len(likely))
    return np.where(valid, np.round(254 * share), 255).astype(np.uint8)


def ways(x):
    """Yield the eight ways for squares, (..., T, T), to lie, and how to undo each.

    Transposed or not, rows in either order, columns in either order.
    """
    for swap, down, across in product((False, True), (1, -1), (1, -1)):

        def undo(y, swap=swap, down=down, across=across):
            y = y[..., ::down, ::across]
            return y.swapaxes(-2, -1) if swap else y

        lain = x.swapaxes(-2, -1) if swap else x
        yield lain[..., ::down, ::across], undo


def averaged(answers):
    """Return logits, (N, K, T, T), whose probabilities are the mean of the answers'."""
    mean = np.mean([chances(part.swapaxes(0, 1)) for part in answers], axis=0)
    logits = np.log(mean)
    if answers[0].shape[1] == 1:
        logits = logits[:1] - logits[1:]
    return logits.swapaxes(0, 1)


def needed(valid, weights, halo):
    """Return which tiles have a valid pixel of the scene at a weight > 0."""
    height, width = valid.shape
    tile = len(weights)
    stride = tile - 2 * halo
    reach = np.flatnonzero(weights)
    answer = np.zeros((-(-height // stride), -(-width // stride)), dtype=bool)
    for row, column in np.ndindex(answer.shape):
        y, x = row * stride - halo + reach, column * stride - halo + reach
        y, x = y[(y >= 0) & (y < height)], x[(x >= 0) & (x < width)]
        answer[row, column] = valid[np.ix_(y, x)].any()
    return answer
