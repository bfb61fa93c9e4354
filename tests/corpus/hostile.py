"""Small files that ask for much."""

import zlib

from tiff import (
    BYTE,
    LONG,
    SHORT,
    Page,
    assemble,
    located,
    page,
    tiff,
)
from writing import noise

GREY = noise(1, 16, 16, "uint8")
READ = "cannot read rows"


def build(corpus):
    _sizes(corpus)
    _bombs(corpus)
    _tags(corpus)


def header(tags):
    """Return a file of a few hundred bytes with these tags."""
    plain = page(GREY, tags=located())
    return assemble(Page(plain.tags | tags, plain.blocks))


def _sizes(corpus):
    """Sizes that nobody can hold."""
    wide, tall = 2**31 - 1, 2**31 - 1
    everything = {256: (LONG, (wide,)), 257: (LONG, (tall,))}
    for name, tags, code, says in (
        ("wide-2-31", {256: (LONG, (2**31,)), 278: (LONG, (1,))}, 4, "Too large"),
        ("wide-2-32", {256: (LONG, (2**32 - 1,)), 278: (LONG, (1,))}, 4, "Too large"),
        ("square-2-31", everything, 3, "refused"),
        ("line-of-2-gb", {256: (LONG, (wide,)), 257: (LONG, (1,))}, 3, "refused"),
        ("line-of-1-gb", {256: (LONG, (2**30,)), 257: (LONG, (1,))}, 3, "refused"),
        ("strip-of-4-gb", _sides(65_536, 65_536), 4, READ),
        ("strip-of-2-gb", _sides(32_768, 65_535) | {278: (LONG, (65_535,))}, 4, READ),
        ("bands-65535", {277: (SHORT, (65_535,)), 258: (SHORT, (8,))}, 3, "refused"),
    ):
        corpus.bad(f"{name}.tif", f"size: {name}", header(tags), code, says)
    for side in (2**15, 2**20, 2**30):
        tags = page(GREY, tile=(16, 16), tags=located()).tags
        tags |= {322: (LONG, (side,)), 323: (LONG, (side,))}
        data = assemble(Page(tags, [b"x" * 99]))
        odd = f"16 x 16 pixels in a tile of {side} x {side}"
        corpus.bad(f"tile-of-{side}.tif", odd, data, 3, "refused")


def _sides(height, width):
    return {256: (LONG, (width,)), 257: (LONG, (height,))}


def _bombs(corpus):
    """Blocks that grow a thousandfold."""
    side = 12_288
    block = zlib.compress(bytes(side * side), 9)
    tags = page(GREY, compress="deflate", tile=(16, 16), tags=located()).tags
    tags |= _sides(side, side) | {322: (LONG, (side,)), 323: (LONG, (side,))}
    data = assemble(Page(tags, [block]))
    odd = "one tile of 151 MB in 150 kB"
    corpus.bad("bomb-deflate.tif", odd, data, 3, "refused")
    tags = page(GREY, compress="deflate", tags=located()).tags
    more = zlib.compress(GREY.tobytes() + bytes(10**8), 9)
    data = assemble(Page(tags, [more]))
    odd = "100 MB behind the block's 256 bytes, which are not looked at"
    corpus.fine("bomb-behind.tif", odd, data, GREY)


def _tags(corpus):
    """Tags that say they are longer than the file."""
    plain = tiff(GREY)
    for name, number in {"bits": 258, "keys": 34735, "offsets": 273}.items():
        at = plain.index(number.to_bytes(2, "little"), 8 + 256)
        data = plain[: at + 4] + b"\xff\xff\xff\xff" + plain[at + 8 :]
        if name == "keys":
            odd = "GeoTIFF keys 2^32 - 1 long: none"
            corpus.fine(f"tag-{name}-endless.tif", odd, data, GREY, crs=None)
            continue
        odd = f"{name} 2^32 - 1 long"
        says = READ if name == "offsets" else "cannot be read as a GeoTIFF"
        corpus.bad(f"tag-{name}-endless.tif", odd, data, 4, says)
    for count in (1_000, 6_000):
        data = tiff(GREY, tags={5_000 + i: (BYTE, b"1234") for i in range(count)})
        odd = f"{count} tags that nobody knows"
        if count > 4_096:  # more than libtiff takes
            corpus.bad(f"tags-{count}.tif", odd, data, 4, "cannot be read")
        else:
            corpus.fine(f"tags-{count}.tif", odd, data, GREY)
