"""Commands about what is live, was live, and is parked."""

import json
from typing import Any

import click

from tileseg.base.environment import scrub
from tileseg.commands.console import one_line_errors, results, tell

__all__ = ["release", "rollback", "versions"]


@click.command()
@click.argument("output")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a version.")
def versions(output: str, *, as_json: bool) -> None:
    """List the versions of a scene's result: live, parked and kept.

    OUTPUT is a scene's output directory or prefix.
    """
    scrub()
    from tileseg.nights.rollback import describe, list_versions

    with results(), one_line_errors():
        for version in list_versions(output):
            facts = describe(version)
            tell(json.dumps(facts) if as_json else _line(facts))


@click.command()
@click.argument("output")
@click.option(
    "--to",
    "wanted",
    metavar="VERSION",
    default="",
    help="A name, or the beginning of one, of `tileseg versions`."
    "  [default: what was live last]",
)
def rollback(output: str, wanted: str) -> None:
    """Make a kept version live again, in one step; keep the one that was.

    The plan that was live is not made again by a night, nor without --overwrite.
    """
    scrub()
    from tileseg.nights.rollback import roll_back
    from tileseg.publishing.versions import name_of

    with results(), one_line_errors():
        tell(f"{output}: live is {name_of(roll_back(output, wanted))}")


@click.command()
@click.argument("output")
@click.option("--discard", is_flag=True, help="Remove it instead.")
def release(output: str, *, discard: bool) -> None:
    """Make a parked result live, after somebody looked at it."""
    scrub()
    from tileseg.nights import rollback
    from tileseg.publishing.versions import name_of

    with results(), one_line_errors():
        if discard:
            tell(f"{output}: {rollback.discard(output)} is removed")
        else:
            tell(f"{output}: live is {name_of(rollback.release(output))}")


def _line(facts: dict[str, Any]) -> str:
    """Return what a person reads of a version."""
    shares = facts["shares"] or {}
    said = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    parts = [f"{facts['state']:<6} {facts['version']}", facts["model"], said]
    if facts["status"] == "partial":
        parts.append("with holes")
    return "  ".join(filter(None, [*parts, *facts["refused"]]))
