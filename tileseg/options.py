"""The command line's longer lists of options: of a job, an import and a training."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

__all__ = ["import_options", "job_options", "training_options"]

T = TypeVar("T", bound=Callable[..., Any])


class _Numbers(click.ParamType[tuple[float, ...]]):
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


_OPTIONS = (
    click.option(
        "--model",
        multiple=True,
        callback=lambda _context, _option, folders: _one_or_all(folders),
        metavar="DIR",
        help="Model folder; of several the probabilities are averaged."
        "  [default: the land-cover model that comes with tileseg]",
    ),
    click.option(
        "--tta",
        type=click.Choice(["none", "d4"]),
        help="Average over a tile's eight symmetries, which takes eight times as long"
        " or more.  [default: none]",
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
        type=click.Choice(["auto", "local", "ray"]),
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
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="Where the network computes.",
    ),
    click.option("--batch-size", type=int, help="Tiles in one forward."),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        help="Of the network's numbers.",
    ),
    click.option(
        "--blend",
        type=click.Choice(["crop", "cosine"]),
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
        "--polygons",
        type=click.Choice(["gpkg", "parquet", "fgb", "geojson"]),
        help="Also make polygons.<format>.",
    ),
    click.option(
        "--scale",
        type=float,
        help="reflectance = stored value * scale + offset.  [default: the file's tags]",
    ),
    click.option("--offset", type=float, help="See --scale."),
    click.option(
        "--join",
        type=click.Choice(["bands", "mosaic"]),
        help="Make one scene of all inputs: its bands, in this order, or the adjoining"
        " parts of one grid; needs --output.",
    ),
    click.option(
        "--bbox",
        type=_Numbers(),
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
    click.option("-v", "--verbose", count=True, help="Say more."),
    click.option("-q", "--quiet", is_flag=True, help="Only errors."),
)


def _words(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> tuple[str, ...] | None:
    """Return words that stand between commas."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _pairs(
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


_IMPORT_OPTIONS = (
    click.option(
        "--bands",
        metavar="NAME,...",
        callback=_words,
        help="Bands in the order of the network's inputs.",
    ),
    click.option(
        "--classes",
        metavar="NAME,...",
        callback=_words,
        help="Classes in the order of its answers; of one answer background and class.",
    ),
    click.option(
        "--colors", metavar="RRGGBB,...", callback=_words, help="Of the classes."
    ),
    click.option(
        "--unit",
        type=click.Choice(["reflectance", "dn"]),
        help="What mean and std are in: 0 to 1, or values as stored."
        "  [default: reflectance]",
    ),
    click.option(
        "--mean",
        type=_Numbers(),
        help="Per band, or one: the network sees (value - mean) / std.",
    ),
    click.option("--std", type=_Numbers(), help="Per band, or one."),
    click.option(
        "--tile",
        type=click.IntRange(16, 4096),
        help="Side of a tile in pixels.  [default: what the file says, else 256]",
    ),
    click.option(
        "--halo",
        type=click.IntRange(0, 1024),
        help="Margin of a tile that is not kept.  [default: about an eighth of it]",
    ),
    click.option("--gsd", type=float, help="Metres of a pixel that it was trained on."),
    click.option("--name", help="Of the model.  [default: the folder's]"),
    click.option("--version", help="Of the model.  [default: 1]"),
    click.option(
        "--answers",
        type=click.Choice(["logits", "probabilities"]),
        help="What the network gives.  [default: found out]",
    ),
    click.option(
        "--smp",
        metavar="KEY=VALUE",
        multiple=True,
        callback=_pairs,
        help="Of a state_dict of segmentation_models_pytorch: arch, encoder_name, ...",
    ),
    click.option(
        "--about",
        metavar="KEY=VALUE",
        multiple=True,
        callback=_pairs,
        help="Anything more for the card: licence=MIT.",
    ),
    click.option(
        "--trust-model-code",
        "trust_code",
        is_flag=True,
        help="Run a program (TorchScript, torch.export), with --sha256.",
    ),
    click.option("--sha256", metavar="DIGEST", help="Of the file, as its maker says."),
)


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
        callback=_words,
        help="In the order of their values.  [default: those that the labels name]",
    ),
    click.option(
        "--bands",
        metavar="NAME,...",
        callback=_words,
        help="In the network's order.  [default: all of the first scene, or those of"
        " --from]",
    ),
    click.option(
        "--unit",
        type=click.Choice(["reflectance", "dn"]),
        help="What values are: reflectance, by GDAL's scale and offset, or as stored."
        "  [default: reflectance]",
    ),
    click.option(
        "--column",
        help="Of polygons or points: the one with the class.  [default: class]",
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
        metavar="DIR",
        help="Model folder to go on from, with its scaling.",
    ),
    click.option(
        "--own-scaling",
        is_flag=True,
        default=None,
        help="Scale as these scenes ask, not as --from does.",
    ),
    click.option("--epochs", type=int, help="At most.  [default: 10]"),
    click.option("--steps", type=int, help="Batches in an epoch.  [default: 100]"),
    click.option("--batch-size", type=int, help="Tiles in a batch.  [default: 8]"),
    click.option(
        "--learning-rate",
        type=float,
        help="The highest.  [default: 0.002, with --from 0.0005]",
    ),
    click.option(
        "--block",
        type=int,
        help="Side in pixels of the blocks that are for training, validation or test."
        "  [default: 256]",
    ),
    click.option(
        "--validation",
        type=float,
        help="Share of the labels to choose the best epoch by.  [default: 0.15]",
    ),
    click.option(
        "--test",
        type=float,
        help="Share of the labels to be judged by at the end.  [default: 0.15]",
    ),
    click.option(
        "--seed", type=int, help="Of blocks, weights and tiles.  [default: 0]"
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="Where the network computes.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        help="Who runs the workers.  [default: local, which is one]",
    ),
    click.option(
        "--workers",
        type=int,
        help="How many of Ray's share each batch.  [default: one per GPU, or one on the"
        " CPU, of each node]",
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


def job_options(command: T) -> T:
    """Give a command the options that a job has, `--input` apart."""
    return _with(_OPTIONS, command)


def import_options(command: T) -> T:
    """Give a command the options of `model import`: fields of what is `Told`."""
    return _with(_IMPORT_OPTIONS, command)


def training_options(command: T) -> T:
    """Give a command the options that a `Training` has."""
    return _with(_TRAINING, command)


def _with(options: Sequence[Callable[[Any], Any]], command: T) -> T:
    for option in reversed(options):
        command = option(command)
    return command
