"""How the bytes of a raster may lie in its file."""

import struct

import imagecodecs
import numpy as np
import rasterio
from rasterio.enums import Resampling
from tiff import LONG, SHORT, Page, assemble, located, page, text, tiff
from writing import noise, raster

PIXELS = noise(3, 83, 131)
LAYOUTS = {
    "strips-of-1-row": {"rows": 1},
    "strips-of-7-rows": {"rows": 7},
    "one-strip": {},
    "tiles-16": {"tile": (16, 16)},
    "tiles-16x64": {"tile": (16, 64)},
    "tiles-256": {"tile": (256, 256)},
    "tiles-512-larger-than-it": {"tile": (512, 512)},
    "planes-of-strips": {"planar": 2, "rows": 5},
    "planes-of-tiles": {"planar": 2, "tile": (32, 16)},
    "bigtiff": {"big": True, "tile": (64, 64)},
    "bigtiff-big-endian": {"big": True, "order": ">", "rows": 9},
    "big-endian": {"order": ">", "tile": (48, 32)},
}
CODECS = ("lzw", "deflate", "old-deflate", "packbits", "lzma", "zstd")


def build(corpus):
    for name, options in LAYOUTS.items():
        corpus.fine(f"{name}.tif", f"layout: {name}", tiff(PIXELS, **options), PIXELS)
    for codec in CODECS:
        for name, options in {
            "strips": {"rows": 5},
            "tiles": {"tile": (32, 48)},
        }.items():
            data = tiff(PIXELS, compress=codec, **options)
            corpus.fine(f"{codec}-{name}.tif", f"{codec}, {name}", data, PIXELS)
    _predictors(corpus)
    _by_gdal(corpus)
    _foreign(corpus)
    _sparse(corpus)
    _pages(corpus)
    _strange(corpus)


def _predictors(corpus):
    for order, end in {"<": "little", ">": "big"}.items():
        for dtype in ("uint8", "uint16", "int32", "float32", "float64"):
            pixels = noise(2, 61, 77, dtype, high=120)
            if dtype.startswith("float"):
                pixels /= 7
            predictor = 3 if dtype.startswith("float") else 2
            options = {"predictor": predictor, "compress": "deflate", "order": order}
            data = tiff(pixels, tile=(16, 32), **options)
            name = f"predictor-{predictor}-{dtype}-{end}.tif"
            corpus.fine(name, f"predictor {predictor}, {end}-endian", data, pixels)


def _by_gdal(corpus):
    """Codecs that GDAL writes; the exact ones give what went in."""
    grey = PIXELS[:1]
    exact = {
        "lerc": (grey.astype("float32"), {"compress": "lerc"}),
        "lerc-zstd": (grey, {"compress": "lerc_zstd", "tiled": True}),
        "lerc-deflate": (grey, {"compress": "lerc_deflate"}),
        "webp-lossless": (
            noise(3, 83, 131, "uint8", high=255),
            {"compress": "webp", "WEBP_LOSSLESS": "YES", "interleave": "pixel"},
        ),
        "cog": (PIXELS, {"driver": "COG", "blocksize": 128, "compress": "deflate"}),
    }
    for name, (pixels, profile) in exact.items():

        def write(path, pixels=pixels, profile=profile):
            raster(path, pixels, **profile)

        corpus.fine(f"{name}.tif", f"written by GDAL: {name}", write, pixels)
    bits = noise(1, 83, 131, "uint8", low=0, high=1)
    for codec in ("ccittrle", "ccittfax3", "ccittfax4", "packbits", "deflate"):

        def write(path, codec=codec):
            raster(path, bits, compress=codec, nbits=1)

        corpus.bad(f"1-bit-{codec}.tif", f"one bit, {codec}", write, 2, "palette")

    def with_overviews(path):
        raster(path, PIXELS, tiled=True, blockxsize=32, blockysize=32)
        with rasterio.open(path, "r+", driver="GTiff") as dataset:
            dataset.build_overviews([2, 4], Resampling.average)

    odd = "overviews inside, which are not read"
    corpus.fine("overviews.tif", odd, with_overviews, PIXELS)


