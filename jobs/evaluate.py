"""Say how right a mask is: `tileseg evaluate`, as a script.

python jobs/evaluate.py out/itaipu/mask.tif examples/itaipu_checkpoints.geojson
"""

from tileseg.commands.cli_mask import evaluate

if __name__ == "__main__":
    evaluate()
