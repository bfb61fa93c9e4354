"""Arguments -> jobs, errors -> exit codes. Parses only; heavy imports come late."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tileseg import __version__
from tileseg.address import allow
from tileseg.console import (
    configure_logging,
    leave,
    progress,
    results,
    signals,
    tell,
)
from tileseg.environment import scrub
from tileseg.errors import ExitCode, TilesegError, UsageError, worst
from tileseg.options import import_options, job_options, training_options
from tileseg.stopping import StopSignal

if TYPE_CHECKING:
    from tileseg.job import Staff
    from tileseg.record import Record
    from tileseg.settings import Job

__all__ = ["main", "one_line_errors", "segment"]

_STOPPED = (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)


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
    help="GeoTIFF, 'pattern*.tif', folder, list.txt or STAC Item, a path or an address;"
    " may be given several times.",
)
@job_options
def segment(**options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Make a georeferenced class mask of each scene.

    One line of JSON per scene goes to stdout, everything else to stderr.
    """
    configure_logging(options.pop("verbose"), is_quiet=options.pop("quiet"))
    scrub()
    from tileseg.job import Staff

    codes = []
    with results(), one_line_errors(), signals() as stop, Staff(stop) as staff:
        for facts in _scenes(options):
            record = _run(facts, staff)
            codes.append(record.values["exit_code"])
            if _is_over(record, staff):
                break
    leave(worst(codes), is_broken=staff.is_broken)


