"""The network alone: the limit of every whole job, in the ways it can be run."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmark.scenes import own_model
from benchmark.setting import Setting
from benchmark.table import Figures, Row, interleave, spread
from tileseg.base.choices import NETWORKS
from tileseg.base.memory import keep_heap
from tileseg.cards.card import Card
from tileseg.cards.ensemble import Ensemble
from tileseg.cards.item import read_card
from tileseg.errors import TilesegError
from tileseg.network import averaging
from tileseg.network.device import Device
from tileseg.network.model import load_module

__all__ = ["measure", "rate_of", "tiles_a_second"]

Forward = Callable[[Tensor], Tensor]
_SECONDS = 1.5  # of one measurement
_AHEAD = 8  # batches that a GPU is given before it is waited for


def tiles_a_second(
    forward: Forward, tiles: Tensor, seconds: float, *, lanes: int = 1
) -> float:
    """Return how many tiles a second a network takes, one batch over and over.

    Args:
        forward: the network.
        tiles: a batch.
        seconds: how long, at least.
        lanes: threads that forward side by side, each with its share of the cores.
    """
    cores = torch.get_num_threads()
    end = threading.Barrier(lanes)

    def timed() -> float:
        # Here and not on the main thread, as in an engine.
        torch.set_num_threads(max(1, cores // lanes))
        with torch.inference_mode():
            forward(tiles).sum().item()
            end.wait()
            done, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                for _ in range(_AHEAD if tiles.is_cuda else 1):
                    last = forward(tiles)
                    done += len(tiles)
                last.sum().item()  # waits for a GPU
        return done / elapsed

    try:
        with ThreadPoolExecutor(lanes) as pool:
            futures = [pool.submit(timed) for _ in range(lanes)]
            return sum(future.result() for future in futures)
    finally:
        torch.set_num_threads(cores)


def rate_of(model: Path, setting: Setting, seconds: float) -> float:
    """Return tiles a second of a model folder's network, as fast as tileseg runs it.

    That of the fastest of its own ways, in the device's precision: plain or fused, one
    forward at a time or side by side. Which that is, short trials tell; the fastest of
    these would be a lucky one, so that it is then timed for itself.
    """
    card, ways = read_card(model), []
    for network in ("plain", "fused"):
        device = replace(setting.device, network=network)
        try:
            forward = _loaded(model, card, device)
        except TilesegError:
            continue  # then the job does not run it either
        tiles = _as_given(_noise(card, device, setting.batch(card)), device)
        for lanes in {1, setting.lanes}:
            trial = tiles_a_second(forward, tiles, seconds / 8, lanes=lanes)
            ways.append((trial, forward, tiles, lanes))
    _, forward, tiles, lanes = max(ways, key=itemgetter(0))
    return tiles_a_second(forward, tiles, seconds, lanes=lanes)


def _loaded(
    model: Path,
    card: Card,
    device: Device,
    tta: str = "none",
    *,
    trim: int | None = None,
) -> Forward:
    """Return a network in a process that keeps its memory, as a worker's does.

    Without a `trim` its answers lack the halo, as those of a job do.
    """
    if device.name == "cpu":
        keep_heap()
    trim = card.halo if trim is None else trim
    return averaging.load(Ensemble((str(model),), (card,), tta), device, trim)


def _noise(card: Card, device: Device, batch: int) -> Tensor:
    shape = batch, len(card.bands), card.tile, card.tile
    return torch.randn(shape, device=device.name)


def _as_given(tiles: Tensor, device: Device) -> Tensor:
    """Return tiles as a job gives them to the network: of its type and layout."""
    return tiles.to(device.dtype, memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the network."""

    name: str
    """What it is."""
    build: Callable[[], tuple[Forward, Tensor]]
    """Returns the network, ready, and a batch for it."""
    note: str = ""
    """What one must know to read its row."""
    lanes: int = 1
    """Forwards side by side."""


def measure(setting: Setting) -> Iterator[Row]:
    """Yield a row for every width, network, precision, layout and batch."""
    for width in setting.widths:
        model = own_model(setting.folder, width)
        timed: dict[str, Callable[[], float]] = {}
        notes = {}
        for way in _ways(setting, model):
            name = f"width {width}, {way.name}"
            try:
                timed[name], took = _ready(way, setting)
            except (RuntimeError, TilesegError) as err:
                reason = str(err).strip().splitlines()[-1]
                yield Row("alone", name, {"tiles_s": None}, f"failed: {reason[:120]}")
                continue
            notes[name] = f"{way.note}ready after {took:.1f} s"
        for name, rates in interleave(timed, setting.rounds).items():
            figures: Figures = {"tiles_s": median(rates), "spread": spread(rates)}
            yield Row("alone", name, figures, notes[name])


def _ready(way: Way, setting: Setting) -> tuple[Callable[[], float], float]:
    """Return what measures a way, and how long it took until it could be."""
    start = time.perf_counter()
    forward, tiles = way.build()
    with torch.inference_mode():
        forward(tiles).sum().item()
    seconds = _SECONDS / 3 if setting.quick else _SECONDS
    took = time.perf_counter() - start
    return partial(tiles_a_second, forward, tiles, seconds, lanes=way.lanes), took


def _ways(setting: Setting, model: Path) -> Iterator[Way]:
    """Yield all ways: as other libraries run it, then as tileseg can."""
    own = setting.batch(read_card(model))
    batches = (own,) if setting.quick else (own // 2, own, 2 * own)
    for batch in batches:
        build = partial(_as_peers, setting, model, batch)
        yield Way(f"fp32 NCHW, batch {batch}", build, "as peers run it; ")
    for precision in ("fp32", "bf16"):
        is_slow = precision == "bf16" and not setting.has_bf16
        if is_slow and setting.quick:
            continue
        note = "no instructions for it; " if is_slow else ""
        for network in ("plain",) if is_slow else NETWORKS:
            device = replace(setting.device, precision=precision, network=network)
            text = f"{precision} {network}, batch"
            if network == "compiled":
                if not setting.quick:
                    build = partial(_as_tileseg, device, model, own)
                    yield Way(f"{text} {own}", build, note)
                continue
            for batch in (own,) if is_slow else batches:
                build = partial(_as_tileseg, device, model, batch)
                yield Way(f"{text} {batch}", build, note)
            if network == "fused":
                build = partial(_as_tileseg, device, model, own, tta="d4")
                yield Way(f"{text} {own}, tta d4", build, "8 forwards a tile; ")
                build = partial(_as_tileseg, device, model, own, trim=0)
                lanes = max(1, setting.lanes)
                name = f"{text} {own}, whole tiles, {lanes} side by side"
                yield Way(name, build, "the halo too; ", lanes)
            if setting.lanes > 1 and not is_slow:
                lanes = setting.lanes
                build = partial(_as_tileseg, device, model, own)
                yield Way(f"{text} {own}, {lanes} side by side", build, note, lanes)


def _as_peers(setting: Setting, model: Path, batch: int) -> tuple[Forward, Tensor]:
    card, device = read_card(model), replace(setting.device, precision="fp32")
    module = load_module(model, card).to(device.name).eval()
    return module, _noise(card, device, batch)


def _as_tileseg(
    device: Device,
    model: Path,
    batch: int,
    *,
    tta: str = "none",
    trim: int | None = None,
) -> tuple[Forward, Tensor]:
    card = read_card(model)
    tiles = _as_given(_noise(card, device, batch), device)
    return _loaded(model, card, device, tta, trim=trim), tiles
