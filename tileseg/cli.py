"""Arguments -> jobs, errors -> exit codes. Parses only; heavy imports come late."""

import json
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tileseg import __version__
from tileseg.address import allow
from tileseg.cli_mask import change, evaluate, polygonize
from tileseg.cli_model import model
from tileseg.cli_train import train
from tileseg.cli_versions import release, rollback, versions
from tileseg.console import (
    configure_logging,
    leave,
    one_line_errors,
    progress,
    results,
    signals,
    tell,
)
from tileseg.environment import scrub
from tileseg.errors import ExitCode, TilesegError, UsageError, worst
from tileseg.intake import job_file, one_each, scenes_of, stated
from tileseg.options import job_options
from tileseg.stopping import StopSignal

if TYPE_CHECKING:
    from tileseg.job import Staff
    from tileseg.record import Record
    from tileseg.settings import Job

__all__ = ["main", "nightly", "segment"]

_STOPPED = (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)


@click.group("tileseg")
@click.version_option(__version__, prog_name="tileseg")
def main() -> None:
    """Segment very large GeoTIFFs with a U-Net, without losing anything."""


for command in (change, evaluate, polygonize, train, model):
    main.add_command(command)
for command in (versions, rollback, release):
    main.add_command(command)


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
        for facts in scenes_of(options):
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

    A directory for each goes into --output, beside night.json, the summary, and
    collection.json, a STAC Collection of all results. A scene that fails stops no
    other. One line of JSON per scene goes to stdout, then the summary as the last
    line.
    """
    configure_logging(options.pop("verbose"), is_quiet=options.pop("quiet"))
    scrub()
    from tileseg.inputs import find_many
    from tileseg.job import Staff
    from tileseg.nightly import Night

    with results(), one_line_errors(), signals() as stop, Staff(stop) as staff:
        # What a person took back is not made again by whatever runs every night.
        values = {"again": False, **job_file(options.pop("config"), is_one=False)}
        values |= stated(options)
        if values.get("join"):
            msg = "join: makes one scene of several files, and a night has many scenes"
            raise UsageError(msg)
        allow(values.get("hosts", ()))
        night = Night(list(find_many(options["scenes"])))
        output = values.get("output", "out")
        for facts in one_each(list(night.waiting), values):
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
        for facts in scenes_of(options):
            try:
                job = Job(**facts)
                tell(job.href)
                for finding in look_at(job):
                    tell(f"  {finding.topic:<6} {finding.text}")
            except TilesegError as err:
                tell(f"tileseg: {err}", err=True)
                codes.append(int(err.exit_code))
    leave(worst(codes), is_broken=False)


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


if __name__ == "__main__":
    main()
