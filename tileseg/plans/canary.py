"""Golden tiles: pixels and the labels that a model gave for them, to be given again.

A driver, a library or a card that failed shows in them before it shows on a map.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.cards.card import NODATA
from tileseg.cards.ensemble import Ensemble
from tileseg.errors import InputError, TileError, UsageError
from tileseg.grid import Grid, Run, Strip
from tileseg.network import averaging
from tileseg.network.blend import Blend
from tileseg.network.device import Device, resolve_device
from tileseg.network.predict import Predictor, Scaling
from tileseg.plans.precision import settle, spots
from tileseg.plans.task import Task, draft, meet
from tileseg.scenes.reader import Reader
from tileseg.settings import Job
from tileseg.stores.storage import write_whole
from tileseg.window import Window

__all__ = ["Canary", "agree", "make_canary", "read_canary", "save_canary"]

_SIDE = 2  # tiles of a spot, down and across


@dataclass(frozen=True, slots=True, eq=False)
class Canary:
    """Some spots of scenes, each of two by two tiles."""

    facts: dict[str, Any]
    """Which models' labels they are, and what they were made with."""
    pixels: NDArray[Any]
    """(spots, bands, side + 2 halo, side + 2 halo), as stored."""
    valid: NDArray[np.bool_]
    """The same without bands: True where every band is a measurement."""
    scale: NDArray[np.float64]
    """(spots, bands, 2): scale and offset to the cards' unit."""
    labels: NDArray[np.uint8]
    """(spots, side, side): the golden ones, 255 where invalid."""

    @property
    def sha256(self) -> str:
        """What it is, in hexadecimal."""
        return hashlib.sha256(_packed(self)).hexdigest()

    def check(self, ensemble: Ensemble, path: str) -> None:
        """Refuse labels of other models.

        Raises:
            UsageError: they are.
        """
        wanted = _of(ensemble)
        if (got := {key: self.facts.get(key) for key in wanted}) != wanted:
            names = " + ".join(str(it.get("name")) for it in got["models"] or ())
            msg = (
                f"{path}: has the labels of {names or 'no model'}, and the job's is "
                f"{ensemble.title}, of other weights or --tta: make it anew with "
                "tileseg model canary"
            )
            raise UsageError(msg)


def _of(ensemble: Ensemble) -> dict[str, Any]:
    keys = "name", "version", "sha256"
    models = [{key: getattr(card, key) for key in keys} for card in ensemble.cards]
    return {"models": models, "tta": ensemble.tta}


def make_canary(jobs: Sequence[Job]) -> Canary:
    """Return spots of some scenes, with the labels that the jobs' models give here.

    On the jobs' device, in its precision, the way that a job would run the network.

    Raises:
        UsageError: no scene has a valid pixel at the places looked at.
        TilesegError: a scene or the model cannot be used.
    """
    tasks = [draft(job, *meet(job)) for job in jobs]
    first, ensemble = tasks[0], tasks[0].ensemble
    device = settle(first, resolve_device(first.job.device, first.job.precision))
    found = [(task, *spot) for task in tasks for spot in _read(task)]
    if not any(valid.any() for *_, valid in found):
        msg = f"{first.job.href}: no valid pixel at the places looked at"
        raise UsageError(msg)
    pixels = np.stack([it for _, it, _ in found])
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 2:  # noqa: PLR2004  (of several scenes)
        pixels = pixels.astype(np.float32)
    made = Canary(
        facts={
            **_of(ensemble),
            "scenes": [task.job.href for task in tasks],
            "device": f"{device.name} ({device.hardware})",
            "precision": device.precision,
        },
        pixels=pixels,
        valid=np.stack([it for *_, it in found]),
        scale=np.array([task.scale for task, *_ in found], np.float64),
        labels=np.empty(0, np.uint8),
    )
    return replace(made, labels=_labels(made, ensemble, device))


def agree(canary: Canary, ensemble: Ensemble, device: Device) -> float:
    """Return the share of valid pixels that get their golden label again, 0 to 1.

    Raises:
        ModelError: the device failed, or cannot hold the network.
    """
    try:
        got = _labels(canary, ensemble, device)
    except TileError:  # NaN or Inf
        return 0.0
    return float((got == canary.labels)[canary.labels != NODATA].mean())


def _read(task: Task) -> list[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Return pixels and validity of each spot that can be read."""
    card = task.card
    grid = replace(task.grid, shard=_SIDE * task.grid.stride)
    side = grid.shard + 2 * card.halo
    reader = Reader(task.scene, task.bands, grid)
    found = []
    for spot in spots(grid):
        try:
            strips = list(reader.strips(spot))
        except InputError:
            continue
        # Strips that follow each other share the rows of both halos.
        cuts = [0 if strip is strips[0] else 2 * card.halo for strip in strips]
        pairs = list(zip(strips, cuts, strict=True))
        pixels = np.concatenate([it.pixels[:, cut:] for it, cut in pairs], axis=1)
        valid = np.concatenate([it.valid[cut:] for it, cut in pairs])
        room = [(0, side - length) for length in valid.shape]
        found.append((np.pad(pixels, [(0, 0), *room]), np.pad(valid, room)))
    return found


def _labels(canary: Canary, ensemble: Ensemble, device: Device) -> NDArray[np.uint8]:
    """Return what the networks make of every spot, (spots, side, side)."""
    card = ensemble.card
    side = _SIDE * (card.tile - 2 * card.halo)
    grid = Grid(height=side, width=side, tile=card.tile, halo=card.halo, shard=side)
    run, tiles = Run(grid.shape), Window(0, 0, _SIDE, _SIDE)
    blend, labels = Blend(grid.stride, grid.halo, "crop"), []
    network = averaging.at_hand(ensemble, device, blend.trim)
    for pixels, valid, scale in zip(
        canary.pixels, canary.valid, canary.scale, strict=True
    ):
        scaling = Scaling(*ensemble.gains([tuple(pair) for pair in scale.tolist()]))
        predictor = Predictor(network, grid, blend, scaling, batch=_SIDE**2)
        rows = predictor.rows(run, [Strip(tiles, pixels, valid)])
        labels.append(np.concatenate([part.labels for part in rows]))
    return np.stack(labels)


def save_canary(canary: Canary, path: str) -> None:
    """Write it to a file.

    Raises:
        OutputError: it cannot be written.
    """
    write_whole(Path(path), _packed(canary))


def _packed(canary: Canary) -> bytes:
    file = io.BytesIO()
    arrays = {name: getattr(canary, name) for name in _ARRAYS}
    facts = np.array(json.dumps(canary.facts, sort_keys=True))
    np.savez_compressed(file, facts=facts, **arrays)
    return file.getvalue()


_ARRAYS = {"pixels": 4, "valid": 3, "scale": 3, "labels": 3}
"""Name -> dimensions."""


def read_canary(path: str) -> Canary:
    """Read what `save_canary` wrote; nothing in the file is run.

    Raises:
        InputError: it is not there, or no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
            facts = json.loads(str(file["facts"]))
    except FileNotFoundError as err:
        msg = f"canary {path}: no such file; tileseg model canary writes one"
        raise InputError(msg) from err
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as err:
        msg = f"{path}: is no file of tileseg model canary: {err}"
        raise InputError(msg) from err
    if [item.ndim for item in arrays.values()] != list(_ARRAYS.values()):
        msg = f"{path}: is no file of tileseg model canary: its arrays are of others"
        raise InputError(msg)
    return Canary(facts=facts, **arrays)
