"""`card.json`: a model's card as a STAC Item, written and read. Knows no network.

What the Machine Learning Model (MLM) extension has no word for is under `tileseg:`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tileseg.base.builtin import MODELS
from tileseg.base.classes import LandClass, values_of
from tileseg.cards.architecture import KINDS, Architecture, unet
from tileseg.cards.card import Card
from tileseg.cards.drift import Statistics
from tileseg.cards.mlm import (
    ARTIFACTS,
    EXTENSIONS,
    MULTIHASH,
    class_object,
    hyperparameters,
    model_name,
    moment,
    multihash,
)
from tileseg.errors import ModelError, RefusedError
from tileseg.stores.storage import write_whole

__all__ = ["from_stac", "own_file", "read_card", "to_stac", "write_card"]

_LONGEST_CARD = 1 << 20  # letters


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
        msg = (
            f"model {folder}: no model here, wanted a folder with card.json, or "
            f"{' or '.join(MODELS)}"
        )
        raise ModelError(msg) from err
    except (OSError, ValueError, RecursionError) as err:
        msg = f"{path}: unreadable model card: {err}"
        raise ModelError(msg) from err
    try:
        return from_stac(item)
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


def write_card(folder: Path, card: Card) -> None:
    """Write `card.json` of a model folder.

    Raises:
        ModelError: it would be too long to be read again.
    """
    text = json.dumps(to_stac(card), indent=1) + "\n"
    if len(text) > _LONGEST_CARD:
        msg = f"{folder}: the card would have {len(text):,} letters, more than are read"
        raise ModelError(msg)
    write_whole(folder / "card.json", text.encode())


def to_stac(card: Card) -> dict[str, Any]:
    """Return the card as a STAC Item; `read_card` gives the same card back."""
    framework, artifact, media_type = ARTIFACTS[card.architecture.kind]
    name = model_name(card.name)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [
            EXTENSIONS[name] for name in ("mlm", "classification", "file")
        ],
        "id": f"{card.name}-{card.version}",
        "geometry": None,
        "properties": {
            "datetime": moment(card.about.get("datetime")),
            "version": card.version,
            "mlm:name": name,
            **({} if name == card.name else {"tileseg:name": card.name}),
            "mlm:architecture": card.architecture.name,
            "mlm:tasks": ["semantic-segmentation"],
            "mlm:framework": framework,
            "mlm:input": [_input(card)],
            "mlm:output": [_output(card)],
            "bands": _bands(card),
            "tileseg:unit": card.unit,
            "tileseg:halo": card.halo,
            **_more(card),
            "tileseg:about": dict(card.about),
        },
        "links": [],
        "assets": {
            "weights": {
                "href": card.weights,
                "type": media_type,
                "roles": ["mlm:model", "mlm:weights"],
                # STAC lets an Item have bands only if an asset has them.
                "bands": [{"name": name} for name in card.bands],
                "mlm:artifact_type": artifact,
                "file:checksum": multihash(card.sha256),
            }
        },
    }


def _more(card: Card) -> dict[str, Any]:
    """Return how the network is built, and what most cards have no need to say."""
    more: dict[str, Any] = {}
    if card.gsd is not None:
        more["tileseg:gsd"] = card.gsd
    if card.gsd_range is not None:
        more["tileseg:gsd_range"] = list(card.gsd_range)
    if card.answers != "logits":
        more["tileseg:answers"] = card.answers
    if card.temperature is not None:
        more["tileseg:temperature"] = card.temperature
    if card.fields:
        names = {item.value: item.name for item in card.classes}
        more["tileseg:fields"] = [names[value] for value in card.fields]
    if card.scenes:
        more["tileseg:scenes"] = [_described(card, scene) for scene in card.scenes]
    own = card.architecture
    if said := hyperparameters(own.parameters):
        more["mlm:hyperparameters"] = said
    if own.kind != "unet":
        more["tileseg:network"] = {
            "kind": own.kind, "multiple": own.multiple, "floats": own.floats,
            **({} if said else {"parameters": dict(own.parameters)}),
        }  # fmt: skip
    return more


def _bands(card: Card) -> list[dict[str, Any]]:
    """Return STAC's word on each band: its name, and what values it had."""
    if card.statistics is None:
        return [{"name": name} for name in card.bands]
    return _described(card, card.statistics)


def _described(card: Card, values: Sequence[Statistics]) -> list[dict[str, Any]]:
    pairs = zip(card.bands, values, strict=True)
    return [{"name": name, **item.as_json()} for name, item in pairs]


def _input(card: Card) -> dict[str, Any]:
    return {
        "name": "pixels",
        "bands": list(card.bands),
        "input": {
            "shape": [-1, len(card.bands), card.tile, card.tile],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [
            {"type": "z-score", "mean": mean, "stddev": std}
            for mean, std in zip(card.mean, card.std, strict=True)
        ],
    }


def _output(card: Card) -> dict[str, Any]:
    return {
        "name": card.answers,
        "tasks": ["semantic-segmentation"],
        "result": {
            "shape": [-1, card.outputs, card.tile, card.tile],
            "dim_order": ["batch", "class", "height", "width"],
            "data_type": "float32",
        },
        "classification:classes": [
            class_object(item.value, item.name, item.color) for item in card.classes
        ],
    }


def from_stac(item: dict[str, Any]) -> Card:
    """Return the card that a STAC Item is.

    Raises:
        RefusedError: its weights are of a kind that can run code, or lie elsewhere.
        ValueError: it does not describe a usable network; in words after "it".
        TypeError, LookupError, AttributeError, ArithmeticError: it is not built as one.
    """
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
    classes = tuple(map(_class, outputs["classification:classes"]))
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
        sha256=str(asset["file:checksum"]).removeprefix(MULTIHASH),
        fields=values_of(properties.get("tileseg:fields", []), classes),
        gsd=_number(properties, "tileseg:gsd"),
        gsd_range=_range(properties.get("tileseg:gsd_range")),
        weights=str(asset["href"]),
        statistics=_statistics(properties.get("bands", []), bands),
        scenes=tuple(
            _statistics(scene, bands) or ()
            for scene in properties.get("tileseg:scenes", [])
        ),
        temperature=_number(properties, "tileseg:temperature"),
        about=dict(properties.get("tileseg:about", {})),
    )


def _class(entry: dict[str, Any]) -> LandClass:
    name = str(entry.get("title", entry["name"]))
    return LandClass(int(entry["value"]), name, str(entry["color_hint"]))


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


def _range(said: list[float] | None) -> tuple[float, float] | None:
    if said is None:
        return None
    least, greatest = map(float, said)
    return least, greatest


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
