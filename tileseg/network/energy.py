"""What NVIDIA GPUs have taken, by their own counters; for other devices nobody says."""

from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["EnergyMeter"]


class EnergyMeter:
    """Counts the energy of some GPUs from now on.

    Of a whole GPU, whoever else is at it.
    """

    def __init__(self, uuids: Sequence[str]) -> None:
        """Begin; `uuids` as NVML has them, none for a CPU."""
        self._uuids = tuple(uuids)
        self._start = _read_joules(self._uuids)

    def joules(self) -> float | None:
        """Return what they took since the beginning; None where it is not known."""
        now = None if self._start is None else _read_joules(self._uuids)
        return None if now is None or self._start is None else now - self._start


def _read_joules(uuids: Sequence[str]) -> float | None:
    """Return the sum of the GPUs' counters; None without NVML, or if one has none."""
    if not uuids or find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByUUID, uuids)
        counters = map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles)
        return float(sum(counters)) / 1000  # they count millijoules
    except pynvml.NVMLError:  # no driver, a part of a GPU, one before Volta
        return None
