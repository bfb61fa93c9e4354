"""How much is measured, and on what: what every part is told."""

import os
from dataclasses import dataclass
from pathlib import Path

from tileseg.cards.card import Card
from tileseg.network.device import Device, default_batch

__all__ = ["Setting"]

_MANY = 1_000_000  # tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run of the benchmark is to do."""

    device: Device
    """Where the network computes."""
    quick: bool
    """Whether minutes are to be enough."""
    rounds: int
    """How often each thing is measured; the median counts."""
    side: int | None = None
    """Of the scene of a whole job; None for what fits the device."""
    folder: Path
    """Where scenes, models and environments are kept for the next time."""

    @property
    def is_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.name != "cpu"

    @property
    def has_bf16(self) -> bool:
        """Whether the device has instructions for bf16."""
        return self.device.precision == "bf16"

    def batch(self, card: Card) -> int:
        """Return how many tiles of a model one forward takes, of a large scene."""
        return default_batch(self.device, card, _MANY)

    @property
    def lanes(self) -> int:
        """Forwards that go side by side on the CPU, each on one core."""
        return 1 if self.is_gpu else len(os.sched_getaffinity(0))

    @property
    def widths(self) -> tuple[int, ...]:
        """Base widths of the networks: small, tileseg's own, the tutorial's."""
        return (8, 16) if self.quick else (8, 16, 64)

    @property
    def small(self) -> int:
        """Side of a scene that is small for the device."""
        return 8_192 if self.is_gpu else 2_048

    @property
    def large(self) -> int:
        """Side of the scene of a whole job."""
        if self.side:
            return self.side
        if self.is_gpu:
            return 10_980 if self.quick else 24_576
        return self.small if self.quick else 8_192
