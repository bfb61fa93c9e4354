"""Card and weights -> a network on a device. Knows nothing of scenes."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tileseg.cards.architecture import PROGRAMS
from tileseg.cards.card import Card
from tileseg.cards.item import own_file
from tileseg.errors import (
    DeviceFaultError,
    ModelError,
    RefusedError,
    first_line,
    last_line,
)
from tileseg.network import variants
from tileseg.network.device import Device, device_error
from tileseg.network.foreign import CodeNetwork, OnnxNetwork, build_smp
from tileseg.network.unet import UNet

__all__ = [
    "Network",
    "check_weights",
    "choose",
    "load",
    "load_fastest",
    "load_module",
    "logits_of",
    "round_weights",
    "save",
]

logger = logging.getLogger(__name__)

_ELSE = 'network = "plain" in a job file does without it'
_STATES = ("unet", "smp")  # kinds whose file is a state_dict


class Network:
    """A card's network, loaded once, on one device."""

    def __init__(
        self, card: Card, module: torch.nn.Module, device: Device, trim: int = 0
    ) -> None:
        """Put `module` on `device`, channels last, for inference only.

        Args:
            card: what the network is.
            module: its arithmetic.
            device: where, and how it is to be run.
            trim: pixels on each side of a tile that answers are to lack.

        Raises:
            ModelError: run as the device says, it is not the same network.
        """
        self.card = card
        self.device = device
        module = module.to(device.name, device.dtype).eval()
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self._trim = trim
        self._forward = _forward(module, card, device, trim)

    @torch.inference_mode()
    def __call__(self, tiles_NBTT: Tensor) -> Tensor:
        """Return fp32 logits of scaled tiles: (N, outputs, tile, tile) less the trim.

        Raises:
            ModelError: the network, a program or ONNX, gives something else.
        """
        tiles = tiles_NBTT.to(self.device.dtype, memory_format=torch.channels_last)
        answers = self._forward(tiles).float()
        wanted = [len(tiles), self.card.outputs, *tiles.shape[2:]]
        got = [*answers.shape[:2], *(n + 2 * self._trim for n in answers.shape[2:])]
        if got != wanted:
            msg = f"{self.card.name}: the network gives {got}, wanted {wanted}"
            raise ModelError(msg)
        return answers if self.card.answers == "logits" else logits_of(answers)


def logits_of(chances: Tensor) -> Tensor:
    """Return logits whose softmax, or sigmoid of one, are these probabilities."""
    if chances.shape[1] == 1:
        return torch.logit(chances, eps=torch.finfo(torch.float32).eps)
    return chances.clamp_min(torch.finfo(torch.float32).tiny).log()


def _forward(
    module: torch.nn.Module, card: Card, device: Device, trim: int
) -> variants.Forward:
    """Return the module's forward as the device runs it, compared with the plain one.

    Raises:
        DeviceFaultError: the device failed.
        ModelError: it cannot be run so here, or gives something else.
    """
    way = device.network
    if way == "plain":
        return variants.build(module, way, trim)
    try:
        tiles = variants.sample(module, way, len(card.bands), card.tile, trim)
        forward = variants.build(module, way, trim)
        off = variants.deviation(module, forward, tiles, trim)
    except Exception as err:  # a compiler raises anything
        ours = isinstance(err, RuntimeError) and device_error(device.name, err)
        if isinstance(ours, DeviceFaultError):
            raise ours from err
        reason = f"{type(err).__name__}: {err}".splitlines()[0]
        msg = f"{device.name}: the {way} network does not run here ({reason}); {_ELSE}"
        raise ModelError(msg) from err
    if not off <= 1:
        msg = (
            f"{device.name}: the {way} network is not the plain one in "
            f"{device.precision}, {off:.3g} times as far off as it may be; {_ELSE}"
        )
        raise ModelError(msg)
    return forward


def choose(  # noqa: PLR0913  (three values, and what is wanted of them)
    card: Card,
    module: torch.nn.Module,
    device: Device,
    *,
    asked: str,
    todo: int,
    trim: int,
) -> Network:
    """Return a network on a device, run in the fastest way that is right there.

    Our own U-Net is fused; another network is compiled where that earns its time.

    Args:
        card: the network's.
        module: the network; it is put on the device.
        device: which one.
        asked: `auto`, or the one way that will do.
        todo: tiles that are to be forwarded.
        trim: see `Network`.

    Raises:
        ModelError: the way that was asked for is not right; or the device failed.
    """
    if asked != "auto":
        return Network(card, module, replace(device, network=asked), trim)
    plain = Network(card, module, replace(device, network="plain"), trim)
    if isinstance(module, UNet):
        fast = replace(device, network="fused")
    elif not card.architecture.is_fp32_only and variants.is_worth_compiling(
        module, todo, len(card.bands), card.tile
    ):
        fast = replace(device, network="compiled")
    else:
        return plain
    try:
        return Network(card, module, fast, trim)
    except DeviceFaultError:
        raise
    except ModelError as err:
        logger.warning("%s; going on with the plain one", err)
        return plain


