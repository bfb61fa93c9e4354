"""The network alone: the limit of every whole job, in the ways it can be run."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import cast

import torch
from torch import Tensor

from benchmark.scenes import own_model
from benchmark.setting import Setting
from benchmark.table import Figures, Row, interleave, spread
from tileseg.card import Card, read_card
from tileseg.errors import TilesegError
from tileseg.model import Device, load, load_module

__all__ = ["measure", "rate_of", "tiles_a_second"]

Forward = Callable[[Tensor], Tensor]
_SECONDS = 1.5  # of one measurement


def tiles_a_second(forward: Forward, tiles: Tensor, seconds: float) -> float:
    """Return how many tiles a second a network takes, one batch over and over.

    In a thread of its own, as in an engine: the main thread has another share of the
    processors.
    """

    def timed() -> float:
        with torch.inference_mode():
            forward(tiles).sum().item()
            done, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                for _ in range(_ahead(tiles)):
                    last = forward(tiles)
                    done += len(tiles)
                last.sum().item()  # waits for a GPU
        return done / elapsed

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(timed).result()


def _ahead(tiles: Tensor) -> int:
    """Return how many batches are begun before the answer is waited for."""
    return 8 if tiles.is_cuda else 1


def rate_of(model: Path, device: Device, batch: int, seconds: float) -> float:
    """Return tiles a second of a model folder's network as tileseg runs it."""
    card = read_card(model)
    return tiles_a_second(
        load(model, card, device), _noise(card, device, batch), seconds
    )


def _noise(card: Card, device: Device, batch: int) -> Tensor:
    shape = batch, len(card.bands), card.tile, card.tile
    return torch.randn(shape, device=device.name)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the network."""

    name: str
    """What it is."""
    build: Callable[[], tuple[Forward, Tensor]]
    """Returns the network, ready, and a batch for it."""
    note: str
    """What one must know to read its row."""


def measure(setting: Setting) -> Iterator[Row]:
    """Yield a row for every width, precision, layout and batch."""
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
            notes[name] = f"{way.note}; ready after {took:.1f} s"
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
    return partial(tiles_a_second, forward, tiles, seconds), took


def _ways(setting: Setting, model: Path) -> Iterator[Way]:
    """Yield all ways: as other libraries run it, then as tileseg does."""
    own = setting.batch
    batches = (own,) if setting.quick else (own // 2, own, 2 * own)
    for batch in batches:
        build = partial(_as_peers, setting, model, batch)
        name = f"fp32 NCHW, batch {batch}"
        yield Way(name, build, "torch's defaults, as peers run it")
    precisions = ["fp32", "bf16"] if setting.has_bf16 or not setting.quick else ["fp32"]
    for precision in precisions:
        is_slow = precision == "bf16" and not setting.has_bf16
        for batch in (own,) if is_slow else batches:
            device = replace(setting.device, precision=precision)
            build = partial(_as_tileseg, device, model, batch)
            note = "as tileseg would run it" + " (no instructions)" * is_slow
            yield Way(f"{precision} channels last, batch {batch}", build, note)
    if not setting.quick:
        build = partial(_compiled, setting, model)
        name = f"{setting.device.precision} channels last, batch {own}, torch.compile"
        yield Way(name, build, "nothing else")


def _as_peers(setting: Setting, model: Path, batch: int) -> tuple[Forward, Tensor]:
    card, device = read_card(model), replace(setting.device, precision="fp32")
    module = load_module(model, card).to(device.name).eval()
    return module, _noise(card, device, batch)


def _as_tileseg(device: Device, model: Path, batch: int) -> tuple[Forward, Tensor]:
    card = read_card(model)
    return load(model, card, device), _noise(card, device, batch)


def _compiled(setting: Setting, model: Path) -> tuple[Forward, Tensor]:
    card, device = read_card(model), setting.device
    module = load_module(model, card).to(device.name, device.dtype).eval()
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    tiles = _noise(card, device, setting.batch).to(device.dtype)
    compiled = cast("Forward", torch.compile(module))
    return compiled, tiles.to(memory_format=torch.channels_last)
