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
SAYS = ""


def build(corpus):
    _sizes(corpus)
    _bombs(corpus)
    _tags(corpus)


def header(**changes):
    """Return a file of a few hundred bytes with these tags."""
    tags = {int(name[1:]): value for name, value in changes.items()}
    plain = page(GREY, tags=located())
    return assemble(Page(plain.tags | tags, plain.blocks))


def _sizes(corpus):
    """Sizes that nobody can hold."""
    wide, tall = 2**31 - 1, 2**31 - 1
    for name, tags in {
        "wide-2-31": {"t256": (LONG, (2**31,)), "t278": (LONG, (1,))},
        "wide-2-32": {"t256": (LONG, (2**32 - 1,)), "t278": (LONG, (1,))},
        "line-of-2-gb": {"t256": (LONG, (wide,)), "t257": (LONG, (1,))},
        "line-of-1-gb": {"t256": (LONG, (2**30,)), "t257": (LONG, (1,))},
        "square-2-31": {"t256": (LONG, (wide,)), "t257": (LONG, (tall,))},
        "strip-of-4-gb": {"t256": (LONG, (65_536,)), "t257": (LONG, (65_536,))},
        "strip-of-2-gb": {
            "t256": (LONG, (32_768,)),
            "t257": (LONG, (65_535,)),
            "t278": (LONG, (65_535,)),
        },
        "bands-65535-wide": {
            "t256": (LONG, (30_000,)),
            "t258": (SHORT, (8,)),
            "t277": (SHORT, (65_535,)),
            "t339": None,
        },
    }.items():
        corpus.bad(f"{name}.tif", f"size: {name}", header(**tags), 3, SAYS)
    for side in (2**15, 2**20, 2**30):
        tags = page(GREY, tile=(16, 16), tags=located()).tags
        tags |= {322: (LONG, (side,)), 323: (LONG, (side,))}
        data = assemble(Page(tags, [b"x" * 99]))
        odd = f"16 x 16 pixels in a tile of {side} x {side}"
        corpus.bad(f"tile-of-{side}.tif", odd, data, 3, SAYS)


def _bombs(corpus):
    """Blocks that grow a thousandfold."""
    side = 12_000
    block = zlib.compress(bytes(side * side), 9)
    tags = page(GREY, compress="deflate", tags=located()).tags
    tags |= {256: (LONG, (side,)), 257: (LONG, (side,)), 278: (LONG, (side,))}
    data = assemble(Page(tags, [block]))
    odd = "one strip of 144 MB in 140 kB"
    corpus.bad("bomb-deflate.tif", odd, data, 3, SAYS)
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
        corpus.bad(f"tag-{name}-endless.tif", odd, data, 4, "cannot")
    for count in (1_000, 6_000):
        data = tiff(GREY, tags={5_000 + i: (BYTE, b"1234") for i in range(count)})
        odd = f"{count} tags that nobody knows"
        if count > 4_096:  # more than libtiff takes
            corpus.bad(f"tags-{count}.tif", odd, data, 4, "cannot be read")
        else:
            corpus.fine(f"tags-{count}.tif", odd, data, GREY)
