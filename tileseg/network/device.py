"""Where networks compute, on how many tiles at once, and how a device fails."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import torch

from tileseg.cards.card import Card
from tileseg.cards.ensemble import Ensemble
from tileseg.errors import (
    DeviceFaultError,
    DeviceMemoryError,
    ModelError,
    UsageError,
)
from tileseg.network.lanes import LANES

__all__ = [
    "Device",
    "default_batch",
    "device_error",
    "device_errors",
    "device_memory_mb",
    "resolve_device",
    "tile_bytes",
    "worker_devices",
]

_MEMORY = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")
_FAULTS = ("CUDA", "CUDNN", "CUBLAS")
_FP32_BYTES = 4
_CPU_BATCH = 16
_STEP = 0.5  # of a tile's time, that a forward on a CPU takes whatever it is given
_MOST_TILES = 512
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
    network: str = "plain"
    """How the network is run: `plain`, `fused` or `compiled`.

    Of several networks with `+` between, where they are not run alike."""
    memory: int | None = None
    """Bytes that a network may take: the least that is free on one of the GPUs."""

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
        ModelError: a GPU cannot be used.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        msg = "device cuda: this machine shows no CUDA device; use --device cpu"
        raise UsageError(msg)
    if device == "cpu" or not has_cuda:
        has_bf16 = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  (no public test)
        hardware = torch.backends.cpu.get_cpu_capability() + has_bf16 * " bf16"
        hardware += torch.cpu._is_amx_tile_supported() * " amx"  # noqa: SLF001  (as above)
        name = "cpu"
    else:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        gpus = range(torch.cuda.device_count())
        hardware = ", ".join(sorted({torch.cuda.get_device_name(gpu) for gpu in gpus}))
        name = "cuda"
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp32"
    return Device(name, hardware, precision, memory=_free_memory(name))


def _free_memory(name: str) -> int | None:
    """Return the bytes that are free on the fullest GPU; None for a CPU."""
    if name == "cpu":
        return None
    try:
        return min(_free_bytes(gpu) for gpu in range(torch.cuda.device_count()))
    except RuntimeError as err:
        msg = f"{name}: cannot be asked for its memory: {err}"
        raise device_error(name, err) or ModelError(msg) from err


def _free_bytes(gpu: int) -> int:
    """Return what is free; what torch keeps of earlier scenes and does not use, too."""
    kept: int = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
    free: int = torch.cuda.mem_get_info(gpu)[0]
    return free + kept


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


@contextmanager
def device_errors(device: str) -> Iterator[None]:
    """Say what a failing device means; it may surface at any touch of it.

    Raises:
        ModelError: it failed.
    """
    try:
        yield
    except RuntimeError as err:
        ours = device_error(device, err)
        if ours is None:
            raise  # a bug
        raise ours from err


def default_batch(device: Device, card: Card | Ensemble, todo: int) -> int:
    """Return how many of `todo` tiles one forward takes where the user does not say.

    On a GPU the largest power of two whose numbers fill at most half of what is free;
    more than 512 tiles are no faster. On a CPU 16: of fewer the steps themselves
    take a share, and more are no faster either. Fewer all the same where one worker's
    forwards side by side end together then, and pad little, of a fused network: a
    tile's numbers are the same there in a batch of any size, so it does not matter how
    much is asked for. Several workers get what one would, since a plan knows no number.
    """
    if device.memory is None:
        if device.network != "fused":
            return _CPU_BATCH
        sizes = range(_CPU_BATCH, 0, -1)
        return min(sizes, key=lambda n: ceil(todo / (LANES * n)) * (n + _STEP))
    fit = device.memory // (2 * tile_bytes(card, device))
    return min(_MOST_TILES, 1 << max(0, fit.bit_length() - 1))


def tile_bytes(card: Card | Ensemble, device: Device) -> int:
    """Return what one more tile in a batch takes of a device's memory, at most.

    The tiles themselves and their logits are in fp32 too.
    """
    width = card.floats * device.dtype.itemsize
    ends = card.ends * (2 * _FP32_BYTES + device.dtype.itemsize)
    return card.tile**2 * (width + ends)


def worker_devices(device: Device, workers: int | None) -> list[str]:
    """Return the device of each worker: every GPU in turn, or the CPU."""
    if device.name == "cpu":
        return ["cpu"] * (workers or 1)
    gpus = torch.cuda.device_count()
    return [f"cuda:{number % gpus}" for number in range(workers or gpus)]


def gpu_uuids(names: Sequence[str]) -> list[str]:
    """Return what NVIDIA's tools call each GPU among devices of torch, once."""
    gpus = [name for name in names if name.startswith("cuda")]
    uuids = (torch.cuda.get_device_properties(name).uuid for name in gpus)
    return sorted({f"GPU-{uuid}" for uuid in uuids})
