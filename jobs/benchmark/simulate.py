"""A device and disks of known speed: what the engine itself costs.

Ray's workers import this module, or get it by value.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from tileseg.engines import worker
from tileseg.engines.worker import Recipe, Worker
from tileseg.network.model import Network
from tileseg.scenes.reader import Reader

__all__ = ["SimulatedNetwork", "SimulatedRecipe"]


class SimulatedNetwork(Network):
    """A device of known speed: its answers take time, but nobody's processor.

    It answers with the first bands of its input, so that labels depend on the pixels.
    """

    def __init__(self, network: Network, rate: float) -> None:
        """Take the place of a network, at `rate` tiles a second."""
        self.card, self.device = network.card, network.device
        self._rate = rate
        self._free = threading.Lock()

    def __call__(self, tiles_NBTT: Tensor) -> Tensor:  # noqa: N803  (shape suffix)
        """Return logits, (N, outputs, tile, tile), when the time is up."""
        bands = torch.arange(self.card.outputs) % tiles_NBTT.shape[1]
        with self._free:  # one batch at a time, whoever asks
            ready = time.perf_counter() + len(tiles_NBTT) / self._rate
            logits = tiles_NBTT[:, bands]
            time.sleep(max(0.0, ready - time.perf_counter()))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRecipe(Recipe):
    """A recipe whose workers have a simulated device."""

    rate: float
    """Tiles a second."""
    storage: float = 0.0
    """Share of that time that reading the same tiles takes, and writing them."""
    in_turn: bool = False
    """Whether reading, forward and writing wait for each other."""

    @classmethod
    def like(cls, recipe: Recipe, **how: Any) -> "SimulatedRecipe":  # noqa: ANN401  (our own fields)
        """Return a recipe with the same facts, for a simulated device."""
        names = Recipe.__dataclass_fields__
        return cls(**{name: getattr(recipe, name) for name in names}, **how)

    def network(self) -> Network:
        """Load the network, and put the simulated one in its place.

        Called in the process of the worker, whose disk becomes as slow as asked for.
        """
        if self.storage and not hasattr(Reader._read, "__wrapped__"):  # noqa: SLF001
            delay = self.storage / self.rate / self.grid.stride**2
            slow_down(Reader, "_read", lambda _file, window, *_: window.size * delay)
            slow_down(Worker, "_finish", lambda item: item[1].labels.size * delay)
        if self.in_turn:
            vars(worker).update(Ahead=in_turn, behind=one_by_one)
        return SimulatedNetwork(Recipe.network(self), self.rate)


def slow_down(kind: type, name: str, seconds: Callable[..., float]) -> None:
    """Let a method take longer, as it would on a slow disk; no processor is used."""
    method = getattr(kind, name)

    @wraps(method)
    def slow(self: object, *args: object) -> object:
        time.sleep(seconds(*args))
        return method(self, *args)

    setattr(kind, name, slow)


def in_turn(items: Generator[Any], _ahead: int) -> Generator[Any]:
    """Return items that are made when they are asked for, not ahead."""
    return items


def one_by_one(
    function: Callable[[Any], Any], items: Generator[Any], **_how: int
) -> Iterator[Any]:
    """Yield function(item) in order, each before the next item is made."""
    yield from (function(item) for item in items if item is not None)
