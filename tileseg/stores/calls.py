"""Whole answers of web services, asked again where that may help. Knows no service."""

import logging
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from tileseg.base.address import keep, shown
from tileseg.errors import StorageError
from tileseg.stores.source import Later
from tileseg.stores.web import WebFile

__all__ = ["Answer", "call"]

logger = logging.getLogger(__name__)

_MOST_BYTES = 64 << 20  # of an answer: a page of some thousand STAC Items has less
_STALL_SECONDS = 30.0  # without a byte: a search may think for long
_WAIT_SECONDS = 0.5  # before the first repetition, then twice as long
_LONGEST_WAIT = 10.0


class Answer(NamedTuple):
    """What a service said."""

    status: int
    data: bytes

    @property
    def is_good(self) -> bool:
        """Whether it did what it was asked."""
        return 200 <= self.status < 300  # noqa: PLR2004


def call(
    address: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    seconds: float = 60,
) -> Answer:
    """Return the answer of a web service to GET, or to POST where there is a body.

    Args:
        address: https, or http of a host that was named (`address.allow`).
        body: what is posted; whoever gets it twice must not mind.
        headers: beside ours.
        seconds: until it is given up, from the first failure on.

    Raises:
        StorageError: there was none, or it went on to say: not now.
        RefusedError: it leads where it may not, or is too long.
        InputError, UsageError: it is no address, or there is no such host.
    """
    handle = keep(address)
    service, wait, tries, begin = WebFile(handle), _WAIT_SECONDS, 0, time.monotonic()
    while True:
        tries += 1
        try:
            return Answer(
                *service.ask(body, dict(headers or {}), _MOST_BYTES, _STALL_SECONDS)
            )
        except Later as err:
            pause = max(wait, err.pause)
            if time.monotonic() + pause > begin + seconds:
                msg = (
                    f"{shown(handle)}: does not answer ({err}; tried {tries} times); "
                    "run again later"
                )
                raise StorageError(msg) from None
            # No more of the address: a receiver's path may be its secret.
            logger.debug("%s: %s; again", urlsplit(handle).hostname, err)
        service.renew()
        time.sleep(pause)
        wait = min(2 * wait, _LONGEST_WAIT)
