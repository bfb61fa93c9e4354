"""One job's facts, gathered before anything is written: what is asked, of what."""

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from functools import cache
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tileseg.base.address import allow, has_secret
from tileseg.base.attributes import Origin
from tileseg.base.locations import is_nested, is_remote
from tileseg.base.names import is_catalog, scene_name
from tileseg.base.rules import Rule, parse_rule
from tileseg.base.times import last, spelled
from tileseg.cards.card import Card
from tileseg.cards.ensemble import Ensemble, read_ensemble
from tileseg.errors import InputError, RefusedError, TilesegError, UsageError
from tileseg.geobox import GeoBox
from tileseg.grid import Grid, Run, Shard, shard_size
from tileseg.masks.encode import SHARD_FORMAT, Look, can_write, looks
from tileseg.plans.ledger import digest
from tileseg.scenes.area import check_lonlat, check_metres, pixel_metres
from tileseg.scenes.catalog import asset_href
from tileseg.scenes.compose import Target, Wish
from tileseg.scenes.identity import Ahead, Identities, identify, unknown
from tileseg.scenes.inputs import mosaic_of
from tileseg.scenes.probe import examine
from tileseg.scenes.scene import Band, Scene, locate, open_scene
from tileseg.settings import Job
from tileseg.stores.objects import open_storage

if TYPE_CHECKING:
    from tileseg.scenes.region import Region

__all__ = [
    "FAR",
    "Task",
    "check_shared",
    "draft",
    "meet",
    "prepare",
    "refuse_vanishing",
    "region_of",
    "scale_of",
    "versions",
]

logger = logging.getLogger(__name__)

FAR = 1.5
"""Times as large or small as a pixel that the model knows, from where it matters."""

