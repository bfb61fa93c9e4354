"""The pixels of a scene in any window, with their validity, whatever it is made of."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import isnan
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tileseg.errors import InputError, UsageError
from tileseg.scenes.gdal import GDAL_ERRORS, held_blocks, open_dataset
from tileseg.scenes.raster import Band, Beside, File, Resampled, Scene, Stacked
from tileseg.scenes.warp import resample
from tileseg.stores.source import Traffic
from tileseg.window import Window

__all__ = ["DATA", "HANDLES", "MASKED", "Pixels"]

DATA, MASKED = 1, 2
"""What a pixel's state is: a measurement, or one that a mask makes invalid; else 0."""

HANDLES = 64
"""Files that are open at once, at most."""

_WIDE = ("int64", "uint64")

Bands = tuple[Band, ...]
Valid = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Canvas:
    """Where pixels go."""

    pixels: NDArray[Any]
    """(bands, height, width)."""
    state: NDArray[np.uint8]
    """(height, width)."""

    @classmethod
    def blank(cls, bands: int, shape: tuple[int, ...], dtype: DTypeLike) -> "_Canvas":
        """Return one to be filled."""
        return cls(np.empty((bands, *shape), dtype), np.empty(shape, np.uint8))

    def part(self, at: tuple[slice, slice]) -> "_Canvas":
        """Return a view on a rectangle."""
        return _Canvas(self.pixels[:, *at], self.state[at])

    def complete(self, more: "_Canvas", covered: Valid) -> None:
        """Take what is not covered, or has no data yet and has some in `more`."""
        is_better = (more.state == DATA) & (self.state != DATA)
        is_better |= (more.state == MASKED) & (self.state == 0)
        take = ~covered | is_better
        np.copyto(self.pixels, more.pixels, where=take)
        np.copyto(self.state, more.state, where=take)


