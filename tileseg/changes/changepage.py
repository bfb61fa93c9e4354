"""`change.html`: what changed between two runs, as one page that needs nothing else."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from tileseg.cards.card import NODATA
from tileseg.changes.transitions import FIRST, Tally
from tileseg.geobox import GeoBox
from tileseg.masks.overview import Pixels, nearest
from tileseg.outputs.codes import Codes, Color
from tileseg.outputs.overlay import fitted
from tileseg.outputs.page import crs_name, render
from tileseg.scenes.area import pixel_metres

__all__ = ["as_page"]

_BYTES = 700_000  # of each raster when packed, at most
_NAMED = 40  # changes with a colour and a line of their own, the largest
_WRITTEN = 20  # classes whose matrix can be read
_LEVELS = 5  # shades of the matrix
_MUCH = 0.5  # share of what differs that is left undecided, from where to say so
_KNOWN = "unchanged", "changed", "undecided", "too_small"  # to both masks
_SAME, _LEFT_OUT, _OTHERS = 0, 1, 2  # of the layer of changes; those named follow
_GREY: Color = (120, 120, 120)  # of changes that have no colour of their own


def as_page(
    record: Mapping[str, Any],
    codes: Codes,
    tally: Tally,
    box: GeoBox,
    outputs: Mapping[str, int],
) -> bytes:
    """Return the page.

    Args:
        record: what `change.json` says.
        codes: of the raster.
        tally: what was counted, and its maps.
        box: the grid of both masks.
        outputs: name to size in bytes of the files beside the page.
    """
    unit, table = ("px", record["pixels"])
    if record["hectares"] is not None:
        unit, table = "ha", record["hectares"]
    named = _largest(codes, table)
    classes = [
        {"value": at, "name": name, "color": _hex(codes.colors[at])}
        for at, name in enumerate(codes.classes)
    ]
    changes = list(_legend(codes, table, named))
    chart = _chart(tally, box, codes, named)
    return render(
        "change.html",
        {
            "chart": chart,
            "legends": {
                "old": _by_value(classes),
                "new": _by_value(classes),
                "change": _by_value(changes),
            },
            "failures": [],
        },
        {
            "record": record,
            "title": " to ".join(_names(record)),
            "table": table,
            "unit": unit,
            "known": sum(table[name] for name in _KNOWN),
            "classes": classes,
            "changes": changes,
            "matrix": list(_rows(record["classes"], table)),
            "balance": list(_balance(classes, table)),
            "is_written": len(codes.classes) <= _WRITTEN,
            "warnings": list(_warnings(record)),
            "outputs": outputs,
            "crs": crs_name(record["grid"]["wkt2"]),
            "step": tally.cell,
        },
    )


def _names(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return what both are called: their folders, as far as these tell them apart."""
    masks = [record[side]["mask"] for side in ("old", "new")]
    short = [_name(PurePosixPath(it)) for it in masks]
    old, new = short if all(short) and short[0] != short[1] else masks
    return old, new


def _name(mask: PurePosixPath) -> str:
    """Return the name of a mask's folder; of a kept version its scene, and when."""
    if mask.name != "mask.tif":
        return mask.name
    name, home = mask.parent.name, mask.parent.parent
    is_kept = home.suffix == ".versions"
    return f"{home.stem} {name.partition('-')[0]}" if is_kept else name


def _largest(codes: Codes, table: Mapping[str, Any]) -> list[int]:
    """Return the codes of the largest changes that there are."""
    sizes = np.array(table["matrix"], float).ravel()
    found = [code for code in codes.changes if sizes[code]]
    return sorted(found, key=lambda code: (-sizes[code], code))[:_NAMED]


