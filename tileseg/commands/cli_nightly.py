"""The command of nights, and one scene after the other as commands do them."""

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tileseg.base.address import allow, called
from tileseg.base.logs import about
from tileseg.base.stopping import StopSignal
from tileseg.commands.console import (
    begin,
    deadline,
    leave,
    one_line_errors,
    progress,
    results,
    signals,
    tell,
)
from tileseg.commands.intake import job_file, one_each, stated
from tileseg.commands.options import job_options, watch_options
from tileseg.errors import (
    DeadlineError,
    ExitCode,
    NobodyError,
    TilesegError,
    UsageError,
)

if TYPE_CHECKING:
    from tileseg.commands.monitor import Monitor
    from tileseg.engines.staff import Staff
    from tileseg.nights.nightly_file import NightFile
    from tileseg.nights.nightly_run import Tonight
    from tileseg.settings import Job
    from tileseg.steps.record import Record

__all__ = ["is_over", "nightly", "run_one"]

_OFTEN = 1.1  # times that a pixel may be decoded: see docs/design.md
_STOPPED = (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)


@click.command()
@click.option(
    "--scenes",
    metavar="DIR|FILE",
    help="A folder of GeoTIFFs, a text file with one path a line, or any --input."
    "  [default: what the night's file given as --config says]",
)
@click.option(
    "--plan",
    "is_plan",
    is_flag=True,
    help="Say what the night would do, why not the rest, and the cost; do nothing.",
)
@click.option(
    "--retry",
    multiple=True,
    metavar="SCENE|all",
    help="Take a scene as a new one, that was given up say; all: all that failed."
    " May be given several times.",
)
@click.option(
    "--scenes-may-fail",
    "may_fail",
    is_flag=True,
    help="Exit with 0 when the night has ended, whatever became of its scenes: for what"
    " begins a failed command again. night.json tells of them.",
)
@job_options
@watch_options
def nightly(**options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Segment every scene of a folder, list or collection that has no result yet.

    With --scenes: a directory for each goes into --output, beside night.json, the
    summary, and collection.json, a STAC Collection of all results. Without: --config is
    a night's file (nightly.toml) that says from where and to where, how long a night
    is and what is done about failures. A scene that fails stops no other. One line of
    JSON per scene goes to stdout, then the summary as the last line.
    """
    begin(options)
    from tileseg.commands.monitor import Monitor

    is_plan, retry = options.pop("is_plan"), options.pop("retry")
    may_fail = options.pop("may_fail")
    monitor = Monitor(options.pop("metrics"), options.pop("heartbeat"))
    is_broken = False
    with results(), one_line_errors():
        if options["scenes"] is not None and (is_plan or retry or may_fail):
            msg = (
                "--plan, --retry, --scenes-may-fail: are for a night's file; give "
                "--config nightly.toml instead of --scenes"
            )
            raise UsageError(msg)
        if is_plan:
            _plan(_file(options), retry)
        elif options["scenes"] is None:
            file = _file(options)
            with monitor:
                night, is_broken = _spend(file, retry, monitor)
                if may_fail and not is_broken:
                    monitor.code = night.stopped
        else:
            with monitor:
                is_broken = _each(options, monitor)
    leave(monitor.code, is_broken=is_broken)


def _file(options: dict[str, Any]) -> "NightFile":
    """Return the night's file, with what the command line states instead."""
    from tileseg.nights.nightly_file import read_night
    from tileseg.nights.nightly_hook import check

    path, job = options.pop("config"), stated(options)
    if path is None:
        msg = "no scene: give --scenes, or a night's file as --config"
        raise UsageError(msg)
    if job.pop("dry_run", None):
        msg = "dry-run: of a night's file give --plan"
        raise UsageError(msg)
    target: dict[str, Any] = {
        key: job.pop(key) for key in ("output", "work") if key in job
    }
    file = read_night(path, job, target)
    allow(file.job.get("hosts", ()))
    check(file.night)
    return file


def _plan(file: "NightFile", retry: tuple[str, ...]) -> None:
    """Print what a night would do; write nothing."""
    from tileseg.nights.nightly_run import Tonight, check_target
    from tileseg.nights.nightly_table import table

    with signals():
        check_target(file)
        plan = Tonight(file, retry=retry).plan()
    tell(table(plan), level=logging.INFO)
    tell(json.dumps(plan))


def _spend(
    file: "NightFile", retry: tuple[str, ...], monitor: "Monitor"
) -> tuple["Tonight", bool]:
    """Do what a night's file asks; return the night, and whether workers are stuck."""
    from tileseg.engines.staff import Staff
    from tileseg.nights.nightly_hook import notify_failure
    from tileseg.nights.nightly_run import Tonight, hold_night

    with signals() as stop, ExitStack() as stack:
        try:
            stack.enter_context(hold_night(file))
            night = Tonight(file, retry=retry)
        except TilesegError as err:
            notify_failure(file.night, err)
            raise
        with Staff(stop, is_shared=True) as staff:  # with whom Ray's port goes
            with deadline(stop, night.left()):
                _work(night, staff, monitor)
            _end(night, file)
            monitor.sum_up(night.summary())  # after it: this run's seconds are in it
    tell(str(night), level=logging.INFO)
    tell(json.dumps(night.summary()))
    return night, staff.is_broken


def _end(night: "Tonight", file: "NightFile") -> None:
    """Write what the night leaves, and tell the webhook, the more if that fails."""
    from tileseg.nights.nightly_hook import notify

    try:
        is_news = night.leave()
    except TilesegError as err:
        tell(str(err), level=logging.ERROR)
        night.stop(err)
        is_news = True
    if is_news:
        notify(file.night, night.summary())


def _work(night: "Tonight", staff: "Staff", monitor: "Monitor") -> None:
    """Do scenes until all are done or somebody says stop."""
    try:
        for choice, following in night.turns():
            staff.following = following.facts if following else None
            record = run_one(choice.facts, staff, monitor, pulse=night.save)
            night.add(choice, record)
            if is_over(record, staff):
                break
    except StopSignal as err:  # between two scenes
        night.stop(err.error)


def _each(options: dict[str, Any], monitor: "Monitor") -> bool:
    """Do every scene that --scenes names; return whether workers are stuck."""
    from tileseg.engines.staff import Staff
    from tileseg.nights.nightly import Night

    with signals() as stop, Staff(stop, is_shared=True) as staff:
        # What a person took back is not made again by whatever runs every night.
        values = {"again": False, **job_file(options.pop("config"), is_one=False)}
        values |= stated(options)
        if values.get("join"):
            msg = "join: makes one scene of several files, and a night has many scenes"
            raise UsageError(msg)
        allow(values.get("hosts", ()))
        output = values.get("output", "out")
        jobs = one_each(_named(options["scenes"], values), values)
        night = Night([(facts["input"], facts["output"]) for facts in jobs])
        for facts, staff.following in zip_longest(jobs, jobs[1:]):
            is_taken = night.has(facts["output"])
            record = run_one(facts, staff, monitor, is_taken=is_taken)
            night.add(facts["input"], facts["output"], record)
            if is_over(record, staff):
                break
        try:
            if not values.get("dry_run"):
                night.leave(output)
        except TilesegError as err:
            tell(str(err), level=logging.ERROR)
            night.stop(err)
        monitor.sum_up(night.summary())
    tell(str(night), level=logging.INFO)
    tell(json.dumps(night.summary()))
    return staff.is_broken


def _named(scenes: str, values: dict[str, Any]) -> list[str]:
    """Return what --scenes names, but for what a pattern finds among the results."""
    from tileseg.nights.nightly_source import is_apart
    from tileseg.scenes.inputs import find_many, root_of

    places = values.get("output", "out"), values.get("work")
    around = [it for it in places if it and is_apart(root_of(scenes), [it])]
    return [it for it in find_many(scenes) if is_apart(it, around)]


def run_one(
    facts: dict[str, Any],
    staff: "Staff",
    monitor: "Monitor",
    *,
    is_taken: bool = False,
    pulse: Callable[[], None] = lambda: None,
) -> "Record":
    """Run one job, print its line and return its record.

    The line comes last: where stdout and stderr are one, as in the log of a Ray job,
    it is still the last line.

    Args:
        facts: fields of the job.
        staff: who does it.
        monitor: who watches.
        is_taken: whether another scene's results go where its are to go.
        pulse: called every second or so.
    """
    from tileseg.job import run
    from tileseg.settings import Job
    from tileseg.steps.record import Record

    scene = called(facts["input"])
    record = Record(scene)
    with about(scene):
        try:
            if is_taken:
                msg = f"{scene}: another scene's results go to {facts['output']}"
                raise UsageError(msg)
            job = Job(**facts)
            with progress(job.href) as told:

                def tell_all(done: int, total: int) -> None:
                    pulse()
                    told(done, total)

                record = run(job, monitor.beside(tell_all), staff)
            if record.values["status"] == "dry-run":
                _print_estimate(job, record.values)
        except StopSignal as err:
            record.fail(err.error)
        except TilesegError as err:
            record.fail(err)
        if record.error:
            is_due = isinstance(record.error, DeadlineError)  # as it should be
            level = logging.INFO if is_due else logging.ERROR
            tell(record.values["error"], level=level)
    monitor.add(record)
    tell(json.dumps(record.values))
    return record


def is_over(record: "Record", staff: "Staff") -> bool:
    """Return whether no further scene is to be begun by this process."""
    is_stopped = record.values["exit_code"] in _STOPPED or staff.stop.error is not None
    return is_stopped or staff.is_broken or isinstance(record.error, NobodyError)


def _print_estimate(job: "Job", values: dict[str, Any]) -> None:
    estimate = values["estimate"]
    tell(
        f"{job.href}: {estimate['shards']} shards in {estimate['runs']} runs, "
        f"{estimate['tiles']} tiles{_forwarded(estimate)}, "
        f"{estimate['bytes_to_read'] / 1e6:.1f} MB to read{_decoded(values)}, "
        f"about {estimate['memory_mb']:.0f} MB of memory above the loaded network; "
        f"the results would go to {job.destination}",
        level=logging.INFO,
    )


def _decoded(values: dict[str, Any]) -> str:
    """Return how often a pixel is decoded, if that is well more than once."""
    _, _, height, width = values["grid"]["area"]
    times = values["estimate"]["decoded_pixels"] / (height * width)
    text = f" and to decode {times:.2f} times, less if it is sparse"
    return text if times > _OFTEN else ""


def _forwarded(estimate: dict[str, Any]) -> str:
    """Return how often a tile is forwarded, if that is more than once."""
    times = estimate["forwards"] // (estimate["tiles"] or 1)
    return f" that are forwarded {times} times" if times > 1 else ""
