"""Shard files -> one raster on the scene's own grid, a valid COG.

The raster is cut into squares, as large as a shard. A shard that is a square is placed
as it is, block by block; another square is made from the pixels of the shards that it
meets, as a worker would have made it. So there is one way on from there, and the bytes
depend on neither. Squares come in the order of a quadtree: four by four their overviews
are joined to the next one, and memory does not grow with the scene.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np

from tileseg.cards.card import NODATA
from tileseg.errors import OutputError
from tileseg.grid import Grid, Run, Shard
from tileseg.masks.cog import Image, Tag, frame, read_images, wrap
from tileseg.masks.encode import Look, block_side, cut, deflate, inflate, raster_tags
from tileseg.masks.overview import SHRINK, Pixels, Shrink, halved, level_shapes
from tileseg.plans.ledger import Files
from tileseg.scenes.gdal import GDAL_ERRORS, gdal_env
from tileseg.scenes.scene import Scene
from tileseg.window import Window

__all__ = ["stitch"]

_SQUARE = 1536  # of shards that are not whole blocks
_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 2 * _THREADS  # nodes of a level being made


def stitch(files: Files, grid: Grid, scene: Scene, look: Look, path: Path) -> None:
    """Write all shards into one COG at `path`; memory does not grow with the scene.

    Args:
        files: the shards that there are; where one is missing stays nodata.
        grid: the scene's grid.
        scene: where it lies; the raster is what of it the grid's area is.
        look: what the raster says about its values.
        path: the file to make.

    Raises:
        OutputError: the disk is full, or a file is not what its worker wrote.
    """
    try:
        with gdal_env():
            box = scene.geobox.crop(grid.area)
            tags = raster_tags(box, look, point=scene.point, tie=scene.tie)
        with ExitStack() as stack, ThreadPoolExecutor(_THREADS) as pool:
            block, bands = block_side(grid.shard), len(look.bands)
            levels: list[_Level] = []
            for shape in level_shapes(box.height, box.width):
                file = stack.enter_context(TemporaryFile(dir=path.parent))
                side = block // 2 if levels else block
                levels.append(_Level((bands, *shape), side, file))
            _Quadtree(files, grid, levels, SHRINK[look.overviews], pool).grow()
            _assemble(path, levels, tags)
    except (*GDAL_ERRORS, OSError) as err:
        msg = f"{path}: cannot be written: {err}"
        raise OutputError(msg) from err


def _assemble(path: Path, levels: list["_Level"], tags: dict[int, Tag]) -> None:
    """Write the file: its frame, and the blocks in the order that belongs to it."""
    with path.open("wb") as file:
        file.write(frame([level.finish() for level in levels], tags))
        for level in reversed(levels):
            level.copy_to(file)


class _Made(NamedTuple):
    """What becomes of a node."""

    blocks: list[list[bytes]]
    """Encoded, row-major, of each level that they are for."""
    rest: Pixels
    """The next overview, which the node above joins."""


class _Level:
    """The raster or one overview of it: its encoded blocks, in a file of their own."""

    def __init__(
        self, shape: tuple[int, int, int], block: int, file: IO[bytes]
    ) -> None:
        self.bands, *sides = shape
        self.window, self.block = Window(0, 0, *sides), block
        self._file = file
        self._grid = self.window.coarsen(block)
        # Of each place, and of each band there.
        self._starts = np.zeros((self._grid.size, self.bands), np.int64)
        self._counts = np.zeros((self._grid.size, self.bands), np.uint32)
        self._end = 0
        self._pending: deque[tuple[Window, Future[_Made], int]] = deque()

    def place(self, window: Window, blocks: Iterable[bytes]) -> None:
        """Take the encoded blocks of a window."""
        self._write(0)
        self._put(window, blocks)

    def expect(self, window: Window, made: Future[_Made], number: int) -> None:
        """Take them when they are made, as those of some number."""
        self._pending.append((window, made, number))
        self._write(max(1, _AHEAD // self.bands))

    def finish(self) -> Image:
        """Wait for all blocks; say what they are."""
        self._write(0)
        return Image(
            height=self.window.height,
            width=self.window.width,
            block=self.block,
            counts=self._counts.ravel(),
            bands=self.bands,
        )

    def copy_to(self, file: IO[bytes]) -> None:
        """Append all blocks to a file, wrapped, row-major."""
        self._file.flush()
        handle, shape = self._file.fileno(), (self._grid.height, -1)
        # A row at a time: Python's own numbers take much more room than NumPy's.
        rows = zip(
            self._starts.reshape(shape), self._counts.reshape(shape), strict=True
        )
        for starts, counts in rows:
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
                file.write(wrap(os.pread(handle, count, start)))

    def _write(self, left: int) -> None:
        """Write what is made, in the order it was asked for; leave some to be made."""
        while len(self._pending) > left:
            window, made, number = self._pending.popleft()
            self._put(window, made.result().blocks[number])

    def _put(self, window: Window, blocks: Iterable[bytes]) -> None:
        stream = iter(blocks)
        for cell in window.coarsen(self.block).cells():
            number = cell.row * self._grid.width + cell.col
            for band, block in enumerate(islice(stream, self.bands)):
                self._starts[number, band] = self._end
                self._counts[number, band] = len(block)
                self._file.write(block)
                self._end += len(block)


class _Quadtree:
    """All squares of a raster, and what is joined from them.

    A node of depth d is 2^d x 2^d squares; it makes the blocks of overview d + 1 and
    hands the overview after that to the node above. Threads make what is to be made,
    in the order of the nodes, each after those below it.
    """

    def __init__(
        self,
        files: Files,
        grid: Grid,
        levels: list[_Level],
        shrink: Shrink,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._shards, self._grid = files.shards, grid
        self._levels, self._shrink, self._pool = levels, shrink, pool
        self._is_whole = grid.shard % levels[0].block == 0
        self._side = grid.shard if self._is_whole else _SQUARE
        self._depth = max(0, len(levels) - 2)
        squares = (self._squares(self._depth, root) for root in self._roots())
        self._files = files.read(
            shard
            for windows in squares
            for at in windows
            for shard in self._meeting(at)
        )

    def grow(self) -> None:
        """Fill all levels."""
        for root in self._roots():
            self._node(self._depth, root)

    def _roots(self) -> Iterator[Window]:
        """Yield the nodes that have none above them, each as one cell."""
        return self._levels[0].window.coarsen(self._side << self._depth).cells()

    def _squares(self, depth: int, node: Window) -> Iterator[Window]:
        """Yield the pixels of every square below a node, as `_node` gets there."""
        window = self._pixels(0, node, self._side << depth)
        if depth == 0 and window.size:
            yield window
        elif window.size:
            for child in _children(node):
                yield from self._squares(depth - 1, child)

    def _pixels(self, level: int, node: Window, side: int) -> Window:
        return node.scale(side).intersect(self._levels[level].window)

    def _node(self, depth: int, node: Window) -> Future[_Made]:
        """Have all blocks of a node made, and its overview of number depth + 2."""
        if depth == 0:
            return self._square(self._pixels(0, node, self._side))
        level = self._levels[depth + 1]
        window = self._pixels(depth + 1, node, self._side // 2)
        parts = []
        for child in _children(node):
            part = self._pixels(depth + 1, child, self._side // 4)
            if part.size:
                at = part.relative_to(window)
                parts.append((at, self._node(depth - 1, child)))
        shape = level.bands, window.height, window.width
        made = self._pool.submit(_join, shape, parts, level.block, self._shrink)
        level.expect(window, made, 0)
        return made

    def _square(self, window: Window) -> Future[_Made]:
        """Have the blocks of a square made, those of its overview, and the next."""
        shards = self._meeting(window)
        places = [self._where(shard) for shard in shards]
        windows = window, _halved(window)
        if self._is_whole and places == [window]:
            _, data = next(self._files)
            *images, rest = read_images(data)
            for level, at, image in zip(self._levels, windows, images, strict=False):
                level.place(at, image.blocks(data))
            return self._pool.submit(_read_rest, rest, data)
        found = [(place, next(self._files)[1]) for place in places]
        sides = [level.block for level in self._levels[:2]]
        shape = self._levels[0].bands, window.height, window.width
        made = self._pool.submit(_cut_anew, shape, window, found, sides, self._shrink)
        for number, level in enumerate(self._levels[:2]):
            level.expect(windows[number], made, number)
        return made

    def _where(self, shard: Shard) -> Window:
        """Return the pixels of a shard, counted from the raster's first."""
        return self._grid.pixels(shard).relative_to(self._grid.area)

    def _meeting(self, window: Window) -> list[Shard]:
        """Return the shards that are there and share pixels with a window, sorted."""
        area = self._grid.area
        seen = Window(
            window.row + area.row, window.col + area.col, window.height, window.width
        )
        box = seen.coarsen(self._grid.shard)
        return [shard for shard in Run(box) if shard in self._shards]


