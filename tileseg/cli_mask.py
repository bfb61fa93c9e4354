"""Commands about masks: how right one is, and its polygons."""

import json
import os
from pathlib import Path
from typing import Any

import click

from tileseg.console import one_line_errors, results, tell
from tileseg.environment import scrub
from tileseg.errors import UsageError

__all__ = ["evaluate", "polygonize"]


@click.command()
@click.argument("mask")
@click.argument("reference")
@click.option(
    "--confidence",
    metavar="FILE",
    help="The mask's confidence.  [default: confidence.tif beside it]",
)
@click.option(
    "--column",
    default="class",
    show_default=True,
    help="Of polygons or points: the one with the class.",
)
@click.option(
    "--rename",
    "renamed",
    metavar="VALUE=CLASS",
    multiple=True,
    help="A class of the reference as the mask has it; 255: none.",
)
@click.option(
    "--sample/--no-sample",
    "is_sample",
    default=None,
    help="Whether the reference is a random sample, from which areas can be"
    " estimated.  [default: points are]",
)
@click.option(
    "--tolerance",
    type=click.IntRange(0, 64),
    default=2,
    show_default=True,
    help="Pixels that a border may be off.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, no tables.")
@click.option("--picture", metavar="FILE", help="Draw it, as a PNG.")
def evaluate(
    mask: str,
    reference: str,
    **options: Any,  # noqa: ANN401  (fields of a Question)
) -> None:
    """Say how right MASK is, by REFERENCE, and how large its classes are.

    MASK is a mask.tif; REFERENCE a GeoTIFF of classes on any grid, or GeoJSON,
    GeoPackage, FlatGeobuf or GeoParquet with polygons or points.
    """
    scrub()
    from tileseg.evaluate import Question
    from tileseg.evaluate import evaluate as compare
    from tileseg.scorecard import as_picture, as_text
    from tileseg.storage import write_whole

    as_json, picture = options.pop("as_json"), options.pop("picture")
    options["confidence"] = options["confidence"] or _confidence_beside(mask)
    with results(), one_line_errors():
        renamed = dict(map(_renamed, options.pop("renamed")))
        question = Question(mask=mask, reference=reference, renamed=renamed, **options)
        answer = compare(question)
        tell(json.dumps(answer.as_dict()) if as_json else as_text(answer))
        if picture:
            write_whole(Path(picture), as_picture(answer))


def _renamed(text: str) -> tuple[str, str]:
    """Return both sides of VALUE=CLASS."""
    old, equals, new = text.partition("=")
    if not equals:
        msg = f"--rename {text}: wanted VALUE=CLASS"
        raise UsageError(msg)
    return old, new


@click.command()
@click.argument("mask")
@click.option("--output", metavar="FILE", required=True,
              help="A .gpkg, .parquet, .fgb or .geojson.")  # fmt: skip
@click.option(
    "--confidence",
    metavar="FILE",
    help="The mask's confidence.  [default: confidence.tif beside mask.tif]",
)
@click.option(
    "--without",
    metavar="VALUE",
    type=int,
    multiple=True,
    help="Make no polygons of this value, as of nodata; may be given several times.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes.  [default: one a core]"
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def polygonize(mask: str, output: str, **options: Any) -> None:  # noqa: ANN401  (fields of a Wish)
    """Make polygons of the connected areas of equal class in MASK.

    MASK is any GeoTIFF of classes, uint8 or uint16, its first band counts. The file
    is the same for any number of workers, and memory does not grow with the mask.
    """
    scrub()
    from tileseg.polygonize import Wish
    from tileseg.polygonize import polygonize as make

    options["confidence"] = options["confidence"] or _confidence_beside(mask)
    options["workers"] = options["workers"] or len(os.sched_getaffinity(0))
    with results(), one_line_errors():
        count = make(Wish(mask=mask, output=Path(output), **options))
        tell(f"{output}: {count} polygons")


def _confidence_beside(mask: str) -> str | None:
    """Return the confidence that belongs to a mask of ours, if it is there."""
    beside = Path(mask).with_name("confidence.tif")
    return str(beside) if Path(mask).name == "mask.tif" and beside.exists() else None
