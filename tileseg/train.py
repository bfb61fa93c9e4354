"""A scene and labelled polygons -> a model folder. Knows U-Nets and cards, no jobs.

Sparse labels: only pixels inside polygons are judged. Tiles are drawn so that each
class is in the middle of as many, turned and mirrored, and their reflectance jittered.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from torch import Tensor, nn

from tileseg.architecture import unet
from tileseg.card import NODATA, Card, LandClass
from tileseg.errors import InputError, UsageError
from tileseg.grid import Grid, Run
from tileseg.model import save
from tileseg.reader import Reader
from tileseg.scene import Scene
from tileseg.storage import write_whole
from tileseg.unet import UNet

__all__ = [
    "Labels",
    "Training",
    "burn_polygons",
    "read_reflectance",
    "train",
    "write_card",
]

logger = logging.getLogger(__name__)

_WGS84 = "EPSG:4326"  # of GeoJSON, RFC 7946
_LOG_STEPS = 50
_CELL = 512  # the whole scene is read in squares of this side


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a network is trained."""

    classes: tuple[tuple[str, str], ...]
    """(name, RRGGBB) in the order of the mask values."""
    bands: tuple[str, ...]
    """In the order of the network's inputs."""
    tile: int = 128
    """Side of what the network sees, in pixels."""
    halo: int = 16
    """Margin that the model's card will ask to throw away, in pixels."""
    width: int = 16
    """Channels of the U-Net's first stage."""
    depth: int = 4
    """Poolings."""
    steps: int = 1500
    """Batches seen."""
    batch: int = 8
    """Tiles in one."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW, one cycle."""
    seed: int = 0
    """Of the weights and of what is drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What is known of a scene on the ground."""

    values: NDArray[np.uint8]
    """(height, width): class, or 255 where nothing is known."""

    def places(self, classes: int) -> list[NDArray[np.intp]]:
        """Return, per class, the (row, column) of its pixels, (n, 2)."""
        return [np.argwhere(self.values == value) for value in range(classes)]


def burn_polygons(path: Path, scene: Scene, names: tuple[str, ...]) -> Labels:
    """Burn GeoJSON polygons with a `class` property into the scene's grid.

    Raises:
        InputError: the file cannot be read as GeoJSON.
        UsageError: a class is not among `names`, or has no pixel.
    """
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        shapes = [
            (item["geometry"], str(item["properties"]["class"])) for item in features
        ]
    except (OSError, ValueError, KeyError, TypeError) as err:
        msg = f"{path}: cannot be read as GeoJSON polygons with a `class`: {err!r}"
        raise InputError(msg) from err
    box = scene.geobox
    values = np.full((box.height, box.width), NODATA, np.uint8)
    for name in {name for _, name in shapes} - set(names):
        msg = f"{path}: unknown class {name!r}, wanted one of {', '.join(names)}"
        raise UsageError(msg)
    burnt = [
        (transform_geom(_WGS84, box.crs, geometry), names.index(name))
        for geometry, name in shapes
    ]
    rasterize(burnt, out=values, transform=box.transform)
    for value, name in enumerate(names):
        if not (values == value).any():
            msg = f"{path}: no pixel of class {name!r}"
            raise UsageError(msg)
    return Labels(values)


def read_reflectance(scene: Scene, bands: tuple[str, ...]) -> NDArray[np.float32]:
    """Return the scene in physical units, (bands, height, width), NaN where invalid.

    Raises:
        UsageError: a band is missing, or does not say how its numbers become physical.
        InputError: the scene cannot be read.
    """
    chosen = scene.select(bands)
    for band in chosen:
        if (band.scale, band.offset) == (1.0, 0.0):
            msg = f"{scene.href}: band {band.index} has no GDAL scale and offset tags"
            raise UsageError(msg)
    height, width = scene.geobox.height, scene.geobox.width
    grid = Grid(height=height, width=width, tile=_CELL, halo=0, shard=_CELL)
    strips = list(Reader(scene, chosen, grid).strips(Run(grid.shape)))
    stored = np.concatenate([strip.pixels for strip in strips], axis=1)
    valid = np.concatenate([strip.valid for strip in strips])[:height, :width]
    scale, offset = np.array([(band.scale, band.offset) for band in chosen]).T
    pixels = stored[:, :height, :width] * scale[:, None, None] + offset[:, None, None]
    return np.where(valid, pixels, np.nan).astype(np.float32)


