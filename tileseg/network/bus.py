"""What crosses between the host's memory and a device's: strips there, labels back.

Nothing crosses where the device is the CPU: the same calls then return their input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Bus", "Landing", "Ring"]


@dataclass(frozen=True, slots=True, eq=False)
class Landing:
    """A tensor on its way to the host."""

    host: Tensor
    """Where it lands."""
    landed: torch.cuda.Event | None
    """When it has; None: it is there."""

    def wait(self) -> NDArray[Any]:
        """Return it when it is there."""
        if self.landed is not None:
            self.landed.synchronize()
        array: NDArray[Any] = self.host.numpy()
        return array


class Bus:
    """The way to one device and back; never waits for it unless asked to."""

    def __init__(self, device: str) -> None:
        """Lay a stream of its own for strips, so that they pass the network by."""
        self.device = torch.device(device)
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)

    @property
    def ahead(self) -> int:
        """How many batches the host may be ahead of the device."""
        return 4 if self._stream else 0

    def buffer(self, size: int) -> NDArray[np.uint8]:
        """Return so many bytes of the host's memory, from where the way is short."""
        is_pinned = self._stream is not None
        array: NDArray[np.uint8] = torch.empty(
            size, dtype=torch.uint8, pin_memory=is_pinned
        ).numpy()
        return array

    def bring(self, planes: NDArray[Any], above: Tensor | None, shared: int) -> Tensor:
        """Put planes, (planes, height, width), on the device.

        They must not be written to before `settle`.

        Args:
            planes: in memory from `buffer`.
            above: what was brought before.
            shared: how many rows at its end are again the first ones of `planes`;
                they do not cross a second time.
        """
        host = torch.from_numpy(planes)
        if self._stream is None:
            return host
        # Copies are no arithmetic: not every one of them knows uint16.
        bits = host.view(torch.int16) if host.dtype == torch.uint16 else host
        first = shared if above is not None else 0
        with torch.cuda.stream(self._stream):
            there = torch.empty(bits.shape, dtype=bits.dtype, device=self.device)
            if above is not None and first:
                there[:, :first] = above.view(bits.dtype)[:, -first:]
            for target, source in zip(there, bits, strict=True):
                # ^ a plane's rows lie in one piece, and only so they cross unattended
                target[first:].copy_(source[first:], non_blocking=True)
        network = torch.cuda.current_stream(self.device)
        network.wait_stream(self._stream)
        there.record_stream(network)
        return there.view(host.dtype)

    def settle(self) -> None:
        """Come back when all that was brought is there."""
        if self._stream is not None:
            self._stream.synchronize()

    def fetch(self, tensor: Tensor) -> Landing:
        """Send a tensor to the host, once it is computed."""
        if self._stream is None:
            return Landing(tensor, None)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        landed = torch.cuda.Event()
        landed.record(torch.cuda.current_stream(self.device))
        return Landing(host, landed)


class Ring:
    """Buffers used again in turn: memory that is touched once, and pinned once."""

    def __init__(self, make: Callable[[int], NDArray[np.uint8]], count: int) -> None:
        """Make `count` of them, each when it is first asked for."""
        self._make = make
        self._buffers = [np.empty(0, np.uint8)] * count

    def __call__(self, size: int) -> NDArray[np.uint8]:
        """Return the buffer whose turn it is, at least as large as ever before.

        What it held, `count` calls ago, is gone.
        """
        oldest, *others = self._buffers
        if oldest.size < size:
            oldest = self._make(size)
        self._buffers = [*others, oldest]
        return oldest[:size]
