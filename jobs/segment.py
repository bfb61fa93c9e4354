"""Segment scenes: `python jobs/segment.py --input scene.tif`; see `--help`."""

from tileseg.cli import segment

if __name__ == "__main__":
    segment()
