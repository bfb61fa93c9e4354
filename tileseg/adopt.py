"""Somebody else's network -> a model folder, once; after that only the folder is used.

Nothing that is read here can run code, but for programs, which have to be trusted. What
a checkpoint does not say of itself (which bands, how they are scaled, which classes) is
told by whoever imports it.
"""

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from tileseg.architecture import PROGRAMS, Architecture, unet
from tileseg.card import Card, LandClass
from tileseg.errors import ModelError, RefusedError, UsageError
from tileseg.foreign import CodeNetwork, OnnxNetwork, build_smp, wanted

__all__ = ["Adopted", "Told", "adopt"]

_MOST_BYTES = 8 << 30  # of a checkpoint
_MOST_NUMBERS = 1 << 32  # of all its tensors
_TRIED = 2  # tiles
_TILE = 256  # pixels, where nobody says
_MOST_BANDS = 64  # more is a side of a tile
_COLORS = (
    "2b7bba", "1b7837", "a6d96a", "d8b365", "d7301f", "984ea3", "ff7f00", "a65628",
    "f781bf", "999999", "66c2a5", "e5c494",
)  # fmt: skip

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is told of a network; None and () stand for what the file itself says."""

    bands: tuple[str, ...] = ()
    """Band names in the order of its inputs."""
    classes: tuple[str, ...] = ()
    """Class names in the order of its outputs."""
    colors: tuple[str, ...] = ()
    """RRGGBB of each class."""
    unit: str = "reflectance"
    """`reflectance` or `dn`: what mean and std are in."""
    mean: tuple[float, ...] = ()
    """Per band, or one for all; the network sees (value - mean) / std."""
    std: tuple[float, ...] = ()
    """Per band, or one for all."""
    tile: int | None = None
    """Side of a tile in pixels."""
    halo: int | None = None
    """Margin of a tile that is thrown away, in pixels."""
    gsd: float | None = None
    """Metres of a pixel that it was trained on."""
    name: str = ""
    """What to call the model; else the folder's name."""
    version: str = "1"
    """Of the model."""
    answers: str | None = None
    """`logits` or `probabilities`."""
    smp: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `smp.create_model`, for a bare state_dict of that library."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Free words for the card."""
    trust_code: bool = False
    """Whether a program may be run."""
    sha256: str = ""
    """The file's, as its maker says; a program is not run without it."""


@dataclass(frozen=True, slots=True, eq=False)
class Adopted:
    """A network with its card, not written yet."""

    card: Card
    """All that is known of it."""
    weights: bytes
    """The file beside the card."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a file says of itself."""

    architecture: Architecture
    bands: int
    outputs: int
    weights: bytes
    module: nn.Module
    says: Mapping[str, Any] = field(default_factory=dict)
    """Of the fields of `Told`, those that the file knows."""


def adopt(source: str, told: Told, *, folder_name: str) -> Adopted:
    """Read a checkpoint, see that it works, and describe it.

    Args:
        source: a file (.pt, .pth, .ckpt, .safetensors, .onnx, .pt2) or a folder that
            segmentation_models_pytorch's `save_pretrained` wrote.
        told: what it does not say itself.
        folder_name: of the model folder that it is for.

    Raises:
        RefusedError: it holds objects that could run code, or keeps data elsewhere.
        ModelError: it is broken, or no network that is known here; or a library is not
            installed.
        UsageError: something must be told.
    """
    path = Path(source)
    found = _read(path, told)
    card = _described(path, found, told, folder_name)
    return Adopted(_tried(path, card, found), found.weights)


def _read(path: Path, told: Told) -> _Found:
    if path.is_dir():
        return _from_pretrained(path)
    data = _bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if told.sha256 and told.sha256.lower() != digest:
        msg = f"{path}: sha256 is {digest}, wanted {told.sha256}; not what was meant"
        raise RefusedError(msg)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return _from_onnx(path, data)
    if suffix == ".pt2" or _is_program(data):
        return _from_program(
            path, data, told, "exported" if suffix == ".pt2" else "torchscript"
        )
    if suffix == ".safetensors":
        return _from_state(path, _safetensors(path, data), {}, told)
    state, says = _checkpoint(path, data)
    return _from_state(path, state, says, told)


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            msg = f"{path}: is larger than {_MOST_BYTES >> 30} GiB; refused"
            raise RefusedError(msg)
        return path.read_bytes()
    except OSError as err:
        msg = f"{path}: cannot be read: {err.strerror}"
        raise ModelError(msg) from err