def train(
    training: Training,
    pixels: NDArray[np.float32],
    labels: Labels,
    folder: Path,
) -> Card:
    """Train a network and write its model folder.

    Seeds torch; the same inputs give the same weights but for their last bits, since
    threads sum gradients in any order.

    Args:
        training: how.
        pixels: (bands, height, width) in reflectance, NaN where invalid.
        labels: of the same grid.
        folder: where `card.json` and the weights go.
    """
    torch.manual_seed(training.seed)
    mean, std = np.nanmean(pixels, axis=(1, 2)), np.nanstd(pixels, axis=(1, 2))
    scaled = np.nan_to_num((pixels - mean[:, None, None]) / std[:, None, None])
    network = UNet(
        len(training.bands),
        len(training.classes),
        width=training.width,
        depth=training.depth,
    )
    _fit(network, training, scaled, labels)
    data, sha256 = save(network)
    names = enumerate(training.classes)
    card = Card(
        name=folder.name,
        version="1",
        bands=training.bands,
        unit="reflectance",
        mean=tuple(round(float(value), 6) for value in mean),
        std=tuple(round(float(value), 6) for value in std),
        tile=training.tile,
        halo=training.halo,
        classes=tuple(LandClass(value, *item) for value, item in names),
        outputs=len(training.classes),
        architecture=unet(training.width, training.depth),
        sha256=sha256,
    )
    write_whole(folder / card.weights, data)
    write_card(folder, card)
    return card


def write_card(folder: Path, card: Card) -> None:
    """Write `card.json` of a model folder."""
    text = json.dumps(card.to_stac(), indent=1) + "\n"
    write_whole(folder / "card.json", text.encode())


def _fit(
    network: UNet, training: Training, scaled: NDArray[np.float32], labels: Labels
) -> None:
    """Train in place."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.learning_rate, total_steps=training.steps
    )
    loss_of = nn.CrossEntropyLoss(ignore_index=NODATA, label_smoothing=0.05)
    losses = []
    network.train()
    for step, (x, y) in enumerate(_batches(training, scaled, labels), start=1):
        loss = loss_of(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), max_norm=1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % _LOG_STEPS == 0:
            recent = np.mean(losses[-_LOG_STEPS:])
            logger.info("step %d of %d: loss %.4f", step, training.steps, recent)


def _batches(
    training: Training, scaled: NDArray[np.float32], labels: Labels
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (tiles, labels): (N, B, T, T) in fp32, (N, T, T) with 255 to ignore."""
    random = np.random.default_rng(training.seed)
    places = labels.places(len(training.classes))
    margin = training.tile
    x = np.pad(scaled, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    y = np.pad(labels.values, margin, constant_values=NODATA)
    for _ in range(training.steps):
        tiles, answers = [], []
        for _ in range(training.batch):
            pixels = places[random.integers(len(places))]
            middle = pixels[random.integers(len(pixels))] + margin
            row, column = middle - random.integers(training.tile, size=2)
            at = slice(row, row + training.tile), slice(column, column + training.tile)
            turn, flip = random.integers(4).item(), random.integers(2).item()
            tiles.append(_turned(_jittered(x[:, *at], random), turn, flip))
            answers.append(_turned(y[at], turn, flip))
        yield (
            torch.from_numpy(np.stack(tiles)).to(memory_format=torch.channels_last),
            torch.from_numpy(np.stack(answers)).long(),
        )


def _turned(pixels: NDArray[Any], turn: int, flip: int) -> NDArray[Any]:
    """Return one of the eight symmetries of the last two axes."""
    turned = np.rot90(pixels, turn, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if flip else turned)


def _jittered(
    tile: NDArray[np.float32], random: np.random.Generator
) -> NDArray[np.float32]:
    """Return the tile as under another sky: brighter, hazier, a little noisier."""
    bands = len(tile)
    gain = random.normal(1, 0.05) + random.normal(0, 0.03, (bands, 1, 1))
    haze = random.normal(0, 0.08) + random.normal(0, 0.04, (bands, 1, 1))
    noise = random.normal(0, 0.02, tile.shape)
    return (tile * gain + haze + noise).astype(np.float32)