_SUMS_BYTES = 4  # of one logit being summed
_ASSET = "asset:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A job that makes sense: the scene has what the models' cards need."""

    job: Job
    scene: Scene
    identity: Identities
    """Of all its files."""
    ensemble: Ensemble
    """The model, or several."""
    bands: tuple[Band, ...]
    """In the ensemble's order; of one model the network's."""
    scale: tuple[tuple[float, float], ...]
    """(scale, offset) of each of them: stored values to the cards' unit."""
    grid: Grid
    """Of the scene; its area is what is asked for."""
    region: "Region | None"
    """What part of the scene that is; None for all of it."""

    @property
    def card(self) -> Card:
        """What the products' values mean, and the grid's numbers; see `Ensemble`."""
        return self.ensemble.card

    @property
    def looks(self) -> dict[str, Look]:
        """Each raster that is made, the mask first, and how it presents itself."""
        return looks(self.ensemble, self.job.layers)

    @property
    def planes(self) -> int:
        """How many bytes are made of a pixel, its class and the layers' bands."""
        return sum(len(look.bands) for look in self.looks.values())

    @property
    def geobox(self) -> GeoBox:
        """Where the products lie: the grid's area."""
        return self.scene.geobox.crop(self.grid.area)

    @property
    def request(self) -> dict[str, Any]:
        """What is asked for: all that decides a pixel, but for what `auto` means."""
        job = self.job
        products = ["mask", *job.layers]
        if job.polygons:
            products.append(f"polygons.{job.polygons}")
        if job.incremental:
            products.append("shards")
        return {
            "input": self.identity.facts(),
            "scene": digest(self.scene.facts()),
            "models": [card.facts() for card in self.ensemble.cards],
            "tta": job.tta,
            "bands": [band.index for band in self.bands],
            "scale": [list(pair) for pair in self.scale],
            "area": list(astuple(self.grid.area)),
            "outline": self.region and self.region.sha256,
            "shard": self.grid.shard,
            "shard_format": SHARD_FORMAT,
            "blend": job.blend,
            "device": job.device,
            "precision": job.precision,
            "network": job.network,
            "batch_size": job.batch_size,
            "products": products,
            "simplify": job.simplify,
            "columns": self._columns if job.polygons else None,
            "min_area": job.min_area,
            "versions": versions(polygons=bool(job.polygons)),
        }

    @property
    def origin(self) -> Origin:
        """What the polygons say of where they come from."""
        name, taken = scene_name(self.job.inputs[0]), last(self.scene.taken)
        return Origin(scene=name, taken=taken, model=self.ensemble.title)

    @property
    def _columns(self) -> dict[str, Any]:
        """What decides the polygons' columns, beside the models' cards."""
        origin = self.origin
        taken = origin.taken and spelled(origin.taken)
        given = [list(item) for item in self.job.attributes.items()]  # in their order
        return {"scene": origin.scene, "taken": taken, "attributes": given}

    @property
    def request_id(self) -> str:
        """The id of what is asked for."""
        return digest(self.request)

    def gains(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
        """Return (gain, bias, band) per channel: stored values to networks' inputs."""
        return self.ensemble.gains(self.scale)

    def runs(self, todo: list[Shard], workers: int) -> tuple[Run, ...]:
        """Cut what is to do into runs: long ones, narrow enough for the memory."""
        rows, band = self.job.run_shards or (
            -(-self.grid.shape.height // workers),
            self.scene.band_shards(self.grid, pixel_bytes=self._pixel_bytes()),
        )
        return self.grid.runs(todo, band=band, rows=rows)

    def _pixel_bytes(self) -> int:
        """Return what a worker holds for each pixel of a strip.

        Summed logits and layers beside the labels, of the same columns, are counted in.
        """
        sums = self.card.outputs * _SUMS_BYTES * self.grid.stride
        layers = sums + self.grid.shard * (self.planes - 1)
        return self.scene.pixel_bytes(self.bands) + layers // self.scene.strip_rows


def versions(*, polygons: bool = False) -> dict[str, str]:
    """Return the versions of the packages that decide the products' bytes."""
    packages = ["tileseg", "torch", "numpy", "rasterio"]
    if polygons:
        packages += ["pyogrio", "pyarrow", "shapely"]
    return {name: _version(name) for name in packages}


_version = cache(version)  # each time it would read a file


def prepare(job: Job, ahead: Ahead | None = None) -> Task:
    """Open the scene and the card and see that they fit; write nothing.

    Args:
        job: what is asked for.
        ahead: who may have hashed its file already.

    Raises:
        UsageError: the scene lacks bands or scale, or the job contradicts itself.
        TilesegError: the scene or the card cannot be used.
    """
    task = draft(job, *meet(job))
    paths = [file.path for file in task.scene.files]
    identity = identify(paths, open_storage(job.workplace), ahead)
    # What was described is what was hashed. As text: NaN is not equal to itself.
    if repr(_open(job, task.ensemble)) != repr(task.scene):
        msg = f"{job.href}: changed while it was being read; run again"
        raise InputError(msg)
    identity.check_unchanged()
    return replace(task, identity=identity)


def draft(job: Job, ensemble: Ensemble, scene: Scene) -> Task:
    """Do as `prepare` does, but for the scene's identity: not all its bytes are read.

    Args:
        job: what is asked for.
        ensemble: the models, as `meet` gave them.
        scene: likewise.

    Raises:
        TilesegError: see `prepare`.
    """
    if (size := scene.geobox.height * scene.geobox.width) > job.max_pixels:
        msg = (
            f"{job.href}: has {size} pixels, wanted at most {job.max_pixels}; if that "
            "is meant, say so in a job file: max_pixels"
        )
        raise RefusedError(msg)
    _tell_of_place(scene)
    _check_place(job, scene.geobox)
    for card in ensemble.cards:
        _compare_scales(scene, card)
    card, wanted = ensemble.card, ensemble.bands
    bands = scene.select(job.bands or wanted)
    if len(bands) != len(wanted):
        who = "the model needs" if len(ensemble.cards) == 1 else "the models need"
        msg = (
            f"{job.href}: {who} {len(wanted)} bands ({', '.join(wanted)}), "
            f"got {len(bands)}"
        )
        raise UsageError(msg)
    region = region_of(job, scene)
    return Task(
        job=job,
        scene=scene,
        identity=Identities(()),
        ensemble=ensemble,
        bands=bands,
        scale=tuple(scale_of(job, card, band) for band in bands),
        grid=_grid(job, card, scene, region),
        region=region,
    )


def meet(job: Job) -> tuple[Ensemble, Scene]:
    """Open a job's scene; files that nobody knows are looked at elsewhere before.

    Raises:
        UsageError: its outputs would be lost.
        TilesegError: the cards or the scene cannot be used.
    """
    refuse_vanishing(output=job.destination, work=job.workplace)
    _refuse_nesting(job)
    allow(job.hosts)
    ensemble = read_ensemble(job)
    wish = _wish(job, ensemble)
    names = locate(mosaic_of(job, wish.bands), wish)
    _refuse_telling(job, names)
    work = open_storage(job.workplace)
    if not job.trusted and (paths := unknown(names, work)):
        examine({path: names[path] for path in paths})
    return ensemble, _open(job, ensemble)


def _open(job: Job, ensemble: Ensemble) -> Scene:
    wish = _wish(job, ensemble)
    return open_scene(mosaic_of(job, wish.bands), wish)


def _grid(job: Job, card: Card, scene: Scene, region: "Region | None") -> Grid:
    try:
        return Grid(
            height=scene.geobox.height,
            width=scene.geobox.width,
            tile=card.tile,
            halo=card.halo,
            shard=job.shard or shard_size(card.tile, card.halo)[0],
            part=region.window if region else None,
        )
    except ValueError as err:
        raise UsageError(str(err)) from err


def region_of(job: Job, scene: Scene) -> "Region | None":
    """Return the part of the scene that is asked for; None for all.

    Raises:
        UsageError: nothing of the scene is, or the scene does not say where it lies.
        InputError: the file that says it cannot be read.
    """
    if not (job.bbox or job.aoi):
        return None
    from tileseg.scenes.region import region_of_bbox, region_of_file

    if scene.tie:
        msg = f"{job.href}: placed by GCPs or RPCs only: --bbox and --aoi find nothing"
        raise UsageError(msg)
    if job.bbox:
        return region_of_bbox(job.bbox, scene.geobox, job.href)
    return region_of_file(job.aoi, scene.geobox, job.href)


def _wish(job: Job, ensemble: Ensemble) -> Wish:
    """Return what the job and the cards want of the scene.

    Raises:
        UsageError: the cards do not say one resolution, or a mask is no rule.
    """
    is_card, side = job.resolution == "card", _resolution(job, ensemble)
    return Wish(
        bands=job.bands or ensemble.bands,
        target=Target(job.crs, side, is_metres=is_card, method=job.resampling),
        # What a catalog names may be of any resolution; what one names is as meant.
        resample=any(map(is_catalog, job.inputs)),
        rules=tuple(_rule(job, text) for text in job.mask),
        may_lie_nowhere=job.allow_ungeoreferenced,
    )


def check_shared(job: Job, ensemble: Ensemble) -> None:
    """Refuse what all scenes would fail of alike.

    Raises:
        UsageError: the cards do not say the resolution that is asked for.
        TilesegError: a mask that is of no scene alone is not there.
    """
    _resolution(job, ensemble)
    rules = (rule for rule in map(parse_rule, job.mask) if not _is_asset(rule))
    try:
        locate((), Wish(rules=tuple(rules)))
    except TilesegError as err:
        raise type(err)(f"mask {err}") from err


def _resolution(job: Job, ensemble: Ensemble) -> float | None:
    """Return the side of a pixel that is asked for; None for the scene's own."""
    if not isinstance(job.resolution, str):  # "card" is the only word there is
        return job.resolution
    gsd = ensemble.card.gsd
    if gsd is None:
        msg = f"resolution card: {job.model_path} does not say it (tileseg:gsd)"
        raise UsageError(msg)
    if {gsd} != {card.gsd for card in ensemble.cards}:
        msg = "resolution card: the models' cards say different ones; give a number"
        raise UsageError(msg)
    return gsd


def _is_asset(rule: Rule) -> bool:
    """Return whether a mask is an asset of the scene's STAC Item."""
    return rule.source.startswith(_ASSET)


def _rule(job: Job, text: str) -> Rule:
    """Return a rule; a mask that is an asset of the scene's STAC Item as its file."""
    rule = parse_rule(text)
    if not _is_asset(rule):
        return rule
    if len(job.inputs) > 1 or not is_catalog(job.inputs[0]):
        msg = f"mask: got {text!r}, wanted a file: the scene is no one STAC Item"
        raise UsageError(msg)
    href = asset_href(job.inputs[0], rule.source.removeprefix(_ASSET))
    return replace(rule, source=href)


def _check_place(job: Job, box: GeoBox) -> None:
    """Refuse a place on the ground that the products cannot say or be measured at."""
    if not can_write(box.crs):
        msg = (
            f"{job.href}: a GeoTIFF cannot say its CRS as it is: give the scene one "
            "with an EPSG code, or ask for another (crs in a job file)"
        )
        raise UsageError(msg)
    if job.polygons in ("geojson", "geojsonl"):
        check_lonlat(box, job.href)
    measures = {"--simplify": job.simplify, "--min-area": job.min_area}
    for option, value in measures.items():
        if value is not None:
            check_metres(box, job.href, option)


def _tell_of_place(scene: Scene) -> None:
    """Warn of a scene whose mask cannot lie where it should."""
    if scene.tie:
        text = "%s: placed by GCPs or RPCs only; its mask will be likewise, in pixels"
        logger.warning(text, scene.href)
    elif scene.geobox.transform.is_identity:
        text = (
            "%s: says not where it lies (world files are not read), nor will its mask"
        )
        logger.warning(text, scene.href)


def _compare_scales(scene: Scene, card: Card) -> None:
    """Warn of pixels of another size than those that the model knows."""
    side = pixel_metres(scene.geobox)
    known = side and card.gsd_near(side)
    if side and known and not 1 / FAR <= side / known <= FAR:
        text = (
            "%s: has pixels of %.3g m, the model knows such of %.3g m: expect a worse "
            "mask, or say resolution = 'card' in a job file"
        )
        logger.warning(text, scene.href, side, known)


def refuse_vanishing(**places: str) -> None:
    """Refuse relative outputs in a working directory that Ray unpacked for a job."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    if not (config.get("runtime_env") or {}).get("working_dir"):
        return
    for name, place in places.items():
        if not (is_remote(place) or Path(place).is_absolute()):
            msg = (
                f"--{name} {place}: would vanish with the job's uploaded working "
                "directory; give an absolute path on storage that all nodes share"
            )
            raise UsageError(msg)


def _refuse_telling(job: Job, paths: Iterable[str]) -> None:
    """Refuse to send a secret through Ray, which shows what it is given."""
    if job.engine_kind == "ray" and any(map(has_secret, paths)):
        msg = (
            f"{job.href}: a signed address is a secret that a cluster's nodes would "
            "have to be told; use s3://, gs:// or az:// with credentials of their own, "
            "or --engine local"
        )
        raise UsageError(msg)


def _refuse_nesting(job: Job) -> None:
    """Refuse a work directory that the results would replace."""
    work, output = job.workplace, job.destination
    if is_nested(work, output):
        msg = f"--work {work}: lies in --output {output}, or where its versions do"
        raise UsageError(msg)


def scale_of(job: Job, card: Card, band: Band) -> tuple[float, float]:
    """Return (scale, offset) from the job or the file's tags; never a guess.

    Raises:
        UsageError: neither says them.
    """
    if job.scale is not None:
        return job.scale, job.offset or 0.0
    if card.unit == "dn":
        return 1.0, 0.0
    if (band.scale, band.offset) == (1.0, 0.0):
        msg = (
            f"{job.href}: band {band.index} does not say how its numbers become "
            f"{card.unit}: give --scale and --offset ({card.unit} = number * scale + "
            f"offset; 1 and 0 if they are {card.unit} already), or write them into the "
            "file's GDAL tags"
        )
        raise UsageError(msg)
    if not (isfinite(band.scale) and isfinite(band.offset) and band.scale):
        msg = (
            f"{job.href}: band {band.index} says scale {band.scale} and offset "
            f"{band.offset}, wanted finite numbers and a scale other than 0: correct "
            "its GDAL tags, or give --scale and --offset"
        )
        raise UsageError(msg)
    return band.scale, band.offset
