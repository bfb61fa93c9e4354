"""Build the corpus: odd, broken and hostile rasters, each with what must come of it.

    python tests/corpus/build.py FOLDER

Nothing is taken from elsewhere and nothing is drawn by chance, so what is expected is
known from the arrays that the files are made of, and is written into `expected.toml`
beside this program. tests/test_corpus.py holds the two together.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import broken
import grids
import hostile
import kinds
import layouts
import numpy as np
import values
from affine import Affine
from tiff import NORTH_UP

if TYPE_CHECKING:
    from collections.abc import Callable

TABLE = Path(__file__).with_name("expected.toml")
PARTS = (grids, layouts, kinds, values, broken, hostile)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file and what must come of it."""

    name: str
    """Of the file, in the corpus' folder."""
    kind: str
    """The part of the corpus that makes it."""
    odd: str
    """How it is odd."""
    code: int
    """The exit code of the job."""
    says: str = ""
    """Of an error: a part of its message."""
    pixels: np.ndarray | None = None
    """Of success: (bands, height, width), all the bands, as stored."""
    valid: np.ndarray | None = None
    """Of success: (height, width), True where every band that is used is."""
    transform: Affine = NORTH_UP
    crs: str | None = "EPSG:32631"
    """As rasterio takes it."""
    bands: tuple[int | str, ...] = ()
    """Which of the bands are used; empty for the first three at most."""
    within: int = 0
    """How far a stored value may be from `pixels`: of lossy codecs."""
    job: dict = field(default_factory=dict)
    """Fields of the job, beside."""
    is_huge: bool = False
    """Whether it is too large to be segmented here: it is planned, and read in part."""

    @property
    def used(self) -> tuple[int | str, ...]:
        """The bands that are used, by index or name."""
        count = 1 if self.pixels is None else len(self.pixels)
        return self.bands or tuple(range(1, min(3, count) + 1))

    @property
    def seen(self) -> np.ndarray:
        """The bands that are used as float32, 0 where not valid."""
        index = [key - 1 for key in self.used if isinstance(key, int)]
        stored = self.pixels[index] if index else self.pixels[: len(self.used)]
        with np.errstate(over="ignore", invalid="ignore"):
            return np.where(self.valid, stored, 0).astype(np.float32)

    def facts(self) -> dict[str, Any]:
        """Return what the table says of it."""
        facts: dict[str, Any] = {"kind": self.kind, "odd": self.odd, "exit": self.code}
        if self.code:
            return facts | {"says": self.says}
        facts |= {
            "height": self.valid.shape[0],
            "width": self.valid.shape[1],
            "transform": [float(term).hex() for term in self.transform[:6]],
            "crs": self.crs or "",
            "bands": [str(key)[:99] for key in self.used],
        }
        if not self.is_huge:
            facts["valid"] = int(np.count_nonzero(self.valid))
        if self.within:
            return facts | {"within": self.within}
        if not self.is_huge:
            facts["sha256"] = hashlib.sha256(self.seen.astype("<f4")).hexdigest()
        return facts


class Corpus:
    """A folder that is filled, and what is expected of each file in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cases, self.kind = folder, {}, ""

    def fine(
        self,
        name: str,
        odd: str,
        data: "bytes | Callable[[Path], None]",
        pixels: np.ndarray,
        valid: np.ndarray | bool = True,
        **facts: Any,
    ) -> None:
        """Add a file that must be segmented, right."""
        valid = np.broadcast_to(np.asarray(valid), pixels.shape[1:])
        self._add(name, odd, data, code=0, pixels=pixels, valid=valid, **facts)

    def bad(
        self,
        name: str,
        odd: str,
        data: "bytes | Callable[[Path], None]",
        code: int,
        says: str,
        **facts: Any,
    ) -> None:
        """Add a file that must be refused with this code and a message that says so."""
        self._add(name, odd, data, code=code, says=says, **facts)

    def _add(
        self,
        name: str,
        odd: str,
        data: "bytes | Callable[[Path], None]",
        **facts: Any,
    ) -> None:
        assert name not in self.cases, f"{name} is there twice"
        path = self.folder / name
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            data(path)
        self.cases[name] = Case(name=name, kind=self.kind, odd=odd, **facts)


def build(folder: Path) -> dict[str, Case]:
    """Fill a folder; return what is expected of each file in it, by name."""
    corpus = Corpus(folder)
    for part in PARTS:
        corpus.kind = part.__name__
        part.build(corpus)
    return corpus.cases


def table(cases: dict[str, Case]) -> str:
    """Return what is expected as TOML, a table for each file."""
    lines = ["# Made by build.py: what must come of each file. Not to be edited."]
    for name, case in cases.items():
        lines += ["", f"[{json.dumps(name)}]"]
        facts = case.facts().items()
        lines += [f"{key} = {json.dumps(value)}" for key, value in facts]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    TABLE.write_text(table(build(target)), encoding="utf-8")
