"""The one place where speed is measured: a table, JSON, a picture, a document.

python jobs/bench.py --quick                   some minutes; every part, small
python jobs/bench.py                           the full set; hours on a small machine
python jobs/bench.py --only stages --only peers
python jobs/bench.py --quick --side 8192       with a larger scene for the whole job
python jobs/bench.py --device cuda             the same on a GPU, with larger scenes
python jobs/bench.py --engine local --engine ray
                                               the engines alone, and whole jobs
python jobs/bench.py --simulate 300            a device that takes 300 tiles a second
python jobs/bench.py --simulate 300 --storage 0.5 [--in-turn]
                                               and a slow disk; without any overlap
python jobs/bench.py --latency 0.03            the scene also from a web server
python jobs/bench.py --read A.json --read B.json --markdown docs/performance.md
                                               a document of what was measured before

Every figure is the median over rounds in which all that is compared takes turns, so
that a busy machine is unfair to none; `spread` is how far the rounds lie apart, as a
share of it. `ratio` is tiles a second over those of the same network alone.
"""

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from benchmark import engines, machine
from benchmark.document import as_document
from benchmark.picture import draw
from benchmark.setting import Setting
from benchmark.table import Row, as_text
from tileseg.base.choices import DEVICES
from tileseg.commands.console import one_line_errors
from tileseg.errors import UsageError
from tileseg.network.device import resolve_device

logger = logging.getLogger(__name__)

PARTS = {
    "alone": "the network alone",
    "stages": "each stage alone",
    "whole": "the whole job, and its ratio to its own network alone",
    "incremental": "a scene that came again, a part of it changed",
    "memory": "peak memory against the scene's size",
    "polygons": "masks to files of polygons, beside GDAL's tracer",
    "peers": "other libraries, side by side",
    "simulate": "the engines with simulated devices, disks and servers",
    "scale": "workers and receipts",
}
_CASE = ["engines", "size", "model", "workers", "rate", "storage", "in_turn", "latency"]
_MODULES = {"simulate": "engines"}  # else the part's own name


FAILED = "failed"  # begins the note of a row of what could not be measured


def is_failed(row: dict[str, Any]) -> bool:
    """Return whether a row says that a part ended with an error."""
    return str(row["note"]).startswith(FAILED)


def measured(part: str, setting: Setting) -> Iterator[Row]:
    """Yield the rows of a part."""
    module = import_module(f"benchmark.{_MODULES.get(part, part)}")
    yield from module.measure(setting)


def _setting(options: dict[str, Any]) -> Setting:
    device = resolve_device(options["device"])
    rounds = options["rounds"] or (1 if options["quick"] else 3)
    return Setting(
        device=device,
        quick=options["quick"],
        rounds=rounds,
        side=options["side"],
        folder=Path(options["cache"]).expanduser().absolute(),
    )


def _cases(options: dict[str, Any]) -> list[engines.Case]:
    """Return the cases that options spell out; none if they say nothing of one.

    Raises:
        UsageError: a disk is to be simulated, but no device; or parts are wanted, too.
    """
    named = {name: options[name] for name in _CASE if options[name] not in (None, ())}
    kinds = named.pop("engines", ("local",))
    if not (named or options["engines"]):
        return []
    if options["only"]:
        msg = (
            f"--only {options['only'][0]}: measures a part, the other options one case "
            "of the engines; give one or the other"
        )
        raise UsageError(msg)
    if "rate" not in named and named.keys() & {"storage", "in_turn"}:
        msg = "--storage and --in-turn: wanted with --simulate, which they slow down"
        raise UsageError(msg)
    return [engines.Case(engine=kind, **named) for kind in kinds]


def _rows(options: dict[str, Any], setting: Setting) -> Iterator[Row]:
    """Yield what is asked for, row by row."""
    if options["cases"]:
        for case in options["cases"]:
            yield from engines.measure_case(case, setting)
        return
    for part in options["only"] or PARTS:
        click.echo(f"{part}: {PARTS[part]} ...", err=True)
        try:
            yield from measured(part, setting)
        except Exception as err:  # the other parts are measured all the same
            logger.exception("%s failed", part)
            yield Row(part, "the rest", {}, f"{FAILED}: {type(err).__name__}: {err}")


def _result(rows: list[Row], known: dict[str, Any]) -> dict[str, Any]:
    return {"machine": known, "rows": [row.as_dict() for row in rows]}


