"""Python runs this as it starts, where this folder is on PYTHONPATH."""

import os
import sys
from pathlib import Path

if os.environ.get("TILESEG_FAULTS"):
    sys.path.append(str(Path(__file__).parents[1]))
    import faults

    faults.install(os.environ["TILESEG_FAULTS"])
