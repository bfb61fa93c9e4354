"""Scenes and models to measure with, made from a seed and kept for the next time."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from tileseg.base.builtin import default_model
from tileseg.base.classes import LandClass
from tileseg.cards.architecture import unet
from tileseg.cards.card import Card
from tileseg.cards.item import read_card, to_stac
from tileseg.network.model import load_module, round_weights, save
from tileseg.network.unet import UNet

__all__ = ["Kind", "land_cover", "make_model", "make_scene", "own_model"]

_CELL = 32  # pixels over which a field is smooth
_NAMES = ("blue", "green", "red", "nir", *(f"b{n}" for n in range(5, 65)))
_BRIGHT = {"uint8": 12, "uint16": 1, "float32": 1}  # stored = 1e-4 reflectance / it


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What decides a scene's bytes."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    bands: int = 3
    """How many; the first ones are blue, green, red, nir."""
    dtype: str = "uint16"
    """Of the file: `uint8`, `uint16` or `float32`."""
    codec: str = "deflate"
    """`deflate`, `zstd`, `lzw` or `none`."""
    block: int = 512
    """Side of a block; 0 for strips of 16 rows."""
    every: int = 1
    """One block in so many has data, the others are not in the file."""
    seed: int = 0
    """Of the noise."""

    @property
    def name(self) -> str:
        """What tells it from other kinds: a file's stem."""
        return "_".join(map(str, asdict(self).values()))

    @property
    def layout(self) -> str:
        """Its codec, type, bands and blocks, in a word."""
        blocks = f"blocks {self.block}" if self.block else "strips"
        return f"{self.codec} {self.dtype} × {self.bands}, {blocks}"

    @property
    def mpx(self) -> float:
        """Millions of pixels."""
        return self.height * self.width / 1e6


def make_scene(kind: Kind, folder: Path) -> Path:
    """Return the scene's file; write it if it is not there."""
    path = folder / f"{kind.name}.tif"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}")  # whole or not at all
    with rasterio.open(half, "w", **_profile(kind)) as dataset:
        dataset.descriptions = _NAMES[: kind.bands]
        dataset.scales = (1e-4 * _BRIGHT[kind.dtype],) * kind.bands
        _fill(kind, dataset)
    half.replace(path)
    return path


def _profile(kind: Kind) -> dict[str, Any]:
    profile = {
        "driver": "GTiff",
        "count": kind.bands,
        "height": kind.height,
        "width": kind.width,
        "dtype": kind.dtype,
        "nodata": 0,
        "crs": "EPSG:32631",
        "transform": Affine(30, 0, 300_000, 0, -30, 4_600_000),
        "num_threads": "all_cpus",
        "sparse_ok": kind.every > 1,
        "bigtiff": "if_safer",
    }
    if kind.block:
        profile |= {"tiled": True, "blockxsize": kind.block, "blockysize": kind.block}
    else:
        profile |= {"tiled": False, "blockysize": 16}
    if kind.codec != "none":
        profile |= {
            "compress": kind.codec,
            "predictor": 3 if kind.dtype == "float32" else 2,
        }
    return profile


