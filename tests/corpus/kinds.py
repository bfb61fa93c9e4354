"""What a pixel may be: types, bits and colours."""

import numpy as np
from tiff import SHORT, tiff
from writing import noise

TYPES = {
    "uint8": 255,
    "int8": 120,
    "uint16": 65_535,
    "int16": 32_767,
    "uint32": 2**24,
    "int32": 2**24,
    "float16": 2_000,
    "float32": 9_999,
    "float64": 9_999,
}
BITS = (1, 2, 3, 4, 7, 10, 12, 14)


def build(corpus):
    for dtype, high in TYPES.items():
        low = 0 if dtype.startswith("u") else -high
        pixels = noise(2, 53, 67, dtype, low=low, high=high)
        corpus.fine(f"{dtype}.tif", dtype, tiff(pixels, rows=6), pixels)
    for bits in BITS:
        dtype = "uint8" if bits <= 8 else "uint16"
        pixels = noise(1, 53, 67, dtype, low=0, high=2**bits - 1)
        data = tiff(pixels, bits=bits, rows=6)
        if bits == 1:
            odd = "one bit, which GDAL takes for a palette"
            corpus.bad("bits-1.tif", odd, data, 2, "palette")
            continue
        corpus.fine(f"bits-{bits}.tif", f"{bits} bits a pixel", data, pixels)
    _large(corpus)
    _no_number(corpus)
    _colours(corpus)


def _large(corpus):
    """Numbers at the end of what float32 holds."""
    pixels = noise(1, 53, 67, "uint32", low=2**24, high=2**32 - 1)
    corpus.fine(
        "uint32-large.tif", "above 2^24, where fp32 rounds", tiff(pixels), pixels
    )
    for dtype in ("int64", "uint64"):
        pixels = noise(2, 53, 67, dtype)
        corpus.fine(f"{dtype}.tif", "64 bits, small numbers", tiff(pixels), pixels)
        pixels = pixels.copy()
        pixels[1, 30, 7] = 2**53 + 1
        odd = "64 bits, and a number that float32 does not hold"
        corpus.bad(f"{dtype}-large.tif", odd, tiff(pixels), 2, dtype, bands=(1, 2))
    pixels = noise(1, 53, 67, "float64").astype("float64")
    pixels[:, 5:9] = 1e300
    valid = np.abs(pixels[0]) < 1e300
    odd = "numbers that float32 does not hold: invalid"
    corpus.fine("float64-large.tif", odd, tiff(pixels), pixels, valid)
    pixels = noise(1, 53, 67, "float32") * np.float32(1e-42)
    corpus.fine("float32-tiny.tif", "denormal numbers", tiff(pixels), pixels)


def _no_number(corpus):
    pixels = noise(1, 53, 67, "int64")
    for dtype in ("complex64", "complex128"):
        data = tiff(pixels.astype(dtype))
        corpus.bad(f"{dtype}.tif", dtype, data, 2, "complex")
    half = noise(2, 53, 67, "int16")
    tags = {258: (SHORT, (32,)), 277: (SHORT, (1,)), 339: (SHORT, (5,)), 338: None}
    data = tiff(half, tags=tags)
    corpus.bad("complex-int16.tif", "complex integers", data, 2, "complex")
    pair = noise(2, 53, 67, "uint8")
    for name, tags in {
        "bits-mixed": {258: (SHORT, (8, 16))},
        "formats-mixed": {339: (SHORT, (1, 3))},
        "bits-0": {258: (SHORT, (0, 0))},
        "bits-77": {258: (SHORT, (77, 77))},
    }.items():
        data = tiff(pair, tags=tags)
        corpus.bad(f"{name}.tif", name, data, 4, "cannot be read as a GeoTIFF")
    data = tiff(pair, tags={339: (SHORT, (4, 4))})
    corpus.fine("format-void.tif", "SampleFormat is void", data, pair)
    data = tiff(pair, tags={339: None})
    corpus.fine("format-unsaid.tif", "no SampleFormat", data, pair)


def _colours(corpus):
    grey = noise(1, 53, 67, "uint8", high=255)
    ramp = (SHORT, tuple(range(0, 65_536, 256)) * 3)
    data = tiff(grey, tags={262: (SHORT, (3,)), 320: ramp})
    corpus.bad("palette.tif", "a palette", data, 2, "palette")
    few = noise(1, 53, 67, "uint8", low=0, high=15)
    ramp = (SHORT, tuple(range(0, 65_536, 4_096)) * 3)
    data = tiff(few, bits=4, tags={262: (SHORT, (3,)), 320: ramp})
    corpus.bad("palette-4-bits.tif", "a palette of 4 bits", data, 2, "palette")
    data = tiff(grey, tags={262: (SHORT, (0,))})
    odd = "white is 0, which GDAL takes for a palette"
    corpus.bad("white-is-0.tif", odd, data, 2, "palette")
    bits = noise(1, 53, 67, "uint8", low=0, high=1)
    data = tiff(bits, bits=1, tags={262: (SHORT, (0,))})
    odd = "one bit, and white is 0"
    corpus.bad("white-is-0-1-bit.tif", odd, data, 2, "palette")
    four = noise(4, 53, 67, "uint8", high=255)
    data = tiff(four, tags={262: (SHORT, (5,)), 338: None})
    corpus.bad("cmyk.tif", "CMYK, four inks", data, 2, "CMYK")
    three = four[:3]
    lab = {262: (SHORT, (8,)), 338: None}
    corpus.bad("cielab.tif", "CIELab", tiff(three, tags=lab), 2, "CIELAB")
    ycc = {262: (SHORT, (6,)), 338: None, 530: (SHORT, (2, 2))}
    data = tiff(three, tags=ycc)
    odd = "YCbCr of half the columns and rows, not compressed"
    corpus.bad("ycbcr-halved.tif", odd, data, 2, "YCbCr")
    many = noise(300, 13, 17)
    corpus.fine("bands-300.tif", "300 bands", tiff(many), many, bands=(300, 1, 150))
