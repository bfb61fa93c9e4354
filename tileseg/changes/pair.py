"""Two masks on one grid and with the same classes: found, opened, read, refused."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.base.address import is_address, shown
from tileseg.base.classes import LandClass, color_of
from tileseg.cards.card import CONFIDENCE_STEPS, NODATA
from tileseg.errors import InputError, UsageError
from tileseg.evaluation.evaluate import check_labels, mask_classes
from tileseg.geobox import GeoBox
from tileseg.scenes.gdal import GDAL_ERRORS, gdal_env, hidden, open_dataset
from tileseg.scenes.identity import Identity, look
from tileseg.window import Window

__all__ = ["Pair", "Side", "find", "open_pair"]

_OFF = 1e-6  # pixels by which grids may differ

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two masks, and what is known beside it."""

    mask: str
    """A local path or an address."""
    confidence: str | None = None
    """A confidence raster of its grid."""
    plan: str | None = None
    """Of the run that made it."""

    def identities(self) -> tuple[Identity, ...]:
        """Return what the bytes of its files are, the mask's first.

        Raises:
            InputError: one cannot be read.
        """
        files = self.mask, *((self.confidence,) if self.confidence else ())
        return tuple(look(file, None) for file in files)


def find(text: str) -> Side:
    """Return what a folder of a run holds, or what lies beside a mask.

    A confidence belongs to a mask if it is `confidence.tif` beside `mask.tif`.

    Raises:
        InputError: a folder has no mask.
    """
    if is_address(text):
        return Side(text)
    path = Path(text)
    if path.is_dir():
        path /= "mask.tif"
        if not path.is_file():
            msg = f"{text}: has no mask.tif; wanted the output of a run, or a mask"
            raise InputError(msg)
    beside = path.with_name("confidence.tif")
    is_ours = path.name == "mask.tif"
    confidence = str(beside) if is_ours and beside.is_file() else None
    return Side(str(path), confidence, _plan(path) if is_ours else None)


