"""Arguments -> jobs, errors -> exit codes. Parses only; heavy imports come late."""

import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tileseg import __version__
from tileseg.errors import (
    ExitCode,
    InterruptedRunError,
    PreemptedError,
    TilesegError,
    UsageError,
    worst,
)

if TYPE_CHECKING:
    from tqdm import tqdm

    from tileseg.task import Job

__all__ = ["main", "one_line_errors", "segment"]

_LOG_SECONDS = 10
_STOPPED = (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)
logger = logging.getLogger(__name__)


@click.group("tileseg")
@click.version_option(__version__, prog_name="tileseg")
def main() -> None:
    """Segment very large GeoTIFFs with a U-Net, without losing anything."""


@main.command()
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SCENE",
    help="GeoTIFF; may be given several times.",
)
@click.option(
    "--model",
    metavar="DIR",
    help="Model folder.  [default: the land-cover model that comes with tileseg]",
)
@click.option(
    "--output",
    metavar="DIR",
    help="Where the results go; of several inputs, a directory each in it."
    "  [default: out/<scene stem>]",
)
@click.option(
    "--work",
    metavar="DIR",
    help="Where unfinished work lives.  [default: <output>.work]",
)
@click.option(
    "--engine", type=click.Choice(["auto", "local"]), help="Who runs the workers."
)
@click.option(
    "--workers", type=int, help="How many.  [default: one per GPU, or one on the CPU]"
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where the network computes.",
)
@click.option("--batch-size", type=int, help="Tiles in one forward.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="Of the network's numbers.",
)
@click.option(
    "--blend",
    type=click.Choice(["crop", "cosine"]),
    help="How tiles meet.  [default: crop]",
)
@click.option(
    "--confidence", is_flag=True, default=None, help="Also make confidence.tif."
)
@click.option(
    "--polygons",
    type=click.Choice(["gpkg", "parquet", "fgb", "geojson"]),
    help="Also make polygons.<format>.",
)
@click.option(
    "--scale",
    type=float,
    help="reflectance = stored value * scale + offset.  [default: the file's tags]",
)
@click.option("--offset", type=float, help="See --scale.")
@click.option(
    "--overwrite",
    is_flag=True,
    default=None,
    help="Replace the result of another plan.",
)
@click.option(
    "--allow-partial",
    is_flag=True,
    default=None,
    help="Publish with holes where shards failed (exit 10).",
)
@click.option(
    "--dry-run",
    is_flag=True,
    default=None,
    help="Say what would be done, and do nothing.",
)
@click.option(
    "--config",
    metavar="FILE",
    help="TOML with any of these and the rarer fields of a job; options win.",
)
@click.option("-v", "--verbose", count=True, help="Say more.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
def segment(**options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Make a georeferenced class mask of each scene.

    One line of JSON per scene goes to stdout, everything else to stderr.
    """
    _configure_logging(options.pop("verbose"), is_quiet=options.pop("quiet"))
    codes = []
    with one_line_errors(), _signals():
        for job in _jobs(options):
            codes.append(_run(job))
            if codes[-1] in _STOPPED:
                break
    sys.exit(worst(codes))


@main.group()
def model() -> None:
    """Look at model folders."""


@model.command()
@click.argument("folder", metavar="[MODEL]", default="")
def info(folder: str) -> None:
    """Say what a model eats, what its classes are and where it comes from."""
    from tileseg.card import read_card
    from tileseg.task import default_model

    with one_line_errors():
        card = read_card(Path(folder) if folder else default_model())
    lines = {**card.facts(), **card.about}
    width = max(map(len, lines))
    for key, value in lines.items():
        click.echo(f"{key:<{width}}  {_plain(value)}")


@model.command()
@click.argument("folder", metavar="[MODEL]", default="")
def trace(folder: str) -> None:
    """Print the shape after every stage for one tile.

    MODEL is a model folder, or `unet` for the classic network with random weights.
    """
    from tileseg.card import read_card
    from tileseg.model import load_module
    from tileseg.task import default_model
    from tileseg.unet import UNet
    from tileseg.unet import trace as trace_network

    with one_line_errors():
        if folder == "unet":
            network, tile = UNet(), 128
        else:
            path = Path(folder) if folder else default_model()
            card = read_card(path)
            network, tile = load_module(path, card), card.tile
    for line in trace_network(network, tile):
        click.echo(line)


def _plain(value: object) -> str:
    """Return a card's value as a person writes it."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return " ".join(str(item) for item in value.values())
    return str(value)


def _jobs(options: dict[str, Any]) -> list["Job"]:
    """Return one job per scene from the options and the job file.

    Raises:
        UsageError: no scene, two scenes of one name, or a bad job file.
    """
    from tileseg.task import Job, read_job

    inputs = options.pop("inputs")
    config = options.pop("config")
    values = read_job(config) if config else {}
    values |= {key: item for key, item in options.items() if item is not None}
    fallback = values.pop("input", None)
    if isinstance(fallback, str):
        fallback = (fallback,)
    inputs = inputs or fallback or ()
    if not inputs:
        msg = "no scene: give --input SCENE"
        raise UsageError(msg)
    if len(inputs) == 1:
        return [Job(input=inputs[0], **values)]
    stems = [Path(name).stem for name in inputs]
    if len(set(stems)) < len(stems):
        double = next(stem for stem in stems if stems.count(stem) > 1)
        msg = f"two inputs are named {double!r}: they would share an output directory"
        raise UsageError(msg)
    output = Path(values.pop("output", "out"))
    work = values.pop("work", None)
    return [
        Job(
            input=name,
            output=str(output / stem),
            work=str(Path(work) / stem) if work else "",
            **values,
        )
        for name, stem in zip(inputs, stems, strict=True)
    ]


def _run(job: "Job") -> int:
    """Run one job, print its line and return its exit code."""
    from tileseg.job import run

    with _progress(job.input) as progress:
        record = run(job, progress)
    click.echo(json.dumps(record.values))
    if record.error:
        click.echo(f"tileseg: {record.values['error']}", err=True)
    elif job.dry_run:
        _print_estimate(job, record.values)
    return int(record.values["exit_code"])


def _print_estimate(job: "Job", values: dict[str, Any]) -> None:
    estimate = values["estimate"]
    click.echo(
        f"{job.input}: {estimate['shards']} shards in {estimate['runs']} runs, "
        f"{estimate['tiles']} tiles, {estimate['bytes_to_read'] / 1e6:.1f} MB to read, "
        f"about {estimate['memory_mb']:.0f} MB of memory above the loaded network; "
        f"the results would go to {job.output_path}",
        err=True,
    )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn our errors into one line on stderr and their exit code."""
    try:
        yield
    except TilesegError as err:
        click.echo(f"tileseg: {err}", err=True)
        sys.exit(int(err.exit_code))


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the job resumably; a second one ends it at once."""
    errors = {signal.SIGTERM: PreemptedError, signal.SIGINT: InterruptedRunError}

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        name = signal.Signals(number).name
        raise errors[signal.Signals(number)](
            f"{name}: stopped; the same command resumes"
        )

    before = {number: signal.signal(number, stop) for number in errors}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(title: str) -> Iterator[Any]:
    """Give a function of (done, total): a bar on a terminal, else a line per 10 s."""
    if not logger.isEnabledFor(logging.INFO):
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=Path(title).name, unit="tile") as bar:
            yield lambda done, total: _draw(bar, done, total)
    else:
        last = time.monotonic()

        def log(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _LOG_SECONDS:
                last = time.monotonic()
                logger.info("%s: %d of %d tiles", title, done, total)

        yield log


def _draw(bar: "tqdm[NoReturn]", done: int, total: int) -> None:
    bar.total = total
    bar.n = done
    bar.refresh()


def _configure_logging(verbosity: int, *, is_quiet: bool) -> None:
    level = logging.ERROR if is_quiet else logging.DEBUG if verbosity else logging.INFO
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("tileseg").setLevel(level)


if __name__ == "__main__":
    main()
