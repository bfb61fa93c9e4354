"""What became of the classes between two runs: the areas, and where.

Streamed, twice: once to see which changes count, once to write them. Memory does not
grow with the masks but for the changes that touch seams of windows.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg import __version__
from tileseg.base.address import shown
from tileseg.cards.card import CONFIDENCE_STEPS
from tileseg.changes.changecard import as_picture
from tileseg.changes.changepage import as_page
from tileseg.changes.hysteresis import COUNTS, Patch, Rule, settle
from tileseg.changes.pair import Pair, Side, open_pair
from tileseg.changes.transitions import Ground, Tally, changed
from tileseg.errors import BusyError, UsageError
from tileseg.geobox import GeoBox
from tileseg.outputs.codes import Codes, Writer, raster
from tileseg.publishing.publish import RECORD as RUN
from tileseg.publishing.publish import (
    check_free,
    is_complete,
    list_outputs,
    published,
    staging,
)
from tileseg.scenes.area import check_lonlat, check_metres
from tileseg.scenes.ground import authority_code
from tileseg.scenes.identity import Identity
from tileseg.steps.polygonize import Wish as Polygons
from tileseg.steps.polygonize import polygonize, windows
from tileseg.stores.storage import write_whole
from tileseg.window import Window

__all__ = ["Thresholds", "Wish", "change"]

Labels = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Of both masks."""

RECORD, _RASTER = "change.json", "change.tif"
_PICTURE, _PAGE = "change.png", "change.html"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How sure both masks must be of a change, 0 to 1."""

    high: float
    """Somewhere in it."""
    low: float
    """Everywhere in it."""

    def __post_init__(self) -> None:
        """Refuse what is no pair of thresholds.

        Raises:
            UsageError: see above.
        """
        if not 0 <= self.low <= self.high <= 1:
            got = f"{self.high:g},{self.low:g}"
            msg = f"--confidence {got}: wanted HIGH,LOW with 0 <= LOW <= HIGH <= 1"
            raise UsageError(msg)

    @classmethod
    def parse(cls, text: str) -> "Thresholds":
        """Read HIGH or HIGH,LOW; without LOW it is the same.

        Raises:
            UsageError: it is something else.
        """
        if not re.fullmatch(r"[\d.]+(,[\d.]+)?", text):
            msg = f"--confidence {text}: wanted HIGH or HIGH,LOW, as in 0.8,0.5"
            raise UsageError(msg)
        try:
            high, *low = map(float, text.split(","))
        except ValueError as err:
            msg = f"--confidence {text}: {err}"
            raise UsageError(msg) from err
        return cls(high, *(low or [high]))


USUAL = Thresholds(0.8, 0.5)
"""Where nobody says any: at 0.5 a mask is rather right than wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be compared, and what counts."""

    old: Side
    """Before."""
    new: Side
    """After."""
    output: Path
    """The folder to make."""
    thresholds: Thresholds | None = None
    """None: the usual ones where a mask says how sure it is."""
    least_hectares: float = 0.0
    """Smaller changes do not count."""
    polygons: str = "gpkg"
    """Their format."""
    workers: int = 1
    """Processes that make polygons."""
    overwrite: bool = False
    """Whether another comparison may be replaced."""

    def __post_init__(self) -> None:
        """Refuse an area that is none.

        Raises:
            UsageError: see above.
        """
        if not 0 <= self.least_hectares < inf:
            msg = f"--min-area {self.least_hectares}: wanted hectares, 0 or more"
            raise UsageError(msg)


def change(wish: Wish) -> dict[str, Any]:
    """Make the folder, whole or not at all; return what its `change.json` says.

    If it holds the answer to the same question already, nothing is done.

    Raises:
        UsageError: the masks cannot be compared, or not like that.
        InputError: one cannot be read, or changed meanwhile.
        OutputError: the folder cannot be written, or holds something else.
        BusyError: it holds another comparison, or somebody else makes one.
    """
    with open_pair(wish.old, wish.new) as pair:
        ground = Ground.of(pair.box)
        rule = _rule(wish, pair, ground)
        sides = wish.old.identities(), wish.new.identities()
        facts = _facts(wish, pair)
        # Wherever the files lie, and whatever made them.
        bytes_of = [[file.facts() for file in files] for files in sides]
        question = json.dumps([__version__, facts, bytes_of])
        request = hashlib.sha256(question.encode()).hexdigest()
        _check_place(wish.output)
        held = published(wish.output, RECORD)
        if held and is_complete(wish.output, held, request, _RASTER):
            return held
        check_free(wish.output, held, request, overwrite=wish.overwrite)
        with staging(wish.output, RECORD) as folder:
            if published(wish.output, RECORD) != held:
                msg = f"{wish.output}: another run published there; run again"
                raise BusyError(msg)
            codes = Codes(pair.classes, pair.colors)
            tally = _carry_out(pair, codes, ground, rule, folder / _RASTER)
            for file in (file for side in sides for file in side):
                file.check_unchanged()
            count = _polygons(wish, codes, folder)
            old, new = pair.models
            found = {
                "version": __version__,
                "old": {**_described(wish.old, sides[0]), "model": old},
                "new": {**_described(wish.new, sides[1]), "model": new},
                **facts,
                **tally.as_dict(),
                "polygons": count,
            }
            _show(found, codes, tally, pair.box, folder)
            ids = {"status": "complete", "request_id": request, "plan_id": request}
            record = {**ids, **found, "outputs": list_outputs(folder)}
            text = json.dumps(record, indent=1, allow_nan=False)
            write_whole(folder / RECORD, text.encode())
    return record


def _show(
    found: dict[str, Any], codes: Codes, tally: Tally, box: GeoBox, folder: Path
) -> None:
    """Make the picture and the page of what was found."""
    write_whole(folder / _PICTURE, as_picture(found, codes, tally.map))
    beside = {it.name: it.stat().st_size for it in sorted(folder.iterdir())}
    write_whole(folder / _PAGE, as_page(found, codes, tally, box, beside))


# What is asked


def _check_place(output: Path) -> None:
    """Refuse a folder within a run's, which would hold more than it lists.

    Raises:
        UsageError: see above.
    """
    for parent in output.resolve().parents:
        if (parent / RUN).is_file():
            msg = f"--output {output}: lies in {parent}, a run's output; choose another"
            raise UsageError(msg)


def _rule(wish: Wish, pair: Pair, ground: Ground) -> Rule:
    """Return what counts, in the units that pixels have.

    Raises:
        UsageError: that cannot be said of these masks.
    """
    if wish.thresholds and wish.thresholds.high and not pair.has_confidence:
        msg = (
            f"--confidence: neither {wish.old.mask} nor {wish.new.mask} has a "
            "confidence.tif beside it; segment with --confidence, or leave it out"
        )
        raise UsageError(msg)
    if wish.least_hectares:
        check_metres(pair.box, wish.old.mask, "--min-area")
    if wish.polygons in ("geojson", "geojsonl"):
        check_lonlat(pair.box, wish.old.mask)
    high, low = (_steps(share) for share in _thresholds(wish, pair))
    least = wish.least_hectares / (ground.hectares or 1)
    return Rule(high=high, low=low, least=round(least))


def _thresholds(wish: Wish, pair: Pair) -> tuple[float, float]:
    """Return HIGH and LOW; 0 where no mask says how sure it is."""
    usual = USUAL if pair.has_confidence else Thresholds(0, 0)
    found = wish.thresholds or usual
    return found.high, found.low


def _steps(share: float) -> int:
    """Return the least stored confidence that is at least `share`."""
    return ceil(round(share * CONFIDENCE_STEPS, 9))


def _described(side: Side, files: Sequence[Identity]) -> dict[str, Any]:
    """Return what is said of a mask."""
    known = {"mask": shown(side.mask), "files": [file.facts() for file in files]}
    return asdict(side) | known


def _facts(wish: Wish, pair: Pair) -> dict[str, Any]:
    """Return what decides the answer beside the files' bytes."""
    high, low = _thresholds(wish, pair)
    box = pair.box
    return {
        "classes": list(pair.classes),
        "grid": {
            "width": box.width,
            "height": box.height,
            "code": authority_code(box.crs),
            "wkt2": box.crs,
            "transform": list(box.transform[:6]),
        },
        "rule": {
            "high": high,
            "low": low,
            "least_hectares": wish.least_hectares,
            "neighbours": 4,
        },
        "format": wish.polygons,
    }


