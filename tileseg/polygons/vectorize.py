"""Masks -> polygons: the pieces of one shard, which its worker makes.

All of it in integer scene pixels (x = column, y = row), so that it is exact; where
they lie on the ground comes last and is not known here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from tileseg.polygons.outlines import Indices, Outlines, ends_of, spread
from tileseg.polygons.trace import Spans, trace
from tileseg.window import Window

__all__ = ["Areas", "Pieces", "Sureness", "polygonise"]

_ORIGIN = np.zeros((1, 2), np.int32)
_BORDERS = ("top", "bottom", "left", "right")


@dataclass(frozen=True, slots=True, eq=False)
class Sureness:
    """What the confidence layer says of the pixels of each area."""

    total: NDArray[np.int64]
    """(n,) sums of it."""
    least: NDArray[np.uint8]
    """(n,) its least value."""


@dataclass(frozen=True, slots=True, eq=False)
class Areas:
    """Connected pixels of equal class: of a scene, or what a shard has of them."""

    outlines: Outlines
    """(n,), in scene pixels."""
    classes: NDArray[Any]
    """(n,) values of the mask."""
    pixels: Indices
    """(n,) how many are connected, whatever the outlines are simplified to."""
    last: Indices
    """(n,) numbers that grow with the last of these pixels, row by row."""
    sureness: Sureness | None = None
    """None if there is no confidence."""

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def joined(cls, parts: Sequence["Areas"]) -> "Areas":
        """Return all of one or more parts, one part after the other."""
        known = [part.sureness for part in parts if part.sureness]
        return cls(
            Outlines.joined([part.outlines for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.last for part in parts]),
            Sureness(
                np.concatenate([item.total for item in known]),
                np.concatenate([item.least for item in known]),
            )
            if known
            else None,
        )

    def take(self, index: NDArray[Any] | slice) -> "Areas":
        """Return some, as `index` takes them from an array."""
        sure = self.sureness
        return Areas(
            self.outlines.take(index),
            self.classes[index],
            self.pixels[index],
            self.last[index],
            sure and Sureness(sure.total[index], sure.least[index]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The pieces of one shard, and which of them its borders meet."""

    areas: Areas
    """In row-major order of their first pixels."""
    window: Window
    """The shard's pixels in the scene."""
    top: NDArray[np.int32]
    """(width,) the piece of each pixel of the first row, -1 where there is none."""
    bottom: NDArray[np.int32]
    """(width,) the same of the last row."""
    left: NDArray[np.int32]
    """(height,) the same of the first column."""
    right: NDArray[np.int32]
    """(height,) the same of the last column."""

    @property
    def numbers(self) -> NDArray[np.int32]:
        """(height, width) the piece of each pixel, -1 where there is none; as traced.

        Right of a side that leads down a piece begins, of one that leads up it ends.
        """
        outlines, box = self.areas.outlines, self.window
        here = outlines.vertices - (box.col, box.row)
        down = here[outlines.after, 1] - here[:, 1]
        sides = np.diff(outlines.begins, append=len(here))
        owner = np.repeat(np.arange(1, len(sides) + 1, dtype=np.int32), sides)
        steps = np.zeros((box.height, box.width + 1), np.int32)
        for way in (1, -1):
            side = np.flatnonzero(way * down > 0)
            count = abs(down[side]).astype(np.int64)
            rows = spread(here[side, 1] + np.minimum(down[side], 0), count)
            # Of one way no two are at one place: each adds its own.
            steps[rows, np.repeat(here[side, 0], count)] += way * np.repeat(
                owner[side], count
            )
        return np.cumsum(steps, axis=1, dtype=np.int32)[:, :-1] - np.int32(1)

    def to_bytes(self) -> bytes:
        """Return a file of them: NumPy's .npz; the same pieces give the same bytes."""
        areas, box = self.areas, self.window
        outlines, sure = areas.outlines, areas.sureness
        arrays = {
            "window": np.array([box.row, box.col, box.height, box.width]),
            # From one corner to the next: small numbers, which pack well.
            "steps": np.diff(outlines.vertices, axis=0, prepend=_ORIGIN),
            "rings": np.diff(outlines.rings),
            "polygons": np.diff(outlines.polygons),
            "classes": areas.classes,
            "pixels": areas.pixels,
            "last": areas.last,
            **{side: getattr(self, side) for side in _BORDERS},
        }
        if sure:
            arrays |= {"total": sure.total, "least": sure.least}
        buffer = BytesIO()
        with ZipFile(buffer, "w", ZIP_DEFLATED, compresslevel=1) as file:
            for name, values in arrays.items():
                packed = BytesIO()
                np.save(packed, values)
                entry = ZipInfo(f"{name}.npy")  # of 1980, always
                file.writestr(entry, packed.getvalue(), ZIP_DEFLATED, 1)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Pieces":
        """Rebuild what `to_bytes` gave."""
        with np.load(BytesIO(data), allow_pickle=False) as file:
            known = dict(file)
        outlines = Outlines(
            np.cumsum(known["steps"], axis=0, dtype=np.int32),
            ends_of(known["rings"]),
            ends_of(known["polygons"]),
        )
        sure = Sureness(known["total"], known["least"]) if "total" in known else None
        areas = Areas(outlines, known["classes"], known["pixels"], known["last"], sure)
        borders = {side: known[side] for side in _BORDERS}
        return cls(areas, Window(*known["window"].tolist()), **borders)

    def without(self, values: Collection[int]) -> "Pieces":
        """Return them but for those of some classes."""
        is_left = np.isin(self.areas.classes, list(values), invert=True)
        # Of each piece, and of none: -1 is the last.
        number = np.append(np.where(is_left, np.cumsum(is_left) - 1, -1), -1)
        borders = (number[getattr(self, side)] for side in _BORDERS)
        kept = self.areas.take(is_left)
        return Pieces(kept, self.window, *(it.astype(np.int32) for it in borders))