def _join(
    shape: tuple[int, int, int],
    parts: list[tuple[Window, Future[_Made]]],
    block: int,
    shrink: Shrink,
) -> _Made:
    """Join the overviews that the nodes below hand up; they are made before."""
    pixels = np.empty(shape, np.uint8)
    for at, part in parts:
        pixels[:, *at.slices] = part.result().rest
    return _Made([_encoded(pixels, block)], shrink(pixels))


def _read_rest(rest: Image, data: bytes) -> _Made:
    """Read the second overview of a shard whose other blocks are placed already."""
    return _Made([], _read(rest, data, Window(0, 0, rest.height, rest.width)))


def _cut_anew(
    shape: tuple[int, int, int],
    window: Window,
    found: list[tuple[Window, bytes]],
    sides: list[int],
    shrink: Shrink,
) -> _Made:
    """Make a square from the shards that it meets, at their places."""
    pixels = np.full(shape, NODATA, np.uint8)
    for place, data in found:
        _place(pixels, window, place, data)
    half = shrink(pixels)
    levels = zip((pixels, half), sides, strict=False)
    return _Made([_encoded(level, side) for level, side in levels], shrink(half))


def _encoded(pixels: Pixels, block: int) -> list[bytes]:
    return [deflate(part) for part in cut(pixels, block)]