def _plan(mask: Path) -> str | None:
    """Return the plan that made a mask, if a record beside it says so."""
    try:
        record = json.loads(mask.with_name("run.json").read_text(encoding="utf-8"))
        return str(record["plan_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def open_pair(old: Side, new: Side) -> Iterator["Pair"]:
    """Open two masks and their confidences.

    Raises:
        InputError: a file cannot be read.
        UsageError: they do not lie on one grid, or have other classes.
    """
    with ExitStack() as stack:
        stack.enter_context(gdal_env())
        first, second = (_Mask.open(side, stack) for side in (old, new))
        _check_grids(first, second)
        _check_classes(first, second)
        yield Pair(first, second)


@dataclass(frozen=True, slots=True, eq=False)
class _Mask:
    """A mask that is open."""

    side: Side
    dataset: Any
    confidence: Any
    """None where there is none."""
    box: GeoBox
    classes: tuple[str, ...]
    """In the order of its values."""

    @classmethod
    def open(cls, side: Side, stack: ExitStack) -> "_Mask":
        dataset = _opened(side.mask, stack)
        classes = mask_classes(shown(side.mask), dataset)
        if dataset.gcps[0] and dataset.transform.is_identity:
            msg = (
                f"{shown(side.mask)}: is placed by control points, wanted a transform; "
                "segment its scene with `crs` in a job file"
            )
            raise UsageError(msg)
        box, confidence = _box(dataset), None
        if side.confidence:
            confidence = _opened(side.confidence, stack)
            if (_box(confidence), confidence.dtypes[0]) != (box, "uint8"):
                msg = f"{side.confidence}: is not a confidence raster of {side.mask}"
                raise UsageError(msg)
        return cls(side, dataset, confidence, box, classes)

    def colors(self) -> tuple[Color, ...]:
        """Return those of its classes; of a mask without any some."""
        try:
            table = self.dataset.colormap(1)
        except ValueError:
            table = {}
        plain = (LandClass(n, name, color_of(n)) for n, name in enumerate(self.classes))
        return tuple(table.get(item.value, item.rgb)[:3] for item in plain)

    def model(self) -> dict[str, str] | None:
        """Return what its tags say of the model that made it."""
        tags = self.dataset.tags()
        if "MODEL" not in tags:
            return None
        return {"name": tags["MODEL"], "sha256": tags.get("MODEL_SHA256", "")}

    def labels(self, window: Window, names: tuple[str, ...]) -> NDArray[np.uint8]:
        """Return numbers among `names`, 255 for none."""
        stored = _read(self.dataset, self.side.mask, window)
        check_labels(shown(self.side.mask), stored, len(self.classes))
        table = np.full(NODATA + 1, NODATA, np.uint8)
        table[: len(self.classes)] = [names.index(name) for name in self.classes]
        if self.dataset.nodata in range(NODATA):
            table[int(self.dataset.nodata)] = NODATA
        labels: NDArray[np.uint8] = table[stored]
        return labels

    def sure(self, window: Window) -> NDArray[np.uint8]:
        """Return its confidence in steps, 0 where that says nothing."""
        if self.confidence is None:
            return np.full((window.height, window.width), CONFIDENCE_STEPS, np.uint8)
        stored = _read(self.confidence, str(self.side.confidence), window)
        return np.where(stored <= CONFIDENCE_STEPS, stored, 0).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two masks, read window by window."""

    old: _Mask
    """Before."""
    new: _Mask
    """After."""

    @property
    def box(self) -> GeoBox:
        """The grid of both."""
        return self.old.box

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of a block of the old mask."""
        height, width = self.old.dataset.block_shapes[0]
        return height, width

    @property
    def classes(self) -> tuple[str, ...]:
        """Of both, in the order of the old one's values, none twice."""
        return tuple(dict.fromkeys(self.old.classes))

    @property
    def colors(self) -> tuple[Color, ...]:
        """Of each class, as the old mask has it."""
        named = zip(self.old.classes, self.old.colors(), strict=True)
        first = dict(reversed(list(named)))
        return tuple(first[name] for name in self.classes)

    @property
    def anchor(self) -> dict[str, str]:
        """What the old mask's tags say of where in a pixel its place is."""
        tags = self.old.dataset.tags()
        return {key: tags[key] for key in ("AREA_OR_POINT",) if key in tags}

    @property
    def models(self) -> tuple[dict[str, str] | None, dict[str, str] | None]:
        """What each mask's tags say of the model that made it; None for nothing."""
        old, new = (mask.model() for mask in (self.old, self.new))
        return old, new

    @property
    def has_confidence(self) -> bool:
        """Whether at least one of them says how certain it is."""
        return bool(self.old.side.confidence or self.new.side.confidence)

    def labels(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return both masks as numbers among `classes`, 255 for none.

        Raises:
            InputError: one cannot be read.
            UsageError: it holds a value that no class has.
        """
        old, new = (mask.labels(window, self.classes) for mask in (self.old, self.new))
        return old, new

    def sure(self, window: Window) -> NDArray[np.uint8]:
        """Return the lesser of both confidences, in steps of 1/254.

        A mask that does not say how certain it is counts as certain.
        """
        return np.minimum(self.old.sure(window), self.new.sure(window))


def _opened(path: str, stack: ExitStack) -> Any:  # noqa: ANN401  (rasterio is untyped)
    try:
        return stack.enter_context(open_dataset(path))
    except GDAL_ERRORS as err:
        msg = f"{shown(path)}: cannot be read as a mask: {err}"
        raise InputError(msg) from err


def _box(dataset: Any) -> GeoBox:  # noqa: ANN401  (rasterio is untyped)
    try:
        crs = dataset.crs.to_wkt(version="WKT2_2019") if dataset.crs else None
    except ValueError as err:  # rasterio's CRSError
        msg = f"{dataset.name}: has a CRS that cannot be read: {err}"
        raise InputError(msg) from err
    return GeoBox(dataset.height, dataset.width, dataset.transform, crs)


def _read(dataset: Any, path: str, window: Window) -> NDArray[np.uint8]:  # noqa: ANN401  (rasterio is untyped)
    try:
        pixels: NDArray[np.uint8] = dataset.read(1, window=window.slices)
        if (unseen := hidden(dataset, window)) is not None:
            pixels[unseen] = NODATA
    except GDAL_ERRORS as err:
        msg = f"{shown(path)}: {window} cannot be read: {err}"
        raise InputError(msg) from err
    return pixels


def _check_grids(old: _Mask, new: _Mask) -> None:
    """Refuse masks whose pixels do not lie on each other."""
    one, other = old.box, new.box
    faults = {
        "size": ((one.width, one.height), (other.width, other.height)),
        "CRS": (old.dataset.crs, new.dataset.crs),
        "transform": (one.transform[:6], other.transform[:6]),
    }
    if _lie_alike(one, other):
        del faults["transform"]
    for what, (wanted, got) in faults.items():
        if got != wanted:
            msg = (
                f"{shown(new.side.mask)}: got {what} {_words(got)}, wanted "
                f"{_words(wanted)} of {shown(old.side.mask)}; segment both scenes on "
                "one grid (`crs` and `resolution` in a job file)"
            )
            raise UsageError(msg)


def _lie_alike(one: GeoBox, other: GeoBox) -> bool:
    """Return whether the corners are the same to a millionth of a pixel."""
    move = ~one.transform @ other.transform
    corners = [(x, y) for x in (0, one.width) for y in (0, one.height)]
    moved = np.array([move @ corner for corner in corners])
    return bool((abs(moved - corners) < _OFF).all())


def _words(value: Any) -> str:  # noqa: ANN401  (sizes, CRSs, transforms)
    if isinstance(value, tuple):
        return " ".join(f"{number:.12g}" for number in value)
    return "none" if value is None else value.to_string().splitlines()[0][:80]


def _check_classes(old: _Mask, new: _Mask) -> None:
    """Refuse masks of which one has a class that the other has not."""
    wanted, got = set(old.classes), set(new.classes)
    if got != wanted:
        more = ", ".join(sorted(got - wanted)) or "none"
        less = ", ".join(sorted(wanted - got)) or "none"
        msg = (
            f"{shown(new.side.mask)}: got other classes (more: {more}; less: {less}), "
            f"wanted those of {shown(old.side.mask)}; compare runs of models with the "
            "same classes"
        )
        raise UsageError(msg)
