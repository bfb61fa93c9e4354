"""What an ONNX network says of its input, its answers and itself."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tileseg.errors import ModelError, last_line

__all__ = ["OnnxFacts", "onnx_facts"]

logger = logging.getLogger(__name__)

_AXES = 4  # tiles, bands, height, width

_ODD = TypeError, ValueError, AttributeError, OverflowError, RecursionError

Value = Any
"""An input or an answer of a session, as onnxruntime, which is untyped, gives it."""
Sizes = list[int | None]
"""Of each axis; None where it may be any."""


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """What is to be known before it runs."""

    parameters: Mapping[str, Any]
    """What `OnnxNetwork` asks for."""
    bands: int | None
    """Its inputs; None for any."""
    outputs: int | None
    """Its answers for a pixel, likewise."""
    says: Mapping[str, Any]
    """Fields of `Told` that the file knows."""


def onnx_facts(session: Any) -> OnnxFacts:  # noqa: ANN401  (onnxruntime is untyped)
    """Return what a session of onnxruntime knows.

    Of several answers the one is taken, and named in the log, that is a map of classes.

    Raises:
        ModelError: it takes no tiles, or it is not clear which answer is meant.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1 or not _is_plain(inputs[0]):
        msg = f"takes {_named(inputs)}; wanted one (tiles, bands, height, width), fp32"
        raise ModelError(msg)
    sizes = _sizes(inputs[0])
    is_last = sizes[1] == sizes[2] != sizes[3]  # tiles are square
    bands, side = (3, 1) if is_last else (1, 2)
    answer = _map_of_classes(session.get_outputs(), sizes, bands)
    parameters = {
        "input": inputs[0].name,
        "output": answer.name,
        "batch": sizes[0],
        "layout": "NHWC" if is_last else "NCHW",
    }
    says = {"tile": sizes[side]} if sizes[side] else {}
    says |= _deepness(session.get_modelmeta().custom_metadata_map)
    return OnnxFacts(parameters, sizes[bands], _sizes(answer)[bands], says)


def _map_of_classes(answers: list[Value], tiles: Sizes, bands: int) -> Value:
    """Return the one answer that is fp32 and as large as the tiles.

    Args:
        answers: all there are.
        tiles: sizes of the input.
        bands: which axis these are.

    Raises:
        ModelError: there is none, or more than one.
    """
    maps = [it for it in answers if _is_plain(it) and _is_as_large(it, tiles, bands)]
    if len(maps) != 1:
        msg = (
            f"gives {_named(answers)}; wanted one map of classes, fp32 and of the size "
            f"of {tiles}, found {len(maps)}: save it with that answer only"
        )
        raise ModelError(msg)
    if len(answers) > 1:
        logger.warning("of its answers %s is taken: %s", maps[0].name, _named(answers))
    return maps[0]


def _is_plain(value: Value) -> bool:
    return value.type == "tensor(float)" and len(value.shape) == _AXES


def _is_as_large(answer: Value, tiles: Sizes, bands: int) -> bool:
    """Return whether there is an answer for each pixel, as far as sizes are known."""
    pairs = list(zip(_sizes(answer), tiles, strict=True))
    del pairs[bands]
    return all(one == other or None in (one, other) for one, other in pairs)


def _sizes(value: Value) -> Sizes:
    return [it if isinstance(it, int) and it > 0 else None for it in value.shape]


def _named(values: list[Value]) -> str:
    said = (f"{it.name} ({it.type} {list(it.shape)})" for it in values)
    return ", ".join(said) or "nothing"


def _deepness(facts: Mapping[str, str]) -> dict[str, Any]:
    """Return what the keys that Deepness (a plugin of QGIS) writes say, as `Told` does.

    Deepness gives its networks bytes: it divides by 255, then scales by mean and std.
    """
    says: dict[str, Any] = {}
    try:
        found = {key: json.loads(text) for key, text in facts.items() if key in _KEYS}
        if found.get("model_type", "Segmentor") != "Segmentor":
            msg = f"is a network for a {found['model_type']}, wanted a Segmentor"
            raise ModelError(msg)
        if "tiles_size" in found:
            says["tile"] = int(found["tiles_size"])
            if "tiles_overlap" in found:  # percent of a tile
                says["halo"] = round(says["tile"] * float(found["tiles_overlap"]) / 200)
        if "resolution" in found:  # centimetres
            says["gsd"] = float(found["resolution"]) / 100
        if "class_names" in found:
            names = {int(key): str(name) for key, name in found["class_names"].items()}
            says["classes"] = tuple(names[value] for value in sorted(names))
        if {"standardization_mean", "standardization_std"} <= found.keys():
            says["unit"] = "dn"
            says["mean"] = tuple(255.0 * n for n in found["standardization_mean"])
            says["std"] = tuple(255.0 * n for n in found["standardization_std"])
    except _ODD as err:
        msg = f"its metadata cannot be read: {last_line(err)}"
        raise ModelError(msg) from err
    return says


_KEYS = (
    "model_type", "tiles_size", "tiles_overlap", "resolution", "class_names",
    "standardization_mean", "standardization_std",
)  # fmt: skip