def _foreign(corpus):
    """Codecs that are lossy or not to be had."""
    smooth = np.indices((64, 96)).sum(axis=0)[None].repeat(3, axis=0).astype("uint8")
    image = np.ascontiguousarray(smooth.transpose(1, 2, 0))
    rgb = {262: (SHORT, (2,)), 338: None}
    for name, photometric in {"jpeg-rgb": 2, "jpeg-ycbcr": 6}.items():
        space = "YCBCR" if photometric == 6 else "RGB"
        block = imagecodecs.jpeg8_encode(
            image, level=95, colorspace="RGB", outcolorspace=space, subsampling="444"
        )
        tags = rgb | {262: (SHORT, (photometric,)), 259: (SHORT, (7,))}
        if photometric == 6:
            tags[530] = (SHORT, (1, 1))
        plain = page(smooth, tags=located() | tags)
        data = assemble(Page(plain.tags, [block]))
        corpus.fine(f"{name}.tif", f"lossy: {name}", data, smooth, within=3)
    lossy = {
        "jxl": (50002, imagecodecs.jpegxl_encode(image, lossless=True), "JXL"),
        "jpeg2000": (34712, imagecodecs.jpeg2k_encode(image), "codec"),
        "jbig": (34661, b"\0" * 99, "codec"),
        "number-12345": (12345, b"\0" * 99, "codec"),
    }
    plain = page(smooth, tags=located() | rgb | {259: (SHORT, (6,))})
    data = assemble(Page(plain.tags, [imagecodecs.jpeg8_encode(image)]))
    odd = "JPEG as it was in TIFF before 1995"
    corpus.bad("codec-old-jpeg.tif", odd, data, 2, "YCbCr")
    for name, (number, block, says) in lossy.items():
        plain = page(smooth, tags=located() | rgb | {259: (SHORT, (number,))})
        data = assemble(Page(plain.tags, [block]))
        odd = f"a codec that is not to be had: {name}"
        corpus.bad(f"codec-{name}.tif", odd, data, 4, says)


