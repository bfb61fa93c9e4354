"""docs/tutorial.md does what it says: its commands as they stand, in a fresh folder."""

import json
import re

import pytest
from making import snapshot
from walk import ROOT, walk

PAGE = ROOT / "docs" / "tutorial.md"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_newcomers_walk(tmp_path):
    """A model, a map, its score; nights that find two scenes new, nothing, one of them
    changed, and that one taken back."""
    said, nights, ended = [], [], []
    for block, told in walk(PAGE, tmp_path):
        said.append(told)
        if "--metrics" in block:
            counts = json.loads(told.splitlines()[-1])["counts"]
            ended.append((counts["done"], counts["kept"]))
            nights.append(snapshot(tmp_path / "out/maps"))

    assert ended == [(2, 0), (2, 0), (2, 0), (1, 1)]
    first, again, changed, taken_back = nights
    assert again == first
    others = {name for name, file in first.items() if changed.get(name) != file}
    assert "south/mask.tif" in others
    assert not any(name.startswith("north/") for name in others)
    assert taken_back["south/mask.tif"][-1] == first["south/mask.tif"][-1]
    right = re.search(r"^accuracy (\S+) at 511 places", "".join(said), re.MULTILINE)
    assert float(right[1]) >= 0.95  # the page says 0.97