def polygonise(
    labels: NDArray[Any],
    confidence: NDArray[np.uint8] | None,
    window: Window,
    *,
    left_out: Collection[int],
) -> Pieces:
    """Return the 4-connected pieces of equal class of one shard.

    Every pixel whose class is not left out lies in exactly one of them.

    Args:
        labels: the shard's mask, (height, width), of uint8 or uint16.
        confidence: the same shape; None if there is none.
        window: the shard's pixels in the scene.
        left_out: mask values that get no polygon.
    """
    spans = Spans.of(*_with_margin(labels, left_out))
    outlines, numbers = trace(spans), spans.piece[spans.number[1:-1, 1:-1]]
    outlines = outlines.moved(window.col, window.row)
    first = spans.labels.ravel()[spans.first]
    sure = None if confidence is None else _sureness(spans, confidence)
    pixels, last = outlines.pixels.astype(np.int64), outlines.last_pixels
    return Pieces(
        Areas(outlines, first.astype(labels.dtype), pixels, last, sure),
        window,
        top=numbers[0],
        bottom=numbers[-1],
        left=numbers[:, 0],
        right=numbers[:, -1],
    )


def _with_margin(
    labels: NDArray[Any], left_out: Collection[int]
) -> tuple[NDArray[Any], int]:
    """Return labels with a margin, and what stands there and for what is left out."""
    if not left_out:  # any value may be a class
        return np.pad(labels.astype(np.int32), 1, constant_values=-1), -1
    void, *others = left_out
    if others:
        labels = np.where(np.isin(labels, others), labels.dtype.type(void), labels)
    return np.pad(labels, 1, constant_values=void), void


def _sureness(spans: Spans, confidence: NDArray[np.uint8]) -> Sureness:
    """Sum up each piece's confidence, span by span."""
    layer, begins = np.pad(confidence, 1).ravel(), spans.begins
    is_piece = spans.piece >= 0
    piece = spans.piece[is_piece]
    sums = np.add.reduceat(layer, begins, dtype=np.int64)[is_piece]
    least = np.full(len(spans.first), np.iinfo(np.uint8).max, np.uint8)
    np.minimum.at(least, piece, np.minimum.reduceat(layer, begins)[is_piece])
    total = np.bincount(piece, sums, len(least))
    return Sureness(total.astype(np.int64), least)
