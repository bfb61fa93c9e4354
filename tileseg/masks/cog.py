"""The frame of a Cloud Optimized GeoTIFF: what stands round blocks encoded elsewhere.

The layout is that of GDAL's own, and said to be at the file's beginning: directories
and their tables come first, then the blocks row by row, those of the smallest overview
first, each between its size and its last four bytes again. Of several bands each has
blocks of its own; those of one place lie side by side. Knows nothing of pixels or
of the ground; the tags that say of these are passed through as they are.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

__all__ = ["Image", "Tag", "frame", "read_images", "read_tags", "wrap"]

Tag = tuple[int, int, bytes]
"""Type, number of values, the values themselves (little-endian)."""

_SHORT, _LONG, _LONG8 = 3, 4, 16
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}

_SUBFILE, _WIDTH, _HEIGHT, _BANDS = 254, 256, 257, 277
_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS = 322, 323, 324, 325
# Of the full size: bits, compression, photometric, samples, planes, predictor, colours,
# extra samples, sample format, GDAL's nodata. An overview lies where its raster does.
_OF_OVERVIEWS = {258, 259, 262, 277, 284, 317, 320, 338, 339, 42113}

# Stands between header and directories. GDAL marks with YES what others changed since.
_LAYOUT = (
    b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    b"BLOCK_TRAILER=LAST_4_BYTES_REPEATED\n%sKNOWN_INCOMPATIBLE_EDITION=NO\n "
)
_OF_BANDS = b"INTERLEAVE=TILE\n"  # where there are several

_LEADER = _TRAILER = 4  # bytes before and behind a block
_WRAPPING = _LEADER + _TRAILER

_CLASSIC_BYTES = (1 << 32) - 1  # what its offsets reach


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """One directory: the raster itself or an overview, cut into square blocks."""

    height: int
    """Rows of pixels."""
    width: int
    """Columns of pixels."""
    block: int
    """Side of a block in pixels."""
    counts: NDArray[np.uint32]
    """Bytes of each block, row-major; of several bands those of one place in a row."""
    bands: int = 1
    """How many blocks lie at one place."""
    start: int = 0
    """First byte of its first block's wrapping in the file, where that is known."""

    @property
    def offsets(self) -> NDArray[np.uint64]:
        """First byte of each block, counted like `start`."""
        ends = np.cumsum(self.counts.astype(np.uint64) + np.uint64(_WRAPPING))
        return ends - self.counts - np.uint64(_TRAILER) + np.uint64(self.start)

    @property
    def size(self) -> int:
        """Bytes of all its blocks, wrapped."""
        return int(self.counts.sum(dtype=np.uint64)) + _WRAPPING * len(self.counts)

    def blocks(self, data: bytes) -> Iterator[bytes]:
        """Yield the encoded blocks of an image that was read from `data`."""
        starts, counts = self.offsets.tolist(), self.counts.tolist()
        for start, count in zip(starts, counts, strict=True):
            yield data[start : start + count]


def wrap(block: bytes) -> bytes:
    """Return an encoded block as it stands in the file."""
    return b"".join((len(block).to_bytes(_LEADER, "little"), block, block[-_TRAILER:]))


def frame(images: Sequence[Image], tags: Mapping[int, Tag]) -> bytes:
    """Return the bytes that stand before the blocks.

    Behind them belong the wrapped blocks of the last image, then those of the one
    before, and so on. A BigTIFF where the file is too large for any other.

    Args:
        images: the raster, then its overviews, each smaller than the one before.
        tags: of the raster, by number, but for those that say sizes and places.
    """
    data = sum(image.size for image in images)
    plain = _assemble(images, tags, 0, is_big=False)
    is_big = len(plain) + data > _CLASSIC_BYTES
    start = len(_assemble(images, tags, 0, is_big=True) if is_big else plain)
    return _assemble(images, tags, start, is_big=is_big)


