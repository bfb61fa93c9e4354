"""Shard files -> one raster on the scene's own grid, a valid COG.

The raster is cut into squares, as large as a shard. A shard that is a square is placed
as it is, block by block; another square is made from the pixels of the shards that it
meets, as a worker would have made it. So there is one way on from there, and the bytes
depend on neither. Squares come in the order of a quadtree: four by four their overviews
are joined to the next one, and memory does not grow with the scene.
"""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np

from tileseg.card import NODATA
from tileseg.cog import Image, Tag, frame, read_images, wrap
from tileseg.encode import Look, block_side, cut, deflate, inflate, raster_tags
from tileseg.errors import OutputError
from tileseg.gdal import GDAL_ERRORS, gdal_env
from tileseg.grid import Grid, Run, Shard
from tileseg.overview import SHRINK, Pixels, Shrink, halved, level_shapes
from tileseg.scene import Scene
from tileseg.window import Window

__all__ = ["Files", "stitch"]

Files = Callable[[Iterable[Shard]], Iterator[tuple[Shard, bytes]]]
"""Gives shards and their files, in the order asked for; one may be asked for again."""

_SQUARE = 1536  # of shards that are not whole blocks
_AHEAD = 32  # blocks of a level being encoded
_THREADS = min(8, os.cpu_count() or 1)


