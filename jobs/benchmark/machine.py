"""What measured: date, hardware and versions, as every result says them."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rasterio
import torch

import tileseg
from tileseg.network.device import Device

__all__ = ["facts", "in_words"]


def facts(device: Device) -> dict[str, Any]:
    """Return date, hardware and versions, as JSON values."""
    is_gpu = device.name != "cpu"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gb": round(_ram_bytes() / 2**30),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "gpu": device.hardware if is_gpu else None,
        "precision": device.precision,
        "load": round(os.getloadavg()[0], 1),
        "tileseg": tileseg.__version__,
        "torch": torch.__version__,
        "gdal": rasterio.__gdal_version__,
        "python": platform.python_version(),
    }


def in_words(known: dict[str, Any]) -> str:
    """Return facts as one sentence."""
    hardware = f"{known['cores']} cores ({known['cpu']}, {known['vectors']})"
    if known["gpu"]:
        hardware = f"{known['gpu']}, {hardware}"
    return (
        f"{known['date'][:10]}, {hardware}, {known['ram_gb']} GiB; "
        f"the network in {known['precision']}; "
        f"torch {known['torch']}, GDAL {known['gdal']}, Python {known['python']}; "
        f"{known['load']} processes wanted a core when it began."
    )


def _cpu() -> str:
    """Return what the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
