"""The model card: what a network eats and what its numbers mean.

`card.json` is a STAC Item with the Machine Learning Model (MLM) extension; what MLM
has no word for is under `tileseg:`. Reads and writes text only; knows no network.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from tileseg.architecture import KINDS, PROGRAMS, Architecture, unet
from tileseg.drift import Statistics
from tileseg.errors import ModelError, RefusedError
from tileseg.grid import shard_size
from tileseg.mlm import ARTIFACTS, class_object, hyperparameters, model_name, moment

__all__ = ["CONFIDENCE_STEPS", "NODATA", "Card", "LandClass", "own_file", "read_card"]

NODATA = 255
"""The mask's value where there is no answer; never a class."""

CONFIDENCE_STEPS = 254
"""The confidence raster's value for a probability of 1."""

_MLM = "https://stac-extensions.github.io/mlm/v1.5.0/schema.json"
_CLASSES = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
_FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
_TWO = 2  # a class and its background
_ANSWERS = ("logits", "probabilities")
_LONGEST_CARD = 1 << 20  # letters
_LONGEST_NAME = 100  # of a class, letters
_SHA256_MULTIHASH = "1220"  # multihash prefix: sha2-256, 32 bytes
_FREE = ("about", "statistics", "temperature")  # fields that change no pixel


@dataclass(frozen=True, slots=True)
class LandClass:
    """One class of the mask."""

    value: int
    """Mask value, 0 to 254."""
    name: str
    """What a legend says."""
    color: str
    """RRGGBB in hexadecimal."""

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, each 0 to 255."""
        red, green, blue = bytes.fromhex(self.color)
        return red, green, blue


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
    answers: str = "logits"
    """`logits`, or `probabilities` where the network itself ends in softmax or sigmoid.
    """
    gsd: float | None = None
    """Side of a pixel it was trained on, in metres; None where it does not say."""
    weights: str = "weights.safetensors"
    """File name beside the card."""
    statistics: tuple[Statistics, ...] | None = None
    """Of the values it was trained on, per band; None where the card does not say."""
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
            f"has unknown unit {self.unit!r}": self.unit in ("reflectance", "dn"),
            f"answers with {self.answers!r}, wanted one of {', '.join(_ANSWERS)}": (
                self.answers in _ANSWERS
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
            f"has no sha256 of its weights, got {self.sha256!r}": (
                re.fullmatch("[0-9a-f]{64}", self.sha256) is not None
            ),
        }
        faults = [fault for fault, is_good in checks.items() if not is_good]
        return faults or self._statistics_faults() or _shard_fault(self.tile, self.halo)

    def _statistics_faults(self) -> list[str]:
        if self.statistics is None:
            return []
        if len(self.statistics) != len(self.bands):
            bands, count = len(self.bands), len(self.statistics)
            return [f"has statistics of {count} bands, wanted all {bands} or none"]
        return [fault for item in self.statistics for fault in item.faults()]

    @property
    def left_out(self) -> tuple[int, ...]:
        """Mask values of no polygon: of one class and its background, that too."""
        return (NODATA, 0) if self.outputs == 1 else (NODATA,)

    @property
    def stride(self) -> int:
        """Side of a core in pixels."""
        return self.tile - 2 * self.halo

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

    def to_stac(self) -> dict[str, Any]:
        """Return the card as a STAC Item; `read_card` gives the same card back."""
        framework, artifact, media_type = ARTIFACTS[self.architecture.kind]
        name = model_name(self.name)
        return {
            "type": "Feature",
            "stac_version": "1.1.0",
            "stac_extensions": [_MLM, _CLASSES, _FILE],
            "id": f"{self.name}-{self.version}",
            "geometry": None,
            "properties": {
                "datetime": moment(self.about.get("datetime")),
                "version": self.version,
                "mlm:name": name,
                **({} if name == self.name else {"tileseg:name": self.name}),
                "mlm:architecture": self.architecture.name,
                "mlm:tasks": ["semantic-segmentation"],
                "mlm:framework": framework,
                "mlm:input": [self._input()],
                "mlm:output": [self._output()],
                "bands": self._bands(),
                "tileseg:unit": self.unit,
                "tileseg:halo": self.halo,
                **self._more(),
                "tileseg:about": dict(self.about),
            },
            "links": [],
            "assets": {
                "weights": {
                    "href": self.weights,
                    "type": media_type,
                    "roles": ["mlm:model", "mlm:weights"],
                    # STAC lets an Item have bands only if an asset has them.
                    "bands": [{"name": name} for name in self.bands],
                    "mlm:artifact_type": artifact,
                    "file:checksum": _SHA256_MULTIHASH + self.sha256,
                }
            },
        }

    def _more(self) -> dict[str, Any]:
        """Return how the network is built, and what most cards have no need to say."""
        more: dict[str, Any] = {}
        if self.gsd is not None:
            more["tileseg:gsd"] = self.gsd
        if self.answers != "logits":
            more["tileseg:answers"] = self.answers
        if self.temperature is not None:
            more["tileseg:temperature"] = self.temperature
        own = self.architecture
        if said := hyperparameters(own.parameters):
            more["mlm:hyperparameters"] = said
        if own.kind != "unet":
            more["tileseg:network"] = {
                "kind": own.kind, "multiple": own.multiple, "floats": own.floats,
                **({} if said else {"parameters": dict(own.parameters)}),
            }  # fmt: skip
        return more

    def _bands(self) -> list[dict[str, Any]]:
        """Return STAC's word on each band: its name, and what values it had."""
        if self.statistics is None:
            return [{"name": name} for name in self.bands]
        pairs = zip(self.bands, self.statistics, strict=True)
        return [{"name": name, **item.as_json()} for name, item in pairs]

    def _input(self) -> dict[str, Any]:
        return {
            "name": "pixels",
            "bands": list(self.bands),
            "input": {
                "shape": [-1, len(self.bands), self.tile, self.tile],
                "dim_order": ["batch", "bands", "height", "width"],
                "data_type": "float32",
            },
            "value_scaling": [
                {"type": "z-score", "mean": mean, "stddev": std}
                for mean, std in zip(self.mean, self.std, strict=True)
            ],
        }

    def _output(self) -> dict[str, Any]:
        return {
            "name": self.answers,
            "tasks": ["semantic-segmentation"],
            "result": {
                "shape": [-1, self.outputs, self.tile, self.tile],
                "dim_order": ["batch", "class", "height", "width"],
                "data_type": "float32",
            },
            "classification:classes": [
                class_object(item.value, item.name, item.color) for item in self.classes
            ],
        }


