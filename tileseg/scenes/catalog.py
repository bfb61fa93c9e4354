"""STAC Items: which of their files hold a model's bands; the only owner of pystac.

An Item is as hostile as any input: it may name files only below its own folder, or
addresses; whether those may be read is decided where they are opened.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tileseg.base.names import SUFFIXES, parts_of
from tileseg.base.times import of_properties
from tileseg.errors import InputError, RefusedError, UsageError
from tileseg.scenes.layer import BandFacts, Layer, Stack
from tileseg.stores.documents import features_of, read_document

if TYPE_CHECKING:
    from pystac import Asset, Item

__all__ = ["asset_href", "items_of", "scenes_of", "stack_of"]

_MOST_BANDS = 10_000  # of an Item
_PICTURES = {"overview", "thumbnail", "visual"}  # made to be looked at
_RASTERS = ("image/tiff", "image/geotiff", "image/vnd.stac.geotiff")
_LISTS = ("raster:bands", "eo:bands", "bands")
_SCALE = ("raster:scale", "scale")
_OFFSET = ("raster:offset", "offset")
_INHERITED = ("nodata", "raster:scale", "raster:offset")  # by an asset's bands
_NARROWER = {"nir": ("nir08",)}
"""What else STAC calls a band that will do where there is no wider one: Landsat's."""

# What pystac raises where a value is of another kind than it takes it for.
_BROKEN = ArithmeticError, AttributeError, LookupError, TypeError, ValueError

_Names = Callable[["_Place"], set[str]]


@dataclass(frozen=True, slots=True)
class _Place:
    """A band of an Item."""

    source: str
    """Of its Item."""
    key: str
    """Of its asset."""
    at: int
    """Which of the asset's bands, from 0."""
    facts: dict[str, Any]
    """What is said of it."""
    is_only: bool
    """Whether the asset has no other."""
    is_data: bool
    """Whether the asset says that it is data."""

    def __str__(self) -> str:
        name = self.facts.get("name")
        return self.key if self.is_only or not name else f"{self.key}/{name}"


def scenes_of(source: str) -> list[str]:
    """Return the scenes of a STAC document: itself, or each Item of a collection.

    Raises:
        TilesegError: see `items_of`.
    """
    return list(items_of(source))


def items_of(source: str) -> dict[str, dict[str, Any]]:
    """Return the scenes of a STAC document, and the Item of each as JSON has it.

    Raises:
        InputError: it is missing or damaged, or no Item or ItemCollection.
        UsageError: two Items have one id.
    """
    document, item = parts_of(source)
    value = read_document(document)
    if value.get("type") == "Feature":
        return {source: value}
    features = features_of(document, value)
    if item:
        found = [each for each in features if str(each.get("id")) == item]
        return {source: found[0] if len(found) == 1 else {}}
    ids = [str(value.get("id")) for value in features]
    if len(set(ids)) < len(ids):
        double = next(name for name in ids if ids.count(name) > 1)
        msg = f"{document}: has two items with the id {double!r}"
        raise UsageError(msg)
    named = zip(ids, features, strict=True)
    return {f"{document}#{name}": value for name, value in named}


def stack_of(
    source: str, wanted: tuple[str | int, ...], *, with_scale: bool = True
) -> Stack:
    """Return the files of an Item that hold the wanted bands, and what it says of them.

    A band is looked for by its name or, alone in its asset, the asset's key; then by
    its common name, then by its description; in any case. Where there is no `nir`, a
    `nir08` is one.

    Args:
        source: path or address of the Item, or `collection.json#id`.
        wanted: names, in the model's order.
        with_scale: whether its scales and offsets are to be believed.

    Raises:
        InputError: the Item is missing or damaged.
        RefusedError: it names a file that it may not.
        UsageError: a band is missing, or more than one goes by its name.
    """
    item = _item(source)
    places = list(_places(source, item))
    chosen = [_find(source, places, name) for name in wanted]
    if with_scale:
        _check_offset(source, item, chosen)
    names = {
        (place.key, place.at): str(name)
        for place, name in zip(chosen, wanted, strict=True)
    }
    return tuple(
        Layer(
            href=_href(source, item.assets[key]),
            taken=of_properties(item.properties),
            bands=tuple(
                _facts(place, names.get((key, place.at)), with_scale=with_scale)
                for place in places
                if place.key == key
            ),
        )
        for key in dict.fromkeys(place.key for place in chosen)
    )


def asset_href(source: str, key: str) -> str:
    """Return the path or address of an Item's asset.

    Raises:
        TilesegError: see `stack_of`.
    """
    item = _item(source)
    if key not in item.assets:
        msg = f"{source}: has no asset {key!r}; it has {', '.join(item.assets)}"
        raise UsageError(msg)
    return _href(source, item.assets[key])


def _item(source: str) -> "Item":
    from pystac import Item
    from pystac.errors import STACError, STACTypeError

    document, name = parts_of(source)
    value = read_document(document)
    if name is not None:
        features = features_of(document, value)
        found = [each for each in features if str(each.get("id")) == name]
        if len(found) != 1:
            msg = f"{document}: has {len(found)} items with the id {name!r}, wanted one"
            raise InputError(msg)
        value = found[0]
    # Nothing follows its links, and what it calls itself says not where it lies.
    value = {**value, "links": []}
    try:
        item = Item.from_dict(value, migrate=True)
        if sum(1 for _ in _places(source, item)) <= _MOST_BANDS:
            return item
        problem = f"has more than {_MOST_BANDS} bands"
    except _BROKEN as err:
        problem = f"{type(err).__name__}: {err}"
    except (STACError, STACTypeError) as err:
        problem = str(err)
    msg = f"{source}: is no STAC Item that can be read: {problem}"
    raise InputError(msg)


