"""The command that trains a network."""

import json
from dataclasses import fields
from typing import Any

import click

from tileseg.base.choices import DEVICES, ENGINES, UNITS
from tileseg.base.environment import scrub
from tileseg.commands.console import (
    configure_logging,
    one_line_errors,
    progress,
    results,
    signals,
    tell,
)
from tileseg.commands.options import SCALES, with_options, words
from tileseg.training.train_settings import (
    BASE_RATE,
    RATE,
    Settled,
    Training,
    read_training,
)

__all__ = ["train"]

_DEFAULTS = {item.name: item.default for item in fields(Settled)}


def _said(text: str, name: str, more: str = "") -> str:
    """Return the help of an option, with a field's default and what that means."""
    return f"{text}  [default: {_DEFAULTS[name]}{more}]"


_TRAINING = (
    click.option(
        "--scene",
        "scenes",
        multiple=True,
        metavar="SCENE",
        help="GeoTIFF, a path or an address; may be given several times, also of"
        " several sensors.",
    ),
    click.option(
        "--labels",
        multiple=True,
        metavar="FILE",
        help="What is known of each scene, in their order: a GeoTIFF of classes, or"
        " polygons or points.",
    ),
    click.option("--to", metavar="DIR", help="Model folder to write."),
    click.option(
        "--classes",
        metavar="NAME[=RRGGBB],...",
        callback=words,
        help="In the order of their values.  [default: those that the labels name]",
    ),
    click.option(
        "--bands",
        metavar="NAME,...",
        callback=words,
        help="In the network's order.  [default: all of the first scene, or those of"
        " --from]",
    ),
    click.option(
        "--unit",
        type=click.Choice(UNITS),
        help=_said(
            "What values are: reflectance, by scale and offset, or as they are stored.",
            "unit",
            ", or that of --from",
        ),
    ),
    *SCALES,
    click.option(
        "--column",
        help=_said("Of polygons or points: the one with the class.", "column"),
    ),
    click.option(
        "--rename",
        "renamed",
        metavar="VALUE=CLASS",
        multiple=True,
        help="A class of the labels as the model has it; 255: none.",
    ),
    click.option(
        "--from",
        "base",
        metavar="MODEL",
        help="Model to go on from, with its scaling, width, depth, tile and halo.",
    ),
    click.option(
        "--own-scaling",
        is_flag=True,
        default=None,
        help="Scale as these scenes ask, not as --from does; --unit may be another.",
    ),
    click.option("--epochs", type=int, help=_said("At most.", "epochs")),
    click.option("--steps", type=int, help=_said("Batches in an epoch.", "steps")),
    click.option(
        "--batch-size", type=int, help=_said("Tiles in a batch.", "batch_size")
    ),
    click.option(
        "--learning-rate",
        type=float,
        help=f"The highest.  [default: {RATE:g}, with --from {BASE_RATE:g}]",
    ),
    click.option(
        "--block",
        type=int,
        help=_said(
            "Side in pixels of the blocks that are for training, validation or test.",
            "block",
        ),
    ),
    click.option(
        "--validation",
        type=float,
        help=_said("Share of the labels to choose the best epoch by.", "validation"),
    ),
    click.option(
        "--test",
        type=float,
        help=_said("Share of the labels to be judged by at the end.", "test"),
    ),
    click.option(
        "--seed", type=int, help=_said("Of blocks, weights and tiles.", "seed")
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", *DEVICES]),
        help=_said("Where the network computes.", "device"),
    ),
    click.option(
        "--engine",
        type=click.Choice(ENGINES),
        help=_said("Who runs the workers.", "engine", ", which is one"),
    ),
    click.option(
        "--workers",
        type=int,
        help="How many of Ray's share each batch.  [default: one per GPU, or one on the"
        " CPU, of each node, up to a tile each]",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        default=None,
        help="Replace another model, and another training's work.",
    ),
    click.option(
        "--config",
        metavar="FILE",
        help="TOML with any of these and the rarer fields of a training; options win.",
    ),
    click.option("-v", "--verbose", count=True, help="Say more."),
    click.option("-q", "--quiet", is_flag=True, help="Only errors."),
)


@click.command()
@with_options(_TRAINING)
def train(**options: Any) -> None:  # noqa: ANN401  (fields of a Training)
    """Train a network from scenes and what is known of them, and write a model folder.

    Blocks of the scenes are kept apart for choosing the best epoch and for a test. A
    training that was stopped or killed goes on with the same command, to the same end.
    One line of JSON goes to stdout: the folder and its scores.
    """
    configure_logging(options.pop("verbose"), is_quiet=options.pop("quiet"))
    scrub()
    from tileseg.training.train import summary
    from tileseg.training.train import train as learn

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
