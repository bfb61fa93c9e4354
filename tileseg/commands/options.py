"""The options that a job has, and what is between a text and an option's value."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from tileseg.base.builtin import MODELS
from tileseg.base.choices import (
    BLENDS,
    DEVICES,
    ENGINES,
    FORMATS,
    JOINS,
    PRECISIONS,
    SYMMETRIES,
)

__all__ = [
    "SCALES",
    "Numbers",
    "attribute_option",
    "job_options",
    "pairs",
    "watch_options",
    "with_options",
    "words",
]

SCALES = (
    click.option(
        "--scale",
        type=float,
        help="reflectance = stored value * scale + offset.  [default: the file's tags]",
    ),
    click.option("--offset", type=float, help="See --scale."),
)
"""How stored values become reflectance, where a file does not say it."""

T = TypeVar("T", bound=Callable[..., Any])


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(
        self,
        value: Any,  # noqa: ANN401  (as click has it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, ...]:
        """Return the numbers that a text says."""
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers", param, ctx)


def _one_or_all(folders: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """Return what a job calls its model: one folder, several, or nothing said."""
    return (folders[0] if len(folders) == 1 else folders) if folders else None


def pairs(
    _context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any]:
    """Return KEY=VALUE of each; a value is JSON, or else a word."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            msg = f"{text!r}: wanted KEY=VALUE"
            raise click.BadParameter(msg, param=option)
        try:
            pairs[key] = json.loads(value)
        except ValueError:
            pairs[key] = value
    return pairs


def attribute_option() -> Callable[[Any], Any]:
    """Return the option for columns that somebody gives: None where it is not."""
    return click.option(
        "--attribute",
        "attributes",
        multiple=True,
        callback=lambda *given: pairs(*given) or None,
        metavar="NAME=VALUE",
        help="Give every polygon this column, a text or a number; may be given several"
        " times.",
    )


_OPTIONS = (
    click.option(
        "--model",
        multiple=True,
        callback=lambda _context, _option, folders: _one_or_all(folders),
        metavar="MODEL",
        help=f"Model folder, or one of ours, {' and '.join(MODELS)}; of several the"
        f" probabilities are averaged.  [default: {MODELS[0]}]",
    ),
    click.option(
        "--tta",
        type=click.Choice(list(SYMMETRIES)),
        help="Average over a tile's eight symmetries, which takes about eight times as"
        " long.  [default: none]",
    ),
    click.option(
        "--trust-model-code",
        is_flag=True,
        default=None,
        help="Run a model that is a program: TorchScript or torch.export.",
    ),
    click.option(
        "--output",
        metavar="DIR|URL",
        help="Where the results go, s3://bucket/prefix too; of several inputs, a"
        " directory each in it."
        "  [default: out/<scene stem>]",
    ),
    click.option(
        "--work",
        metavar="DIR|URL",
        help="Where unfinished work lives, s3://bucket/prefix too."
        "  [default: <output>.work, on a disk]",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", *ENGINES]),
        help="Who runs the workers.  [default: Ray inside a Ray job or with RAY_ADDRESS"
        " set, else local]",
    ),
    click.option(
        "--workers",
        type=int,
        help="How many.  [default: one per GPU, or one on the CPU, of each node]",
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", *DEVICES]),
        help="Where the network computes.",
    ),
    click.option("--batch-size", type=int, help="Tiles in one forward."),
    click.option(
        "--precision",
        type=click.Choice(["auto", *PRECISIONS]),
        help="Of the network's numbers.",
    ),
    click.option(
        "--blend",
        type=click.Choice(BLENDS),
        help="How tiles meet.  [default: crop]",
    ),
    click.option(
        "--confidence",
        is_flag=True,
        default=None,
        help="Also make confidence.tif: how probable the class is.",
    ),
    click.option(
        "--margin",
        is_flag=True,
        default=None,
        help="Also make margin.tif: how much more so than the next class.",
    ),
    click.option(
        "--entropy",
        is_flag=True,
        default=None,
        help="Also make entropy.tif: 0 for one certain class, 1 where all are alike.",
    ),
    click.option(
        "--probabilities",
        is_flag=True,
        default=None,
        help="Also make probabilities.tif: a band for each class, how probable it is.",
    ),
    click.option(
        "--polygons",
        type=click.Choice(FORMATS),
        help="Also make polygons.<format>.",
    ),
    click.option(
        "--simplify",
        type=float,
        metavar="METRES",
        help="Simplify their borders by so much; neighbours keep one border.",
    ),
    attribute_option(),
    click.option(
        "--min-area",
        type=float,
        metavar="HECTARES",
        help="Merge smaller ones into the neighbour with the longest common border.",
    ),
    *SCALES,
    click.option(
        "--join",
        type=click.Choice(JOINS),
        help="Make one scene of all inputs: its bands, in this order, or the adjoining"
        " parts of one grid; needs --output.",
    ),
    click.option(
        "--bbox",
        type=Numbers(),
        metavar="W,S,E,N",
        help="Only this box of longitudes and latitudes; W > E crosses longitude 180.",
    ),
    click.option(
        "--aoi",
        metavar="FILE",
        help="Only what lies in the polygons of a GeoJSON, GeoPackage, FlatGeobuf or"
        " GeoParquet file.",
    ),
    click.option(
        "--host",
        "hosts",
        multiple=True,
        callback=lambda _context, _option, hosts: hosts or None,
        metavar="HOST[:PORT]",
        help="May be read over plain http, or in a private network; may be given"
        " several times.",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        default=None,
        help="Replace the result of another plan.",
    ),
    click.option(
        "--incremental",
        is_flag=True,
        default=None,
        help="Bring the scene's result up to date: only shards whose pixels are others"
        " than before are computed. Also make shards.json, for the next time.",
    ),
    click.option(
        "--keep",
        type=int,
        metavar="N",
        help="Keep the last N versions that newer ones replace.  [default: 0]",
    ),
    click.option(
        "--allow-partial",
        is_flag=True,
        default=None,
        help="Publish with holes where shards failed (exit 10).",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        default=None,
        help="Say what would be done, and do nothing.",
    ),
    click.option(
        "--config",
        metavar="FILE",
        help="TOML with any of these and the rarer fields of a job, or the run.json of"
        " a job to be run again; options win.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        help="Of what goes to stderr: json is an object a line.  [default: text]",
    ),
    click.option("-v", "--verbose", count=True, help="Say more."),
    click.option("-q", "--quiet", is_flag=True, help="Only errors."),
)


_WATCHING = (
    click.option(
        "--metrics",
        metavar="FILE.prom",
        help="Write metrics there, for Prometheus' node_exporter.",
    ),
    click.option(
        "--heartbeat",
        metavar="FILE",
        help="Touch it as long as there is progress; it goes when the command ends.",
    ),
)


def words(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> tuple[str, ...] | None:
    """Return words that stand between commas."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[T], T]:
    """Return what gives a command options, in their order."""

    def give(command: T) -> T:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def job_options(command: T) -> T:
    """Give a command the options that a job has, `--input` apart."""
    return with_options(_OPTIONS)(command)


def watch_options(command: T) -> T:
    """Give a command the options of what watches it from outside."""
    return with_options(_WATCHING)(command)
