"""`collection.json`: the results in one place as a STAC Collection. Opens no raster."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import itemgetter
from typing import Any

from tileseg.base.longitudes import hull
from tileseg.base.names import slug
from tileseg.base.redact import json_bytes
from tileseg.base.times import SOMETIME, of_properties, spelled, together
from tileseg.cards.mlm import EXTENSIONS
from tileseg.errors import OutputError
from tileseg.stores.storage import Storage

__all__ = ["COLLECTION", "ITEM", "collection", "forget", "update"]

logger = logging.getLogger(__name__)

COLLECTION, ITEM = "collection.json", "item.json"

_LINK = re.compile(r"\./(?!\.\.?/)([^/]+)/(?:[^/.][^/]*/)?item\.json")
_WORDS = {
    "proj": "projection",
    "raster": "raster",
    "classification": "classification",
    "processing": "processing",
}
"""What fields of an extension begin with -> its name."""

_OF_ONE_FILE = ("href", "file:size", "file:checksum", "proj:shape", "proj:transform")
_OF_ONE_SCENE = ("datetime", "start_datetime", "end_datetime", "proj:code")
_OF_MANY = ("processing:version", "tileseg:models")
_COUNTED = {"bands": "statistics", "classification:classes": "count"}
_MODELS = itemgetter("tileseg:models")
_EARTH = [-180.0, -90.0, 180.0, 90.0]


def update(
    storage: Storage,
    name: str,
    fresh: Mapping[str, str],
    memory: dict[str, Any] | None = None,
    former: Mapping[str, str] | None = None,
) -> None:
    """Write the Collection of the results in `storage`, if it is another than before.

    What it holds already stays as long as its Item is there; with a memory, as long as
    its folder is.

    Args:
        storage: where the results are, a folder each.
        name: what to call the series.
        fresh: folder -> path in it of the Item, of those that are known to be there.
        memory: what is known of Items, JSON values; brought up to date. Those that are
            not in it are read, the others are not.
        former: as `fresh`, of those that were there once: what the Collection says of
            them, after a rollback say, is newer.

    Raises:
        TilesegError: it, or an Item, cannot be read; it cannot be written; the store
            keeps failing.
    """
    before = _read(storage, COLLECTION)
    if before is not None and not _is_ours(before, "summaries"):
        logger.warning("%s/%s: is not ours, so it stays", storage.address, COLLECTION)
        return
    places = {**(former or {}), **_listed(before or {}), **fresh}
    known: dict[str, Any] = {}
    if memory is not None:
        there = set(storage.folders())
        places = {folder: path for folder, path in places.items() if folder in there}
        known = _recalled(memory)
    paths = [f"{folder}/{path}" for folder, path in sorted(places.items())]
    read = {path: known.get(path) or _read(storage, path) for path in paths}
    items = {at: it for at, it in read.items() if it and _is_ours(it, "properties")}
    if memory is not None:
        memory.clear()
        memory.update(_memory(items))
    data = json_bytes(collection(name, items))
    if items and data != json_bytes(before):
        storage.write(COLLECTION, data)


def forget(memory: dict[str, Any], folder: str) -> bool:
    """Have the Item of a folder read again, for it may be new; return if known."""
    items = memory.get("items", {})
    known = [path for path in items if path.partition("/")[0] == folder]
    for path in known:
        del items[path]
    return bool(known)


def _memory(items: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what a Collection needs of Items, what many say alike only once."""
    kinds: dict[str, str] = {}
    told = {}
    for path, item in items.items():
        said = item["properties"]
        own = {key: said[key] for key in _OF_ONE_SCENE if key in said}
        alike = {
            "properties": {key: said[key] for key in _OF_MANY},
            "assets": _common([item["assets"]]),
        }
        text = json.dumps(alike)
        kind = kinds.setdefault(text, str(len(kinds)))
        told[path] = {"kind": kind, "properties": own}
        if "bbox" in item:
            told[path]["bbox"] = item["bbox"]
    return {
        "kinds": {kind: json.loads(text) for text, kind in kinds.items()},
        "items": told,
    }