def _legend(
    codes: Codes, table: Mapping[str, Any], named: list[int]
) -> Iterator[dict[str, Any]]:
    """Yield a line for every value of the layer of changes."""
    sizes = np.array(table["matrix"]).ravel()
    for at, code in enumerate(named, start=_OTHERS + 1):
        size = sizes[code].item()
        yield _line(at, codes.name(code), codes.color(code), size, is_change=True)
    others = table["changed"] - sum(sizes[code].item() for code in named)
    if len([code for code in codes.changes if sizes[code]]) > len(named):
        yield _line(_OTHERS, "other changes", _GREY, others, is_change=True)
    left_out = table["undecided"] + table["too_small"]
    if left_out:
        grey = codes.color(codes.undecided)
        yield _line(_LEFT_OUT, "undecided or too small", grey, left_out)
    yield _line(_SAME, "unchanged", codes.color(0), table["unchanged"])


def _line(
    value: int, name: str, color: Color, size: float, *, is_change: bool = False
) -> dict[str, Any]:
    facts = {"value": value, "name": name, "color": _hex(color), "size": size}
    # What is unchanged would hide the masks, which say where one is.
    return facts | {"is_change": is_change, "is_shown": value != _SAME}


def _by_value(lines: list[dict[str, Any]]) -> dict[int, dict[str, str]]:
    return {it["value"]: {"name": it["name"], "color": it["color"]} for it in lines}


def _chart(tally: Tally, box: GeoBox, codes: Codes, named: list[int]) -> dict[str, Any]:
    """Return what the map shows."""
    table = np.full(FIRST + codes.count, _OTHERS, np.uint8)
    table[:FIRST] = NODATA, _SAME, _LEFT_OUT
    table[FIRST + np.array(named, int)] = _OTHERS + 1 + np.arange(len(named))
    old, new = tally.looks
    rasters: dict[str, Pixels] = {"old": old, "new": new, "change": table[tally.map]}
    return {
        "height": box.height,
        "width": box.width,
        "origin": [0, 0],
        "metres": pixel_metres(box),
        "transform": list(box.transform)[:6],
        "rasters": {
            name: fitted(pixels, nearest, _BYTES, tally.cell).to_json()
            for name, pixels in rasters.items()
        },
    }


def _rows(names: list[str], table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each old class and what became of it; changes shaded by their size."""
    sizes = np.array(table["matrix"], float)
    changed = np.where(np.eye(len(names), dtype=bool), 0, sizes)
    shades = np.ceil(_LEVELS * changed / (changed.max() or 1)).astype(int)
    for row, name in enumerate(names):
        cells = zip(table["matrix"][row], shades[row].tolist(), strict=True)
        yield {
            "name": name,
            "cells": [
                {"size": size, "shade": shade, "is_same": column == row}
                for column, (size, shade) in enumerate(cells)
            ],
        }


def _balance(
    classes: list[dict[str, Any]], table: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield what each class lost and gained, of what counts."""
    sizes = np.array(table["matrix"])
    for at, item in enumerate(classes):
        same = sizes[at, at]
        lost, gained = sizes[at].sum() - same, sizes[:, at].sum() - same
        net = gained - lost
        yield item | {"lost": lost.item(), "gained": gained.item(), "net": net.item()}


def _warnings(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a person should know before believing the map."""
    sides = record["old"], record["new"]
    silent = [side["mask"] for side in sides if side["confidence"] is None]
    if len(silent) == len(sides):
        yield (
            "Neither mask has a confidence: every difference counts as a change, wrong "
            "pixels of either mask too."
        )
    elif silent:
        yield f"{silent[0]} has no confidence: it counts as certain."
    models = [side["model"] for side in sides]
    if all(models) and models[0] != models[1]:
        yield (
            f"The masks are of different models, {models[0]['name']} and "
            f"{models[1]['name']}: differences may be theirs, not the ground's."
        )
    if (record["undecided_share"] or 0) > _MUCH:
        yield (
            f"{100 * record['undecided_share']:.0f} % of what differs was left "
            "undecided: the masks are not sure there."
        )


def _hex(color: Color) -> str:
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"