def _place(pixels: Pixels, window: Window, place: Window, data: bytes) -> None:
    """Put a shard's pixels into those of a window, as far as they lie there."""
    part = window.intersect(place)
    image = read_images(data)[0]
    found = _read(image, data, part.relative_to(place))
    pixels[:, *part.relative_to(window).slices] = found


def _read(image: Image, data: bytes, window: Window) -> Pixels:
    """Return the pixels of a window of an image, (bands, height, width).

    Only its blocks are decoded.
    """
    pixels = np.empty((image.bands, window.height, window.width), np.uint8)
    blocks, across = list(image.blocks(data)), -(-image.width // image.block)
    for cell in window.coarsen(image.block).cells():
        whole = cell.scale(image.block)
        part = whole.intersect(window)
        first = (cell.row * across + cell.col) * image.bands
        at, source = part.relative_to(window).slices, part.relative_to(whole).slices
        for band, block in enumerate(blocks[first : first + image.bands]):
            pixels[band, *at] = inflate(block, image.block)[source]
    return pixels


def _children(node: Window) -> Iterator[Window]:
    """Yield the four nodes below one."""
    return node.scale(2).cells()


def _halved(window: Window) -> Window:
    """Return the same place in the overview; the window begins at an even pixel."""
    shape = halved(window.height, window.width)
    return Window(window.row // 2, window.col // 2, *shape)
