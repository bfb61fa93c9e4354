"""Segment what is new: `python jobs/nightly.py --config nightly.toml`.

Or without a night's file: `--scenes DIR --output DIR`.
"""

from tileseg.cli import nightly

if __name__ == "__main__":
    nightly()
