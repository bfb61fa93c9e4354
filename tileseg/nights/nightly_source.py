"""What a night's source holds now: scenes, and cheap signs of which version each is of.

Opens no raster. A STAC Item is taken at its word: what it says is its version.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tileseg.base.address import called, is_address, keep
from tileseg.base.locations import lies_in
from tileseg.base.names import is_catalog, parts_of, scene_name
from tileseg.base.redact import redact
from tileseg.base.times import of_properties
from tileseg.errors import TilesegError, UsageError
from tileseg.nights.nightly_file import Source, Target
from tileseg.scenes.catalog import items_of
from tileseg.scenes.inputs import find_many, is_listing, listing, root_of
from tileseg.stores.remote import fetcher

__all__ = ["Found", "find", "is_apart"]

logger = logging.getLogger(__name__)

_AT_ONCE = 8  # looks at files on web servers


@dataclass(frozen=True, slots=True)
class Found:
    """A scene of the source."""

    source: str
    """Path or address, as a job takes it."""
    mark: str
    """Another text for another version of it; empty where it cannot be looked at."""
    taken: datetime | None = None
    """When it was taken, or the file written; None if nobody says."""

    @property
    def name(self) -> str:
        """Of its results."""
        return scene_name(self.source)

    @property
    def href(self) -> str:
        """What it is called in records."""
        return called(self.source)

    @property
    def version(self) -> str:
        """What it is called, and which version it is of."""
        return f"{self.href} {self.mark}"


def find(source: Source, now: datetime, target: Target | None = None) -> list[Found]:
    """Return every scene, in the source's order.

    Args:
        source: where scenes come from.
        now: the time.
        target: where results go; what lies there is no scene.

    Raises:
        UsageError: all of the source lies there.
        TilesegError: the source cannot be read, or does not answer.
    """
    places = (target.output, target.workplace) if target else ()
    root = root_of(source.scenes)
    is_many = is_listing(source.scenes) or (source.scenes and Path(root).is_dir())
    if is_many and not is_apart(root, places):
        msg = (
            f"[source] scenes: {source.scenes}: lies in the target's output or work, "
            "where nothing is a scene; give results a place of their own"
        )
        raise UsageError(msg)
    return [it for it in _found(source, now) if is_apart(it.source, places)]


def is_apart(source: str, places: Iterable[str]) -> bool:
    """Return whether it lies in none of the places of results and unfinished work."""
    return not any(lies_in(source, place) for place in places)


def _found(source: Source, now: datetime) -> list[Found]:
    if source.stac:
        from tileseg.nights.nightly_search import search

        return list(_items(search(source, now)))
    if is_listing(source.scenes):
        return [Found(at, *facts) for at, facts in listing(source.scenes).items()]
    return _looked_at(find_many(source.scenes))


def _looked_at(sources: Iterable[str]) -> list[Found]:
    """Return scenes with the marks of their versions."""
    sources = list(sources)
    documents = dict.fromkeys(parts_of(it)[0] for it in filter(is_catalog, sources))
    items: dict[str, Any] = {}
    for document in documents:
        try:
            items |= items_of(document)
        except TilesegError as err:  # its scenes fail, the others do not
            logger.info("%s", err)
    known = {it.source: it for it in _items(items)}
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(lambda it: known.get(it) or _file(it), sources))


def _items(items: Mapping[str, dict[str, Any]]) -> Iterator[Found]:
    for source, item in items.items():
        # Links change with the server's mood, signatures with every answer.
        text = redact(json.dumps({**item, "links": []}, sort_keys=True))
        said = item.get("properties")
        taken = of_properties(said) if isinstance(said, dict) else None
        mark = hashlib.sha256(text.encode(errors="replace")).hexdigest()
        yield Found(source, mark, taken and taken.start)


def _file(source: str) -> Found:
    """Return a file with its mark, looked at as cheaply as can be."""
    if is_catalog(source):
        return Found(source, "")
    try:
        if is_address(source):
            version = fetcher(keep(source)).look()
            return Found(source, f"{version.size} {version.tag or ''}")
        stat = Path(source).stat()
    except (TilesegError, OSError, ValueError) as err:
        logger.debug("%s: %s", called(source), err)
        return Found(source, "")
    written = datetime.fromtimestamp(stat.st_mtime, UTC)
    return Found(source, f"{stat.st_size} {stat.st_mtime_ns}", written)
