"""What is known of the ground, on the grid of a mask: a raster, polygons or points."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS as RasterioCRS  # noqa: N811  (pyproj has a CRS too)
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT

from tileseg.cards.card import NODATA
from tileseg.errors import InputError, UsageError
from tileseg.geobox import GeoBox
from tileseg.scenes.gdal import GDAL_ERRORS, gdal_env, hidden, open_dataset
from tileseg.scenes.vectors import Features, read_features
from tileseg.window import Window

__all__ = [
    "Points",
    "Reference",
    "class_names",
    "class_tags",
    "named_classes",
    "open_reference",
]

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TAG = "CLASS_"


class Reference(Protocol):
    """The true class of pixels."""

    def labels(self, window: Window) -> NDArray[np.uint8]:
        """Return classes of a window of the mask, 255 where nothing is known."""


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Places with a true class: a sample."""

    rows: NDArray[np.int64]
    """(n,), of the mask's pixels."""
    cols: NDArray[np.int64]
    """(n,)."""
    classes: NDArray[np.uint8]
    """(n,)."""

    def within(self, window: Window) -> tuple[Any, Any, Any]:
        """Return rows and columns, counted from the window's first, and classes."""
        rows, cols = self.rows - window.row, self.cols - window.col
        is_in = (rows >= 0) & (rows < window.height)
        is_in &= (cols >= 0) & (cols < window.width)
        is_in &= self.classes != NODATA
        return rows[is_in], cols[is_in], self.classes[is_in]


@dataclass(frozen=True, slots=True)
class Legend:
    """What the reference's values are called in the mask."""

    path: str
    """Of the reference, for messages."""
    names: tuple[str, ...]
    """The mask's classes, in the order of their values."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """A value or name of the reference -> that of the mask; none: as it is."""

    def __call__(self, value: object) -> int:
        """Return the mask's value of a reference's; 255 of nothing.

        Raises:
            UsageError: the mask has no such class.
        """
        if value is None or value != value:  # noqa: PLR0124  (NaN)
            return NODATA
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = self.renamed.get(str(value), str(value))
        if text in self.names:
            return self.names.index(text)
        if text.isdecimal() and (int(text) < len(self.names) or int(text) == NODATA):
            return int(text)
        known = ", ".join(f"{n} {name}" for n, name in enumerate(self.names))
        renamed = f", renamed {text!r}," if text != str(value) else ""
        msg = (
            f"{self.path}: class {value!r}{renamed} is not one of {known}; say which "
            f"of these it is, or 255 for none: --rename {value}=CLASS"
        )
        raise UsageError(msg)


def class_names(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Return the class names of a raster of ours, in the order of their values."""
    found = class_tags(tags)
    return tuple(found[value] for value in sorted(found))


def class_tags(tags: Mapping[str, str]) -> dict[int, str]:
    """Return the classes that a raster's tags name, value to name."""
    return {
        int(number): name
        for key, name in tags.items()
        if key.startswith(_TAG) and (number := key.removeprefix(_TAG)).isdecimal()
    }


def named_classes(path: str, column: str) -> tuple[str, ...]:
    """Return the classes that a reference itself names, none if it has numbers only.

    Args:
        path: see `open_reference`.
        column: the vector file's.

    Returns:
        Of a raster of ours, in the order of their values; of vectors, of the alphabet.

    Raises:
        InputError: it cannot be read.
    """
    if _begins(path).startswith(_TIFF):
        try:
            with gdal_env(), open_dataset(path) as dataset:
                return class_names(dataset.tags())
        except GDAL_ERRORS as err:
            msg = f"{path}: cannot be read as a raster of classes: {err}"
            raise InputError(msg) from err
    values = read_features(path, path, column=column).values or ()
    return tuple(sorted({value for value in values if isinstance(value, str)}))


@contextmanager
def open_reference(
    path: str,
    box: GeoBox,
    names: Sequence[str],
    renamed: Mapping[str, str],
    column: str,
) -> Iterator[Reference | Points]:
    """Open what is known of the ground where a mask lies.

    Args:
        path: a GeoTIFF of classes on any grid, which is read by its nearest pixel; or
            GeoJSON, GeoPackage, FlatGeobuf or GeoParquet of polygons or of points.
        box: the mask's grid.
        names: the mask's classes.
        renamed: values or names of the reference -> of the mask.
        column: the vector file's, with values or names.

    Raises:
        InputError: it cannot be read.
        UsageError: a class is not in the mask, or a point outside it.
    """
    legend = Legend(path, tuple(names), renamed)
    if _begins(path).startswith(_TIFF):
        with gdal_env(), _raster(path, box, legend) as raster:
            yield raster
        return
    features = _placed(read_features(path, path, column=column), box, path)
    values = np.array([legend(value) for value in features.values or ()], np.uint8)
    kinds = set(shapely.get_type_id(features.geometries).tolist())
    if kinds <= {shapely.GeometryType.POINT}:
        yield _points(features.geometries, values, box, path)
    elif kinds <= {shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON}:
        yield _Polygons(features.geometries, values)
    else:
        msg = f"{path}: wanted polygons only, or points only"
        raise UsageError(msg)