def _places(source: str, item: "Item") -> Iterator[_Place]:
    """Yield every band of every asset that may be read as data."""
    for key, asset in item.assets.items():
        roles = set(asset.roles or ())
        if _PICTURES & {key.casefold(), *(role.casefold() for role in roles)}:
            continue
        if not _is_raster(asset):
            continue
        said = [_bands(source, asset, name) for name in _LISTS]
        count = max(1, *map(len, said))
        for at in range(count):
            facts = dict(asset.extra_fields) if count == 1 else _values(asset)
            for bands in said:
                facts |= bands[at] if at < len(bands) else {}
            yield _Place(source, key, at, facts, count == 1, "data" in roles)


def _values(asset: "Asset") -> dict[str, Any]:
    """Return what an asset says of the values of all of its bands."""
    return {k: v for k, v in asset.extra_fields.items() if k in _INHERITED}


def _bands(source: str, asset: "Asset", name: str) -> list[dict[str, Any]]:
    bands = asset.extra_fields.get(name) or []
    if isinstance(bands, list) and all(isinstance(band, dict) for band in bands):
        return bands
    msg = f"{source}: {name}: wanted a list of objects"
    raise InputError(msg)


def _is_raster(asset: "Asset") -> bool:
    media = (asset.media_type or "").partition(";")[0].strip().casefold()
    suffix = asset.href.partition("?")[0].casefold()
    return media in _RASTERS or (not media and suffix.endswith(SUFFIXES))


def _find(source: str, places: list[_Place], wanted: str | int) -> _Place:
    """Return the band that goes by a name."""
    if isinstance(wanted, int):
        msg = f"{source}: bands of a STAC Item go by name, got {wanted}"
        raise UsageError(msg)
    found: list[_Place] = []
    words = (wanted.casefold(), *_NARROWER.get(wanted.casefold(), ()))
    for word, names in product(words, _WAYS):
        found = [it for it in places if word in names(it)]
        found = [it for it in found if it.is_data] or found
        if found:
            break
    if len(found) == 1:
        return found[0]
    if found:
        msg = (
            f"{source}: more than one band goes by {wanted!r}: "
            f"{', '.join(map(str, found))}; name the one in a job file: bands = [...]"
        )
        raise UsageError(msg)
    has = ", ".join(map(str, places)) or "none"
    msg = (
        f"{source}: has no band {wanted!r} in a GeoTIFF; it has {has}. If one of these "
        "is meant, list all by name, in the model's order, in a job file: bands = [...]"
    )
    raise UsageError(msg)


def _words(place: _Place, *keys: str) -> set[str]:
    values = (place.facts.get(key) for key in keys)
    return {value.casefold() for value in values if isinstance(value, str)}


_WAYS: tuple[_Names, ...] = (
    lambda it: _words(it, "name") | ({it.key.casefold()} if it.is_only else set()),
    lambda it: _words(it, "common_name", "eo:common_name"),
    lambda it: _words(it, "description"),
)


def _facts(place: _Place, name: str | None, *, with_scale: bool) -> BandFacts:
    """Return what an Item says of a band; of scale and offset one implies the other."""
    scale, offset = _number(place, *_SCALE), _number(place, *_OFFSET)
    if not with_scale or (scale is None and offset is None):
        scale = offset = None
    else:
        scale, offset = 1.0 if scale is None else scale, offset or 0.0
    own = place.facts.get("name")
    return BandFacts(
        name=name or (own if isinstance(own, str) else None),
        nodata=_number(place, "nodata"),
        scale=scale,
        offset=offset,
    )


def _number(place: _Place, *keys: str) -> float | None:
    """Return the first of these that is said; NaN and Inf are strings in JSON."""
    value = next((it for key in keys if (it := place.facts.get(key)) is not None), None)
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError  # noqa: TRY301  (no number)
        return float(value)
    except (TypeError, ValueError, OverflowError):
        msg = f"{place.source}: {place}: {keys[-1]}: got {value!r}, wanted a number"
        raise InputError(msg) from None


def _check_offset(source: str, item: "Item", chosen: list[_Place]) -> None:
    """Refuse an offset that the Item says to be in the values already."""
    is_applied = item.properties.get("earthsearch:boa_offset_applied") is True
    if is_applied and any(_number(place, *_OFFSET) for place in chosen):
        msg = (
            f"{source}: says both that the offset is applied (earthsearch:"
            "boa_offset_applied) and that it is to be (raster:bands): look at the "
            "values and give --scale and --offset"
        )
        raise UsageError(msg)


def _href(source: str, asset: "Asset") -> str:
    """Return where an asset lies: an address, or a file below a local Item's folder.

    Raises:
        RefusedError: the Item may not name that.
    """
    from pystac.utils import make_absolute_href

    document, _ = parts_of(source)
    named = asset.href
    if not named or "\0" in named:
        _refuse(source, named)
    is_path = "://" not in named
    if "://" in document:
        if is_path and named.startswith(("/", "\\")):
            _refuse(source, named)
        found = make_absolute_href(named, document)
        if not found.startswith(("https://", "http://", "s3://", "gs://", "az://")):
            _refuse(source, named)
        return found
    if not is_path:
        if named.casefold().startswith("file:"):
            _refuse(source, named)
        return named
    folder = Path(document).absolute().parent.resolve()
    path = (folder / named).resolve()
    if not path.is_relative_to(folder):
        _refuse(source, named)
    return str(path)


def _refuse(source: str, named: str) -> None:
    msg = (
        f"{source}: names {named.partition('?')[0]!r}; a STAC Item may name files "
        "below its own folder, and addresses"
    )
    raise RefusedError(msg)