# Checkpoints of torch


def _is_program(data: bytes) -> bool:
    """Return whether a file is TorchScript, whatever it is called."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError):
        return False
    return any("/code/" in name or name.endswith("/constants.pkl") for name in names)


def _checkpoint(path: Path, data: bytes) -> tuple[State, Mapping[str, Any]]:
    """Return the tensors of a checkpoint by name, and its hyper-parameters.

    Tensors, numbers and words only: torch refuses to make anything else of them.
    """
    try:
        if zipfile.is_zipfile(BytesIO(data)):
            _check_size(path, data)
        found = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except RefusedError:
        raise
    except pickle.UnpicklingError as err:
        reason = str(err).strip().splitlines()[0][:200]
        msg = (
            f"{path}: holds more than tensors, numbers and words, and loading that could "
            f"run code; save a state_dict, or safetensors ({reason})"
        )
        raise RefusedError(msg) from err
    except Exception as err:  # of a damaged file anything
        reason = (
            str(err).strip().splitlines()[0][:200] if str(err).strip() else repr(err)
        )
        msg = f"{path}: is no checkpoint of torch: {reason}"
        raise RefusedError(msg) from err
    if not isinstance(found, Mapping):
        msg = f"{path}: holds a {type(found).__name__}, wanted a state_dict"
        raise ModelError(msg)
    says = found.get("hyper_parameters")
    state = found.get(
        "state_dict", found.get("model_state_dict", found.get("model", found))
    )
    if not isinstance(state, Mapping):
        msg = f"{path}: its state_dict is a {type(state).__name__}"
        raise ModelError(msg)
    return _tensors(path, state), says if isinstance(says, Mapping) else {}


def _check_size(path: Path, data: bytes) -> None:
    """Refuse an archive that would become much larger than it is."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        size = sum(item.file_size for item in archive.infolist())
        has_packed = any(item.compress_type for item in archive.infolist())
    if size > _MOST_BYTES or (has_packed and size > 2 * len(data) + (1 << 20)):
        msg = f"{path}: an archive of {size} bytes in {len(data)}; refused, as it may be hostile"
        raise RefusedError(msg)


def _safetensors(path: Path, data: bytes) -> State:
    try:
        return _tensors(path, load_safetensors(data))
    except (SafetensorError, ValueError, RuntimeError) as err:
        msg = f"{path}: is no safetensors file: {err}"
        raise ModelError(msg) from err


def _tensors(path: Path, state: Mapping[Any, Any]) -> State:
    tensors = {
        str(key): item for key, item in state.items() if isinstance(item, Tensor)
    }
    if not tensors or any(item.layout != torch.strided for item in tensors.values()):
        msg = f"{path}: holds no dense tensors by name; wanted a state_dict"
        raise ModelError(msg)
    # A view may claim any shape of a few bytes.
    if sum(item.numel() for item in tensors.values()) > _MOST_NUMBERS:
        msg = f"{path}: claims more than {_MOST_NUMBERS} numbers; refused"
        raise RefusedError(msg)
    return tensors


def _from_state(
    path: Path, state: State, says: Mapping[str, Any], told: Told
) -> _Found:
    """Return the network that a state_dict is of: ours, or smp's."""
    if says:
        return _from_lightning(path, state, says)
    state = _without_prefix(state, "module.")
    if "enc1.0.weight" in state:
        return _own(path, state)
    if not told.smp:
        msg = (
            f"{path}: is not a U-Net of ours ({next(iter(state))} ...); if it is one of "
            "segmentation_models_pytorch, say which: --smp arch=Unet,encoder_name=resnet34"
        )
        raise UsageError(msg)
    return _smp(path, state, told.smp)


def _without_prefix(state: State, prefix: str) -> State:
    """Return names without what a wrapper set before all of them."""
    if not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): item for name, item in state.items()}


def _own(path: Path, state: State) -> _Found:
    """Return the tutorial's U-Net, whose shape its weights say."""
    from tileseg.unet import UNet

    try:
        width, bands = state["enc1.0.weight"].shape[:2]
        outputs = state["final_conv.weight"].shape[0]
        depth = sum(f"enc{stage}.0.weight" in state for stage in range(1, 33))
        architecture = unet(width, depth)
        with torch.device("meta"):
            module = UNet(bands, outputs, width=width, depth=depth)
    except (KeyError, ValueError, RuntimeError) as err:
        msg = f"{path}: is no U-Net of ours: {err}"
        raise ModelError(msg) from err
    return _filled(path, architecture, module, state, bands, outputs)


