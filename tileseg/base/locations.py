"""Where results and unfinished work may lie: folders, or prefixes of object stores."""

from pathlib import Path

from tileseg.base.address import STORES
from tileseg.errors import UsageError

__all__ = [
    "BESIDE",
    "KEPT_END",
    "PARKED_END",
    "check_location",
    "is_nested",
    "is_remote",
    "lies_in",
    "within",
    "work_beside",
]

KEPT_END, PARKED_END, _WORK_END = ".versions", ".parked", ".work"
BESIDE = (KEPT_END, PARKED_END, _WORK_END)
"""How names of folders beside a local output end, after its own name: with what was
live before, with what a gate refused, with what is under way."""

_STORES = tuple(f"{scheme}://" for scheme in STORES)


def is_remote(address: str) -> bool:
    """Return whether an output or work directory is in an object store."""
    return address.startswith(_STORES)


def within(field: str, shared: str, name: str) -> str:
    """Return the place of one scene among those that share an output or work directory.

    Raises:
        UsageError: what is shared is no address that may be shown.
    """
    check_location(field, shared)
    if is_remote(shared):
        return f"{shared.rstrip('/')}/{name}"
    return str(Path(shared) / name)


def work_beside(output: str) -> str:
    """Return where the work for an output lives if nobody says: always on a disk."""
    place = Path(output)
    if is_remote(output):
        place = Path("out") / place.name
    return str(place.with_name(place.name + _WORK_END))


def lies_in(path: str, place: str) -> bool:
    """Return whether a path or address is a place's, or of something in it."""
    if "://" in path or "://" in place:
        return f"{path.rstrip('/')}/".startswith(f"{place.rstrip('/')}/")
    return Path(path).resolve().is_relative_to(Path(place).resolve())


def is_nested(work: str, output: str) -> bool:
    """Return whether the results of one scene would replace its work directory."""
    if is_remote(work) or is_remote(output):
        return lies_in(work, output)
    place = Path(output).resolve()
    ends = "", KEPT_END, PARKED_END
    beside = (str(place.with_name(place.name + end)) for end in ends)
    return any(lies_in(work, it) for it in beside)


def check_location(field: str, address: object) -> None:
    """Refuse an address that is none of ours or may hold a secret, not repeating it.

    Raises:
        UsageError: so it is.
    """
    if not isinstance(address, str) or "://" not in address:
        return
    if not is_remote(address):
        msg = f"{field}: wanted a directory or one of {', '.join(_STORES)}"
        raise UsageError(msg)
    bucket, *prefix = address.partition("://")[2].rstrip("/").split("/")
    is_plain = bool(bucket and prefix) and not {"", ".", ".."} & set(prefix)
    if not is_plain or "@" in bucket or "?" in address:
        msg = (
            f"{field}: wanted bucket and prefix, no user, key or query: s3://maps/2024"
        )
        raise UsageError(msg)