def load_fastest(  # noqa: PLR0913  (see `choose`)
    folder: Path, card: Card, device: Device, *, asked: str, todo: int, trim: int
) -> Network:
    """Load a model folder's network onto a device, to run as `choose` says.

    Raises:
        ModelError: see `load` and `choose`.
        DeviceFaultError: the device failed.
    """
    module = load_module(folder, card)
    _be_exact()
    with _loading(device):
        return choose(card, module, device, asked=asked, todo=todo, trim=trim)


def check_weights(folder: Path, card: Card) -> bytes:
    """Return a model folder's weights, which are those that the card names.

    Raises:
        ModelError: they are missing, or others.
        RefusedError: they lie elsewhere.
    """
    path = own_file(folder, card.weights)
    try:
        data = path.read_bytes()
    except OSError as err:
        msg = f"{path}: cannot read the weights: {err.strerror}"
        raise ModelError(msg) from err
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.sha256:
        msg = f"{path}: wrong weights: sha256 is {digest}, the card says {card.sha256}"
        raise ModelError(msg)
    return data


def load_module(folder: Path, card: Card) -> torch.nn.Module:
    """Load a model folder's network, in fp32 on the CPU.

    A program (TorchScript, torch.export) runs while it is loaded: whoever calls this
    has been told that it is trusted.

    Raises:
        ModelError: the weights are missing, not those the card names, or do not fit; or
            a library that the network needs is not installed.
        RefusedError: they lie elsewhere.
    """
    path, data = own_file(folder, card.weights), check_weights(folder, card)
    try:
        module = _module(card, data)
    except (ModelError, RefusedError) as err:
        msg = f"{path}: {err}"
        raise type(err)(msg) from err
    if card.architecture.kind not in _STATES:
        return module
    try:
        weights = {
            key: value.to(torch.float32, copy=True)
            if value.is_floating_point()
            else value
            for key, value in load_safetensors(data).items()
        }
        module.load_state_dict(weights, assign=True)
    except (SafetensorError, RuntimeError, ValueError, LookupError) as err:
        reason = last_line(err)
        what = card.architecture.name
        msg = f"{path}: weights do not fit the card's {what}: {reason}"
        raise ModelError(msg) from err
    return module


def _module(card: Card, data: bytes) -> torch.nn.Module:
    """Return a card's network; those of `_STATES` have no weights yet.

    Our own U-Net has no memory either: it is as large as the card claims.
    """
    kind, parameters = card.architecture.kind, card.architecture.parameters
    if kind == "onnx":
        return OnnxNetwork(data, parameters)
    if kind in PROGRAMS:
        return CodeNetwork(data, kind)
    if kind == "smp":
        ends = {"in_channels": len(card.bands), "classes": card.outputs}
        return build_smp(replace(card.architecture, parameters={**parameters, **ends}))
    try:
        with torch.device("meta"):
            return UNet(len(card.bands), card.outputs, **parameters)
    except (RuntimeError, MemoryError) as err:
        msg = f"cannot build a U-Net of {dict(parameters)}: {err}"
        raise ModelError(msg) from err


def load(folder: Path, card: Card, device: Device, trim: int = 0) -> Network:
    """Load a model folder's network onto a device; see `Network`.

    Raises:
        ModelError: as `load_module`, or the device cannot hold it.
        DeviceFaultError: the device failed.
    """
    module = load_module(folder, card)
    _be_exact()
    with _loading(device):
        return Network(card, module, device, trim)


def _be_exact() -> None:
    """Let fp32 mean fp32, and the same plan the same bytes."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@contextmanager
def _loading(device: Device) -> Iterator[None]:
    """Say what a failure to load a network means."""
    try:
        yield
    except RuntimeError as err:
        ours = device_error(device.name, err)
        if isinstance(ours, DeviceFaultError):
            raise ours from err
        # Out of memory too: no smaller batch would help.
        msg = f"{device.name}: cannot hold the network: {first_line(err)}"
        raise ModelError(msg) from err


def round_weights(module: torch.nn.Module) -> None:
    """Make every weight a number that bf16 holds, in the type that it has.

    Rounding weights is the larger part of what bf16 changes in a network's answers, and
    an error that no pixel escapes. A model that was judged with rounded ones has made
    it already: in fp32 it is as good, and in bf16 more of its labels are the same.
    """
    with torch.no_grad():
        for weights in module.parameters():
            weights.copy_(weights.bfloat16())


def save(module: torch.nn.Module) -> tuple[bytes, str]:
    """Return a network's weights as safetensors bytes, and their sha256."""
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    data = save_safetensors(state)
    return data, hashlib.sha256(data).hexdigest()
