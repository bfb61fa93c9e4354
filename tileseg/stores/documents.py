"""STAC documents: read from a disk, a server or an API, as JSON; and their Items."""

import json
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

from tileseg.base.address import is_address, keep, shown
from tileseg.base.names import is_api_item
from tileseg.errors import InputError, RefusedError, UsageError
from tileseg.stores.calls import call
from tileseg.stores.remote import fetcher

__all__ = ["features_of", "read_document"]

_MOST_BYTES = 16 << 20  # of a document
_MOST_ITEMS = 10_000

_MOMENT = 300.0  # seconds: signatures live for longer
_said: dict[str, tuple[float, bytes]] = {}
"""Address of an API's Item -> when it was read, and what it said."""


def features_of(document: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the Items of a document: itself, or those of a collection.

    Raises:
        InputError: they are no list, or too many.
    """
    features: Any = value.get("features", [value])
    is_good = isinstance(features, list) and all(isinstance(x, dict) for x in features)
    if not is_good or len(features) > _MOST_ITEMS:
        msg = f"{document}: wanted a list of at most {_MOST_ITEMS} STAC Items"
        raise InputError(msg)
    return list(features)


def read_document(address: str) -> dict[str, Any]:
    """Return a STAC document, as JSON has it, from a file or an address.

    Raises:
        InputError: it is missing or damaged, or no Item or ItemCollection.
        RefusedError: it is too large.
        UsageError: its address has a query.
    """
    try:
        value = json.loads(_bytes(address))
    except (ValueError, RecursionError) as err:
        msg = f"{address}: cannot be read as JSON: {err}"
        raise InputError(msg) from err
    if not isinstance(value, dict) or value.get("type") not in (
        "Feature",
        "FeatureCollection",
    ):
        msg = f"{address}: wanted a STAC Item or ItemCollection"
        raise InputError(msg)
    return value


def _bytes(address: str) -> bytes:
    if is_address(address):
        if "?" in address:
            msg = f"{shown(address)}: wanted a STAC document without a query"
            raise UsageError(msg)
        if is_api_item(address):
            return _said_by_api(address)
        source = fetcher(keep(address))
        size = source.look().size
        _check_size(address, size)
        return source.read(0, size)
    try:
        with Path(address).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        msg = f"{address}: cannot be read: {reason}"
        raise InputError(msg) from err
    _check_size(address, len(data))
    return data


def _said_by_api(address: str) -> bytes:
    """Return an Item as its API has it now, or had it a moment ago.

    It gives no ranges. It may sign hrefs anew for every answer, and a job that reads
    its Item twice is to see one scene.
    """
    at, data = _said.get(address, (-inf, b""))
    if monotonic() - at < _MOMENT:
        return data
    answer = call(address)
    if not answer.is_good:
        msg = f"{address}: the server does not give it ({answer.status})"
        raise InputError(msg)
    _check_size(address, len(answer.data))
    _said.clear()  # of a night's thousand Items one is in hand
    _said[address] = monotonic(), answer.data
    return answer.data


def _check_size(address: str, size: int) -> None:
    if size > _MOST_BYTES:
        msg = f"{address}: wanted a STAC document of at most {_MOST_BYTES} bytes"
        raise RefusedError(msg)
