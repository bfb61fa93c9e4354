"""Commands about what is known of the ground: masks judged, networks trained."""

import json
from pathlib import Path
from typing import Any

import click

from tileseg.console import (
    configure_logging,
    one_line_errors,
    progress,
    results,
    signals,
    tell,
)
from tileseg.environment import scrub
from tileseg.errors import UsageError
from tileseg.options import training_options

__all__ = ["evaluate", "train"]


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
    beside = Path(mask).with_name("confidence.tif")
    if options["confidence"] is None and Path(mask).name == "mask.tif":
        options["confidence"] = str(beside) if beside.exists() else None
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
@training_options
def train(**options: Any) -> None:  # noqa: ANN401  (fields of a Training)
    """Train a network from scenes and what is known of them, and write a model folder.

    Blocks of the scenes are kept apart for choosing the best epoch and for a test. A
    training that was stopped or killed goes on with the same command, to the same end.
    One line of JSON goes to stdout: the folder and its scores.
    """
    configure_logging(options.pop("verbose"), is_quiet=options.pop("quiet"))
    scrub()
    from tileseg.train import summary
    from tileseg.train import train as learn
    from tileseg.train_settings import Training, read_training

    with results(), one_line_errors(), signals() as stop:
        config = options.pop("config")
        given = {
            key: value for key, value in options.items() if value not in (None, ())
        }
        facts = {**(read_training(config) if config else {}), **given}
        training = Training(**{"scenes": (), "labels": (), "to": "", **facts})
        with progress(training.to) as told:
            learn(training, stop, told)
        tell(json.dumps(summary(training)))