def _shard_fault(tile: int, halo: int) -> list[str]:
    try:
        shard_size(tile, halo)
    except ValueError as err:
        return [f"cannot be cut into shards: {err}"]
    return []


def own_file(folder: Path, name: str) -> Path:
    """Return the path of a model folder's file, if that is a file and lies in it.

    Raises:
        ModelError: it is a folder, a pipe or a device.
        RefusedError: it is a link to somewhere else.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        msg = f"{path}: is a link out of the model's folder; put the file itself there"
        raise RefusedError(msg)
    if path.exists() and not path.is_file():
        msg = f"{path}: cannot be read: is no plain file"
        raise ModelError(msg)
    return path


def read_card(folder: Path) -> Card:
    """Read `card.json` of a model folder.

    Raises:
        ModelError: there is none, or it does not describe a usable network.
        RefusedError: its weights are of a kind that can run code, or lie elsewhere.
    """
    path = own_file(folder, "card.json")
    try:
        with path.open(encoding="utf-8") as file:
            item = json.loads(file.read(_LONGEST_CARD))
    except FileNotFoundError as err:
        msg = f"{folder}: no model here, wanted a folder with card.json"
        raise ModelError(msg) from err
    except (OSError, ValueError, RecursionError) as err:
        msg = f"{path}: unreadable model card: {err}"
        raise ModelError(msg) from err
    try:
        return _from_stac(item)
    except RefusedError as err:
        msg = f"{path}: {err}"
        raise RefusedError(msg) from err
    except KeyError as err:
        msg = f"{path}: broken model card: {err.args[0]!r} is missing"
        raise ModelError(msg) from err
    except ValueError as err:
        msg = f"{path}: broken model card: it {err}"
        raise ModelError(msg) from err
    except (TypeError, LookupError, AttributeError, ArithmeticError) as err:
        msg = f"{path}: broken model card: not built as one: {err}"
        raise ModelError(msg) from err


def _from_stac(item: dict[str, Any]) -> Card:
    properties = item["properties"]
    (inputs,), (outputs,) = properties["mlm:input"], properties["mlm:output"]
    asset = item["assets"]["weights"]
    architecture = _architecture(properties)
    ending = KINDS.get(architecture.kind, ".safetensors")
    if not re.fullmatch(r"[\w.-]+" + re.escape(ending), str(asset["href"])):
        msg = (
            f"weights {str(asset['href'])[:100]!r}: only *{ending} beside the card are "
            f"loaded for a network of kind {architecture.kind}; others can run code"
        )
        raise RefusedError(msg)
    classes = tuple(
        LandClass(
            int(entry["value"]),
            str(entry.get("title", entry["name"])),
            str(entry["color_hint"]),
        )
        for entry in outputs["classification:classes"]
    )
    bands = tuple(
        str(band["name"] if isinstance(band, dict) else band)
        for band in inputs["bands"]
    )
    shape, tile = inputs["input"]["shape"], inputs["input"]["shape"][-1]
    if shape != [-1, len(bands), tile, tile] or not isinstance(tile, int):
        msg = f"has input shape {shape}, wanted [-1, {len(bands)}, tile, tile]"
        raise ValueError(msg)
    return Card(
        name=str(properties.get("tileseg:name", properties["mlm:name"])),
        version=str(properties["version"]),
        bands=bands,
        unit=str(properties["tileseg:unit"]),
        mean=tuple(float(band["mean"]) for band in inputs["value_scaling"]),
        std=tuple(float(band["stddev"]) for band in inputs["value_scaling"]),
        tile=tile,
        halo=int(properties["tileseg:halo"]),
        classes=classes,
        outputs=int(outputs["result"]["shape"][1]),
        architecture=architecture,
        answers=str(properties.get("tileseg:answers", "logits")),
        sha256=str(asset["file:checksum"]).removeprefix(_SHA256_MULTIHASH),
        gsd=_number(properties, "tileseg:gsd"),
        weights=str(asset["href"]),
        statistics=_statistics(properties.get("bands", []), bands),
        temperature=_number(properties, "tileseg:temperature"),
        about=dict(properties.get("tileseg:about", {})),
    )


def _statistics(
    said: list[dict[str, Any]], names: tuple[str, ...]
) -> tuple[Statistics, ...] | None:
    """Return the statistics of bands that a card describes; None if it says none."""
    found = [item for band in said if (item := Statistics.from_json(band))]
    if found and [band["name"] for band in said] != list(names):
        msg = f"has statistics of other bands than its input's, {', '.join(names)}"
        raise ValueError(msg)
    return tuple(found) or None


def _number(properties: dict[str, Any], key: str) -> float | None:
    return None if (value := properties.get(key)) is None else float(value)


def _architecture(properties: dict[str, Any]) -> Architecture:
    says = properties.get("tileseg:network")
    if says is None:
        parameters = properties["mlm:hyperparameters"]
        return unet(int(parameters["width"]), int(parameters["depth"]))
    parameters = properties.get("mlm:hyperparameters", says.get("parameters", {}))
    return Architecture(
        kind=str(says["kind"]),
        name=str(properties["mlm:architecture"]),
        parameters=dict(parameters),
        multiple=int(says["multiple"]),
        floats=int(says["floats"]),
    )