def _assemble(
    images: Sequence[Image], tags: Mapping[int, Tag], start: int, *, is_big: bool
) -> bytes:
    """Return header and directories of a file whose blocks begin at `start`."""
    first, ghost = 16 if is_big else 8, _ghost(images[0].bands)
    at = first + len(ghost)
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, at)
    if not is_big:
        head = struct.pack("<2sHI", b"II", 42, at)
    parts = [head, ghost]
    sizes = [image.size for image in images]
    starts = list(accumulate(reversed(sizes), initial=start))[-2::-1]
    for number, (image, place) in enumerate(zip(images, starts, strict=True)):
        own = _own_tags(image, place, is_big=is_big)
        if number:
            own[_SUBFILE] = _integers(_LONG, 1)
        passed = {t: tags[t] for t in tags if not number or t in _OF_OVERVIEWS}
        is_last = number + 1 == len(images)
        part = _directory({**passed, **own}, at, is_big=is_big, is_last=is_last)
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _ghost(bands: int) -> bytes:
    """Return what stands between header and directories, an even number of bytes."""
    layout = _LAYOUT % (_OF_BANDS if bands > 1 else b"")
    ghost = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n%s" % (len(layout), layout)
    return ghost + bytes(len(ghost) % 2)


def _own_tags(image: Image, place: int, *, is_big: bool) -> dict[int, Tag]:
    kind = _LONG8 if is_big else _LONG
    table = "<u8" if is_big else "<u4"
    blocks, offsets = len(image.counts), image.offsets + np.uint64(place)
    # Tables go band by band.
    offsets, counts = (
        values.reshape(-1, image.bands).T for values in (offsets, image.counts)
    )
    return {
        _WIDTH: _integers(_LONG, image.width),
        _HEIGHT: _integers(_LONG, image.height),
        _TILE_WIDTH: _integers(_SHORT, image.block),
        _TILE_HEIGHT: _integers(_SHORT, image.block),
        _OFFSETS: (kind, blocks, offsets.astype(table).tobytes()),
        _COUNTS: (_LONG, blocks, counts.astype("<u4").tobytes()),
    }


def _integers(kind: int, value: int) -> Tag:
    return kind, 1, value.to_bytes(2 if kind == _SHORT else 4, "little")


def _directory(
    tags: Mapping[int, Tag], at: int, *, is_big: bool, is_last: bool
) -> bytes:
    """Return one directory that stands at `at`, its values and tables behind it."""
    number, entry, offset = ("<Q", "<HHQ", "<Q") if is_big else ("<H", "<HHI", "<I")
    room = struct.calcsize(offset)
    length = (
        struct.calcsize(number) + len(tags) * (struct.calcsize(entry) + room) + room
    )
    entries, behind = [struct.pack(number, len(tags))], []
    end = at + length + length % 2
    for tag in sorted(tags):
        kind, count, values = tags[tag]
        place = values.ljust(room, b"\0")
        if len(values) > room:
            place = struct.pack(offset, end)
            behind.append(values + bytes(len(values) % 2))
            end += len(behind[-1])
        entries += [struct.pack(entry, tag, kind, count), place]
    entries.append(struct.pack(offset, 0 if is_last else end))
    return b"".join([*entries, bytes(length % 2), *behind])


def read_tags(data: bytes) -> dict[int, Tag]:
    """Return the tags of the first image of a classic TIFF that GDAL or we wrote."""
    return _read_directory(data, *struct.unpack_from("<I", data, 4))[0]


def read_images(data: bytes) -> list[Image]:
    """Return what the directories of a classic TIFF say that we wrote."""
    images = []
    (at,) = struct.unpack_from("<I", data, 4)
    while at:
        tags, at = _read_directory(data, at)
        known = (tags[tag] for tag in (_HEIGHT, _WIDTH, _TILE_WIDTH, _BANDS))
        height, width, block, bands = (int.from_bytes(it[2], "little") for it in known)
        counts = np.frombuffer(tags[_COUNTS][2], "<u4").reshape(bands, -1).T
        image = Image(
            height=height,
            width=width,
            block=block,
            counts=counts.ravel(),
            bands=bands,
            start=int.from_bytes(tags[_OFFSETS][2][:4], "little") - _LEADER,
        )
        images.append(image)
    return images


def _read_directory(data: bytes, at: int) -> tuple[dict[int, Tag], int]:
    """Return a directory's tags, and where the next one is; 0 where it was the last."""
    (number,) = struct.unpack_from("<H", data, at)
    tags = {}
    for place in range(at + 2, at + 2 + 12 * number, 12):
        tag, kind, count = struct.unpack_from("<HHI", data, place)
        length, start = _SIZES[kind] * count, place + 8
        if length > 4:  # noqa: PLR2004  (what an entry holds itself)
            (start,) = struct.unpack_from("<I", data, start)
        tags[tag] = kind, count, data[start : start + length]
    return tags, struct.unpack_from("<I", data, at + 2 + 12 * number)[0]
