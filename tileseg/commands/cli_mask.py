"""Commands about masks: how right one is, its polygons, and what changed."""

import json
import os
from pathlib import Path
from typing import Any

import click

from tileseg.base.choices import FORMATS
from tileseg.base.classes import renaming
from tileseg.base.environment import scrub
from tileseg.commands.console import one_line_errors, results, signals, tell
from tileseg.commands.options import attribute_option

__all__ = ["change", "evaluate", "polygonize"]


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
    from tileseg.evaluation.evaluate import Question
    from tileseg.evaluation.evaluate import evaluate as compare
    from tileseg.evaluation.scorecard import as_picture, as_text
    from tileseg.stores.storage import write_whole

    as_json, picture = options.pop("as_json"), options.pop("picture")
    options["confidence"] = options["confidence"] or _confidence_beside(mask)
    with results(), one_line_errors():
        renamed = renaming(options.pop("renamed"))
        question = Question(mask=mask, reference=reference, renamed=renamed, **options)
        answer = compare(question)
        tell(json.dumps(answer.as_dict()) if as_json else as_text(answer))
        if picture:
            write_whole(Path(picture), as_picture(answer))


@click.command()
@click.argument("mask")
@click.option("--output", metavar="FILE", required=True,
              help=f"A .{', .'.join(FORMATS)}.")  # fmt: skip
@click.option(
    "--confidence",
    metavar="FILE",
    help="The mask's confidence.  [default: confidence.tif beside mask.tif]",
)
@click.option(
    "--band", type=click.IntRange(1), help="Of several bands: the one with the classes."
)
@click.option(
    "--without",
    metavar="VALUE",
    type=int,
    multiple=True,
    help="Make no polygons of this value, as of nodata; may be given several times.",
)
@click.option(
    "--simplify",
    metavar="METRES",
    type=float,
    help="Simplify borders by so much; neighbours keep one border.",
)
@attribute_option()
@click.option(
    "--min-area",
    metavar="HECTARES",
    type=float,
    help="Merge smaller polygons into the neighbour with the longest common border.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes.  [default: one a core]"
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def polygonize(mask: str, output: str, **options: Any) -> None:  # noqa: ANN401  (fields of a Wish)
    """Make polygons of the connected areas of equal class in MASK.

    MASK is any GeoTIFF of classes, uint8 or uint16. The file is the same for any number
    of workers, and memory does not grow with the mask.
    """
    scrub()
    from tileseg.steps.polygonize import Wish
    from tileseg.steps.polygonize import polygonize as make

    options["confidence"] = options["confidence"] or _confidence_beside(mask)
    options["workers"] = options["workers"] or len(os.sched_getaffinity(0))
    options["attributes"] = options["attributes"] or {}
    with results(), one_line_errors(), signals():
        count = make(Wish(mask=mask, output=Path(output), **options))
        tell(f"{output}: {count} polygons")


@click.command()
@click.argument("old")
@click.argument("new")
@click.option("--output", metavar="DIR", required=True, help="The folder to make.")
@click.option(
    "--confidence",
    metavar="HIGH[,LOW]",
    help="How sure both masks must be of a change: somewhere in it, and everywhere in"
    " it.  [default: 0.8,0.5 where there is a confidence.tif]",
)
@click.option(
    "--min-area",
    metavar="HECTARES",
    type=click.FloatRange(0),
    default=0.0,
    help="Leave out smaller changes.",
)
@click.option(
    "--polygons",
    type=click.Choice(FORMATS),
    default="gpkg",
    show_default=True,
    help="The format of change.<format>.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes.  [default: one a core]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, no table.")
@click.option("--overwrite", is_flag=True, help="Replace another comparison.")
def change(old: str, new: str, **options: Any) -> None:  # noqa: ANN401  (fields of a Wish)
    """Say what became of each class from OLD to NEW, in hectares, and where.

    OLD and NEW are output folders of runs, or their masks, on one grid and with the
    same classes. DIR gets change.tif, change.gpkg, change.png, change.html and
    change.json.
    """
    scrub()
    from tileseg.changes.change import Thresholds, Wish
    from tileseg.changes.change import change as compare
    from tileseg.changes.changecard import as_text
    from tileseg.changes.pair import find

    text = options["confidence"]
    with results(), one_line_errors(), signals():
        wish = Wish(
            old=find(old),
            new=find(new),
            output=Path(options["output"]),
            thresholds=Thresholds.parse(text) if text else None,
            least_hectares=options["min_area"],
            polygons=options["polygons"],
            workers=options["workers"] or len(os.sched_getaffinity(0)),
            overwrite=options["overwrite"],
        )
        record = compare(wish)
        tell(json.dumps(record) if options["as_json"] else as_text(record))


def _confidence_beside(mask: str) -> str | None:
    """Return the confidence that belongs to a mask of ours, if it is there."""
    beside = Path(mask).with_name("confidence.tif")
    return str(beside) if Path(mask).name == "mask.tif" and beside.exists() else None
