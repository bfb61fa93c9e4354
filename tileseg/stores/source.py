"""Ranges of a remote file's bytes: what gives them, and what may go wrong."""

from dataclasses import dataclass
from threading import Lock
from typing import Protocol

__all__ = ["Later", "Part", "Source", "Traffic", "Version"]


@dataclass(frozen=True, slots=True)
class Version:
    """Which of its contents a remote file has."""

    size: int
    """In bytes."""
    tag: str | None
    """Its etag, or else when it was last modified; None if the server says neither."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a file's bytes, and of which version."""

    data: bytes
    version: Version


class Later(Exception):  # noqa: N818  (no error yet: it is what one tries again after)
    """A request failed that may succeed when it is made again."""

    def __init__(
        self, reason: str, *, is_throttled: bool = False, pause: float = 0
    ) -> None:
        """Say why, whether there were too many, and how many seconds to wait."""
        super().__init__(reason)
        self.is_throttled = is_throttled
        self.pause = pause


class Source(Protocol):
    """One remote file; any number of threads may ask at once."""

    def get(self, start: int, stop: int, seen: Version | None, wait: float) -> Part:
        """Return bytes start..stop - 1 of the version that was `seen`, by one request.

        Fewer at the file's end. None for `seen`: of any version. `wait`: seconds that
        the server may be silent.

        Raises:
            Later: the request may be made again.
            InputError: there is no such file, or it is another version by now.
            RefusedError: the server, or our policy, says no.
            UsageError: the server gives no ranges.
        """

    def renew(self) -> None:
        """Trust no connection that was made before."""


class Traffic:
    """What reading remote files cost, and how many are open; threads add to it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = Lock()
        self.files = self.requests = self.retries = self.bytes = 0

    def add(
        self, *, files: int = 0, requests: int = 0, retries: int = 0, size: int = 0
    ) -> None:
        """Count files, requests, those that repeat one, and bytes that came."""
        with self._lock:
            self.files += files
            self.requests += requests
            self.retries += retries
            self.bytes += size
