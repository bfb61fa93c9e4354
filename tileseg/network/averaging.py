"""Several forwards that answer as one: of several models, of a tile's symmetries.

Probabilities are averaged, tile by tile, and given back as logits: whoever blends,
labels or doubts them need not know. Shape letters: N tiles, C channels, K logits,
T tile side.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor

from tileseg.cards.ensemble import Ensemble
from tileseg.network import model
from tileseg.network.device import Device
from tileseg.network.model import Network, logits_of

__all__ = ["Averaged", "at_hand", "let_go", "load", "settle"]

_WAYS = "+"  # between the ways that the networks of an ensemble are run


@dataclass(frozen=True, slots=True)
class Symmetry:
    """One of the eight ways to lay a square on itself: turned, then mirrored."""

    turns: int
    """Quarter turns, anticlockwise."""
    is_mirrored: bool
    """Whether left and right then change places."""

    def apply(self, tiles_NCTT: Tensor) -> Tensor:
        """Return tiles as they lie then; the same ones where nothing moves."""
        turned = (
            torch.rot90(tiles_NCTT, self.turns, (2, 3)) if self.turns else tiles_NCTT
        )
        return turned.flip(3) if self.is_mirrored else turned

    def undo(self, answers_NKTT: Tensor) -> Tensor:
        """Return the answers to such tiles as they lay before."""
        back = answers_NKTT.flip(3) if self.is_mirrored else answers_NKTT
        return torch.rot90(back, -self.turns, (2, 3)) if self.turns else back


D4 = tuple(Symmetry(turns, flag) for flag in (False, True) for turns in range(4))


class Averaged(Network):
    """Networks on one device whose probabilities are averaged.

    One forward at a time, each of the whole batch: it holds what the largest network
    holds. Sums run in the order of models, then symmetries, whatever the batch.
    """

    def __init__(
        self, ensemble: Ensemble, networks: list[Network], device: Device
    ) -> None:
        """Average networks that are loaded, in the order of the ensemble's cards."""
        self.card, self.device, self.ensemble = ensemble.card, device, ensemble
        where = networks[0].device.name
        every = tuple(range(len(ensemble.channels)))
        self._members = [
            (network, None if places == every else torch.tensor(places).to(where))
            for network, places in zip(networks, ensemble.shown(), strict=True)
        ]
        self._symmetries = D4 if ensemble.tta == "d4" else D4[:1]

    @torch.inference_mode()
    def __call__(self, tiles_NCTT: Tensor) -> Tensor:
        """Return fp32 logits of the mean probabilities, of a network's shape.

        Args:
            tiles_NCTT: the ensemble's channels of scaled tiles.
        """
        parts = self._answers(tiles_NCTT)
        total, count = next(parts), 1
        for part in parts:
            total, count = total.add_(part), count + 1
        return logits_of(total.div_(count))

    def _answers(self, tiles_NCTT: Tensor) -> Iterator[Tensor]:
        """Yield each network's probabilities of each symmetry, laid back."""
        for network, places in self._members:
            own = tiles_NCTT if places is None else tiles_NCTT.index_select(1, places)
            for symmetry in self._symmetries:
                # In one piece, as a network is given tiles that nobody turned.
                lain = symmetry.apply(own).contiguous(memory_format=torch.channels_last)
                yield symmetry.undo(_chances(network(lain)))


def _chances(logits_NKTT: Tensor) -> Tensor:
    """Return the probabilities of logits, of one the class's; NaN where one is Inf.

    They would hide it: -Inf is as good as 0.
    """
    is_one = logits_NKTT.shape[1] == 1
    chances = logits_NKTT.sigmoid() if is_one else logits_NKTT.softmax(dim=1)
    return chances.add_(logits_NKTT.amin(dim=1, keepdim=True).mul_(0))


def load(ensemble: Ensemble, device: Device, trim: int = 0) -> Network:
    """Load the networks of all models onto a device.

    Args:
        ensemble: the models.
        device: which one.
        trim: pixels on each side of a tile that answers are to lack.

    Raises:
        ModelError: one's weights are missing or wrong, or the device cannot hold it.
        DeviceFaultError: the device failed.
    """
    ways = device.network.split(_WAYS)
    ways = ways if len(ways) > 1 else ways * len(ensemble.cards)
    networks = [
        model.load(folder, card, replace(device, network=way), trim)
        for folder, card, way in zip(ensemble.paths, ensemble.cards, ways, strict=True)
    ]
    return _as_one(ensemble, networks, device)


def _as_one(ensemble: Ensemble, networks: list[Network], device: Device) -> Network:
    is_one = ensemble.forwards == 1
    return networks[0] if is_one else Averaged(ensemble, networks, device)


_locks: defaultdict[str, Lock] = defaultdict(Lock)
"""One of each device: they load side by side, and one that hangs holds up no other."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Networks on a device."""

    ensemble: Ensemble
    device: Device
    """By the name that its worker has for it."""
    trim: int

    @classmethod
    def of(cls, ensemble: Ensemble, device: Device, trim: int) -> "Wish":
        """Make what is asked for in other words the same wish."""
        # A plan's `cuda` is the first of them.
        name = "cuda:0" if device.name == "cuda" else device.name
        return cls(ensemble, replace(device, name=name, memory=None), trim)


_held: dict[str, tuple[Wish, Network]] = {}
"""What was asked for last on each device, by its name."""


def at_hand(ensemble: Ensemble, device: Device, trim: int = 0) -> Network:
    """Return networks as `load` does, but load them only if others were used last.

    They stay on the device until others are wanted there, or `let_go`: the check of a
    job's numbers, the job and the next scene's have the same ones.

    Raises:
        TilesegError: see `load`.
    """
    wanted = Wish.of(ensemble, device, trim)
    name = wanted.device.name
    with _locks[name]:
        held, network = _held.get(name, (None, None))
        if network is None or held != wanted:
            _held.pop(name, None)
            network = None  # before: there may be no room for both
            network = load(ensemble, device, trim)
            _held[name] = wanted, network
        return network


def let_go() -> None:
    """Take all networks that are at hand off their devices, when nobody uses them."""
    _held.clear()


def settle(
    ensemble: Ensemble, device: Device, *, asked: str, todo: int, trim: int
) -> Device:
    """Return the device with the way to run each network; see `model.choose`.

    The networks are then at hand, run like that.

    Args:
        ensemble: the models.
        device: which one.
        asked: `auto`, or the one way that will do.
        todo: tiles that are to be labelled.
        trim: pixels on each side of a tile that answers are to lack.

    Raises:
        ModelError: the way that was asked for is not right; or the device failed.
    """
    todo *= ensemble.forwards // len(ensemble.cards)
    fused = replace(device, network="fused")
    wanted = Wish.of(ensemble, fused, trim)
    name = wanted.device.name
    with _locks[name]:
        # Fused they would be again; whether to compile depends on what is to be done.
        if asked in ("auto", "fused") and name in _held and _held[name][0] == wanted:
            return fused
        _held.pop(name, None)  # before: there may be no room for both
        networks = [
            model.load_fastest(folder, card, device, asked=asked, todo=todo, trim=trim)
            for folder, card in zip(ensemble.paths, ensemble.cards, strict=True)
        ]
        ways = [network.device.network for network in networks]
        is_one_way = len(set(ways)) == 1
        way = ways[0] if is_one_way else _WAYS.join(ways)
        device = replace(device, network=way)
        network = _as_one(ensemble, networks, device)
        _held[name] = Wish.of(ensemble, device, trim), network
    return device