@main.command()
@click.option(
    "--scenes",
    metavar="DIR|FILE",
    required=True,
    help="A folder of GeoTIFFs, a text file with one path a line, or any --input.",
)
@job_options
def nightly(**options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Segment every scene of a folder, list or collection that has no result yet.

    A directory for each goes into --output, beside night.json, the summary. A scene
    that fails stops no other. One line of JSON per scene goes to stdout, then the
    summary as the last line.
    """
    configure_logging(options.pop("verbose"), is_quiet=options.pop("quiet"))
    scrub()
    from tileseg.inputs import find_many
    from tileseg.job import Staff
    from tileseg.nightly import Night

    with results(), one_line_errors(), signals() as stop, Staff(stop) as staff:
        values = {**_job_file(options.pop("config"), is_one=False), **_given(options)}
        if values.get("join"):
            msg = "join: makes one scene of several files, and a night has many scenes"
            raise UsageError(msg)
        allow(values.get("hosts", ()))
        night = Night(list(find_many(options["scenes"])))
        output = values.get("output", "out")
        for facts in _one_each(list(night.waiting), values):
            record = _run(facts, staff, is_taken=night.has(facts["output"]))
            night.add(facts["input"], facts["output"], record)
            if _is_over(record, staff):
                break
        codes = [night.exit_code]
        try:
            if not values.get("dry_run"):
                night.leave(output)
        except TilesegError as err:
            tell(f"tileseg: {err}", err=True)
            codes.append(int(err.exit_code))
    tell(str(night), err=True)
    tell(json.dumps(night.summary()))
    leave(worst(codes), is_broken=staff.is_broken)


@main.command()
@click.argument("inputs", metavar="SCENE...", nargs=-1)
@job_options
def check(**options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Open scenes as a job would, and say what a person should know.

    What each is and what is odd about it, whether the model fits, what the job would
    take. Takes the options of `segment`; writes nothing. Exits as the job would if it
    could not begin.
    """
    configure_logging(options.pop("verbose"), is_quiet=options.pop("quiet"))
    scrub()
    from tileseg.check import check as look_at
    from tileseg.settings import Job

    codes = [0]
    with results(), one_line_errors(), signals():
        for facts in _scenes(options):
            try:
                job = Job(**facts)
                tell(job.href)
                for finding in look_at(job):
                    tell(f"  {finding.topic:<6} {finding.text}")
            except TilesegError as err:
                tell(f"tileseg: {err}", err=True)
                codes.append(int(err.exit_code))
    leave(worst(codes), is_broken=False)


@main.command()
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
    if options["confidence"] is None:
        options["confidence"] = _confidence_beside(mask)
    with results(), one_line_errors():
        renamed = dict(map(_renamed, options.pop("renamed")))
        question = Question(mask=mask, reference=reference, renamed=renamed, **options)
        answer = compare(question)
        tell(json.dumps(answer.as_dict()) if as_json else as_text(answer))
        if picture:
            write_whole(Path(picture), as_picture(answer))


@main.command()
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


@main.command()
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


def _renamed(text: str) -> tuple[str, str]:
    """Return both sides of VALUE=CLASS."""
    old, equals, new = text.partition("=")
    if not equals:
        msg = f"--rename {text}: wanted VALUE=CLASS"
        raise UsageError(msg)
    return old, new


@main.group()
def model() -> None:
    """Look at model folders, and make them."""


@model.command()
@click.argument("folder", metavar="[MODEL]", default="")
def info(folder: str) -> None:
    """Say what a model eats, what its classes are and where it comes from."""
    from tileseg.card import read_card
    from tileseg.settings import default_model

    with one_line_errors():
        card = read_card(Path(folder) if folder else default_model())
    heat = {} if card.temperature is None else {"temperature": card.temperature}
    lines = {**card.facts(), **heat, **card.about}
    for name, known in zip(card.bands, card.statistics or (), strict=False):
        lines[f"values of {name}"] = str(known)
    width = max(map(len, lines))
    for key, value in lines.items():
        tell(f"{key:<{width}}  {_plain(value)}")


@model.command()
@click.argument("folder", metavar="[MODEL]", default="")
@click.option("--trust-model-code", "is_trusted", is_flag=True, help="Run a program.")
def trace(folder: str, *, is_trusted: bool) -> None:
    """Print the shape after every stage for one tile.

    MODEL is a model folder, or `unet` for the classic network with random weights.
    """
    from tileseg.card import read_card
    from tileseg.model import load_module
    from tileseg.settings import default_model
    from tileseg.unet import UNet
    from tileseg.unet import trace as trace_network

    network: Any
    with one_line_errors():
        if folder == "unet":
            network, bands, tile = UNet(), 3, 128
        else:
            path = Path(folder) if folder else default_model()
            card = read_card(path)
            card.check_trust(is_trusted=is_trusted)
            network = load_module(path, card)
            bands, tile = len(card.bands), card.tile
    for line in trace_network(network, bands, tile):
        click.echo(line)


def _scene_options(command: Any) -> Any:  # noqa: ANN401  (a function, as click has it)
    """Give a command scenes, and what may be said of them."""
    for option in (
        click.option("--offset", type=float, help="See --scale."),
        click.option("--scale", type=float, help="As of `segment`."),
        click.option("--config", metavar="FILE", help="A job file, for `bands`, say."),
        click.option("--host", "hosts", multiple=True, help="As of `segment`."),
        click.option("--scene", "inputs", multiple=True, required=True, metavar="SCENE",
                     help="As --input of `segment`; may be given several times."),
    ):  # fmt: skip
        command = option(command)
    return command


def _scene_jobs(options: dict[str, Any]) -> "list[Job]":
    """Return a job for each scene that `_scene_options` name."""
    from tileseg.settings import Job

    options["hosts"] = options["hosts"] or None
    options["trust_model_code"] = True  # no network is run, nor its file opened
    return [Job(**facts) for facts in _scenes(options)]


@model.command("check")
@click.option("--model", metavar="DIR", help="Model folder.  [default: ours]")
@_scene_options
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a scene.")
def check_fit(*, as_json: bool, **options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Say whether a model was made for scenes like this: ok, warn or refuse.

    Bands, type, scale, resolution, range, and how far the values have drifted from
    those it was trained on. Looks at some places only. Exits with 2 if it refuses.
    """
    scrub()
    from tileseg.fit import compare

    codes = [0]
    with results(), one_line_errors():
        for job in _scene_jobs(options):
            try:
                found = compare(job)
            except TilesegError as err:
                tell(f"tileseg: {err}", err=True)
                codes.append(int(err.exit_code))
                continue
            tell(json.dumps(found.as_dict()) if as_json else str(found))
            codes.append(ExitCode.USAGE if found.verdict == "refuse" else ExitCode.OK)
    sys.exit(worst(codes))


@model.command("statistics")
@click.option("--model", metavar="DIR", required=True, help="Model folder.")
@_scene_options
def add_statistics(**options: Any) -> None:  # noqa: ANN401  (fields of a Job)
    """Write into a model's card what values scenes have that it was trained on."""
    scrub()
    from tileseg.fit import with_statistics
    from tileseg.train import write_card

    with results(), one_line_errors():
        jobs = _scene_jobs(options)
        card = with_statistics(jobs)
        write_card(jobs[0].model_path, card)
        for name, known in zip(card.bands, card.statistics or (), strict=True):
            tell(f"{name}: {known}")


@model.command("import")
@click.argument("source")
@click.option("--to", "folder", metavar="DIR", required=True, help="A new folder.")
@import_options
def import_(source: str, folder: str, **options: Any) -> None:  # noqa: ANN401  (of Told)
    """Make a model folder of another library's network, once.

    SOURCE is a state_dict (.pt, .pth) of the tutorial's U-Net or of
    segmentation_models_pytorch, a folder that its save_pretrained wrote, a Lightning
    checkpoint of torchgeo's segmentation task, safetensors, ONNX, TorchScript or
    torch.export. What it does not say itself must be told. Afterwards only DIR is used.
    """
    with results(), one_line_errors():
        # Not before: a wrong option is told without torch.
        from tileseg.adopt import Told, adopt, lay

        told = Told(**{key: item for key, item in options.items() if item is not None})
        place = Path(folder).absolute()
        adopted = adopt(Path(source), told, folder_name=place.name)
        lay(adopted, place)
        card = adopted.card
        step = f"tiles of {card.tile} pixels, halo {card.halo}"
        tell(f"{folder}: {card.architecture.name} ({card.architecture.kind}), {step}")


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
    from tileseg.inputs import find_scenes
    from tileseg.settings import scene_name

    given, config = options.pop("inputs"), options.pop("config")
    values = {**_job_file(config, is_one=True), **_given(options)}
    allow(values.get("hosts", ()))
    listed = values.pop("input", ())
    inputs = find_scenes(given or ((listed,) if isinstance(listed, str) else listed))
    if not inputs:
        msg = "no scene: give --input SCENE"
        raise UsageError(msg)
    if len(inputs) == 1:
        return [{**values, "input": inputs[0]}]
    if values.get("join"):
        return [{**values, "input": inputs}]
    names = [scene_name(item) for item in inputs]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        msg = f"two inputs are named {double!r}: they would share an output directory"
        raise UsageError(msg)
    return _one_each(inputs, {**_job_file(config, is_one=False), **_given(options)})


def _job_file(path: str | None, *, is_one: bool) -> dict[str, Any]:
    """Return what a job file says; for several scenes no places of a record's one."""
    from tileseg.settings import is_record, read_job

    values = read_job(path, _fetched(path)) if path else {}
    if path and is_record(path) and not is_one:
        return {k: v for k, v in values.items() if k not in ("output", "work")}
    return values


def _fetched(path: str) -> bytes | None:
    """Return the bytes of a job file in an object store; None for one on a disk."""
    from tileseg.objects import open_storage
    from tileseg.settings import is_remote

    if not is_remote(path):
        return None
    folder, _, name = path.rpartition("/")
    try:
        return open_storage(folder).read(name)
    except FileNotFoundError as err:
        msg = f"{path}: there is no such object"
        raise UsageError(msg) from err


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a job that the command line states."""
    return {
        key: value
        for key, value in options.items()
        if value is not None and key != "scenes"
    }


def _one_each(inputs: Sequence[str], values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of a job for each scene, with directories of their own."""
    from tileseg.settings import scene_name, within

    output = values.get("output", "out")
    work = values.get("work")
    return [
        {
            **values,
            "input": name,
            "output": within("output", output, scene_name(name)),
            "work": within("work", work, scene_name(name)) if work else "",
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
    from tileseg.settings import Job, called

    record = Record(called(facts["input"]))
    try:
        if is_taken:
            scene, output = called(facts["input"]), facts["output"]
            msg = f"{scene}: another scene's results go to {output}"
            raise UsageError(msg)
        job = Job(**facts)
        with progress(job.href) as told:
            record = run(job, told, staff)
        if record.values["status"] == "dry-run":
            _print_estimate(job, record.values)
    except StopSignal as err:
        record.fail(err.error)
    except TilesegError as err:
        record.fail(err)
    if record.error:
        tell(f"tileseg: {record.values['error']}", err=True)
    tell(json.dumps(record.values))
    return record


def _is_over(record: "Record", staff: "Staff") -> bool:
    """Return whether no further scene is to be begun by this process."""
    is_stopped = record.values["exit_code"] in _STOPPED or staff.stop.error is not None
    return is_stopped or staff.is_broken


def _print_estimate(job: "Job", values: dict[str, Any]) -> None:
    estimate = values["estimate"]
    tell(
        f"{job.href}: {estimate['shards']} shards in {estimate['runs']} runs, "
        f"{estimate['tiles']} tiles{_forwarded(estimate)}, "
        f"{estimate['bytes_to_read'] / 1e6:.1f} MB to read, "
        f"about {estimate['memory_mb']:.0f} MB of memory above the loaded network; "
        f"the results would go to {job.destination}",
        err=True,
    )


def _forwarded(estimate: dict[str, Any]) -> str:
    """Return how often a tile is forwarded, if that is more than once."""
    times = estimate["forwards"] // (estimate["tiles"] or 1)
    return f" that are forwarded {times} times" if times > 1 else ""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn our errors into one line on stderr and their exit code."""
    try:
        yield
    except (TilesegError, StopSignal) as err:
        error = err.error if isinstance(err, StopSignal) else err
        tell(f"tileseg: {error}", err=True)
        sys.exit(int(error.exit_code))


if __name__ == "__main__":
    main()