def _begins(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(4)
    except OSError as err:
        msg = f"{path}: cannot be read: {err.strerror}"
        raise InputError(msg) from err


# Rasters


@contextmanager
def _raster(path: str, box: GeoBox, legend: Legend) -> Iterator["_Raster"]:
    try:
        with open_dataset(path) as dataset:
            if not np.issubdtype(np.dtype(dataset.dtypes[0]), np.integer):
                msg = f"{path}: wanted whole numbers, got {dataset.dtypes[0]}"
                raise UsageError(msg)
            tagged = class_tags(dataset.tags())
            nodata = dataset.nodata
            with _warped(dataset, box, path) as there:
                yield _Raster(there, path, legend, tagged, nodata)
    except (*GDAL_ERRORS, CRSError) as err:
        msg = f"{path}: cannot be read as a raster of classes: {err}"
        raise InputError(msg) from err


@contextmanager
def _warped(dataset: Any, box: GeoBox, path: str) -> Iterator[Any]:  # noqa: ANN401  (rasterio is untyped)
    """Yield the dataset on the mask's grid."""
    here = dataset.transform, dataset.shape
    is_one_grid = here == (box.transform, (box.height, box.width))
    # The same numbers in another zone are another place: of Sentinel-2's tiles, say.
    if is_one_grid and _is_one_crs(dataset.crs, box.crs):
        yield dataset
        return
    if box.crs is None or dataset.crs is None:
        msg = f"{path}: is on another grid than its raster, and not both have a CRS"
        raise UsageError(msg)
    has_alpha = ColorInterp.alpha in dataset.colorinterp
    with WarpedVRT(
        dataset, crs=box.crs, transform=box.transform, height=box.height,
        width=box.width, resampling=Resampling.nearest, add_alpha=not has_alpha,
    ) as there:  # fmt: skip
        yield there


def _is_one_crs(crs: Any, wkt: str | None) -> bool:  # noqa: ANN401  (rasterio is untyped)
    """Return whether two are the same, or one of them is not known."""
    return crs is None or wkt is None or crs == RasterioCRS.from_wkt(wkt)


class _Raster:
    """A raster of classes on the mask's grid."""

    def __init__(
        self,
        dataset: Any,  # noqa: ANN401  (rasterio is untyped)
        path: str,
        legend: Legend,
        tagged: Mapping[int, str],
        nodata: float | None,
    ) -> None:
        self._dataset, self._path, self._nodata = dataset, path, nodata
        self._legend, self._tagged = legend, tagged
        self._known: dict[int, int] = {}

    def labels(self, window: Window) -> NDArray[np.uint8]:
        stored = self._dataset.read(1, window=window.slices)
        unseen = hidden(self._dataset, window)  # by its alpha, where it was warped
        is_known = np.ones(stored.shape, np.bool_) if unseen is None else ~unseen
        if self._nodata is not None:
            is_known &= stored != self._nodata
        labels = np.full(stored.shape, NODATA, np.uint8)
        for value in np.unique(stored[is_known]).tolist():
            if value not in self._known:
                self._known[value] = self._class(value)
            labels[is_known & (stored == value)] = self._known[value]
        return labels

    def _class(self, value: int) -> int:
        """Return the mask's class of a stored value; its own tags name it first."""
        name = self._tagged.get(value)
        if name is not None and str(value) not in self._legend.renamed:
            return self._legend(name)
        return self._legend(value)


# Polygons and points


def _placed(features: Features, box: GeoBox, path: str) -> Features:
    """Return features in the mask's pixels: x is the column, y the row."""
    is_there = ~(
        shapely.is_missing(features.geometries) | shapely.is_empty(features.geometries)
    )
    geometries = shapely.force_2d(features.geometries[is_there])
    if not len(geometries):
        msg = f"{path}: holds no geometry"
        raise UsageError(msg)
    if box.crs is None:
        msg = f"{path}: its raster has no CRS, so nothing can be found in it"
        raise UsageError(msg)
    try:
        move = Transformer.from_crs(features.crs, CRS.from_wkt(box.crs), always_xy=True)
    except ProjError as err:
        msg = f"{path}: nothing leads from its CRS to its raster's: {err}"
        raise UsageError(msg) from err
    inverse = ~box.transform

    def place(at: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = move.transform(*at.T)
        return np.stack(inverse @ (np.asarray(x), np.asarray(y)), axis=1)

    moved = shapely.transform(geometries, place)
    values = tuple(
        v for v, there in zip(features.values or (), is_there, strict=True) if there
    )
    return Features(moved, features.crs, values)


class _Polygons:
    """Polygons with classes; where they overlap the later one counts."""

    def __init__(self, shapes: NDArray[Any], values: NDArray[np.uint8]) -> None:
        self._shapes, self._values = shapes, values
        self._tree = shapely.STRtree(shapes)

    def labels(self, window: Window) -> NDArray[np.uint8]:
        shape = window.height, window.width
        box = shapely.box(window.col, window.row, window.col_stop, window.row_stop)
        hits = np.sort(self._tree.query(box))
        if not len(hits):
            return np.full(shape, NODATA, np.uint8)
        burnt = zip(self._shapes[hits], self._values[hits].tolist(), strict=True)
        corner = Affine.translation(window.col, window.row)
        labels: NDArray[np.uint8] = rasterize(
            burnt, out_shape=shape, fill=NODATA, transform=corner, dtype="uint8"
        )
        return labels


def _points(
    places: NDArray[Any], values: NDArray[np.uint8], box: GeoBox, path: str
) -> Points:
    at = np.floor(shapely.get_coordinates(places))
    limits = box.width, box.height
    is_in = ((at >= 0) & (at < limits)).all(axis=1)  # NaN is not
    if not is_in.all():
        msg = (
            f"{path}: {int((~is_in).sum())} of {len(at)} points lie outside its raster"
        )
        raise UsageError(msg)
    cols, rows = at.astype(np.int64).T
    return Points(rows, cols, values)
