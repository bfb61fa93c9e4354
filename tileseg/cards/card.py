"""The model card: what a network eats and what its numbers mean. Knows no network."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from tileseg.base.choices import ANSWERS, UNITS
from tileseg.base.classes import LandClass
from tileseg.cards.architecture import PROGRAMS, Architecture
from tileseg.cards.drift import Statistics
from tileseg.errors import RefusedError
from tileseg.grid import shard_size

__all__ = ["CONFIDENCE_STEPS", "NODATA", "Card"]

NODATA = 255
"""The mask's value where there is no answer; never a class."""

CONFIDENCE_STEPS = 254
"""The confidence raster's value for a probability of 1."""

_TWO = 2  # a class and its background
_LONGEST_NAME = 100  # of a class, letters
# Fields that change no pixel.
_FREE = ("about", "gsd_range", "scenes", "statistics", "temperature")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Everything about a network that can change a pixel, and where it came from."""

    name: str
    """Short and stable; part of every product."""
    version: str
    """Of the model, not of tileseg."""
    bands: tuple[str, ...]
    """Band names in the order of the network's inputs."""
    unit: str
    """`reflectance` (0 to 1; scenes state scale and offset) or `dn` (as stored)."""
    mean: tuple[float, ...]
    """Per band, in `unit`; the network sees (value - mean) / std."""
    std: tuple[float, ...]
    """Per band, in `unit`, > 0."""
    tile: int
    """Side of a tile in pixels."""
    halo: int
    """Margin of a tile that is thrown away (crop) or blended (cosine), in pixels."""
    classes: tuple[LandClass, ...]
    """Values 0, 1, 2 ... in order; of a one-logit network background and the class."""
    outputs: int
    """Logits per pixel: one a class, or 1 for a class against background."""
    architecture: Architecture
    """What kind of network it is, and how it is built."""
    sha256: str
    """Of the weights file, 64 hexadecimal digits."""
    fields: tuple[int, ...] = ()
    """Values of the classes whose areas are agricultural fields; then no other class
    gets polygons."""
    answers: str = "logits"
    """`logits`, or `probabilities` where the network itself ends in softmax or sigmoid.
    """
    gsd: float | None = None
    """Side of a pixel it was trained on, in metres; None where it does not say."""
    gsd_range: tuple[float, float] | None = None
    """The least and the greatest of the same, where it was trained on several."""
    weights: str = "weights.safetensors"
    """File name beside the card."""
    statistics: tuple[Statistics, ...] | None = None
    """Of the values it was trained on, per band; None where the card does not say."""
    scenes: tuple[tuple[Statistics, ...], ...] = ()
    """The same of each scene by itself, where there were several."""
    temperature: float | None = None
    """By which the logits were divided, in the weights, so that confidence is right as
    often as it says; None where that was not done."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Free: description, training data, licence, scores. Changes no pixel."""

    def __post_init__(self) -> None:
        """Refuse a card that no run could use."""
        for message in self._faults():
            raise ValueError(message)

    def _faults(self) -> list[str]:
        """Say what is wrong, each in words that go on after "it"."""
        if wrong := self.architecture.faults():
            return wrong
        if self.tile <= 0:
            return [f"needs a tile > 0, got {self.tile}"]
        values = [item.value for item in self.classes]
        step = self.architecture.multiple
        checks = {
            "names no bands": len(self.bands) > 0,
            "has a band without a name": all(self.bands),
            f"needs one mean and one stddev for each of {len(self.bands)} bands": (
                len(self.mean) == len(self.std) == len(self.bands)
            ),
            "has a mean or stddev that is not finite": all(
                map(isfinite, (*self.mean, *self.std))
            ),
            "has a stddev that is not > 0": all(std > 0 for std in self.std),
            f"has unknown unit {self.unit!r}": self.unit in UNITS,
            f"answers with {self.answers!r}, wanted one of {', '.join(ANSWERS)}": (
                self.answers in ANSWERS
            ),
            f"needs classes 0, 1, 2 ... (2 to 255 of them), got {values}": (
                values == list(range(len(values))) and _TWO <= len(values) <= NODATA
            ),
            "has two classes of one name": (
                len({item.name for item in self.classes}) == len(values)
            ),
            f"has {len(values)} classes for {self.outputs} logits": (
                self.outputs == len(values) or (self.outputs, len(values)) == (1, _TWO)
            ),
            f"has a class name that is empty, not printable or longer than "
            f"{_LONGEST_NAME} letters": all(
                item.name.isprintable() and 0 < len(item.name) <= _LONGEST_NAME
                for item in self.classes
            ),
            f"calls {list(self.fields)} fields, wanted classes, each once": (
                set(self.fields) < set(values)
                and len(set(self.fields)) == len(self.fields)
                and (self.outputs > 1 or 0 not in self.fields)
            ),
            "has a class colour that is not RRGGBB": all(
                re.fullmatch("[0-9A-Fa-f]{6}", item.color) for item in self.classes
            ),
            f"needs halo <= tile/4, got tile {self.tile}, halo {self.halo}": (
                0 <= 4 * self.halo <= self.tile
            ),
            f"needs tile and stride in multiples of {step}, "
            f"got tile {self.tile}, stride {self.stride}": (
                self.tile % step == self.stride % step == 0
            ),
            f"needs a gsd > 0, got {self.gsd}": (
                self.gsd is None or (isfinite(self.gsd) and self.gsd > 0)
            ),
            f"needs a gsd_range round its gsd {self.gsd}, got {self.gsd_range}": (
                self.gsd_range is None or self._is_range(*self.gsd_range)
            ),
            f"has no sha256 of its weights, got {self.sha256!r}": (
                re.fullmatch("[0-9a-f]{64}", self.sha256) is not None
            ),
        }
        faults = [fault for fault, is_good in checks.items() if not is_good]
        return faults or self._statistics_faults() or _shard_fault(self.tile, self.halo)

    def _is_range(self, least: float, greatest: float) -> bool:
        gsd = self.gsd
        return gsd is not None and 0 < least <= gsd <= greatest and isfinite(greatest)

    def _statistics_faults(self) -> list[str]:
        if self.statistics is None:
            return ["has statistics of scenes, none of all"] if self.scenes else []
        sets, bands = (self.statistics, *self.scenes), len(self.bands)
        for some in sets:
            if len(some) != bands:
                count = len(some)
                return [f"has statistics of {count} bands, wanted all {bands} or none"]
        return [fault for some in sets for item in some for fault in item.faults()]

    @property
    def left_out(self) -> tuple[int, ...]:
        """Mask values of no polygon.

        Of one class and its background, that too; of fields, all that is none.
        """
        if self.fields:
            others = {item.value for item in self.classes} - set(self.fields)
            return (NODATA, *sorted(others))
        return (NODATA, 0) if self.outputs == 1 else (NODATA,)

    @property
    def stride(self) -> int:
        """Side of a core in pixels."""
        return self.tile - 2 * self.halo

    def gsd_near(self, side: float) -> float | None:
        """Return, of the sides that it was trained on, the nearest one, in metres."""
        if self.gsd is None:
            return None
        least, greatest = self.gsd_range or (self.gsd, self.gsd)
        return min(max(side, least), greatest)

    @property
    def floats(self) -> int:
        """Numbers that a forward holds at once, for each pixel of a tile."""
        return self.architecture.floats

    @property
    def ends(self) -> int:
        """Numbers that go in and come out, for each pixel of a tile."""
        return len(self.bands) + self.outputs

    def check_trust(self, *, is_trusted: bool) -> None:
        """Refuse a network that is a program of somebody else's, unless it is trusted.

        Raises:
            RefusedError: it is, and is not.
        """
        kind = self.architecture.kind
        if kind in PROGRAMS and not is_trusted:
            msg = (
                f"{self.name}: is a program ({kind}), which can do anything that you "
                "can; if you know who made it: --trust-model-code"
            )
            raise RefusedError(msg)

    def facts(self) -> dict[str, Any]:
        """Return what can change a pixel or a product, as plain values."""
        return {key: item for key, item in asdict(self).items() if key not in _FREE}


def _shard_fault(tile: int, halo: int) -> list[str]:
    try:
        shard_size(tile, halo)
    except ValueError as err:
        return [f"cannot be cut into shards: {err}"]
    return []
