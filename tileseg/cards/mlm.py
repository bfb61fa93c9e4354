"""What STAC and its MLM extension call things, and the letters that they allow."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

__all__ = [
    "ARTIFACTS",
    "EXTENSIONS",
    "MULTIHASH",
    "class_object",
    "hyperparameters",
    "model_name",
    "moment",
    "multihash",
]

EXTENSIONS = {
    name: f"https://stac-extensions.github.io/{name}/{version}/schema.json"
    for name, version in (
        ("classification", "v2.0.0"),
        ("file", "v2.1.0"),
        ("mlm", "v1.5.0"),
        ("processing", "v1.2.0"),
        ("projection", "v2.0.0"),
        ("raster", "v2.0.0"),
    )
}
"""Extensions of STAC -> where they are defined, in the versions that we write."""

MULTIHASH = "1220"
"""What a multihash of sha2-256 begins with: that, and 32 bytes."""

_TENSORS = "application/octet-stream; application=safetensors"
_ONNX = "application/octet-stream; framework=onnx"
_PROGRAM = "application/octet-stream; framework=pytorch"
ARTIFACTS = {
    "unet": ("PyTorch", "safetensors.torch.save_file", _TENSORS),
    "smp": ("PyTorch", "safetensors.torch.save_file", _TENSORS),
    "onnx": ("ONNX", "onnx.save", _ONNX),
    "torchscript": ("PyTorch", "torch.jit.save", _PROGRAM),
    "exported": ("PyTorch", "torch.export.save", _PROGRAM),
}
"""Kinds of networks -> framework, what saved it, media type."""

_NAME = r"[a-zA-Z][a-zA-Z0-9_. -]+[a-zA-Z0-9]"  # of a model
_PARAMETER = "[0-9a-zA-Z_.-]+"  # of a hyperparameter
_NO_TIME = "1970-01-01T00:00:00Z"  # where nobody says when: an Item needs one


def model_name(name: str) -> str:
    """Return a model's name in the letters that MLM allows."""
    plain = re.sub(r"[^A-Za-z0-9_. -]", "-", name)
    if re.fullmatch(_NAME, plain):
        return plain
    return f"model-{plain.strip('_. -')}".strip("-")


def class_object(value: int, name: str, color: str) -> dict[str, Any]:
    """Return a class; where its name needs other letters, the title is the name."""
    plain = re.sub("[^0-9A-Za-z_-]", "-", name)
    title = {} if plain == name else {"title": name}
    return {
        "value": value,
        "name": plain,
        **title,
        "description": name,  # MLM goes by an older classification, which wants it
        "color_hint": color,
    }


def multihash(sha256: str) -> str:
    """Return a digest as the file extension has it."""
    return MULTIHASH + sha256


def hyperparameters(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return parameters as MLM has them; None where it cannot: no or odd names."""
    is_plain = all(re.fullmatch(_PARAMETER, key) for key in parameters)
    return dict(parameters) if parameters and is_plain else None


def moment(said: object) -> str:
    """Return a point in time if STAC can say it, in UTC; else the beginning of 1970."""
    try:
        datetime.fromisoformat(str(said))
    except ValueError:
        return _NO_TIME
    is_full = re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{8,}(\+00:00|Z)", str(said))
    return str(said) if is_full else _NO_TIME
