"""Segment what is new: `python jobs/nightly.py --scenes DIR --output DIR`."""

from tileseg.cli import nightly

if __name__ == "__main__":
    nightly()
