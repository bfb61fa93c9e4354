"""`item.json`: a scene's results as a STAC Item. Opens no file.

It says nothing that differs between two runs of one plan by one installation: no times,
and of the report, which holds some, no digest. Its files are named beside it, so the
folder may be moved.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tileseg.base.address import called, is_address
from tileseg.base.names import is_catalog, parts_of, scene_name
from tileseg.base.redact import json_bytes
from tileseg.base.times import SOMETIME, Period, spelled
from tileseg.cards.card import NODATA
from tileseg.cards.mlm import EXTENSIONS, class_object, multihash
from tileseg.masks.encode import Look
from tileseg.plans.task import Task
from tileseg.scenes.area import pixel_metres
from tileseg.scenes.ground import authority_code, footprint

__all__ = ["item"]

_ITEM = "application/geo+json"
_TYPES = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".parquet": "application/vnd.apache.parquet",
    ".gpkg": "application/geopackage+sqlite3",
    ".fgb": "application/vnd.flatgeobuf",
    ".geojson": "application/geo+json",
    ".geojsonl": "application/geo+json-seq",
    ".json": "application/json",
    ".png": "image/png",
}
_PURPOSES = {
    "mask": ("Class of each pixel", "data"),
    "confidence": ("Probability of the class", "data"),
    "margin": ("How far the next class is behind", "data"),
    "entropy": ("How spread out the probabilities are", "data"),
    "probabilities": ("Probability of each class", "data"),
    "polygons": ("Areas of one class", "data"),
    "failures": ("Where nothing could be made, and why", "metadata"),
    "quicklook": ("Scene and mask at a glance", "overview"),
    "shards": ("What the network saw of each shard", "metadata"),
}


def item(
    task: Task,
    files: Iterable[Mapping[str, Any]],
    shown: Mapping[str, Look] | None = None,
) -> bytes:
    """Return the Item of finished products, as JSON; no secret is in it.

    Args:
        task: of what scene, by which model.
        files: the products, see `list_outputs` of publish.py.
        shown: rasters, with what was counted of their values; None if nothing was.
    """
    box, versions = task.geobox, task.request["versions"]
    place, code = footprint(box), authority_code(box.crs)
    names = "projection", "raster", "classification", "processing", "file"
    return json_bytes(
        {
            "type": "Feature",
            "stac_version": "1.1.0",
            "stac_extensions": [EXTENSIONS[name] for name in names],
            "id": scene_name(task.job.inputs[0]),
            "geometry": place and place.geometry,
            **({"bbox": list(place.bbox)} if place else {}),
            "properties": {
                **_when(task.scene.taken),
                "proj:code": code,
                **({"proj:wkt2": box.crs} if box.crs and not code else {}),
                "processing:lineage": _lineage(task),
                "processing:version": versions["tileseg"],
                "processing:software": versions,
                "tileseg:models": [
                    {"name": card.name, "version": card.version, "sha256": card.sha256}
                    for card in task.ensemble.cards
                ],
            },
            "links": [*_origins(task), *_models(task)],
            "assets": dict(_assets(task, files, shown or task.looks)),
        }
    )


def _when(taken: Period | None) -> dict[str, str | None]:
    """Return when a scene was taken, in STAC's words."""
    start, end = map(spelled, taken or SOMETIME)
    if start == end:
        return {"datetime": start}
    return {"datetime": None, "start_datetime": start, "end_datetime": end}


def _lineage(task: Task) -> str:
    """Say in words how the mask was made."""
    ensemble = task.ensemble
    averaged = f", mean of {ensemble.forwards} forwards" * (ensemble.forwards > 1)
    bands = ", ".join(ensemble.bands)
    return f"Most probable class by {ensemble.title}{averaged}, from bands {bands}"


def _assets(
    task: Task, files: Iterable[Mapping[str, Any]], shown: Mapping[str, Look]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and description of each file, and of the report."""
    for file in files:
        path = Path(file["path"])
        title, role = _PURPOSES[path.stem]
        asset = {
            "href": f"./{path.name}",
            "title": title,
            "type": _TYPES[path.suffix],
            "roles": [role],
            "file:size": file["bytes"],
            "file:checksum": multihash(file["sha256"]),
        }
        if path.stem in shown:
            asset |= _raster(task, path.stem, shown[path.stem])
        yield path.stem, asset
    yield (
        "report",
        {
            "href": "./report.html",
            "title": "All of it as one page, with a map",
            "type": "text/html",
            "roles": ["metadata"],
        },
    )


def _raster(task: Task, name: str, look: Look) -> dict[str, Any]:
    """Return what is said of a raster: its grid, its values, their meaning."""
    box, metres = task.geobox, pixel_metres(task.geobox)
    scaled = {"raster:scale": look.scale, "raster:offset": 0.0}
    alike = {
        "data_type": "uint8",
        "nodata": NODATA,
        "raster:sampling": "point" if task.scene.point else "area",
        **({} if metres is None else {"raster:spatial_resolution": metres}),
        **({} if look.colors else scaled),
    }
    grid: dict[str, Any] = {"proj:shape": [box.height, box.width]}
    if task.scene.tie is None:
        grid["proj:transform"] = list(box.transform)[:6]
    bands = [{**words, **alike} for words in _bands(name, look)]
    return {**grid, "bands": bands, **(_classes(task, look) if look.colors else {})}


def _bands(name: str, look: Look) -> Iterator[dict[str, Any]]:
    """Yield what each band is called; its values' statistics, if they are known."""
    for number, text in enumerate(look.bands):
        is_alone = len(look.bands) == 1
        known = look.statistics[number : number + 1]
        yield {
            "name": name if is_alone else text,
            "description": text if is_alone else f"probability of {text}",
            **({"statistics": dict(known[0])} if known else {}),
        }


def _classes(task: Task, look: Look) -> dict[str, Any]:
    nodata = {"value": NODATA, "name": "nodata", "nodata": True}
    known = [
        class_object(it.value, it.name, it.color)
        | ({"count": look.pixels[it.value]} if look.pixels else {})
        for it in task.card.classes
    ]
    return {"classification:classes": [*known, nodata]}


def _origins(task: Task) -> Iterator[dict[str, Any]]:
    """Yield a link to each of the scene's inputs."""
    pairs = zip(task.scene.files, task.identity.files, strict=True)
    known = {file.href: identity for file, identity in pairs}
    for source in task.job.inputs:
        link: dict[str, Any] = {
            "rel": "derived_from",
            "href": _address(source),
            "type": _ITEM if is_catalog(source) else "image/tiff; application=geotiff",
            "title": scene_name(source),
        }
        if (identity := known.get(called(source))) and identity.sha256:
            link["file:size"] = identity.size
            link["file:checksum"] = multihash(identity.sha256)
        yield link


def _models(task: Task) -> Iterator[dict[str, Any]]:
    """Yield a link to the Item of each model: MLM has them be what this comes from."""
    ensemble = task.ensemble
    for folder, card in zip(ensemble.paths, ensemble.cards, strict=True):
        yield {
            "rel": "derived_from",
            "href": (folder / "card.json").absolute().as_uri(),
            "type": _ITEM,
            "title": f"{card.name} {card.version}",
        }


def _address(source: str) -> str:
    """Return an input as a link names it, the same wherever the Item lies."""
    name = called(source)
    if is_address(name):
        return name
    document, item = parts_of(name)
    return Path(document).absolute().as_uri() + (f"#{quote(item)}" if item else "")
