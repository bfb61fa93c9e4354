"""Say how right a mask is at check points.

python jobs/evaluate.py out/itaipu/mask.tif examples/itaipu_checkpoints.geojson
"""

from pathlib import Path

import click

from tileseg.cli import one_line_errors
from tileseg.evaluate import check_points


@click.command()
@click.argument("mask", type=click.Path(path_type=Path))
@click.argument("points", type=click.Path(path_type=Path))
def main(mask: Path, points: Path) -> None:
    """Compare MASK with the `class` of each of the GeoJSON POINTS."""
    with one_line_errors():
        click.echo(check_points(mask, points))


if __name__ == "__main__":
    main()
