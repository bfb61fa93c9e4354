"""Arguments -> jobs, errors -> exit codes. Parses only; heavy imports come late."""

import logging
from itertools import zip_longest
from typing import Any, NoReturn

import click

from tileseg import __version__
from tileseg.commands.cli_mask import change, evaluate, polygonize
from tileseg.commands.cli_model import model
from tileseg.commands.cli_nightly import is_over, nightly, run_one
from tileseg.commands.cli_train import train
from tileseg.commands.cli_versions import release, rollback, versions
from tileseg.commands.console import (
    begin,
    leave,
    one_line_errors,
    results,
    signals,
    tell,
)
from tileseg.commands.intake import scenes_of
from tileseg.commands.options import job_options, watch_options
from tileseg.errors import TilesegError, worst

__all__ = ["main", "nightly", "segment"]


@click.group("tileseg")
@click.version_option(__version__, prog_name="tileseg")
def main() -> None:
    """Segment very large GeoTIFFs with a U-Net, without losing anything."""


for command in (nightly, change, evaluate, polygonize, train, model):
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
@watch_options
def segment(**options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Make a georeferenced class mask of each scene.

    One line of JSON per scene goes to stdout, everything else to stderr.
    """
    begin(options)
    from tileseg.commands.monitor import Monitor
    from tileseg.engines.staff import Staff

    monitor = Monitor(options.pop("metrics"), options.pop("heartbeat"))
    with results(), one_line_errors(), signals() as stop, Staff(stop) as staff, monitor:
        scenes = scenes_of(options)
        staff.is_shared = len(scenes) > 1
        for facts, staff.following in zip_longest(scenes, scenes[1:]):
            record = run_one(facts, staff, monitor)
            if is_over(record, staff):
                break
    leave(monitor.code, is_broken=staff.is_broken)


@main.command()
@click.argument("inputs", metavar="SCENE...", nargs=-1)
@job_options
def check(**options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Open scenes as a job would, and say what a person should know.

    What each is and what is odd about it, whether the model fits, what the job would
    take. Takes the options of `segment`; writes nothing. Exits as the job would if it
    could not begin.
    """
    begin(options)
    from tileseg.settings import Job
    from tileseg.steps.check import check as look_at

    codes = [0]
    with results(), one_line_errors(), signals():
        for facts in scenes_of(options):
            try:
                job = Job(**facts)
                tell(job.href)
                for finding in look_at(job):
                    tell(f"  {finding.topic:<6} {finding.text}")
            except TilesegError as err:
                tell(str(err), level=logging.ERROR)
                codes.append(int(err.exit_code))
    leave(worst(codes), is_broken=False)


if __name__ == "__main__":
    main()
