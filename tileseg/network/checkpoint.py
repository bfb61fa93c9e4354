"""The tensors of somebody's checkpoint, read so that nothing in it can run.

Knows files of torch and of safetensors, no networks. What looks hostile is refused: it
is loaded as tensors, numbers and words or not at all, and may not become much larger
than its file.
"""

import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from tileseg.errors import ModelError, RefusedError, first_line

__all__ = [
    "Checkpoint",
    "State",
    "load",
    "program_kind",
    "read_file",
    "unpack",
]

_MOST_BYTES = 8 << 30  # of a file
_TIMES = 2  # larger than its file is what a checkpoint may become: none is packed
_SPARE = 1 << 20  # bytes
_ZIP = b"PK"
_SCRIPT = re.compile(r"[^/]*/(code/.*|constants\.pkl)")
_EXPORTED = re.compile(r"([^/]*/)?(archive_format|models/.*|serialized_\w+\.(json|pt))")
_WRAPPERS = ("state_dict", "model_state_dict", "model")

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a file of weights holds."""

    tensors: State
    """By name, on the CPU, none larger than its bytes."""
    says: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters, where the file has some (Lightning)."""


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        ModelError: there is none, or it is a folder, a pipe or a device.
        RefusedError: it is larger than any network.
    """
    try:
        if not path.is_file():
            msg = f"{path}: is no file" if path.exists() else f"{path}: is not there"
            raise ModelError(msg)
        if path.stat().st_size > _MOST_BYTES:
            msg = f"{path}: is larger than {_MOST_BYTES >> 30} GiB; refused"
            raise RefusedError(msg)
        return path.read_bytes()
    except OSError as err:
        msg = f"{path}: cannot be read: {err.strerror}"
        raise ModelError(msg) from err


def program_kind(path: Path, data: bytes) -> str | None:
    """Return which kind of program a file is, whatever it is called; None for none.

    Raises:
        RefusedError: it is an archive that is broken, or would become much larger.
    """
    if not data.startswith(_ZIP):
        return None
    names = _names(path, data)
    if any(_SCRIPT.fullmatch(name) for name in names):
        return "torchscript"
    return "exported" if any(map(_EXPORTED.fullmatch, names)) else None


def _names(path: Path, data: bytes) -> list[str]:
    """Return the names of an archive's files."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            items = archive.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as err:
        msg = f"{path}: is a broken archive: {first_line(err)}"
        raise RefusedError(msg) from err
    size = sum(item.file_size for item in items)
    if size > _TIMES * len(data) + _SPARE:
        msg = f"{path}: an archive of {size} bytes in {len(data)}; refused as a bomb"
        raise RefusedError(msg)
    return [item.filename for item in items]


def unpack(path: Path, data: bytes) -> Checkpoint:
    """Return what a checkpoint of torch, or of safetensors, holds.

    Args:
        path: what it is called; `.safetensors` is read as that, all else as torch's.
        data: its bytes; no program.

    Raises:
        RefusedError: it holds more than tensors, numbers and words, or is broken.
        ModelError: it holds no tensors by name.
    """
    if path.suffix.lower() == ".safetensors":
        return Checkpoint(_tensors(path, data, _safetensors(path, data)))
    found = load(path, data)
    if not isinstance(found, Mapping):
        msg = f"{path}: holds a {type(found).__name__}, wanted a state_dict"
        raise ModelError(msg)
    says = found.get("hyper_parameters")
    inner = (found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping))
    tensors = _tensors(path, data, next(inner, found))
    return Checkpoint(tensors, says if isinstance(says, Mapping) else {})


def load(path: Path, data: bytes) -> object:
    """Return what a file of torch's holds: tensors, numbers, words, and no more.

    Raises:
        RefusedError: it holds something else, or is broken.
    """
    try:
        return torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as err:  # of a damaged file anything
        if named := re.search(r"GLOBAL ([\w.]+)", str(err)):
            msg = (
                f"{path}: holds {named[1][:100]}, which is no tensor, number or word "
                "and could run code; save its state_dict alone, or safetensors"
            )
        else:
            # torch goes on to advise the way that runs what a file holds.
            why = first_line(err).partition(" In PyTorch")[0]
            msg = f"{path}: is no checkpoint that is safe to read: {why}"
        raise RefusedError(msg) from err


def _safetensors(path: Path, data: bytes) -> Mapping[str, Tensor]:
    try:
        return load_safetensors(data)
    except (SafetensorError, ValueError, RuntimeError, LookupError) as err:
        msg = f"{path}: is no safetensors file: {first_line(err)}"
        raise RefusedError(msg) from err


def _tensors(path: Path, data: bytes, state: Mapping[Any, Any]) -> State:
    tensors = {str(key): item for key, item in state.items() if _is_plain(item)}
    if not tensors:
        msg = f"{path}: holds no tensors by name, wanted a state_dict"
        raise ModelError(msg)
    # A view may claim any shape of a few bytes.
    size = sum(item.numel() * item.element_size() for item in tensors.values())
    if size > _TIMES * len(data) + _SPARE:
        msg = f"{path}: {size} bytes of tensors in {len(data)}; refused as a bomb"
        raise RefusedError(msg)
    return tensors


def _is_plain(item: object) -> bool:
    """Return whether it is a tensor whose numbers are there, one beside the other."""
    return (
        isinstance(item, Tensor)
        and item.layout == torch.strided
        and item.device.type == "cpu"
        and not item.is_quantized
    )