def stitch(
    files: Files,
    shards: Collection[Shard],
    grid: Grid,
    scene: Scene,
    *,
    look: Look,
    path: Path,
) -> None:
    """Write all shards into one COG at `path`; memory does not grow with the scene.

    Args:
        files: where the shards' files are.
        shards: every shard there is; where one is missing stays nodata.
        grid: the scene's grid.
        scene: where it lies; the raster is what of it the grid's area is.
        look: what the raster says about its values.
        path: the file to make.

    Raises:
        OutputError: the disk is full.
    """
    try:
        with gdal_env():
            box = scene.geobox.crop(grid.area)
            tags = raster_tags(box, look, point=scene.point, tie=scene.tie)
        with ExitStack() as stack, ThreadPoolExecutor(_THREADS) as pool:
            side = block_side(grid.shard)
            levels = []
            for shape in level_shapes(box.height, box.width):
                file = stack.enter_context(TemporaryFile(dir=path.parent))
                levels.append(_Level(shape, side // 2 if levels else side, file, pool))
            _Quadtree(files, shards, grid, levels, SHRINK[look.overviews]).grow()
            _assemble(path, levels, tags)
    except (*GDAL_ERRORS, OSError) as err:
        msg = f"{path}: cannot be written: {err}"
        raise OutputError(msg) from err


def _assemble(path: Path, levels: list["_Level"], tags: dict[int, Tag]) -> None:
    """Write the file: its frame, and the blocks in the order that belongs to it."""
    with path.open("xb") as file:
        file.write(frame([level.finish() for level in levels], tags))
        for level in reversed(levels):
            level.copy_to(file)


class _Level:
    """The raster or one overview of it: its encoded blocks, in a file of their own."""

    def __init__(
        self, shape: tuple[int, int], block: int, file: IO[bytes], pool: ThreadPoolExecutor
    ) -> None:
        self.window, self.block = Window(0, 0, *shape), block
        self._file, self._pool = file, pool
        self._grid = self.window.coarsen(block)
        self._starts = np.zeros(self._grid.size, np.int64)
        self._counts = np.zeros(self._grid.size, np.uint32)
        self._end = 0
        self._pending: deque[tuple[int, Future[bytes]]] = deque()

    def add(self, window: Window, pixels: Pixels) -> None:
        """Encode the pixels of a window of whole blocks; some threads do it."""
        blocks = (self._pool.submit(deflate, part) for part in cut(pixels, self.block))
        self._pending += zip(self._places(window), blocks, strict=True)
        self._write(_AHEAD)

    def place(self, window: Window, image: Image, data: bytes) -> None:
        """Take the encoded blocks of a window as they are."""
        self._write(0)
        starts, counts = image.offsets.tolist(), image.counts.tolist()
        for place, start, count in zip(
            self._places(window), starts, counts, strict=True
        ):
            self._put(place, data[start : start + count])

    def finish(self) -> Image:
        """Wait for all blocks; say where they are."""
        self._write(0)
        return Image(
            height=self.window.height,
            width=self.window.width,
            block=self.block,
            counts=self._counts,
        )

    def copy_to(self, file: IO[bytes]) -> None:
        """Append all blocks to a file, wrapped, row-major."""
        self._file.flush()
        handle = self._file.fileno()
        for start, count in zip(
            self._starts.tolist(), self._counts.tolist(), strict=True
        ):
            file.write(wrap(os.pread(handle, count, start)))

    def _places(self, window: Window) -> Iterator[int]:
        """Yield the numbers of the blocks that make a window, row-major."""
        box = window.coarsen(self.block)
        for row in range(box.row, box.row_stop):
            first = row * self._grid.width
            yield from range(first + box.col, first + box.col_stop)

    def _write(self, left: int) -> None:
        """Write what is encoded, in the order it came; leave so many to be encoded."""
        while self._pending and (
            len(self._pending) > left or self._pending[0][1].done()
        ):
            place, block = self._pending.popleft()
            self._put(place, block.result())

    def _put(self, place: int, block: bytes) -> None:
        self._file.write(block)
        self._starts[place], self._counts[place] = self._end, len(block)
        self._end += len(block)


class _Quadtree:
    """All squares of a raster, and what is joined from them.

    A node of depth d is 2^d x 2^d squares; it makes the blocks of overview d + 1 and
    hands the overview after that to the node above.
    """

    def __init__(
        self,
        files: Files,
        shards: Collection[Shard],
        grid: Grid,
        levels: list[_Level],
        shrink: Shrink,
    ) -> None:
        self._shards, self._grid = frozenset(shards), grid
        self._levels, self._shrink = levels, shrink
        self._is_whole = grid.shard % levels[0].block == 0
        self._side = grid.shard if self._is_whole else _SQUARE
        self._depth = max(0, len(levels) - 2)
        order = (shard for window in self._squares() for shard in self._meeting(window))
        self._files = files(order)

    def grow(self) -> None:
        """Fill all levels."""
        for root in self._roots():
            self._node(self._depth, root)

    def _roots(self) -> Iterator[Window]:
        """Yield the nodes that have none above them, each as one cell."""
        yield from _cells(self._levels[0].window.coarsen(self._side << self._depth))

    def _squares(self) -> Iterator[Window]:
        """Yield the pixels of every square, in the order in which `grow` gets there."""
        for root in self._roots():
            yield from self._squares_of(self._depth, root)

    def _squares_of(self, depth: int, node: Window) -> Iterator[Window]:
        window = self._pixels(0, node, self._side << depth)
        if depth == 0 and window.size:
            yield window
        elif window.size:
            for child in _children(node):
                yield from self._squares_of(depth - 1, child)

    def _pixels(self, level: int, node: Window, side: int) -> Window:
        return node.scale(side).intersect(self._levels[level].window)

    def _node(self, depth: int, node: Window) -> Pixels:
        """Make all blocks of a node; return its overview of number depth + 2."""
        if depth == 0:
            return self._square(self._pixels(0, node, self._side))
        level = self._levels[depth + 1]
        window = self._pixels(depth + 1, node, self._side // 2)
        pixels = np.empty((window.height, window.width), np.uint8)
        for child in _children(node):
            part = child.scale(self._side // 4).intersect(level.window)
            if part.size:
                at = part.relative_to(window).slices
                pixels[at] = self._node(depth - 1, child)
        level.add(window, pixels)
        return self._shrink(pixels)

    def _square(self, window: Window) -> Pixels:
        """Make the blocks of a square and of its overview; return the next overview."""
        shards = self._meeting(window)
        if self._is_whole and [window] == [self._where(shard) for shard in shards]:
            return self._take(window, next(self._files)[1])
        pixels = np.full((window.height, window.width), NODATA, np.uint8)
        for _ in shards:
            shard, data = next(self._files)
            _place(pixels, window, self._where(shard), data)
        half = self._shrink(pixels)
        windows = window, _halved(window)
        for level, at, part in zip(self._levels, windows, (pixels, half), strict=False):
            level.add(at, part)
        return self._shrink(half)

    def _take(self, window: Window, data: bytes) -> Pixels:
        """Place a shard's blocks; return its second overview."""
        *images, rest = read_images(data)
        windows = window, _halved(window)
        for level, at, image in zip(self._levels, windows, images, strict=False):
            level.place(at, image, data)
        return _read(rest, data, Window(0, 0, rest.height, rest.width))

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


def _children(node: Window) -> Iterator[Window]:
    """Yield the four nodes below one."""
    return _cells(node.scale(2))


def _halved(window: Window) -> Window:
    """Return the same place in the overview; the window begins at an even pixel."""
    shape = halved(window.height, window.width)
    return Window(window.row // 2, window.col // 2, *shape)


def _place(pixels: Pixels, window: Window, place: Window, data: bytes) -> None:
    """Put a shard's pixels into those of a window, as far as they lie there."""
    part = window.intersect(place)
    image = read_images(data)[0]
    pixels[part.relative_to(window).slices] = _read(image, data, part.relative_to(place))


def _read(image: Image, data: bytes, window: Window) -> Pixels:
    """Return the pixels of a window of an image; only its blocks are decoded."""
    pixels = np.empty((window.height, window.width), np.uint8)
    starts, counts = image.offsets.tolist(), image.counts.tolist()
    across = -(-image.width // image.block)
    for cell in _cells(window.coarsen(image.block)):
        number = cell.row * across + cell.col
        stored = data[starts[number] : starts[number] + counts[number]]
        whole = cell.scale(image.block)
        part = whole.intersect(window)
        block = inflate(stored, image.block)[part.relative_to(whole).slices]
        pixels[part.relative_to(window).slices] = block
    return pixels


def _cells(box: Window) -> Iterator[Window]:
    """Yield the cells of a rectangle, row-major."""
    for row in range(box.row, box.row_stop):
        for col in range(box.col, box.col_stop):
            yield Window(row, col, 1, 1)
