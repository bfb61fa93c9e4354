"""Small real scenes and models for the tests: real GeoTIFFs, real weights."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray

from tileseg.base.classes import LandClass
from tileseg.cards.architecture import unet
from tileseg.cards.card import Card
from tileseg.cards.item import to_stac
from tileseg.errors import ExitCode, PreemptedError
from tileseg.job import run
from tileseg.network.model import save
from tileseg.network.unet import UNet
from tileseg.publishing.publish import file_sha256
from tileseg.settings import Job
from tileseg.stores.objects import open_storage

NORTH_UP = Affine(10, 0, 500_000, 0, -10, 4_600_000)


def make_scene(
    path: Path, pixels: NDArray, *, scale=1e-4, offset=0.0, **profile
) -> Path:
    """Write `pixels`, (bands, height, width), as a GeoTIFF with named bands."""
    bands, height, width = pixels.shape
    names = profile.pop("names", ("blue", "green", "red", "nir")[:bands])
    settings = {
        "driver": "GTiff",
        "count": bands,
        "height": height,
        "width": width,
        "dtype": pixels.dtype,
        "crs": "EPSG:32631",
        "transform": NORTH_UP,
        "nodata": 0,
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
        "compress": "deflate",
    }
    with rasterio.open(path, "w", **{**settings, **profile}) as dataset:
        dataset.write(pixels)
        if names:
            dataset.descriptions = names
        if scale is not None:
            dataset.scales = (scale,) * bands
            dataset.offsets = (offset,) * bands
    return path


def random_pixels(height, width, *, bands=3, nodata=0.1, seed=0, dtype="uint16"):
    """Return smooth random pixels, 1 to 10000, with rectangles of nodata 0."""
    random = np.random.default_rng(seed)
    coarse = random.integers(1, 10_000, (bands, height // 7 + 2, width // 7 + 2))
    pixels = coarse.repeat(7, axis=1).repeat(7, axis=2)[:, :height, :width]
    pixels = np.clip(pixels + random.integers(-50, 50, pixels.shape), 1, 10_000)
    if nodata:
        rows = random.integers(0, height, 4)
        cols = random.integers(0, width, 4)
        for row, col in zip(rows, cols, strict=True):
            high, wide = max(1, int(nodata * height)), max(1, int(nodata * width))
            pixels[:, row : row + high, col : col + wide] = 0
    return pixels.astype(dtype)


def make_card(*, outputs=3, bands=("blue", "green", "red"), **changes) -> Card:
    """Return a card of a small U-Net: tile 32, halo 4, stride 24."""
    count = max(outputs, 2)
    facts = {
        "name": "test",
        "version": "1",
        "bands": tuple(bands),
        "unit": "reflectance",
        "mean": (0.3,) * len(bands),
        "std": (0.2,) * len(bands),
        "tile": 32,
        "halo": 4,
        "classes": tuple(
            LandClass(value, f"class {value}", f"{value * 40 % 256:02x}8040")
            for value in range(count)
        ),
        "outputs": outputs,
        "sha256": "0" * 64,
    }
    if "architecture" not in changes:
        shape = changes.pop("width", 4), changes.pop("depth", 2)
        changes["architecture"] = unet(*shape)
    return Card(**{**facts, **changes})


def make_model(folder: Path, *, seed=0, module=None, **changes) -> Path:
    """Write a model folder with random weights (or those of `module`)."""
    card = make_card(**changes)
    torch.manual_seed(seed)
    if module is None:
        module = UNet(len(card.bands), card.outputs, **card.architecture.parameters)
        lively(module)
    data, sha256 = save(module)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / card.weights).write_bytes(data)
    card = make_card(**{**changes, "sha256": sha256})
    (folder / "card.json").write_text(json.dumps(to_stac(card)))
    return folder


def lively(module: UNet) -> None:
    """Give random weights that answer with every class somewhere."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
        elif name != "final_conv.bias":
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.inference_mode():
        height = width = 8 << module.depth
        bands = module.get_parameter("enc1.0.weight").shape[1]
        logits = module(torch.randn(8, bands, height, width) * 1.5 + 1)
        module.final_conv.bias -= logits.mean(dim=(0, 2, 3))


def job_maker(place: Path, scene, model, **common):
    """Return what makes jobs on a scene, each with an output of its own in a place."""
    models = model if isinstance(model, tuple) else str(model)
    common = {"input": str(scene), "model": models, "trusted": True, **common}

    def make(name="out", **options):
        return Job(**{"output": str(place / name), **common, **options})

    return make


def succeed(job, *more):
    """Run a job that must end well, and return its record's values."""
    record = run(job, *more)
    if record.error:
        raise record.error
    assert record.values["exit_code"] == ExitCode.OK, record.values["failures"]
    return record.values


def read(path: Path) -> NDArray:
    """Return the first band of a raster."""
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every raster in a folder, by name."""
    return {item.name: file_sha256(item) for item in sorted(folder.glob("*.tif"))}


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return inode, modification time and bytes of every file below a folder."""
    return {
        str(item.relative_to(folder)): (
            item.stat().st_ino,
            item.stat().st_mtime_ns,
            item.read_bytes(),
        )
        for item in sorted(folder.rglob("*"))
        if item.is_file()
    }


def make_plain(path: Path, pixels: NDArray, **profile) -> Path:
    """Write `pixels`, (bands, height, width), with nothing said but the profile."""
    bands, height, width = pixels.shape
    settings = {
        "driver": "GTiff",
        "count": bands,
        "height": height,
        "width": width,
        "dtype": pixels.dtype,
        "transform": NORTH_UP,
    }
    with rasterio.open(path, "w", **{**settings, **profile}) as dataset:
        dataset.write(pixels)
    return path


def files_of(pid: int) -> set[str]:
    """Return what a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(link.readlink()))
    return found


def receipts_of(job) -> int:
    """Return how many receipts the job's work directory has."""
    work = open_storage(job.workplace)
    journals = [work.below(name).journal("receipts") for name in work.folders()]
    return sum(bool(entry) for item in journals for entry in item.entries())


def after(job, count: int, action):
    """Return a progress callback that acts once, at the `count`-th new receipt."""
    first, is_over = None, False

    def progress(_done, _total):
        nonlocal first, is_over
        receipts = receipts_of(job)
        first = receipts if first is None else first
        if receipts - first >= count and not is_over:
            is_over = True
            action()

    return progress


def stop_after(job, count: int):
    """Return a progress callback that stops the job at its `count`-th new receipt."""

    def stop():
        raise PreemptedError("stopped by the test")

    return after(job, count, stop)
