"""A shard's labels and layers -> its files, and the receipt for them."""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tileseg.cards.card import NODATA
from tileseg.cards.ensemble import Ensemble
from tileseg.geobox import GeoBox
from tileseg.grid import Grid, Shard
from tileseg.masks.encode import block_side, looks, shard_bytes
from tileseg.network.picture import LabelRows
from tileseg.plans import seams
from tileseg.plans.ledger import Artifact, Receipt
from tileseg.plans.moments import moments_of
from tileseg.polygons.simplify import Manner, polygonise_simply, tolerance_of
from tileseg.scenes.area import row_hectares
from tileseg.scenes.gdal import gdal_env
from tileseg.scenes.region import Stencil
from tileseg.settings import LAYERS
from tileseg.stores.storage import Storage

__all__ = ["Maker"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Maker:
    """What a shard's files depend on, beside its pixels."""

    grid: Grid
    geobox: GeoBox
    """Of the scene."""
    ensemble: Ensemble
    polygons: bool
    simplify: float | None
    """Metres that their borders are simplified by."""
    eliminates: bool
    """Whether small ones are merged when all are there; then these are as traced."""
    folder: Storage
    """The plan's directory."""
    outline: bytes | None
    """What of the grid's area is asked for, see `Region`; None for all."""
    _stencil: Stencil | None = field(init=False)

    def __post_init__(self) -> None:
        """Unpack the outline, once."""
        stencil = Stencil(self.outline) if self.outline else None
        object.__setattr__(self, "_stencil", stencil)

    def make(
        self, shard: Shard, rows: LabelRows, *, masked: int, sketch: bytes, seen: str
    ) -> Receipt:
        """Write a shard's files; what its making took is not in the receipt.

        Args:
            shard: which one.
            rows: all of its pixels.
            masked: how many of them only a mask makes invalid.
            sketch: what of the scene is shown there, see `Sketch`.
            seen: digest of what the network saw, see `Prints`; empty for none.
        """
        window = self.grid.pixels(shard)
        box = self.geobox.crop(window)
        artifacts = {
            product: self._write_layer(shard, product, pixels, box, sketch)
            for product, pixels in {"mask": rows.labels, **rows.layers}.items()
        }
        if self.polygons:
            artifacts["polygons"] = self._write_pieces(shard, rows, box)
        pixels, hectares = _tally(rows.labels, box, len(self.ensemble.card.classes))
        outside = self._stencil and int((~self._stencil.inside(window)).sum())
        return Receipt(
            shard=shard,
            artifacts=artifacts,
            pixels=pixels,
            masked=masked,
            hectares=hectares,
            moments={name: moments_of(layer) for name, layer in rows.layers.items()},
            seams=seams.look_at(rows.labels, window, self.grid.stride),
            outside=outside or 0,
            seen=seen,
            work={},
        )

    def _write_layer(
        self,
        shard: Shard,
        product: str,
        pixels: NDArray[np.uint8],
        box: GeoBox,
        sketch: bytes,
    ) -> Artifact:
        suffix = "" if product == "mask" else f".{product}"
        look = looks(self.ensemble, LAYERS)[product]
        with gdal_env():
            data = shard_bytes(
                pixels,
                box,
                overviews=look.overviews,
                block=block_side(self.grid.shard),
                sketch=sketch if product == "mask" else b"",
            )
        return self._write(f"shards/{shard.name}{suffix}.tif", data)

    def _write_pieces(self, shard: Shard, rows: LabelRows, box: GeoBox) -> Artifact:
        manner = Manner(nodata=(NODATA,))
        if not self.eliminates:
            manner = replace(
                manner,
                left_out=self.ensemble.card.left_out,
                tolerance=tolerance_of(self.simplify, box),
            )
        window = self.grid.pixels(shard)
        pieces = polygonise_simply(rows.labels, rows.confidence, window, manner)
        return self._write(f"shards/{shard.name}.polygons.npz", pieces.to_bytes())

    def _write(self, name: str, data: bytes) -> Artifact:
        self.folder.write(name, data)
        return Artifact(name, len(data), hashlib.sha256(data).hexdigest())


def _tally(
    labels: NDArray[np.uint8], box: GeoBox, classes: int
) -> tuple[dict[int, int], dict[int, float] | None]:
    """Return pixels by mask value (nodata too) and hectares by class value."""
    # In the shortest numbers that will do, which is several times as fast.
    kind = np.min_scalar_type(labels.shape[1])
    rows = {
        value: (labels == value).sum(axis=1, dtype=kind)
        for value in (*range(classes), NODATA)
    }
    pixels = {value: int(row.sum()) for value, row in rows.items()}
    area = row_hectares(box)
    if area is None:
        return pixels, None
    return pixels, {value: float(area @ rows[value]) for value in range(classes)}