# How it is found


def _carry_out(
    pair: Pair, codes: Codes, ground: Ground, rule: Rule, path: Path
) -> Tally:
    """Write the raster of changes; return what was counted."""

    def rows() -> Iterator[list[Window]]:
        return windows(pair.box, pair.block)

    def look(window: Window) -> tuple[Labels, NDArray[Any], Patch]:
        """Return a window's labels, their codes, and the pieces that may count."""
        labels, sure = pair.labels(window), pair.sure(window)
        found = codes.of(*labels)
        may_count = changed(found, codes) & (sure >= rule.low)
        pieces = np.where(may_count, found, codes.nodata).astype(codes.dtype)
        sizes = ground.parts[window.slices[0]]
        patch = Patch.of(pieces, sure, sizes, window=window, void=codes.nodata)
        return labels, found, patch

    verdicts = settle(((look(at)[-1] for at in row) for row in rows()), rule)
    tally = Tally(pair.box, codes, ground)
    with raster(path, pair.box, codes) as file:
        for window in (at for row in rows() for at in row):
            labels, found, patch = look(window)
            outcome = np.where(changed(found, codes), verdicts.of(patch), COUNTS)
            _write(file, codes, found, outcome, window)
            tally.add(found, outcome, window)
            tally.see(labels, window)
        file.name(tally.found, pair.anchor)
    return tally


def _write(
    file: Writer,
    codes: Codes,
    found: NDArray[Any],
    outcome: NDArray[np.uint8],
    window: Window,
) -> None:
    left_out = np.array([0, codes.undecided, codes.too_small], codes.dtype)
    file.write(np.where(outcome == COUNTS, found, left_out[outcome]), window)


# Polygons


def _polygons(wish: Wish, codes: Codes, folder: Path) -> int:
    """Make those of what changed; return their number."""
    texts: Mapping[str, dict[int, str]] = {"from": {}, "to": {}}
    for code in codes.changes:
        texts["from"][code], texts["to"][code] = codes.pair(code)
    wanted = Polygons(
        mask=str(folder / _RASTER),
        output=folder / f"change.{wish.polygons}",
        without=codes.others,
        texts=texts,
        workers=wish.workers,
    )
    return polygonize(wanted)
