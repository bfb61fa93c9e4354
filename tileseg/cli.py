"""Arguments -> jobs, errors -> exit codes. Parses only; heavy imports come late."""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
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
from tileseg.options import job_options
from tileseg.stopping import Stop, StopSignal

if TYPE_CHECKING:
    from tqdm import tqdm

    from tileseg.job import Staff
    from tileseg.record import Record
    from tileseg.settings import Job

__all__ = ["main", "one_line_errors", "segment"]

_LOG_SECONDS = 10
_STDERR = 2
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
@job_options
def segment(**options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Make a georeferenced class mask of each scene.

    One line of JSON per scene goes to stdout, everything else to stderr.
    """
    _configure_logging(options.pop("verbose"), is_quiet=options.pop("quiet"))
    from tileseg.job import Staff

    codes = []
    with one_line_errors(), _signals() as stop, Staff(stop) as staff:
        for facts in _scenes(options):
            codes.append(_run(facts, staff).values["exit_code"])
            if codes[-1] in _STOPPED:
                break
    _leave(worst(codes), staff)


@main.command()
@click.option(
    "--scenes",
    metavar="DIR|FILE",
    required=True,
    help="A folder of GeoTIFFs, or a text file with one path a line.",
)
@job_options
def nightly(**options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Segment every scene of a folder or list that has no result yet.

    A directory for each goes into --output, beside night.json, the summary. A scene
    that fails stops no other. One line of JSON per scene goes to stdout, then the
    summary as the last line.
    """
    _configure_logging(options.pop("verbose"), is_quiet=options.pop("quiet"))
    from tileseg.job import Staff
    from tileseg.nightly import Night, find_scenes

    with one_line_errors(), _signals() as stop, Staff(stop) as staff:
        values = {**_job_file(options.pop("config"), is_one=False), **_given(options)}
        night = Night(find_scenes(options["scenes"]))
        output = values.get("output", "out")
        for facts in _one_each(list(night.waiting), values):
            record = _run(facts, staff, is_taken=night.has(facts["output"]))
            night.add(facts["input"], facts["output"], record)
            if record.values["exit_code"] in _STOPPED:
                break
        if not values.get("dry_run"):
            night.leave(output)
    _tell(str(night), err=True)
    _tell(json.dumps(night.summary()))
    _leave(night.exit_code, staff)


@main.group()
def model() -> None:
    """Look at model folders."""


@model.command()
@click.argument("folder", metavar="[MODEL]", default="")
def info(folder: str) -> None:
    """Say what a model eats, what its classes are and where it comes from."""
    from tileseg.card import read_card
    from tileseg.settings import default_model

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
    from tileseg.settings import default_model
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


def _scenes(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of a job for each scene, from the options and the job file.

    Raises:
        UsageError: no scene, two scenes of one name, or a bad job file.
    """
    inputs = options.pop("inputs")
    file = _job_file(options.pop("config"), is_one=len(inputs) <= 1)
    values = {**file, **_given(options)}
    listed = values.pop("input", ())
    inputs = inputs or ((listed,) if isinstance(listed, str) else listed)
    if not inputs:
        msg = "no scene: give --input SCENE"
        raise UsageError(msg)
    if len(inputs) == 1:
        return [{**values, "input": inputs[0]}]
    stems = [Path(name).stem for name in inputs]
    if len(set(stems)) < len(stems):
        double = next(stem for stem in stems if stems.count(stem) > 1)
        msg = f"two inputs are named {double!r}: they would share an output directory"
        raise UsageError(msg)
    return _one_each(inputs, values)


def _job_file(path: str | None, *, is_one: bool) -> dict[str, Any]:
    """Return what a job file says; for several scenes no places of a record's one."""
    from tileseg.settings import is_record, read_job

    values = read_job(path) if path else {}
    if path and is_record(path) and not is_one:
        return {k: v for k, v in values.items() if k not in ("output", "work")}
    return values


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a job that the command line states."""
    return {
        key: value
        for key, value in options.items()
        if value is not None and key != "scenes"
    }


def _one_each(inputs: Sequence[str], values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of a job for each scene, with directories of their own."""
    from tileseg.settings import within

    output = values.get("output", "out")
    work = values.get("work")
    return [
        {
            **values,
            "input": name,
            "output": within("output", output, Path(name).stem),
            "work": within("work", work, Path(name).stem) if work else "",
        }
        for name in inputs
    ]


def _run(facts: dict[str, Any], staff: "Staff", *, is_taken: bool = False) -> "Record":
    """Run one job, print its line and return its record.

    The line comes last: where stdout and stderr are one, as in the log of a Ray job,
    it is still the last line.
    """
    from tileseg.job import run
    from tileseg.record import Record
    from tileseg.settings import Job

    record = Record(facts["input"])
    try:
        if is_taken:
            msg = f"{facts['input']}: another scene's results go to {facts['output']}"
            raise UsageError(msg)
        job = Job(**facts)
        with _progress(job.input) as progress:
            record = run(job, progress, staff)
        if record.values["status"] == "dry-run":
            _print_estimate(job, record.values)
    except StopSignal as err:
        record.fail(err.error)
    except TilesegError as err:
        record.fail(err)
    if record.error:
        _tell(f"tileseg: {record.values['error']}", err=True)
    _tell(json.dumps(record.values))
    return record


def _leave(code: int, staff: "Staff") -> NoReturn:
    """End the process, even if a thread of it never will."""
    if staff.is_stuck:
        logging.shutdown()
        os._exit(code)  # what was printed is written: each line is flushed
    sys.exit(code)


def _tell(line: str, *, err: bool = False) -> None:
    """Print a line; a reader that is gone, or a full disk, stops no job."""
    try:
        click.echo(line, err=err)
    except OSError:
        stream = sys.stderr if err else sys.stdout
        # What is buffered would be written again, and fail again, at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """Lead closed standard streams to nowhere: a map would get their number."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(handle)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w")


def _print_estimate(job: "Job", values: dict[str, Any]) -> None:
    estimate = values["estimate"]
    click.echo(
        f"{job.input}: {estimate['shards']} shards in {estimate['runs']} runs, "
        f"{estimate['tiles']} tiles, {estimate['bytes_to_read'] / 1e6:.1f} MB to read, "
        f"about {estimate['memory_mb']:.0f} MB of memory above the loaded network; "
        f"the results would go to {job.destination}",
        err=True,
    )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn our errors into one line on stderr and their exit code."""
    try:
        yield
    except (TilesegError, StopSignal) as err:
        error = err.error if isinstance(err, StopSignal) else err
        click.echo(f"tileseg: {error}", err=True)
        sys.exit(int(error.exit_code))


@contextmanager
def _signals() -> Iterator[Stop]:
    """Let SIGTERM and SIGINT end the job resumably.

    It leaves workers some seconds for what they have in hand; a second one ends the
    process there and then, resumably too.
    """
    errors = {signal.SIGTERM: PreemptedError, signal.SIGINT: InterruptedRunError}
    stop = Stop()

    def ask(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        name = signal.Signals(number).name
        text = f"{name}: stopped; the same command resumes"
        stop.ask(errors[signal.Signals(number)](text))

    before = {number: signal.signal(number, ask) for number in errors}
    try:
        yield stop
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
        from tqdm.contrib.logging import logging_redirect_tqdm

        bar = tqdm(desc=Path(title).name, unit="tile")
        with bar, logging_redirect_tqdm():
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
    _open_streams()
    level = logging.ERROR if is_quiet else logging.DEBUG if verbosity else logging.INFO
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("tileseg").setLevel(level)


if __name__ == "__main__":
    main()