class Pixels:
    """A scene's open files; not to be shared between threads."""

    def __init__(self, *, threads: int = 1, traffic: Traffic | None = None) -> None:
        """Open nothing yet.

        Args:
            threads: GDAL's own.
            traffic: where to count what remote files cost.
        """
        self._threads, self._traffic = threads, traffic
        self._open: OrderedDict[str, Any] = OrderedDict()

    def __enter__(self) -> Self:
        """Open nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every file."""
        while self._open:
            self._open.popitem()[1].close()

    def read(
        self,
        scene: Scene,
        bands: Bands,
        window: Window,
        pixels: NDArray[Any],
        state: NDArray[np.uint8],
    ) -> None:
        """Fill pixels, (bands, height, width), and their states, (height, width).

        Raises:
            InputError: a file cannot be read.
            UsageError: fp32 does not hold a file's numbers.
        """
        self._fill(scene, bands, window, _Canvas(pixels, state))

    def _fill(
        self,
        raster: Scene,
        bands: Bands,
        window: Window,
        canvas: _Canvas,
    ) -> None:
        """Fill pixels and states, whatever the raster is made of."""
        match raster.origin:
            case File() as file:
                self._from_file(raster, file, bands, window, canvas)
            case Stacked(rasters):
                self._from_stack(rasters, bands, window, canvas)
            case Beside() as beside:
                self._from_places(beside, bands, window, canvas)
            case Resampled() as resampled:
                self._from_blocks(raster, resampled, bands, window, canvas)
        for mask in raster.masks:
            seen = _Canvas.blank(1, canvas.state.shape, mask.raster.dtype)
            self._fill(mask.raster, (mask.band,), window, seen)
            hit = mask.rule.hits(seen.pixels[0]) | (seen.state != DATA)
            canvas.state[hit & (canvas.state == DATA)] = MASKED

    def _from_stack(
        self,
        rasters: tuple[Scene, ...],
        bands: Bands,
        window: Window,
        canvas: _Canvas,
    ) -> None:
        """Fill each raster's bands; a pixel is valid if it is in all that are read."""
        canvas.state[:] = DATA
        last = accumulate(len(raster.bands) for raster in rasters)
        for raster, stop in zip(rasters, last, strict=True):
            first = stop - len(raster.bands)
            at = [i for i, band in enumerate(bands) if first < band.index <= stop]
            if not at:
                continue
            own = tuple(raster.bands[bands[i].index - first - 1] for i in at)
            is_row = at == list(range(at[0], at[-1] + 1))
            into = canvas.pixels
            part = into[at[0] : at[-1] + 1] if is_row else into[at]
            state = np.empty_like(canvas.state)
            self._fill(raster, own, window, _Canvas(part, state))
            if not is_row:
                into[at] = part
            canvas.state[:] &= state

    def _from_places(
        self,
        beside: Beside,
        bands: Bands,
        window: Window,
        canvas: _Canvas,
    ) -> None:
        """Fill what each raster covers; of several the first one with data counts."""
        canvas.pixels[:], canvas.state[:] = 0, 0
        covered = np.zeros(canvas.state.shape, np.bool_)
        for place, raster in zip(beside.places, beside.rasters, strict=True):
            part = place.intersect(window)
            if not part.size:
                continue
            at = part.relative_to(window).slices
            here = canvas.part(at)
            if (here.state == DATA).all():
                continue
            own = tuple(raster.bands[band.index - 1] for band in bands)
            inner = part.relative_to(place)
            if not covered[at].any():
                self._fill(raster, own, inner, here)
            else:
                more = _Canvas.blank(len(bands), here.state.shape, here.pixels.dtype)
                self._fill(raster, own, inner, more)
                here.complete(more, covered[at])
            covered[at] = True

    def _from_blocks(
        self,
        raster: Scene,
        resampled: Resampled,
        bands: Bands,
        window: Window,
        canvas: _Canvas,
    ) -> None:
        """Fill from whole blocks, so that no pixel depends on the window it is in."""
        source = resampled.raster
        own = tuple(source.bands[band.index - 1] for band in bands)

        def read(needed: Window) -> tuple[NDArray[Any], Valid]:
            shape = needed.height, needed.width
            found = _Canvas.blank(len(own), shape, canvas.pixels.dtype)
            self._fill(source, own, needed, found)
            return found.pixels, found.state == DATA

        for block in _blocks(raster, window):
            box = raster.geobox.crop(block)
            pixels, valid = resample(read, source.geobox, box, resampled)
            made = _Canvas(pixels, valid.view(np.uint8))
            part = block.intersect(window)
            here = canvas.part(part.relative_to(window).slices)
            inner = made.part(part.relative_to(block).slices)
            here.pixels[:], here.state[:] = inner.pixels, inner.state

    def _from_file(
        self,
        raster: Scene,
        file: File,
        bands: Bands,
        window: Window,
        canvas: _Canvas,
    ) -> None:
        """Fill from a file, of which only columns that hold blocks are read."""
        indexes = [band.index for band in bands]
        dataset = self._dataset(file)
        try:
            # A mask's file says 0 by holding no block; of a scene that is no data.
            is_held = None if file.is_sparse else held_blocks(dataset, indexes, window)
            if is_held is None or is_held.all():
                self._from_dataset(raster, dataset, bands, window, canvas)
                return
            block = dataset.block_shapes[0]
            for part, has_any in _stretches(block, window, is_held):
                here = canvas.part(part.relative_to(window).slices)
                if has_any:
                    self._from_dataset(raster, dataset, bands, part, here)
                else:
                    here.pixels[:] = 0
            for part in _absent(block, window, is_held):
                canvas.part(part.relative_to(window).slices).state[:] = 0
        except GDAL_ERRORS as err:
            msg = f"{file.href}: cannot read {_said(window)}: {err.__cause__ or err}"
            raise InputError(msg) from err

    def _from_dataset(
        self,
        raster: Scene,
        dataset: Any,  # noqa: ANN401  (rasterio is untyped)
        bands: Bands,
        window: Window,
        canvas: _Canvas,
    ) -> None:
        """Fill from an open file."""
        file, indexes = raster.origin, [band.index for band in bands]
        assert isinstance(file, File), "it was opened"
        pixels, valid = canvas.pixels, canvas.state.view(np.bool_)
        # Straight into place, without a copy, where the type needs no change.
        is_native = raster.dtype == pixels.dtype
        out = pixels if is_native else None
        stored = dataset.read(indexes, window=window.slices, out=out)
        _see_data(stored, bands, valid)
        if file.alpha:
            # GDAL forgets the alpha band where there is a nodata value too.
            valid &= dataset.read(file.alpha, window=window.slices) > 0
        if file.has_mask:
            valid &= dataset.read_masks(indexes, window=window.slices).all(axis=0)
        if not is_native:
            if raster.dtype in _WIDE and pixels.dtype.kind == "f":
                _check_exact(file, stored, valid)
            with np.errstate(over="ignore"):  # beyond fp32 is Inf, and Inf is invalid
                pixels[:] = stored
        if stored.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(axis=0)

    def _dataset(self, file: File) -> Any:  # noqa: ANN401  (rasterio is untyped)
        """Return an open handle; those not used for longest make room."""
        if file.path in self._open:
            self._open.move_to_end(file.path)
            return self._open[file.path]
        if len(self._open) == HANDLES:
            self._open.popitem(last=False)[1].close()
        try:
            dataset = open_dataset(file.path, self._traffic, num_threads=self._threads)
        except GDAL_ERRORS as err:
            msg = f"{file.href}: cannot be opened any more: {err}"
            raise InputError(msg) from err
        self._open[file.path] = dataset
        return dataset


