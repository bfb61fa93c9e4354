"""TIFFs written by hand, tag by tag, so that every oddness can be had.

Shares no code with GDAL, which reads what this writes. Arrays are (bands, height,
width); what a tag holds is (type, values), a type being TIFF's own number.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import imagecodecs
import numpy as np
from affine import Affine

BYTE, ASCII, SHORT, LONG, RATIONAL, DOUBLE, LONG8 = 1, 2, 3, 4, 5, 12, 16
_LETTERS = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", DOUBLE: "d", LONG8: "Q"}
_SIZES = {BYTE: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, DOUBLE: 8, LONG8: 8}

CODECS = {
    "none": (1, bytes),
    "lzw": (5, imagecodecs.lzw_encode),
    "deflate": (8, lambda data: zlib.compress(data, 6)),
    "old-deflate": (32946, lambda data: zlib.compress(data, 6)),
    "packbits": (32773, imagecodecs.packbits_encode),
    "lzma": (34925, imagecodecs.lzma_encode),
    "zstd": (50000, imagecodecs.zstd_encode),
}
"""By name: TIFF's number, and bytes to bytes."""

NORTH_UP = Affine(10, 0, 500_000, 0, -10, 4_600_000)


@dataclass
class Page:
    """One image of a TIFF: its tags, and the bytes of its blocks."""

    tags: dict
    """Number to (type, values), or to None for a tag that is left out."""
    blocks: list = field(default_factory=list)
    """Bytes of each strip or tile; empty bytes for one that is not there."""


def text(value: str | bytes) -> tuple:
    """Return the value of an ASCII tag."""
    data = value.encode() if isinstance(value, str) else value
    return ASCII, (*data, 0)


def place(transform: Affine, *, point: bool = False) -> dict:
    """Return the tags that say where a raster lies."""
    a, b, _, d, e, _ = transform[:6]
    shift = 0.5 if point else 0  # of a pixel: what the tags speak of is its centre
    x, y = transform @ (shift, shift)
    if b == d == 0 and a > 0 and e < 0:
        tie = (0, 0, 0, x, y, 0)
        return {33550: (DOUBLE, (a, -e, 0)), 33922: (DOUBLE, tie)}
    matrix = (a, b, 0, x, d, e, 0, y, 0, 0, 0, 0, 0, 0, 0, 1)
    return {34264: (DOUBLE, matrix)}


def keys(epsg: int, *, point: bool = False) -> dict:
    """Return the GeoTIFF keys of a projected CRS, or of EPSG:4326."""
    model, key = (2, 2048) if epsg == 4326 else (1, 3072)
    words = (1, 1, 0, 3, 1024, 0, 1, model, 1025, 0, 1, 1 + point, key, 0, 1, epsg)
    return {34735: (SHORT, words)}


def located(
    transform: Affine = NORTH_UP, epsg: int = 32631, *, point: bool = False
) -> dict:
    """Return the tags of a grid on the ground."""
    return place(transform, point=point) | keys(epsg, point=point)


def page(
    pixels: np.ndarray,
    *,
    rows: int | None = None,
    tile: tuple[int, int] | None = None,
    planar: int = 1,
    compress: str = "none",
    predictor: int = 1,
    order: str = "<",
    bits: int | None = None,
    tags: dict | None = None,
) -> Page:
    """Return an image of `pixels`, (bands, height, width).

    Args:
        pixels: as stored; for fewer than 8 bits a band, as uint8 or uint16.
        rows: of a strip; None for one strip.
        tile: (rows, columns) of a tile; None for strips.
        planar: 1 for pixels of all bands together, 2 for a band after another.
        compress: one of CODECS.
        predictor: 1, 2 or 3.
        order: `<` or `>`, of the bytes.
        bits: of one sample, where its type does not say.
        tags: beside or instead of those that the pixels give; None leaves one out.
    """
    count, height, width = pixels.shape
    high, wide = tile or (rows or height, width)
    number, encode = CODECS[compress]
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[pixels.dtype.kind]
    sizes = (bits or pixels.dtype.itemsize * 8,) * count
    facts = {
        256: (LONG, (width,)),
        257: (LONG, (height,)),
        258: (SHORT, sizes),
        259: (SHORT, (number,)),
        262: (SHORT, (1,)),
        277: (SHORT, (count,)),
        284: (SHORT, (planar,)),
        339: (SHORT, (kind,) * count),
    }
    if count > 1:
        facts[338] = (SHORT, (0,) * (count - 1))
    if predictor > 1:
        facts[317] = (SHORT, (predictor,))
    if tile:
        facts |= {322: (LONG, (wide,)), 323: (LONG, (high,))}
    else:
        facts[278] = (LONG, (high,))
    blocks = [
        encode(_stored(block, predictor, order, bits))
        for block in _cut(pixels, high, wide, planar, is_tiled=bool(tile))
    ]
    return Page(facts | (tags or {}), blocks)


