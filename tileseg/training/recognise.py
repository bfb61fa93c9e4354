"""What network a file or folder of another library holds, and what it says of itself.

Ours, those of segmentation_models_pytorch (alone, and in torchgeo's tasks), ONNX, and
programs, which have to be trusted. Knows no cards.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from tileseg.cards.architecture import Architecture, unet
from tileseg.cards.item import own_file
from tileseg.errors import ModelError, RefusedError, UsageError, last_line
from tileseg.network.checkpoint import State, program_kind, read_file, unpack
from tileseg.network.foreign import CodeNetwork, OnnxNetwork, build_smp, open_onnx
from tileseg.network.unet import UNet
from tileseg.training.onnx_facts import onnx_facts

__all__ = ["Found", "Hints", "recognise"]

_WRAPPERS = ("_orig_mod.", "module.", "model.", "net.", "network.")
"""Set before all names by torch.compile, DataParallel, Lightning's and others' modules.
"""
_WITH_MORE = ("module.", "model.")
"""Those of them that may stand beside more: a count of `AveragedModel`'s, weights of a
loss or a metric of Lightning's."""
_MOST_WRAPPERS = 8  # in each other: a file may say any name
_TASKS = {
    "unet": "Unet",
    "unet++": "UnetPlusPlus",
    "unetplusplus": "UnetPlusPlus",
    "fpn": "FPN",
    "deeplabv3+": "DeepLabV3Plus",
    "upernet": "UPerNet",
    "segformer": "Segformer",
    "dpt": "DPT",
}
"""Names of torchgeo's segmentation task and of those made like it -> of smp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What somebody says of a file that does not say it itself."""

    bands: int | None = None
    """Inputs of its network."""
    outputs: int | None = None
    """Answers of its network."""
    smp: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `smp.create_model`, for a bare state_dict of that library."""
    trust_code: bool = False
    """Whether a program may be run."""
    sha256: str = ""
    """The file's, as its maker says; a program is not run without it."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A network, and what its file says of it."""

    architecture: Architecture
    """How it is built; `floats` is not known yet but for our own."""
    bands: int
    """Its inputs."""
    outputs: int
    """Its answers for a pixel."""
    weights: bytes
    """The file for the model folder."""
    module: nn.Module
    """The network, in fp32 on the CPU, for inference."""
    says: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Told` that the file knows."""
    digest: str = ""
    """sha256 of the file that was read."""


def recognise(path: Path, hints: Hints) -> Found:
    """Return the network that is in a file, or in a folder of `save_pretrained`.

    Raises:
        RefusedError: it could run code and is not trusted, is not the one that was
            meant, or keeps data elsewhere.
        ModelError: it is broken, or no network that is known here; or a library is not
            installed.
        UsageError: something must be told.
    """
    config = _config(path) if path.is_dir() else {}
    file = own_file(path, "model.safetensors") if path.is_dir() else path
    data = read_file(file)
    digest = hashlib.sha256(data).hexdigest()
    if hints.sha256 and hints.sha256.lower() != digest:
        msg = f"{file}: sha256 is {digest}, wanted {hints.sha256}; not what was meant"
        raise RefusedError(msg)
    try:
        if file.suffix.lower() == ".onnx":
            found = _onnx(data, hints)
        elif kind := program_kind(file, data):
            found = _program(data, kind, hints)
        else:
            found = _weights(file, data, replace(hints, smp={**config, **hints.smp}))
    except (ModelError, RefusedError, UsageError) as err:
        text = str(err)
        named = text if text.startswith(str(path)) else f"{path}: {text}"
        raise type(err)(named) from err
    name = found.architecture.name or path.stem
    return replace(
        found, architecture=replace(found.architecture, name=name), digest=digest
    )


# State dictionaries


def _weights(file: Path, data: bytes, hints: Hints) -> Found:
    """Return the network that a state_dict is of: ours, or smp's."""
    checkpoint = unpack(file, data)
    state = _unwrapped(checkpoint.tensors)
    if "enc1.0.weight" in state:
        return _own(state)
    parameters = dict(hints.smp) or _task(checkpoint.says)
    if not parameters:
        msg = (
            f"is no U-Net of ours (it has {next(iter(state))[:60]}, ...); if it is of "
            "segmentation_models_pytorch, say which: --smp arch=Unet --smp "
            "encoder_name=resnet34"
        )
        raise UsageError(msg)
    if "segmentation_head.0.weight" in state:
        parameters.setdefault("classes", len(state["segmentation_head.0.weight"]))
    parameters.setdefault("in_channels", hints.bands or 3)
    parameters.setdefault("classes", hints.outputs or 1)
    return _smp(state, parameters)


def _unwrapped(state: State) -> State:
    """Return the tensors of a network itself, without what wraps it, in any order."""
    for _ in range(_MOST_WRAPPERS):
        counts = [sum(name.startswith(it) for name in state) for it in _WRAPPERS]
        most = max(counts)
        prefix = _WRAPPERS[counts.index(most)]
        if not most or (most < len(state) and prefix not in _WITH_MORE):
            break
        state = {
            name.removeprefix(prefix): item
            for name, item in state.items()
            if name.startswith(prefix)
        }
    return state


def _own(state: State) -> Found:
    """Return the tutorial's U-Net, whose shape its weights say."""
    try:
        width, bands = state["enc1.0.weight"].shape[:2]
        outputs = state["final_conv.weight"].shape[0]
        depth = sum(f"enc{stage}.0.weight" in state for stage in range(1, 33))
        architecture = unet(width, depth)
        with torch.device("meta"):
            module = UNet(bands, outputs, width=width, depth=depth)
    except (KeyError, ValueError, RuntimeError) as err:
        msg = f"is no U-Net of ours: {last_line(err)}"
        raise ModelError(msg) from err
    weights = _fill(module, state, architecture)
    return Found(architecture, bands, outputs, weights, module.eval())


def _fill(module: nn.Module, state: State, architecture: Architecture) -> bytes:
    """Put weights into a module, in fp32; return them as safetensors."""
    exact = {
        name: item.float() if item.is_floating_point() else item
        for name, item in state.items()
    }
    try:
        module.load_state_dict(exact, assign=True)
    except (RuntimeError, ValueError) as err:
        msg = f"its weights are not those of {architecture.name}: {last_line(err)}"
        raise ModelError(msg) from err
    return save_safetensors(
        {
            name: item.detach().clone(memory_format=torch.contiguous_format)
            for name, item in module.state_dict().items()
        }
    )


# segmentation_models_pytorch, and torchgeo's tasks on it


def _config(folder: Path) -> dict[str, Any]:
    """Return the arguments that `save_pretrained` wrote."""
    path = own_file(folder, "config.json")
    try:
        config = dict(json.loads(read_file(path).decode("utf-8")))
        arch = config.pop("_model_class")
    except (ValueError, LookupError, TypeError, RecursionError) as err:
        msg = f"{path}: is not of save_pretrained of segmentation_models_pytorch: {err}"
        raise ModelError(msg) from err
    own = {key: item for key, item in config.items() if not key.startswith("_")}
    return {"arch": arch, **own}


def _task(says: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the network of a Lightning task, {} where it has none.

    Raises:
        ModelError: it is of no kind that is known here.
    """
    if "model" not in says:
        return {}
    name = str(says["model"]).lower()
    if name not in _TASKS:
        known = ", ".join(_TASKS)
        msg = f"is a checkpoint of a {name[:60]!r} task, wanted one of {known}"
        raise ModelError(msg)
    facts = {
        "encoder_name": says.get("backbone"),
        "in_channels": says.get("in_channels"),
        "classes": says.get("num_classes") or says.get("num_labels"),
    }
    known_facts = {key: item for key, item in facts.items() if item is not None}
    return {"arch": _TASKS[name], **known_facts}


def _smp(state: State, parameters: Mapping[str, Any]) -> Found:
    try:
        known = json.loads(json.dumps({**parameters, "encoder_weights": None}))
        known["arch"] = str(known.get("arch", "Unet")).lower()
        bands, outputs = int(known["in_channels"]), int(known["classes"])
    except (TypeError, ValueError, OverflowError, RecursionError) as err:
        msg = f"an argument of its network is no plain value: {err}"
        raise ModelError(msg) from err
    asked = Architecture("smp", known["arch"][:60], known, multiple=1, floats=1)
    module = build_smp(asked)
    step = int(getattr(module.encoder, "output_stride", 1))
    architecture = replace(asked, name=type(module).__name__, multiple=step)
    weights = _fill(module, state, architecture)
    return Found(architecture, bands, outputs, weights, module.eval())


# Archives that come with their own program


def _program(data: bytes, kind: str, hints: Hints) -> Found:
    if not (hints.trust_code and hints.sha256):
        msg = (
            f"is a program ({kind}), which can do anything that you can; if you know "
            "who made it: --trust-model-code --sha256 DIGEST, as its maker says it"
        )
        raise RefusedError(msg)
    module = CodeNetwork(data, kind)
    bands, tile = module.shape[1] or hints.bands, module.shape[2]
    if not (bands and hints.outputs):
        msg = "a program does not say its bands and classes: --bands and --classes"
        raise UsageError(msg)
    architecture = Architecture(kind, "", {}, multiple=1, floats=1)
    says = {"tile": tile} if tile else {}
    return Found(architecture, bands, hints.outputs, data, module.eval(), says)


# ONNX


def _onnx(data: bytes, hints: Hints) -> Found:
    facts = onnx_facts(open_onnx(data, "cpu"))
    bands, outputs = facts.bands or hints.bands, facts.outputs or hints.outputs
    if not (bands and outputs):
        msg = "does not say how many bands and classes it has: --bands and --classes"
        raise UsageError(msg)
    architecture = Architecture("onnx", "", facts.parameters, multiple=1, floats=1)
    module = OnnxNetwork(data, facts.parameters)
    return Found(architecture, bands, outputs, data, module, facts.says)
