"""One job's facts, gathered before anything is written: what is asked, of what."""

import json
import logging
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.metadata import version
from importlib.resources import files
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from tileseg.card import Card, read_card
from tileseg.errors import UsageError
from tileseg.grid import Grid, Run, Shard, shard_size
from tileseg.identity import Identity, identify
from tileseg.ledger import digest
from tileseg.scene import CACHE_BYTES, Band, Scene, open_scene

__all__ = ["Job", "Task", "default_model", "prepare", "read_job"]

logger = logging.getLogger(__name__)

_SUMS_BYTES = 4  # of one logit being summed
_PIECES_BYTES = 64  # of a pixel of the shard that is polygonised
_FIXED_BYTES = CACHE_BYTES + 160_000_000  # with what libraries and the picture take


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One scene to segment. Every field but `input` has a default that fits most."""

    input: str
    """A local GeoTIFF."""
    model: str = ""
    """Model folder; empty for the land-cover model that comes with tileseg."""
    output: str = ""
    """Output directory; empty for out/<scene stem>."""
    work: str = ""
    """Work directory; empty for <output>.work."""
    engine: str = "auto"
    """`local`, `ray`, or `auto`: Ray inside a Ray job or where RAY_ADDRESS says one."""
    workers: int | None = None
    """How many; None for one per GPU, or one on the CPU (of each node)."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    batch_size: int | None = None
    """Tiles in one forward; None for a size that fits the device."""
    precision: str = "auto"
    """`auto`, `fp32`, `bf16` or `fp16`."""
    blend: str = "crop"
    """`crop` or `cosine`."""
    confidence: bool = False
    """Also make confidence.tif."""
    polygons: str = ""
    """Also make polygons.<it>: `gpkg`, `parquet`, `fgb` or `geojson`; empty for not."""
    scale: float | None = None
    """physical = stored * scale + offset; None for the file's own tags."""
    offset: float | None = None
    """See `scale`; 0 if only that is given."""
    bands: tuple[str | int, ...] = ()
    """The scene's bands in the model's order, by name or index; empty for by name."""
    overwrite: bool = False
    """Replace the result of another plan."""
    allow_partial: bool = False
    """Publish with holes where shards failed."""
    dry_run: bool = False
    """Say what would be done and do nothing."""
    keep_work: bool = False
    """Keep the plan's work directory after success."""
    shard: int | None = None
    """Side of a shard in pixels; None for what the card's tile and halo give."""
    run_shards: tuple[int, int] | None = None
    """Most (rows, columns) of shards in a run; None for a choice by memory."""

    def __post_init__(self) -> None:
        """Refuse what no run could mean."""
        for item in fields(self):
            if not _fits(got := getattr(self, item.name), item.type):
                msg = f"{item.name}: got {got!r}, wanted {_said(item.type)}"
                raise UsageError(msg)
        for name, (is_good, wanted) in self._limits().items():
            if (got := getattr(self, name)) is not None and not is_good(got):
                msg = f"{name}: got {got!r}, wanted {wanted}"
                raise UsageError(msg)
        if self.offset is not None and self.scale is None:
            msg = "offset: means nothing without scale; give both"
            raise UsageError(msg)

    @staticmethod
    def _limits() -> dict[str, tuple[Callable[[Any], bool], str]]:
        """Return, for each field with limits, its test and what it wants."""

        def one_of(*allowed: str) -> tuple[Callable[[Any], bool], str]:
            return allowed.__contains__, f"one of {', '.join(allowed)}"

        formats = ("gpkg", "parquet", "fgb", "geojson")
        positive = (lambda number: number > 0), "1 or more"
        return {
            "output": (
                lambda path: not path or Path(path).name not in ("", ".."),
                "a directory of its own",
            ),
            "engine": one_of("auto", "local", "ray"),
            "device": one_of("auto", "cpu", "cuda"),
            "precision": one_of("auto", "fp32", "bf16", "fp16"),
            "blend": one_of("crop", "cosine"),
            "polygons": (
                lambda name: name in ("", *formats),
                one_of(*formats)[1],
            ),
            "workers": positive,
            "batch_size": positive,
            "shard": positive,
            "run_shards": (lambda pair: min(pair) > 0, "1 or more of each"),
            "scale": (lambda x: isfinite(x) and x != 0, "a finite number, not 0"),
            "offset": (isfinite, "a finite number"),
        }

    @property
    def engine_kind(self) -> str:
        """Which engine: `local` or `ray`."""
        if self.engine != "auto":
            return self.engine
        address = os.environ.get("RAY_ADDRESS", "")
        is_for_jobs = address.startswith("http")  # what `ray job submit` goes by
        return "ray" if address and not is_for_jobs else "local"

    @property
    def output_path(self) -> Path:
        """Where the outputs go."""
        return Path(self.output or Path("out") / Path(self.input).stem)

    @property
    def work_path(self) -> Path:
        """Where unfinished work lives."""
        output = self.output_path
        return Path(self.work) if self.work else output.with_name(output.name + ".work")

    @property
    def model_path(self) -> Path:
        """The model folder."""
        return Path(self.model) if self.model else default_model()


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401  (a type or a union)
    """Return whether a value, of a TOML file say, is what a field's type says."""
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        parts = get_args(hint)
        if parts[-1] is ...:
            parts = parts[:1] * len(value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _said(hint: Any) -> str:  # noqa: ANN401  (a type or a union)
    return hint.__name__ if isinstance(hint, type) else str(hint)


def default_model() -> Path:
    """Return the folder of the land-cover model that comes with tileseg."""
    return Path(str(files("tileseg"))) / "models" / "landcover-bgr"


def read_job(path: str) -> dict[str, Any]:
    """Read the fields of a `Job` from a TOML file.

    Raises:
        UsageError: the file is unreadable or names a field that there is not.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        msg = f"{path}: cannot be read as a job file: {err}"
        raise UsageError(msg) from err
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    hints = {item.name: item.type for item in fields(Job)}
    hints["input"] = str | tuple[str, ...]  # of several scenes, a job each
    for key, value in values.items():
        if key not in hints:
            msg = f"{path}: unknown key {key!r}; a job has {', '.join(hints)}"
            raise UsageError(msg)
        if not _fits(value, hints[key]):
            msg = f"{path}: {key}: got {value!r}, wanted {_said(hints[key])}"
            raise UsageError(msg)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A job that makes sense: the scene has what the model's card needs."""

    job: Job
    scene: Scene
    identity: Identity
    card: Card
    bands: tuple[Band, ...]
    """In the network's order."""
    scale: tuple[tuple[float, float], ...]
    """(scale, offset) of each of them: stored values to the card's unit."""
    grid: Grid

    @property
    def request(self) -> dict[str, Any]:
        """What is asked for: all that decides a pixel, but for what `auto` means."""
        job = self.job
        products = ["mask", "confidence"] if job.confidence else ["mask"]
        packages = ["tileseg", "torch", "numpy", "rasterio"]
        if job.polygons:
            products.append(f"polygons.{job.polygons}")
            packages += ["shapely", "pyogrio", "pyarrow"]  # a file's bytes are theirs
        return {
            "input": {"size": self.identity.size, "sha256": self.identity.sha256},
            "model": self.card.facts(),
            "bands": [band.index for band in self.bands],
            "scale": [list(pair) for pair in self.scale],
            "shard": self.grid.shard,
            "blend": job.blend,
            "device": job.device,
            "precision": job.precision,
            "batch_size": job.batch_size,
            "products": products,
            "versions": {name: version(name) for name in packages},
        }

    @property
    def request_id(self) -> str:
        """The id of what is asked for."""
        return digest(self.request)

    def gains(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return (gain, bias) per band: stored values to the network's input."""
        card = self.card
        gain = (s / std for (s, _), std in zip(self.scale, card.std, strict=True))
        bias = (
            (offset - mean) / std
            for (_, offset), mean, std in zip(
                self.scale, card.mean, card.std, strict=True
            )
        )
        return tuple(gain), tuple(bias)

    def runs(self, todo: list[Shard], workers: int) -> tuple[Run, ...]:
        """Cut what is to do into runs: long ones, narrow enough for the memory."""
        rows, band = self.job.run_shards or (
            -(-self.grid.shape.height // workers),
            self.scene.band_shards(self.grid, pixel_bytes=self._pixel_bytes()),
        )
        return self.grid.runs(todo, band=band, rows=rows)

    def _pixel_bytes(self) -> int:
        """Return what a worker holds for each pixel of a strip, and of its sums."""
        sums = self.card.outputs * _SUMS_BYTES * self.grid.stride
        return self.scene.pixel_bytes(self.bands) + sums // self.scene.strip_rows

    def memory_mb(self, runs: tuple[Run, ...], batch: int) -> float:
        """Return an upper bound on the memory above the loaded network, in MB.

        Strips are held four times at most (read, held, gathered, in the network), sums
        and labels as often while they are joined and masked; a U-Net's activations
        come to about a dozen layers of the first stage's size.
        """
        width = max((self.grid.pixels(run).width for run in runs), default=0)
        rows = self.scene.strip_rows + 2 * self.grid.tile
        strips = 4 * rows * width * self.scene.pixel_bytes(self.bands)
        sums = 4 * self.card.outputs * self.grid.tile * width * _SUMS_BYTES
        labels = 4 * self.grid.shard * width * (1 + self.job.confidence)
        tiles = batch * self.grid.tile**2 * _SUMS_BYTES * 12 * self.card.width
        pieces = _PIECES_BYTES * self.grid.shard**2 if self.job.polygons else 0
        return (_FIXED_BYTES + strips + sums + labels + tiles + pieces) / 1e6


def prepare(job: Job) -> Task:
    """Open the scene and the card and see that they fit; write nothing.

    Raises:
        UsageError: the scene lacks bands or scale, or the job contradicts itself.
        TilesegError: the scene or the card cannot be used.
    """
    _refuse_vanishing(job)
    _refuse_nesting(job)
    identity = identify(open_scene(job.input).path, job.work_path)
    scene = open_scene(job.input)
    if scene.geobox.transform.is_identity:
        text = (
            "%s: says not where it lies (world files are not read), nor will its mask"
        )
        logger.warning(text, job.input)
    if job.polygons == "geojson":
        _check_lonlat(job, scene)
    card = read_card(job.model_path)
    bands = scene.select(job.bands or card.bands)
    if len(bands) != len(card.bands):
        msg = (
            f"{job.input}: the model needs {len(card.bands)} bands "
            f"({', '.join(card.bands)}), got {len(bands)}"
        )
        raise UsageError(msg)
    identity.check_unchanged()  # what was just described is what was hashed
    shard = job.shard or shard_size(card.tile, card.halo)[0]
    try:
        grid = Grid(
            height=scene.geobox.height,
            width=scene.geobox.width,
            tile=card.tile,
            halo=card.halo,
            shard=shard,
        )
    except ValueError as err:
        raise UsageError(str(err)) from err
    return Task(
        job=job,
        scene=scene,
        identity=identity,
        card=card,
        bands=bands,
        scale=tuple(_scale(job, card, band) for band in bands),
        grid=grid,
    )


def _refuse_vanishing(job: Job) -> None:
    """Refuse relative outputs in a working directory that Ray unpacked for a job."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    if not (config.get("runtime_env") or {}).get("working_dir"):
        return
    for name, path in {"output": job.output_path, "work": job.work_path}.items():
        if not path.is_absolute():
            msg = (
                f"--{name} {path}: would vanish with the job's uploaded working "
                "directory; give an absolute path on storage that all nodes share"
            )
            raise UsageError(msg)


def _refuse_nesting(job: Job) -> None:
    """Refuse a work directory that the results would replace."""
    if job.work_path.resolve().is_relative_to(job.output_path.resolve()):
        msg = f"--work {job.work_path}: lies in --output {job.output_path}"
        raise UsageError(msg)


def _check_lonlat(job: Job, scene: Scene) -> None:
    from tileseg.features import lonlat_digits

    if lonlat_digits(scene.geobox) is None:
        msg = (
            f"{job.input}: the scene does not say where on the Earth it lies, and "
            "GeoJSON is in longitude and latitude: use --polygons gpkg, parquet or fgb"
        )
        raise UsageError(msg)


def _scale(job: Job, card: Card, band: Band) -> tuple[float, float]:
    """Return (scale, offset) from the job or the file's tags; never a guess."""
    if job.scale is not None:
        return job.scale, job.offset or 0.0
    if card.unit == "dn":
        return 1.0, 0.0
    if (band.scale, band.offset) == (1.0, 0.0):
        msg = (
            f"{job.input}: band {band.index} does not say how its numbers become "
            f"{card.unit}: give --scale and --offset ({card.unit} = number * scale + "
            f"offset; 1 and 0 if they are {card.unit} already), or write them into the "
            "file's GDAL tags"
        )
        raise UsageError(msg)
    return band.scale, band.offset