def _cut(
    pixels: np.ndarray, high: int, wide: int, planar: int, *, is_tiled: bool
) -> Iterator[np.ndarray]:
    """Yield blocks, (rows, columns, samples); tiles are filled up with zeros."""
    _, height, width = pixels.shape
    groups = [pixels] if planar == 1 else [band[None] for band in pixels]
    for group in groups:
        for row in range(0, height, high):
            for col in range(0, width, wide):
                block = group[:, row : row + high, col : col + wide]
                if is_tiled:
                    lacking = (high - block.shape[1], wide - block.shape[2])
                    block = np.pad(block, ((0, 0), *((0, n) for n in lacking)))
                yield np.ascontiguousarray(block.transpose(1, 2, 0))


def _stored(block: np.ndarray, predictor: int, order: str, bits: int | None) -> bytes:
    """Return a block's bytes before they are compressed."""
    if bits and bits != block.dtype.itemsize * 8:
        return _packed(block.reshape(len(block), -1), bits)
    if predictor == 2:
        block = np.diff(block, axis=1, prepend=block.dtype.type(0))
    if predictor == 3:
        width = block.shape[1] * block.shape[2]
        values = block.reshape(-1, width).astype(block.dtype.newbyteorder(">"))
        planes = values.view("u1").reshape(len(values), width, -1)
        planes = planes.transpose(0, 2, 1).reshape(len(values), -1)
        # Differences of bytes that lie as many apart as a pixel has samples.
        step = block.shape[2]
        differences = planes.copy()
        differences[:, step:] = planes[:, step:] - planes[:, :-step]
        return differences.tobytes()
    return block.astype(block.dtype.newbyteorder(order)).tobytes()


def _packed(rows: np.ndarray, bits: int) -> bytes:
    """Return rows of samples of `bits` each, every row from a new byte on."""
    places = np.arange(bits - 1, -1, -1)
    single = (rows[..., None].astype(np.uint32) >> places) & 1
    return np.packbits(single.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def assemble(*pages: Page, order: str = "<", big: bool = False, loop: int = 0) -> bytes:
    """Return the bytes of a TIFF: of each page its blocks, then its directory.

    Args:
        pages: in their order.
        order: `<` or `>`, of the bytes.
        big: whether it is a BigTIFF.
        loop: where the last page says that another follows; 0 for none.
    """
    word = "Q" if big else "I"
    magic = b"II" if order == "<" else b"MM"
    version = (43, 8, 0) if big else (42,)
    data = bytearray(magic + struct.pack(order + "H" * len(version), *version))
    link = len(data)
    data += struct.pack(order + word, 0)
    for one in pages:
        offsets = []
        for block in one.blocks:
            offsets.append(len(data) if block else 0)
            data += block + bytes(len(block) % 2)
        at, end = _directory(data, _complete(one, offsets, big=big), order, big=big)
        data[link : link + struct.calcsize(word)] = struct.pack(order + word, at)
        link = end
    data[link : link + struct.calcsize(word)] = struct.pack(order + word, loop)
    return bytes(data)


def _complete(one: Page, offsets: list[int], *, big: bool) -> dict:
    """Return a page's tags with those that say where its blocks are."""
    kind = LONG8 if big else LONG
    starts, counts = (324, 325) if 322 in one.tags else (273, 279)
    sizes = tuple(len(block) for block in one.blocks)
    places = {starts: (kind, tuple(offsets)), counts: (kind, sizes)}
    tags = (places if offsets else {}) | one.tags
    return {number: value for number, value in tags.items() if value is not None}


def _directory(
    data: bytearray, tags: dict, order: str, *, big: bool
) -> tuple[int, int]:
    """Add a directory; return where it is, and where it says what follows."""
    inline, head, entry = (8, "Q", "HHQ") if big else (4, "H", "HHI")
    entries = b""
    for number, (kind, values) in sorted(tags.items()):
        value = _value(kind, values, order)
        count = len(value) // _SIZES[kind]
        if len(value) > inline:
            data += bytes(len(data) % 2)
            place = len(data)
            data += value
            value = struct.pack(order + ("Q" if big else "I"), place)
        entries += struct.pack(order + entry, number, kind, count)
        entries += value.ljust(inline, b"\0")
    data += bytes(len(data) % 2)
    at = len(data)
    data += struct.pack(order + head, len(tags)) + entries
    end = len(data)
    data += bytes(inline)
    return at, end


def _value(kind: int, values: tuple, order: str) -> bytes:
    if kind == RATIONAL:
        return b"".join(struct.pack(order + "II", *pair) for pair in values)
    return struct.pack(f"{order}{len(values)}{_LETTERS[kind]}", *values)


def tiff(pixels: np.ndarray, *, big: bool = False, loop: int = 0, **options) -> bytes:
    """Return a TIFF of one image that says where it lies; see `page`, `assemble`."""
    options["tags"] = located() | options.get("tags", {})
    order = options.get("order", "<")
    return assemble(page(pixels, **options), order=order, big=big, loop=loop)