def _fill(kind: Kind, dataset: Any) -> None:  # noqa: ANN401  (rasterio is untyped)
    """Write correlated noise, which is no different whatever the blocks are."""
    random = np.random.default_rng(kind.seed)
    side, rows, columns = 512, -(-kind.height // _CELL) + 17, -(-kind.width // _CELL)
    cells = kind.bands, rows, columns + 17
    fields = random.uniform(300, 3_000, cells).astype(np.float32)
    number = 0
    for row in range(0, kind.height, side):
        for col in range(0, kind.width, side):
            number += 1
            if number % kind.every:
                continue
            corner = fields[:, row // _CELL :, col // _CELL :]
            grain = random.integers(0, 100, (kind.bands, side, side), np.uint16)
            pixels = (_between(corner, side) + grain) / _BRIGHT[kind.dtype]
            high, wide = min(side, kind.height - row), min(side, kind.width - col)
            part = pixels[:, :high, :wide].astype(kind.dtype)
            dataset.write(part, window=Window(col, row, wide, high))


def _between(cells: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the pixels that lie between cells, (bands, side, side)."""
    count = side // _CELL + 1
    at = np.arange(side, dtype=np.float32) / np.float32(_CELL)
    shares = 1 - abs(at[:, None] - np.arange(count, dtype=np.float32))
    weights = np.maximum(shares, 0, dtype=np.float32)
    return np.asarray(weights @ cells[:, :count, :count] @ weights.T, np.float32)


def land_cover(
    height: int, width: int, *, classes: int = 5, singles: float = 0.01
) -> NDArray[np.uint8]:
    """Return a mask as land cover looks: patches, some single pixels, some nodata.

    Args:
        height: rows.
        width: columns.
        classes: how many.
        singles: share of the pixels that are drawn anew, each for itself.
    """
    random = np.random.default_rng(1)
    cells = random.integers(0, classes, (height // 48 + 2, width // 48 + 2), np.uint8)
    patches = cells.repeat(48, axis=0).repeat(48, axis=1)[:height, :width]
    # Borders of patches are not straight: rows and columns are moved, a few pixels.
    rows = np.clip(np.arange(height) + random.integers(-3, 4, height), 0, height - 1)
    columns = np.clip(np.arange(width) + random.integers(-3, 4, width), 0, width - 1)
    mask: NDArray[np.uint8] = patches[rows][:, columns]
    is_single = random.random(mask.shape, np.float32) < singles
    mask[is_single] = random.integers(0, classes, int(is_single.sum()), np.uint8)
    mask[: height // 20] = 255
    return mask


def make_model(folder: Path, *, width: int, bands: int = 3, classes: int = 5) -> Path:
    """Return a model folder with lively random weights; write it if it is not there."""
    path = folder / f"random_{width}_{bands}_{classes}"
    if (path / "card.json").exists():
        return path
    torch.manual_seed(width)
    module = UNet(bands, classes, width=width)
    _enliven(module, bands)
    round_weights(module)  # as trained ones are, so that bf16 has the same chance
    data, sha256 = save(module)
    card = Card(
        name=f"random-{width}",
        version="1",
        bands=_NAMES[:bands],
        unit="reflectance",
        mean=(0.165,) * bands,
        std=(0.06,) * bands,
        tile=128,
        halo=16,
        classes=tuple(
            LandClass(value, f"class {value}", f"{value * 40 % 256:02x}8040")
            for value in range(classes)
        ),
        outputs=classes,
        architecture=unet(width, depth=4),
        sha256=sha256,
    )
    return _write(path, card, data)


def _write(path: Path, card: Card, weights: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / card.weights).write_bytes(weights)
    (path / "card.json").write_text(json.dumps(to_stac(card)), encoding="utf-8")
    return path


def _enliven(module: UNet, bands: int) -> None:
    """Give random weights that answer with every class somewhere."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
        elif name != "final_conv.bias":
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.inference_mode():
        # Smooth, as scenes are: noise alone would be another network's input.
        coarse = torch.randn(8, bands, 4, 4)
        tiles = torch.nn.functional.interpolate(
            coarse, scale_factor=32.0, mode="bilinear"
        )
        logits = module(tiles)
        module.final_conv.bias -= logits.mean(dim=(0, 2, 3))


def own_model(folder: Path, width: int) -> Path:
    """Return a model of 3 bands and 5 classes: tileseg's own, or that widened.

    One whose width is no multiple of it is random.
    """
    own = default_model()
    times, rest = divmod(width, read_card(own).architecture.parameters["width"])
    if rest:
        return make_model(folder, width=width)
    return own if times == 1 else _widened(folder, own, times)


def _widened(folder: Path, own: Path, times: int) -> Path:
    """Return a model that is `times` as wide and answers alike; write it if need be.

    Every channel is there so often, and has so small a part in what follows: Chen,
    Goodfellow, Shlens: "Net2Net: Accelerating Learning via Knowledge Transfer", 2016.
    """
    card = read_card(own)
    width, depth = (card.architecture.parameters[it] for it in ("width", "depth"))
    name = f"{card.name}-{times * width}"
    path = folder / f"{name}-{card.sha256[:8]}"
    if (path / "card.json").exists():
        return path
    module = UNet(len(card.bands), card.outputs, width=times * width, depth=depth)
    weights = load_module(own, card).state_dict().items()
    module.load_state_dict({key: _wide(key, it, times) for key, it in weights})
    data, sha256 = save(module)
    shape = unet(times * width, depth=depth)
    wide = replace(card, name=name, architecture=shape, sha256=sha256)
    return _write(path, wide, data)


def _wide(key: str, weight: Tensor, times: int) -> Tensor:
    """Return a layer's weight, or its bias, of so many copies of each channel."""
    outputs, inputs = (1, 0) if key.startswith("upconv") else (0, 1)
    if not key.startswith("final_conv"):
        weight = weight.repeat_interleave(times, outputs if weight.dim() > 1 else 0)
    if weight.dim() > 1 and key != "enc1.0.weight":
        weight = weight.repeat_interleave(times, inputs) / times
    return weight