def _filled(  # noqa: PLR0913  (what it is made of)
    path: Path,
    architecture: Architecture,
    module: nn.Module,
    state: State,
    bands: int,
    outputs: int,
    says: Mapping[str, Any] | None = None,
) -> _Found:
    """Put weights into a module."""
    exact = {
        name: item.to(torch.float32) if item.is_floating_point() else item.clone()
        for name, item in state.items()
    }
    try:
        module.load_state_dict(exact, assign=True)
    except (RuntimeError, ValueError) as err:
        reason = str(err).strip().splitlines()[-1].strip()[:300]
        msg = f"{path}: its weights are not those of {architecture.name}: {reason}"
        raise ModelError(msg) from err
    own = {
        name: item.detach().contiguous().clone()
        for name, item in module.state_dict().items()
    }
    data = save_safetensors(own)
    return _Found(architecture, bands, outputs, data, module.eval(), says or {})


# segmentation_models_pytorch, and torchgeo's tasks on it


def _smp(
    path: Path,
    state: State,
    parameters: Mapping[str, Any],
    says: Mapping[str, Any] | None = None,
) -> _Found:
    known = {"encoder_weights": None, "in_channels": 3, "classes": 1, **parameters}
    known["encoder_weights"] = None
    name = str(known.get("arch", "Unet"))
    known["arch"] = name.lower()
    depth = int(known.get("encoder_depth", 5))
    architecture = Architecture(
        "smp", name, _jsonable(path, known), 1 << depth, floats=1
    )
    module = build_smp(architecture)
    count = (int(known[key]) for key in ("in_channels", "classes"))
    return _filled(path, architecture, module, state, *count, says)


