"""Scenes that a STAC API knows; the only owner of pystac-client.

The library asks in the API's ways and turns its pages; it never has a connection of its
own. An Item is given by its address at the API and read there again when its turn has
come: hrefs that are signed are fresh then, and none of them is written anywhere.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from tileseg.base.address import netloc, shown
from tileseg.errors import (
    InputError,
    RefusedError,
    TilesegError,
    UsageError,
    first_line,
)
from tileseg.nights.nightly_file import Source
from tileseg.stores.calls import call

if TYPE_CHECKING:
    from pystac_client import Client, ItemSearch
    from pystac_client.stac_api_io import StacApiIO

__all__ = ["search"]

logger = logging.getLogger(__name__)

_PAGE = 250  # Items of one answer
_CLOUDS = "eo:cloud_cover"
_Period = tuple[datetime | None, datetime | None]


def search(source: Source, now: datetime) -> dict[str, dict[str, Any]]:
    """Return the Items that a STAC API finds, by their addresses there.

    Raises:
        UsageError: pystac-client is not installed, or what is asked cannot be done.
        InputError: what answers is no STAC API.
        TilesegError: it does not answer, or leads to another server.
    """
    if find_spec("pystac_client") is None:
        msg = "stac: needs pystac-client; pip install 'tileseg[stac]'"
        raise UsageError(msg)
    from pystac_client.exceptions import APIError

    period = source.period(now)
    said: list[warnings.WarningMessage]
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            items = list(_items(source, period))
    except TilesegError:
        raise
    except APIError as err:
        msg = f"{source.stac}: refuses the search: {first_line(err)}"
        raise InputError(msg) from err
    except Exception as err:  # the library's, on what is no STAC API
        msg = f"{source.stac}: is no STAC API that can be searched: {first_line(err)}"
        raise InputError(msg) from err
    for text in dict.fromkeys(str(warning.message) for warning in said):
        logger.info("%s: %s", source.stac, text)
    if len(items) == source.limit:
        logger.warning(
            "%s: may have more than %d Items: raise limit, or search a shorter time",
            *(source.stac, source.limit),
        )
    clear = (item for item in items if _is_clear(source, item))
    return {_address(source.stac, item): item for item in clear}


def _items(source: Source, period: _Period) -> Iterator[dict[str, Any]]:
    from pystac_client import Client

    client = Client.open(source.stac, stac_io=_voice(source.stac))
    found = _question(client, source, period).items_as_dicts()
    for item in islice(found, source.limit):
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            msg = f"{source.stac}: gives what is no STAC Item"
            raise InputError(msg)
        yield item


def _question(client: "Client", source: Source, period: _Period) -> "ItemSearch":
    """Return what is asked, as far as the API says that it can be."""
    from pystac_client.conformance import ConformanceClasses

    can_query = client.conforms_to(ConformanceClasses.QUERY)
    if source.query and not can_query:
        msg = f"{source.stac}: has no Query extension; leave [source.query] out"
        raise UsageError(msg)
    query = dict(source.query)
    if source.cloud_cover is not None and can_query:
        query = {_CLOUDS: {"lte": source.cloud_cover}, **query}
    links = [link for link in client.links if link.rel == "search"]
    can_post = any(link.extra_fields.get("method") == "POST" for link in links)
    return client.search(
        method="POST" if can_post else "GET",
        max_items=source.limit,
        limit=min(_PAGE, source.limit),
        collections=list(source.collections) or None,
        bbox=source.bbox,
        intersects=_area(source.aoi) if source.aoi else None,
        datetime=period if any(period) else None,
        query=query or None,
        sortby=(
            "-properties.datetime"
            if client.conforms_to(ConformanceClasses.SORT)
            else None
        ),
    )


def _area(path: str) -> dict[str, Any]:
    from tileseg.scenes.region import lonlat_of_file

    return lonlat_of_file(path)


def _is_clear(source: Source, item: Mapping[str, Any]) -> bool:
    """Return whether an Item says no more clouds than are allowed, if it says any.

    Here too: an API without the extension was not asked, and some do not listen.
    """
    clouds = item.get("properties", {}).get(_CLOUDS)
    if source.cloud_cover is None or not isinstance(clouds, int | float):
        return True
    return clouds <= source.cloud_cover


def _address(api: str, item: Mapping[str, Any]) -> str:
    """Return where the API has an Item, as every STAC API must have it."""
    parts = map(str, ("collections", item.get("collection"), "items", item["id"]))
    return "/".join([api.rstrip("/"), *(quote(part, safe="") for part in parts)])


def _voice(api: str) -> "StacApiIO":
    """Return how pystac-client is to ask: by our calls, of this one server."""
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO

    origin = urlsplit(api)

    class Voice(StacApiIO):
        """Asks one server."""

        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            """Return an answer's text; what headers a server wants is not ours."""
            del headers
            parts = urlsplit(href)
            if parts.scheme != origin.scheme or netloc(parts) != netloc(origin):
                msg = (
                    f"{api}: leads to another server, {shown(href)}; give that "
                    "address if it is to be trusted"
                )
                raise RefusedError(msg)
            if method == "POST":
                body = json.dumps(parameters or {}).encode()
                answer = call(href, body, {"Content-Type": "application/json"})
            else:
                answer = call(_with(href, parameters or {}))
            if not answer.is_good:
                text = answer.data[:300].decode("utf-8", "replace")
                msg = f"status {answer.status}: {text}"
                raise APIError(msg)
            return answer.data.decode()

    return Voice()


def _with(href: str, parameters: Mapping[str, Any]) -> str:
    if not parameters:
        return href
    return f"{href}{'&' if '?' in href else '?'}{urlencode(parameters)}"