def _measure(options: dict[str, Any], stem: Path) -> dict[str, Any]:
    """Measure all that is asked for; every row is kept in a file at once."""
    setting = _setting(options)
    known, rows = machine.facts(setting.device), list[Row]()
    for row in _rows(options, setting):
        rows.append(row)
        data = json.dumps(_result(rows, known), indent=1) + "\n"
        stem.with_suffix(".json").write_text(data, encoding="utf-8")
        if not options["as_json"]:
            click.echo(f"{row.part}: {row.name}: {row.figures}", err=True)
    return _result(rows, known)


def _stem(output: str) -> Path:
    """Return the path of what is written, without its suffix."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"bench-{datetime.now(UTC):%Y-%m-%dT%H%M%S}"


def _read(name: str) -> Any:  # noqa: ANN401  (JSON)
    try:
        result = json.loads(Path(name).read_text("utf-8"))
        machine.in_words(result["machine"])
        as_text(Row(**row) for row in result["rows"])
    except (OSError, ValueError, LookupError, TypeError) as err:
        msg = f"--read {name}: is no result of this program: {err!r}"
        raise UsageError(msg) from err
    return result


def _print(results: list[dict[str, Any]]) -> None:
    for result in results:
        click.echo(machine.in_words(result["machine"]) + "\n")
        click.echo(as_text(Row(**row) for row in result["rows"]) + "\n")


@click.command()
@click.option("--quick", is_flag=True, help="Some minutes: small scenes, one round.")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)),
              help="One part; may be given again.")  # fmt: skip
@click.option("--device", default="auto", show_default=True,
              type=click.Choice(["auto", *DEVICES]))  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), help="1 with --quick, else 3.")
@click.option(
    "--side", type=click.IntRange(128), help="Of the scene of a whole job, in pixels."
)
@click.option("--output", default="out/bench", show_default=True,
              help="Where JSON and picture go.")  # fmt: skip
@click.option("--cache", default="~/.cache/tileseg-bench", show_default=True,
              help="Where scenes and models stay.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, no table.")
@click.option("--read", multiple=True, type=click.Path(dir_okay=False),
              help="Measure nothing; take these results.")  # fmt: skip
@click.option("--markdown", type=click.Path(dir_okay=False),
              help="Write a document of all results, too.")  # fmt: skip
@click.option("--simulate", "rate", metavar="RATE",
              type=click.FloatRange(0, min_open=True),
              help="Tiles a second of a simulated device: only that.")  # fmt: skip
@click.option("--storage", type=click.FloatRange(0), metavar="SHARE",
              help="Of the device's time that reading takes, and writing.")  # fmt: skip
@click.option("--in-turn", flag_value=True, default=None,
              help="Let reading, forward and writing wait in turn.")  # fmt: skip
@click.option("--latency", type=click.FloatRange(0), metavar="SECONDS",
              help="From a web server that answers so late: only that.")  # fmt: skip
@click.option("--engine", "engines", multiple=True, type=click.Choice(["local", "ray"]),
              help="Which one; local. Only that, as with those below.")  # fmt: skip
@click.option("--size", type=(click.IntRange(1), click.IntRange(1)),
              help="Height and width of its scene; 3300 4700.")  # fmt: skip
@click.option("--model", help="Its model folder.")
@click.option("--workers", type=int, help="Its workers; 1.")
def main(**options: Any) -> None:  # noqa: ANN401  (what is said above)
    """Measure speed and memory; print medians, write JSON and a picture."""
    with one_line_errors():
        results = [_read(name) for name in options["read"]]
        kept: list[Path] = []
        if not results:
            options["cases"] = _cases(options)  # before anything is written
            stem = _stem(options["output"])
            results = [_measure(options, stem)]
            kept = [stem.with_suffix(".json")]
            if draw(results[0], stem.with_suffix(".png")):
                kept.append(stem.with_suffix(".png"))
        if options["as_json"]:
            click.echo(json.dumps(results[0] if len(results) == 1 else results))
        else:
            _print(results)
        if options["markdown"]:
            page = Path(options["markdown"])
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(as_document(results), "utf-8")
            kept.append(page)
        for path in kept:
            click.echo(path, err=options["as_json"])
    sys.exit(any(is_failed(row) for result in results for row in result["rows"]))


if __name__ == "__main__":
    main()