def _recalled(memory: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return path -> what a Collection needs of its Item."""
    items = {}
    for path, own in memory.get("items", {}).items():
        alike = memory["kinds"][own["kind"]]
        properties = {**alike["properties"], **own["properties"]}
        items[path] = {**own, **alike, "properties": properties}
    return items


def _read(storage: Storage, name: str) -> dict[str, Any] | None:
    """Return a JSON object, an empty one for what is none; None where nothing is."""
    try:
        value = json.loads(storage.read(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        # Not taken for a result that is gone: its link would go, too.
        msg = f"{storage.address}/{name}: cannot be read: {err.strerror or err}"
        raise OutputError(msg) from err
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_ours(document: Mapping[str, Any], field: str) -> bool:
    facts = document.get(field)
    return isinstance(facts, dict) and "tileseg:models" in facts


def _listed(before: Mapping[str, Any]) -> dict[str, str]:
    """Return folder -> path in it of the Items that a Collection of ours links."""
    hrefs = [str(link.get("href")) for link in before.get("links", [])]
    found = filter(None, map(_LINK.fullmatch, hrefs))
    return {it[1]: it[0].removeprefix(f"./{it[1]}/") for it in found}


def collection(name: str, items: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a Collection.

    Args:
        name: what to call it.
        items: path below it -> Item, as `stac.py` makes them.
    """
    found = list(items.values())
    properties = [item["properties"] for item in found]
    boxes = [item["bbox"] for item in found if "bbox" in item]
    summaries = {
        "proj:code": _each(it["proj:code"] for it in properties),
        "processing:version": _each(it["processing:version"] for it in properties),
        "tileseg:models": _each(chain.from_iterable(map(_MODELS, properties))),
    }
    assets = _common(item["assets"] for item in found)
    used = {key.partition(":")[0] for key in _keys([summaries, assets])}
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [EXTENSIONS[_WORDS[it]] for it in _WORDS if it in used],
        "id": slug(name),
        "description": "What tileseg made of a series of scenes, an Item for each.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [hull(boxes or [_EARTH])]},
            "temporal": {"interval": [_interval(properties)]},
        },
        "summaries": summaries,
        "item_assets": assets,
        "links": [
            {"rel": "item", "href": f"./{path}", "type": "application/geo+json"}
            for path in items
        ],
    }


def _each(values: Iterable[Any]) -> list[Any]:
    """Return each value once, in the order of their first."""
    return [json.loads(text) for text in dict.fromkeys(map(json.dumps, values))]


def _common(assets: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return of each asset what all Items that have it say alike."""
    common: dict[str, dict[str, Any]] = {}
    for name, whole in (pair for each in assets for pair in each.items()):
        asset = _of_any_file(whole)
        known = common.get(name, asset)
        common[name] = {**_alike(known, asset), **_bands(known, asset)}
    return dict(sorted(common.items()))


def _of_any_file(asset: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an asset says without what was counted in the one file."""
    left = {key: value for key, value in asset.items() if key not in _OF_ONE_FILE}
    for key, counted in _COUNTED.items():
        if key in left:
            left[key] = [
                {name: value for name, value in each.items() if name != counted}
                for each in left[key]
            ]
    return left


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in one.items() if other.get(key) == value}


def _bands(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two assets say alike of their bands."""
    pairs = zip(one.get("bands", ()), other.get("bands", ()), strict=False)
    bands = [_alike(*pair) for pair in pairs]
    return {"bands": bands} if bands else {}


def _keys(value: object) -> Iterator[str]:
    """Yield all names of fields in JSON."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _keys(each)


def _interval(properties: Iterable[Mapping[str, Any]]) -> list[str | None]:
    """Return from when to when the Items are; open where one does not know."""
    periods = [of_properties(it) for it in properties]
    found = None if SOMETIME in periods else together(periods)
    return list(map(spelled, found)) if found else [None, None]