def _jsonable(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(json.loads(json.dumps(dict(values))))
    except (TypeError, ValueError) as err:
        msg = f"{path}: an argument of its network cannot be written down: {err}"
        raise ModelError(msg) from err


def _from_pretrained(path: Path) -> _Found:
    """Read a folder of `save_pretrained`: config.json and model.safetensors."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        msg = f"{path}: no folder of save_pretrained: config.json cannot be read: {err}"
        raise ModelError(msg) from err
    if not isinstance(config, dict):
        msg = f"{path}: config.json holds no object"
        raise ModelError(msg)
    arch = str(config.pop("_model_class", config.pop("arch", "")) or "Unet")
    parameters = {key: item for key, item in config.items() if not key.startswith("_")}
    weights = path / "model.safetensors"
    if not weights.is_file():
        msg = f"{path}: has no model.safetensors; other files could run code"
        raise RefusedError(msg)
    state = _safetensors(weights, _bytes(weights))
    return _smp(path, state, {"arch": arch, **parameters})


_TORCHGEO = {"unet": "Unet", "deeplabv3+": "DeepLabV3Plus", "fpn": "FPN", "unet++": "UnetPlusPlus",
    "unetplusplus": "UnetPlusPlus", "upernet": "UPerNet", "segformer": "Segformer", "dpt": "DPT"}  # fmt: skip
"""Names of torchgeo's SemanticSegmentationTask -> of smp."""


def _from_lightning(path: Path, state: State, says: Mapping[str, Any]) -> _Found:
    """Return the network of a torchgeo-style task: keys under `model.`."""
    own = {
        name.removeprefix("model."): item
        for name, item in state.items()
        if name.startswith("model.")
    }
    wanted_name = str(says.get("model", "")).lower()
    if not own or wanted_name not in _TORCHGEO:
        msg = (
            f"{path}: is a Lightning checkpoint of {wanted_name or 'no known model'!r}; "
            f"wanted one of {', '.join(_TORCHGEO)}, with its weights under model."
        )
        raise ModelError(msg)
    outputs = says.get("num_classes") or says.get("num_labels") or 1
    parameters = {
        "arch": _TORCHGEO[wanted_name],
        "encoder_name": says.get("backbone", "resnet50"),
        "in_channels": int(says.get("in_channels", 3)),
        "classes": int(outputs),
    }
    return _smp(path, own, parameters)


# Archives that come with their own program


def _from_program(path: Path, data: bytes, told: Told, kind: str) -> _Found:
    assert kind in PROGRAMS, "these two"
    if not (told.trust_code and told.sha256):
        msg = (
            f"{path}: is a program ({kind}), which can do anything that you can; if you "
            "know who made it: --trust-model-code --sha256 DIGEST"
        )
        raise RefusedError(msg)
    architecture = Architecture(kind, path.stem, {"batch": None}, multiple=1, floats=1)
    module = CodeNetwork(data, architecture).eval()
    if not (told.bands and told.classes):
        msg = (
            f"{path}: a program does not say its bands and classes: --bands, --classes"
        )
        raise UsageError(msg)
    return _Found(architecture, len(told.bands), len(told.classes), data, module)


_DEEPNESS = {
    "tiles_size": "tile",
    "resolution": "resolution",
    "standardization_mean": "mean",
    "standardization_std": "std",
    "class_names": "classes",
    "tiles_overlap": "overlap",
}
"""Keys of Deepness' metadata that are read."""


def _from_onnx(path: Path, data: bytes) -> _Found:
    try:
        import onnxruntime as ort
    except ImportError as err:
        raise wanted("onnxruntime", "onnx", str(path)) from err
    if _has_external_data(data):
        msg = f"{path}: keeps its weights in another file; refused: save it as one file"
        raise RefusedError(msg)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
        (given,), answers = session.get_inputs(), session.get_outputs()
        facts = dict(session.get_modelmeta().custom_metadata_map)
    except Exception as err:  # onnxruntime's have no common name
        reason = str(err).strip().splitlines()[0][:300]
        msg = f"{path}: onnxruntime cannot take it: {reason}"
        raise ModelError(msg) from err
    shape, out = list(given.shape), list(answers[0].shape)
    if len(shape) != 4 or len(out) != 4:  # noqa: PLR2004  (N, B, T, T)
        msg = f"{path}: takes {shape} and gives {out}, wanted (N, bands, height, width)"
        raise ModelError(msg)
    sides = [item if isinstance(item, int) and item > 0 else None for item in shape]
    is_last = (
        (sides[1] or _MOST_BANDS + 1) > _MOST_BANDS >= (sides[3] or _MOST_BANDS + 1)
    )
    bands, tile = (sides[3], sides[1]) if is_last else (sides[1], sides[2])
    outputs = out[3] if is_last else out[1]
    if not (isinstance(bands, int) and isinstance(outputs, int)):
        msg = f"{path}: takes {shape} and gives {out}: does not say how many bands, classes"
        raise ModelError(msg)
    parameters = {
        "input": given.name,
        "output": answers[0].name,
        "batch": sides[0],
        "layout": "NHWC" if is_last else "NCHW",
    }
    architecture = Architecture("onnx", path.stem, parameters, multiple=1, floats=1)
    says = {"tile": tile, **_deepness(path, facts)}
    return _Found(
        architecture, bands, outputs, data, OnnxNetwork(data, parameters), says
    )


def _has_external_data(data: bytes) -> bool:
    """Return whether a model names other files: its tensors then have a location.

    Of the protobuf only that is asked: field 13 (external_data) of a tensor holds pairs
    whose key is `location`. A word of a model's own text may look so, and is refused
    too.
    """
    return b"\x0a\x08location\x12" in data


def _deepness(path: Path, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return what the keys that Deepness writes say, in the words of `Told`.

    Deepness takes bytes: it divides by 255, then scales by mean and std.
    """
    try:
        found = {key: json.loads(facts[key]) for key in _DEEPNESS if key in facts}
        says: dict[str, Any] = {}
        if "model_type" in facts and "segment" not in facts["model_type"].lower():
            msg = f"{path}: is a network for {facts['model_type']}, wanted segmentation"
            raise ModelError(msg)
        if "tiles_size" in found:
            says["tile"] = int(found["tiles_size"])
            if "tiles_overlap" in found:  # percent of a tile
                says["halo"] = int(says["tile"] * float(found["tiles_overlap"]) / 200)
        if "resolution" in found:  # centimetres
            says["gsd"] = float(found["resolution"]) / 100
        if "class_names" in found:
            names = {
                int(key): str(name) for key, name in dict(found["class_names"]).items()
            }
            says["classes"] = tuple(names[value] for value in sorted(names))
        if {"standardization_mean", "standardization_std"} <= found.keys():
            says["unit"] = "dn"
            says["mean"] = tuple(255 * float(n) for n in found["standardization_mean"])
            says["std"] = tuple(255 * float(n) for n in found["standardization_std"])
    except (TypeError, ValueError) as err:
        msg = f"{path}: its metadata cannot be read: {err}"
        raise ModelError(msg) from err
    return says


# The card


def _described(path: Path, found: _Found, told: Told, folder_name: str) -> Card:
    """Return the card, of what is told first and what the file says else."""

    def value(name: str) -> Any:  # noqa: ANN401  (a field of Told)
        own = getattr(told, name)
        return found.says.get(name, own) if own in ((), None) else own

    bands = tuple(value("bands"))
    if len(bands) != found.bands:
        msg = (
            f"{path}: its network takes {found.bands} bands, got {len(bands)} names; say "
            "which, in their order: --bands blue,green,red"
        )
        raise UsageError(msg)
    outputs = found.outputs
    names, count = tuple(value("classes")), max(outputs, 2)
    if len(names) != count:
        msg = (
            f"{path}: its network gives {outputs} "
            f"{'answer, so it needs a background and a class' if outputs == 1 else 'classes'}"
            f", got {len(names)} names; say which: --classes water,trees,..."
        )
        raise UsageError(msg)
    mean, std = (_each(value(name), bands) for name in ("mean", "std"))
    if not (mean and std):
        msg = (
            f"{path}: say how values are scaled, (value - mean) / std: --mean and --std, "
            "one number or one for each band; 0 and 1 for values as they are"
        )
        raise UsageError(msg)
    colors = told.colors or tuple(_COLORS[n % len(_COLORS)] for n in range(count))
    if len(colors) != count:
        msg = f"{path}: {count} classes and {len(colors)} colours"
        raise UsageError(msg)
    architecture = found.architecture
    tile = int(value("tile") or _TILE)
    halo = value("halo")
    if halo is None:
        step = architecture.multiple
        halo = -(-tile // 8 // step) * step // (1 if (tile - 2 * step) % step else 1)
        halo = min(halo, tile // 4 // max(step // 2, 1) * max(step // 2, 1))
    try:
        return Card(
            name=told.name or folder_name,
            version=told.version,
            bands=bands,
            unit=found.says.get("unit", told.unit) if not told.mean else told.unit,
            mean=mean,
            std=std,
            tile=tile,
            halo=int(halo),
            classes=tuple(
                LandClass(number, *item)
                for number, item in enumerate(zip(names, colors, strict=True))
            ),
            outputs=outputs,
            architecture=architecture,
            answers=told.answers or "logits",
            sha256=hashlib.sha256(found.weights).hexdigest(),
            gsd=value("gsd"),
            weights="weights" + KINDS[architecture.kind],
            about=dict(told.about),
        )
    except ValueError as err:
        msg = f"{path}: cannot be used like that: it {err}"
        raise UsageError(msg) from err


def _each(value: Any, bands: tuple[str, ...]) -> tuple[float, ...]:  # noqa: ANN401  (numbers)
    numbers = tuple(float(item) for item in value or ())
    return numbers * len(bands) if len(numbers) == 1 else numbers


@torch.inference_mode()
def _tried(path: Path, card: Card, found: _Found) -> Card:
    """Return the card of a network that was seen to work, with what that showed.

    Raises:
        ModelError: it fails, or its answer is not one logit for each class and pixel.
        UsageError: whether it gives logits or probabilities must be told.
    """
    shape = _TRIED, len(card.bands), card.tile, card.tile
    tiles = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    architecture = card.architecture
    try:
        held, answers = _measured(found.module, tiles)
    except ModelError:
        raise
    except Exception as err:  # a network raises anything
        reason = (
            str(err).strip().splitlines()[-1][:300] if str(err).strip() else repr(err)
        )
        msg = f"{path}: fails on tiles of {card.tile} pixels: {reason}"
        raise ModelError(msg) from err
    wanted_shape = _TRIED, card.outputs, card.tile, card.tile
    if not isinstance(answers, Tensor) or answers.shape != wanted_shape:
        got = (
            list(answers.shape)
            if isinstance(answers, Tensor)
            else type(answers).__name__
        )
        msg = (
            f"{path}: answers {got} to tiles {list(shape)}, wanted {list(wanted_shape)}"
        )
        raise ModelError(msg)
    if not answers.isfinite().all():
        msg = f"{path}: answers NaN or Inf to noise; a broken network"
        raise ModelError(msg)
    if architecture.kind != "unet":
        floats = max(1, ceil(held / (4 * _TRIED * card.tile**2)))
        card = replace(card, architecture=replace(architecture, floats=floats))
    return replace(card, answers=_kind_of(path, card, answers))
