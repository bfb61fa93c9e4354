"""What changed, to be read by a person: a table for a terminal, and a picture."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from tileseg.changes.transitions import FIRST
from tileseg.outputs.codes import Codes
from tileseg.outputs.figures import plain_text, png

__all__ = ["as_picture", "as_text"]

_NAME = 16  # letters of a class
_NUMBER = 13  # of an area
_LEGEND = 12  # changes that the legend names, the largest
_WRITTEN = 20  # classes whose matrix has room for numbers
_DARK = 0.5  # of a cell: letters on it are white


def as_text(record: Mapping[str, Any]) -> str:
    """Return a table of areas, from old to new class, and what is left out of it."""
    unit, table = _table(record)
    names = record["classes"]
    short = [name[:_NAME] for name in names]
    wide = [max(_NUMBER, len(name)) for name in short]
    head = f"from \\ to, {unit}".ljust(max(map(len, short)) + 2)
    rows = [short, *([_amount(it, unit) for it in row] for row in table["matrix"])]
    lines = []
    for first, row in zip([head, *short], rows, strict=True):
        cells = (f" {it:>{width}}" for it, width in zip(row, wide, strict=True))
        lines.append(f"{first:<{len(head)}}{''.join(cells)}")
    return "\n".join([*lines, *_sums(record, table, unit), *_inputs(record)])


def _table(record: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the unit, and what is counted in it."""
    hectares = record["hectares"]
    return ("px", record["pixels"]) if hectares is None else ("ha", hectares)


def _sums(
    record: Mapping[str, Any], table: Mapping[str, Any], unit: str
) -> Iterator[str]:
    whole = sum(table[name] for name in ("unchanged", "changed", "undecided"))
    whole += table["too_small"]
    share = table["changed"] / whole if whole else 0
    yield (
        f"changed {_amount(table['changed'], unit)} {unit} ({share:.2%} of what both "
        f"know), {record['polygons']:,} polygons"
    )
    left = record["undecided_share"]
    if left is not None:
        yield (
            f"left undecided {_amount(table['undecided'], unit)} {unit}, {left:.1%} of "
            f"what differs; too small {_amount(table['too_small'], unit)} {unit}"
        )
    yield f"nodata in one of them {_amount(table['nodata'], unit)} {unit}"


def _inputs(record: Mapping[str, Any]) -> Iterator[str]:
    """Say by which confidence it was decided, and where there was none."""
    rule = record["rule"]
    silent = [
        side["mask"]
        for side in (record["old"], record["new"])
        if side["confidence"] is None
    ]
    if len(silent) == 1:
        yield f"{silent[0]} has no confidence: it counts as certain"
    elif silent:
        yield "neither has a confidence: every difference counts as certain"
    if len(silent) < len(("old", "new")):
        yield (
            f"confidence at least {rule['high']:g} somewhere in a change and "
            f"{rule['low']:g} everywhere"
        )


def _amount(value: float, unit: str) -> str:
    return f"{value:,}" if unit == "px" else f"{value:,.2f}"


@plain_text()
def as_picture(
    record: Mapping[str, Any], codes: Codes, cells: NDArray[np.uint16]
) -> bytes:
    """Return a PNG: the matrix without what is unchanged, and a map with a legend.

    Args:
        record: what `change.json` says.
        codes: of the raster.
        cells: the map, see `Tally`.
    """
    wide = min(14.0, max(5.0, 6.0 * cells.shape[1] / cells.shape[0]))
    figure = Figure(figsize=(6.0 + wide, 6.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(6.0, wide))
    _draw_matrix(left, record)
    _draw_map(right, record, codes, cells)
    handles = list(_handles(record, codes))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    figure.draw_without_rendering()  # at first titles have no room
    return png(figure)


def _draw_matrix(axes: Any, record: Mapping[str, Any]) -> None:  # noqa: ANN401  (matplotlib's)
    unit, table = _table(record)
    names, sizes = record["classes"], np.array(table["matrix"], float)
    changed = np.where(np.eye(len(names), dtype=bool), 0, sizes)
    shades = changed / (changed.max() or 1)
    axes.imshow(shades, cmap="Reds", vmin=0, vmax=1)
    for row, column in np.argwhere(sizes) if len(names) <= _WRITTEN else ():
        size = sizes[row, column]
        color = "0.6" if row == column else "black"
        if shades[row, column] > _DARK:
            color = "white"
        text = f"{size:,.0f}" if unit == "px" else f"{size:,.1f}"
        axes.text(column, row, text, ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="to", ylabel="from")
    axes.set_title(f"{unit}; grey is unchanged")


def _draw_map(
    axes: Any,  # noqa: ANN401  (matplotlib's)
    record: Mapping[str, Any],
    codes: Codes,
    cells: NDArray[np.uint16],
) -> None:
    table = np.full((codes.count + FIRST, 3), 255, np.uint8)
    table[1:FIRST] = codes.color(0), codes.color(codes.undecided)
    for code in codes.changes:
        table[FIRST + code] = codes.color(code)
    axes.imshow(table[cells], interpolation="nearest")
    axes.set_axis_off()
    unit, found = _table(record)
    changed, share = _amount(found["changed"], unit), record["undecided_share"] or 0
    axes.set_title(f"changed {changed} {unit}; undecided {share:.1%} of what differs")


def _handles(record: Mapping[str, Any], codes: Codes) -> Iterator[Patch]:
    """Yield a patch for each of the largest changes, and for what is none."""
    unit, table = _table(record)
    sizes = np.array(table["matrix"]).ravel()
    common = [code for code in codes.changes if sizes[code]]
    common.sort(key=lambda code: -sizes[code])
    for code in common[:_LEGEND]:
        text = f"{codes.name(code)} {_amount(sizes[code].item(), unit)}"
        yield _patch(codes.color(code), text)
    yield _patch(codes.color(0), "unchanged")
    yield _patch(codes.color(codes.undecided), "undecided or too small")


def _patch(color: tuple[int, int, int], text: str) -> Patch:
    red, green, blue = (part / 255 for part in color)
    return Patch(
        facecolor=(red, green, blue), edgecolor="black", linewidth=0.5, label=text
    )
