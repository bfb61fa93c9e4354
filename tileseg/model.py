"""Card and weights -> a network on a device. Knows nothing of scenes."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tileseg.card import Card, own_file
from tileseg.errors import (
    DeviceFaultError,
    DeviceMemoryError,
    ModelError,
    UsageError,
)
from tileseg.unet import UNet

__all__ = [
    "Device",
    "Network",
    "default_batch",
    "device_error",
    "load",
    "load_module",
    "resolve_device",
    "save",
    "worker_devices",
]

logger = logging.getLogger(__name__)

_MEMORY = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")
_FAULTS = ("CUDA", "CUDNN", "CUBLAS")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Device:
    """Where a network computes, and in what numbers."""

    name: str
    """torch's name: `cpu`, `cuda:0` ..."""
    hardware: str
    """What decides the last bits of a result: the GPUs' models or the CPU's vectors."""
    precision: str
    """`fp32`, `bf16` or `fp16`."""

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of weights and activations."""
        return _DTYPES[self.precision]


def resolve_device(device: str = "auto", precision: str = "auto") -> Device:
    """Turn `auto` into what this machine has.

    `auto` takes a CUDA device if there is one; bf16 on a GPU and on a CPU with the
    instructions for it, else fp32.

    Raises:
        UsageError: CUDA was asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        msg = "device cuda: this machine shows no CUDA device; use --device cpu"
        raise UsageError(msg)
    if device == "cpu" or not has_cuda:
        has_bf16 = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  (no public test)
        hardware = torch.backends.cpu.get_cpu_capability()
        name = "cpu"
    else:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        gpus = range(torch.cuda.device_count())
        hardware = ", ".join(sorted({torch.cuda.get_device_name(gpu) for gpu in gpus}))
        name = "cuda"
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp32"
    return Device(name, hardware, precision)


def device_memory_mb() -> float | None:
    """Return the most memory that torch held on a GPU; None if it used none."""
    if not torch.cuda.is_initialized():
        return None
    gpus = range(torch.cuda.device_count())
    return max(torch.cuda.max_memory_allocated(gpu) for gpu in gpus) / 1e6


def device_error(device: str, error: RuntimeError) -> ModelError | None:
    """Return what an error of torch says about the device; None for nothing."""
    text = str(error).partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError) or any(
        word in text for word in _MEMORY
    ):
        return DeviceMemoryError(f"{device}: out of memory: {text}")
    if isinstance(error, torch.AcceleratorError) or any(
        word in text.upper() for word in _FAULTS
    ):
        return DeviceFaultError(f"{device}: the device failed: {text}; run again")
    return None


def default_batch(device: Device) -> int:
    """Return how many tiles one forward takes where the user does not say."""
    return 16 if device.name == "cpu" else 256


def worker_devices(device: Device, workers: int | None) -> list[str]:
    """Return the device of each worker: every GPU in turn, or the CPU."""
    if device.name == "cpu":
        return ["cpu"] * (workers or 1)
    gpus = torch.cuda.device_count()
    return [f"cuda:{number % gpus}" for number in range(workers or gpus)]


class Network:
    """A card's network, loaded once, on one device."""

    def __init__(self, card: Card, module: torch.nn.Module, device: Device) -> None:
        """Put `module` on `device`, channels last, for inference only."""
        self.card = card
        self.device = device
        module = module.to(device.name, device.dtype).eval()
        self._module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    @torch.inference_mode()
    def __call__(self, tiles_NBTT: Tensor) -> Tensor:
        """Return fp32 logits, (N, outputs, tile, tile), of scaled tiles."""
        tiles = tiles_NBTT.to(self.device.dtype, memory_format=torch.channels_last)
        logits: Tensor = self._module(tiles)
        return logits.float()


def load_module(folder: Path, card: Card) -> UNet:
    """Load a model folder's U-Net, in fp32 on the CPU.

    Raises:
        ModelError: the weights are missing, not those the card names, or do not fit.
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
    try:
        with torch.device("meta"):  # no memory: it is as large as the card claims
            module = UNet(
                len(card.bands), card.outputs, width=card.width, depth=card.depth
            )
    except (RuntimeError, MemoryError) as err:
        msg = f"{folder}: cannot build a U-Net of width {card.width}: {err}"
        raise ModelError(msg) from err
    try:
        weights = {
            key: value.to(torch.float32, copy=True)
            for key, value in load_safetensors(data).items()
        }
        module.load_state_dict(weights, assign=True)
    except (SafetensorError, RuntimeError, ValueError, LookupError) as err:
        reason = str(err).splitlines()[-1].strip()[:300]
        msg = f"{path}: weights do not fit the card's U-Net: {reason}"
        raise ModelError(msg) from err
    return module


def load(folder: Path, card: Card, device: Device) -> Network:
    """Load a model folder's network onto a device.

    Raises:
        ModelError: as `load_module`, or the device cannot hold it.
        DeviceFaultError: the device failed.
    """
    module = load_module(folder, card)
    # fp32 shall mean fp32, and the same plan the same bytes.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    try:
        return Network(card, module, device)
    except RuntimeError as err:
        ours = device_error(device.name, err)
        if isinstance(ours, DeviceFaultError):
            raise ours from err
        # Out of memory too: no smaller batch would help.
        msg = f"{device.name}: cannot hold the network: {err}"
        raise ModelError(msg) from err


def save(module: torch.nn.Module) -> tuple[bytes, str]:
    """Return a network's weights as safetensors bytes, and their sha256."""
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    data = save_safetensors(state)
    return data, hashlib.sha256(data).hexdigest()
