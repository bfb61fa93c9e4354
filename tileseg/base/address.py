"""What leads to a scene: a local path or an address; and what may be shown of it.

An address may carry a secret in its query (a signed one). Such a query never leaves
this process: a scene goes by its handle, the address with `#1` in the query's place.
"""

import re
from collections.abc import Iterable
from threading import Lock
from urllib.parse import SplitResult, quote, urlsplit

from tileseg.base.names import is_catalog, parts_of
from tileseg.errors import RefusedError, UsageError

__all__ = [
    "STORES",
    "allow",
    "called",
    "has_secret",
    "is_address",
    "is_allowed",
    "keep",
    "keep_input",
    "netloc",
    "shown",
    "split",
    "whole",
]

STORES = ("s3", "gs", "az")
"""The schemes of object stores."""

_PORTS = {"http": 80, "https": 443}
# What GDAL would take for something else than a file.
_MAGIC_NAME = re.compile(r"/vsi|<|GTIFF_\w+:|MEM:|vrt:", re.IGNORECASE)
_HANDLE = re.compile(r"(.*)#\d+", re.DOTALL)
_NOT_IN_ADDRESS = re.compile(r"[\x00-\x20\x7f\\]")
_SAFE = "/%:@!$&'()*+,;=~"

_lock = Lock()
_allowed: set[str] = set()
_queries: dict[str, str] = {}
_handles: dict[tuple[str, str], str] = {}  # by what is shown, and the query


def is_address(href: str) -> bool:
    """Return whether it leads off this machine's disks."""
    return "://" in href


def split(href: str) -> SplitResult | None:
    """Return the parts of an address; None for a local path.

    Raises:
        RefusedError: it is a name that GDAL takes for something else.
        UsageError: it is no address that can be read, or holds a password.
    """
    if _MAGIC_NAME.match(href):
        name = shown(href).partition("\n")[0][:200]  # it may be a whole document
        msg = f"{name}: GDAL's virtual file names are refused; give a plain path"
        raise RefusedError(msg)
    if not is_address(href):
        return None
    parts = _parsed(href)
    if parts is None or parts.scheme not in (*_PORTS, *STORES):
        msg = f"{shown(href)}: wanted a path or an address: https, s3, gs or az"
        raise UsageError(msg)
    if "@" in parts.netloc:
        msg = f"{shown(href)}: user and password are refused; put them into ~/.netrc"
        raise UsageError(msg)
    if parts.scheme in STORES and (parts.query or not parts.path.strip("/")):
        msg = f"{shown(href)}: wanted bucket and object: {parts.scheme}://maps/a.tif"
        raise UsageError(msg)
    return parts


def _parsed(href: str) -> SplitResult | None:
    try:
        parts = urlsplit(href)
        is_good = bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        return None
    is_store = parts.scheme in STORES  # whose objects may be named as no URL can be
    is_good = is_good and (is_store or not _NOT_IN_ADDRESS.search(href))
    return parts if is_good else None


def shown(href: str) -> str:
    """Return what may be seen by anyone: no query, fragment, user or password."""
    if not is_address(href):
        return href
    scheme, _, rest = href.partition("://")
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme.lower()}://{host.rpartition('@')[2]}{slash}{path}"


def called(source: str | tuple[str, ...]) -> str:
    """Return what a scene is called that is made of one file or several.

    Anyone may see it; of a STAC document it says which Item is meant.
    """
    first, *more = (source,) if isinstance(source, str) else source
    document, item = parts_of(first)
    first = shown(document) + (f"#{item}" if item else "")
    return f"{first} and {len(more)} more" if more else first


def netloc(parts: SplitResult) -> tuple[str, int]:
    """Return host and port of an address on the web."""
    return (parts.hostname or "").lower(), parts.port or _PORTS[parts.scheme]


def keep(href: str) -> str:
    """Return the handle of a scene; an address's query is kept, by this process alone.

    What has no query is its own handle, and so is a handle.

    Raises:
        RefusedError, UsageError: see `split`.
    """
    parts = split(href)
    if parts is None or parts.scheme in STORES:
        return href
    with _lock:
        if href in _queries:
            return href
        key = shown(href), parts.query
        if not parts.query:
            return key[0]
        if key not in _handles:
            _handles[key] = f"{key[0]}#{len(_handles) + 1}"
            _queries[_handles[key]] = parts.query
        return _handles[key]


def keep_input(source: str) -> str:
    """Return the handle of an input; which Item is meant is no secret.

    Raises:
        UsageError: a STAC document has a query, or see `keep`.
    """
    if is_address(source) and "?" in source.partition("#")[0] and is_catalog(source):
        msg = f"{shown(source)}: wanted a STAC document without a query"
        raise UsageError(msg)
    return source if parts_of(source)[1] else keep(source)


def has_secret(handle: str) -> bool:
    """Return whether the address has a query that only this process knows."""
    return handle in _queries


def whole(handle: str) -> str:
    """Return the address itself, to be sent and never to be shown.

    Raises:
        UsageError: its query is another process's secret.
    """
    if handle in _queries:
        address = f"{shown(handle)}?{_queries[handle]}"
    elif is_address(handle) and _HANDLE.fullmatch(handle):
        msg = f"{shown(handle)}: its query is not known here; give the whole address"
        raise UsageError(msg)
    else:
        address = handle
    plain, _, query = address.partition("?")
    return quote(plain, safe=_SAFE) + (f"?{query}" if query else "")


def allow(hosts: Iterable[str]) -> None:
    """Let this process read from these, whatever their addresses: `host[:port]`.

    For good, and for all its jobs: they share connections and files that are open.
    """
    with _lock:
        _allowed.update(host.lower() for host in hosts)


def is_allowed(host: str, port: int) -> bool:
    """Return whether the user named this host, with this port or with none."""
    return bool(_allowed & {host, f"{host}:{port}", f"[{host}]:{port}", f"[{host}]"})
