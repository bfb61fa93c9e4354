"""Does near infrared help? The same training with and without it, side by side.

python jobs/infrared.py --data DATA --to out/infrared --write docs/models.md

On the sources that have it. Both see the same tiles in the same order; each is scored
on the same test blocks. It is a short one: the models that come with tileseg learn
longer.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from landcover.page import as_table, write_between
from landcover.sources import BANDS, INFRARED, training
from tileseg.commands.console import (
    configure_logging,
    one_line_errors,
    progress,
    signals,
)
from tileseg.training.train import train

EPOCHS, STEPS = 3, 100


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True)
@click.option("--write", "page", type=click.Path(path_type=Path), required=True)
def main(data: Path, folder: Path, page: Path) -> None:
    """Train both; write a table of their scores into a page."""
    configure_logging(0, is_quiet=False)
    with one_line_errors():
        found = [learn(data, folder, bands) for bands in (BANDS, INFRARED)]
    write_between(page, "infrared", as_scores(found))


def learn(data: Path, folder: Path, bands: tuple[str, ...]) -> dict[str, Any]:
    """Train on some bands; return the scores on test blocks."""
    to = folder / "-".join(bands)
    wanted = replace(
        training(data, str(to), INFRARED),
        bands=bands,
        epochs=EPOCHS,
        steps=STEPS,
        patience=EPOCHS,
    )
    with signals() as stop, progress(wanted.to) as told:
        train(wanted, stop, told)
    scores = json.loads((to / "metrics.json").read_text(encoding="utf-8"))["test"]
    return {"bands": ", ".join(bands), **scores}


def as_scores(found: list[dict[str, Any]]) -> str:
    """Return a table: macro-F1, accuracy and the F1 of each class."""
    names = list(found[0]["f1"])
    lines = [
        [
            item["bands"],
            f"{item['macro_f1']:.3f}",
            f"{item['accuracy']:.3f}",
            *(f"{item['f1'][name]:.3f}" for name in names),
        ]
        for item in found
    ]
    return as_table(["bands", "macro-F1", "accuracy", *names], lines)


if __name__ == "__main__":
    main()