def _sparse(corpus):
    """Blocks that are not there are nodata, whatever the file says of nodata."""
    whole = page(PIXELS, tile=(32, 32), tags=located())
    gone = PIXELS.copy()
    gone[:, 32:64, 64:96] = 0
    blocks = list(whole.blocks)
    blocks[1 * 5 + 2] = b""
    valid = gone.all(axis=0)
    data = assemble(Page(whole.tags, blocks))
    corpus.fine("sparse.tif", "a tile is not there", data, gone, valid)
    tags = whole.tags | {42113: text("9999")}
    valid = valid & (gone != 9999).all(axis=0)
    data = assemble(Page(tags, blocks))
    odd = "a tile is not there, beside a nodata value"
    corpus.fine("sparse-nodata.tif", odd, data, gone, valid)
    planes = page(PIXELS, tile=(32, 32), planar=2, tags=located())
    blocks = list(planes.blocks)
    blocks[15 + 1 * 5 + 2] = b""
    gone = PIXELS.copy()
    gone[1, 32:64, 64:96] = 0
    data = assemble(Page(planes.tags, blocks))
    odd = "a tile of the second of three planes is not there"
    corpus.fine("sparse-plane.tif", odd, data, gone, gone.all(axis=0))
    odd = "a tile of a plane that is not used is not there"
    corpus.fine("sparse-plane-unused.tif", odd, data, gone, bands=(1, 3))
    none = np.zeros_like(PIXELS)
    data = assemble(Page(tags, [b""] * len(whole.blocks)))
    corpus.fine("sparse-all.tif", "no tile is there", data, none, valid=False)
    size = (LONG, (80_000,))
    tags = page(PIXELS[:1], tile=(512, 512), tags=located()).tags
    count = (-(-80_000 // 512)) ** 2
    tags |= {256: size, 257: size, 324: (LONG, (0,) * count), 325: (LONG, (0,) * count)}
    huge = np.broadcast_to(np.uint16(0), (1, 80_000, 80_000))
    facts = {"is_huge": True, "valid": False}
    odd = "80,000 x 80,000 pixels, none of them there"
    corpus.fine("sparse-huge.tif", odd, assemble(Page(tags)), huge, **facts)


def _pages(corpus):
    """Several images in one file: the first is the scene."""
    first, other = page(PIXELS, tags=located()), page(noise(1, 20, 30))
    data = assemble(first, other, page(noise(2, 300, 200)))
    corpus.fine("pages.tif", "three images; the first counts", data, PIXELS)
    mask = np.zeros((1, 83, 131), "uint8")
    mask[:, 10:50, 20:100] = 1
    tags = {254: (LONG, (4,)), 262: (SHORT, (4,))}
    data = assemble(first, page(mask, bits=1, tags=tags))
    odd = "a mask of one bit in the file"
    corpus.fine("mask-inside.tif", odd, data, PIXELS, mask[0] > 0)
    data = assemble(first, page(mask * 255, tags=tags))
    odd = "a mask of eight bits in the file"
    corpus.fine("mask-inside-8-bits.tif", odd, data, PIXELS, mask[0] > 0)
    data = assemble(first, page(mask[:, :40], bits=1, tags=tags))
    odd = "a mask of another size in the file, which is none"
    corpus.fine("mask-too-small.tif", odd, data, PIXELS)
    data = assemble(page(PIXELS, tags=located() | {330: (LONG, (8,))}))
    corpus.fine("sub-ifd-is-rubbish.tif", "a SubIFD that is none", data, PIXELS)
    data = assemble(first, *[page(noise(1, 3, 4))] * 3_000)
    corpus.fine("pages-3000.tif", "3,000 small images behind it", data, PIXELS)
    (at,) = struct.unpack("<I", assemble(first)[4:8])
    data = assemble(first, loop=at)
    corpus.fine("pages-loop.tif", "says that it follows itself", data, PIXELS)


def _strange(corpus):
    options = {"rows": 5}
    plain = page(PIXELS, tags=located(), **options)
    turned = Page(
        plain.tags | {266: (SHORT, (2,))}, [_mirrored(b) for b in plain.blocks]
    )
    data = assemble(turned)
    corpus.fine("fill-order-2.tif", "bits from the right", data, PIXELS)
    data = assemble(Page(plain.tags | {274: (SHORT, (4,))}, plain.blocks))
    odd = "an orientation, which only photographs have"
    corpus.fine("orientation-4.tif", odd, data, PIXELS)
    alike = np.tile(PIXELS[:, :16], (1, 3, 1))
    one = page(PIXELS[:, :16], tags=located() | {257: (LONG, (48,))})
    at = (LONG, (8,) * 3)
    sizes = (LONG, (len(one.blocks[0]),) * 3)
    tags = one.tags | {273: at, 279: sizes, 278: (LONG, (16,))}
    data = assemble(Page(tags, one.blocks))
    corpus.fine("strips-shared.tif", "three strips in one place", data, alike)
    tags = plain.tags | {278: (LONG, (2**32 - 1,))}
    whole = page(PIXELS, tags=located() | {278: (LONG, (2**32 - 1,))})
    data = assemble(whole)
    corpus.fine("strip-without-end.tif", "RowsPerStrip is 2^32 - 1", data, PIXELS)
    data = assemble(page(PIXELS, tags=located() | {278: None}))
    corpus.fine("strip-rows-unsaid.tif", "no RowsPerStrip", data, PIXELS)
    data = assemble(page(PIXELS, rows=83, tags=located() | {279: None}))
    corpus.fine("strip-sizes-unsaid.tif", "no StripByteCounts", data, PIXELS)
    data = tiff(PIXELS, tags={65000 + i: (LONG, (i,) * 9) for i in range(500)})
    corpus.fine("tags-500.tif", "500 tags that nobody knows", data, PIXELS)


def _mirrored(block):
    bits = np.unpackbits(np.frombuffer(block, "uint8")).reshape(-1, 8)
    return np.packbits(bits[:, ::-1]).tobytes()