def _blocks(raster: Scene, window: Window) -> Iterator[Window]:
    """Yield the blocks, counted from the raster's first pixel, that meet a window."""
    high, wide = raster.block
    for row in range(window.row // high * high, window.row_stop, high):
        for col in range(window.col // wide * wide, window.col_stop, wide):
            yield Window(row, col, high, wide).intersect(raster.geobox.window)


def _stretches(
    block: tuple[int, int], window: Window, is_held: Valid
) -> Iterator[tuple[Window, bool]]:
    """Cut a window where columns of blocks that hold anything begin or end.

    Yields each part, and whether it holds anything.
    """
    has_any: Valid = np.logical_or.reduce(is_held, axis=0)
    borders = np.flatnonzero(np.diff(has_any)) + 1
    for left, right in pairwise([0, *borders.tolist(), len(has_any)]):
        columns = Window(0, left, len(is_held), right - left)
        yield _pixels(block, window, columns), bool(has_any[left])


def _absent(block: tuple[int, int], window: Window, is_held: Valid) -> Iterator[Window]:
    """Yield the parts of a window whose block is not held."""
    for row, col in np.argwhere(~is_held).tolist():
        yield _pixels(block, window, Window(row, col, 1, 1))


def _pixels(block: tuple[int, int], window: Window, blocks: Window) -> Window:
    """Return the part of a window in some blocks, counted from its first one."""
    high, wide = block
    top, left = window.row // high + blocks.row, window.col // wide + blocks.col
    size = blocks.height * high, blocks.width * wide
    return Window(top * high, left * wide, *size).intersect(window)


def _see_data(stored: NDArray[Any], bands: Bands, valid: Valid) -> None:
    """Say in `valid`, (height, width), where no band holds its nodata value."""
    valid[:] = True
    for values, band in zip(stored, bands, strict=True):
        if band.nodata is None or isnan(band.nodata):
            continue  # NaN is invalid anyway
        with np.errstate(over="ignore", invalid="ignore"):
            nodata = np.array(band.nodata).astype(values.dtype)
        if values.dtype.kind == "f" or nodata == band.nodata:
            # ^ else the type cannot hold it, and no pixel can be it
            valid &= values != nodata


def _check_exact(file: File, stored: NDArray[Any], valid: Valid) -> None:
    """Refuse integers of 64 bits that fp32 cannot hold: no measurement needs them."""
    seen = stored[:, valid]
    with np.errstate(invalid="ignore"):  # fp32 of the largest is beyond the type
        lost = seen[seen.astype(np.float32).astype(seen.dtype) != seen]
    if lost.size:
        msg = (
            f"{file.href}: holds {lost[0]} as {stored.dtype}, which fp32 cannot hold: "
            "store it as float32, or in a smaller unit"
        )
        raise UsageError(msg)


def _said(window: Window) -> str:
    return (
        f"rows {window.row} to {window.row_stop - 1}, "
        f"columns {window.col} to {window.col_stop - 1}"
    )
