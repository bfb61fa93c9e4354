"""What web servers give, ranges of files above all, and what their answers mean."""

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from socket import EAI_NONAME, gaierror
from typing import NoReturn
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    SSLError,
    TimeoutError,  # noqa: A004  (the library's)
)

from tileseg import __version__
from tileseg.base.address import is_allowed, netloc, shown, split, whole
from tileseg.errors import InputError, RefusedError, UsageError
from tileseg.stores.server import server
from tileseg.stores.source import Later, Part, Version

__all__ = ["WebFile"]

_ANSWER_TIMES = 3  # what an answer may take, while bytes come, in waits for one
_REDIRECTS = 5
_PIECE_BYTES = 1 << 18
_NO_BODY = 1 << 16  # what is read of an answer that is no use, to keep its connection
_LATER = {408, 425, 429}
_MANY = {429, 503}
_MOVED = {301, 302, 303, 307, 308}
_SIZE_DIGITS = 18


class WebFile:
    """One file on a web server."""

    def __init__(self, handle: str) -> None:
        """Look at the address; ask nothing.

        Raises:
            RefusedError: it is plain http of a host that nobody named.
            UsageError: it is no address.
            InputError: no host can have such a name.
        """
        parts = split(handle)
        assert parts, "it is no path"
        host, port = netloc(parts)
        if parts.scheme == "http" and not is_allowed(host, port):
            msg = (
                f"{shown(handle)}: plain http is for hosts that are named: give https,"
                f' or hosts = ["{host}:{port}"] in a job file'
            )
            raise RefusedError(msg)
        self._shown = shown(handle)
        self._handle = handle
        try:
            self._server = server(parts.scheme, host, port)
        except LocationValueError:
            self._refuse_name()

    def get(self, start: int, stop: int, seen: Version | None, wait: float) -> Part:
        """See `Source`."""
        headers = {"Range": f"bytes={start}-{stop - 1}", **self._headers()}
        if seen and seen.tag and seen.tag[0] == '"':
            headers["If-Match"] = seen.tag
        end = time.monotonic() + _ANSWER_TIMES * wait
        try:
            answer = self._follow(headers, wait, end)
            with _closed_on_error(answer):
                return self._part(answer, start, stop, end)
        except HTTPError as err:
            self._explain(err, wait)

    def ask(
        self, body: bytes | None, headers: dict[str, str], most: int, wait: float
    ) -> tuple[int, bytes]:
        """Return status and whole body of the answer to GET, or to POST of a body.

        Raises:
            Later: there was none, or one that says: not now.
            RefusedError: it has more than `most` bytes, or leads to another server.
            InputError: there is no such host.
        """
        asked = {**self._headers(), **headers}
        end = time.monotonic() + _ANSWER_TIMES * wait
        try:
            if body is None:
                answer = self._follow(asked, wait, end)
            else:
                answer = self._server.post(whole(self._handle), asked, wait, body)
            with _closed_on_error(answer):
                if answer.status in _LATER or answer.status >= 500:  # noqa: PLR2004
                    self._refuse(answer)
                return answer.status, self._whole_body(answer, most, end)
        except HTTPError as err:
            self._explain(err, wait)

    def _headers(self) -> dict[str, str]:
        return {
            "Accept-Encoding": "identity",
            "User-Agent": f"tileseg/{__version__}",
            **self._server.login(),
        }

    def _whole_body(self, answer: BaseHTTPResponse, most: int, end: float) -> bytes:
        left = answer.length_remaining
        if left is not None and left <= most:
            return _body(answer, left, end)
        data = bytearray()
        while len(data) <= most and (piece := answer.read1(_PIECE_BYTES)):
            data += piece
            if time.monotonic() > end:
                msg = "the answer takes too long"
                raise Later(msg, is_throttled=True)
        if len(data) > most:
            msg = f"{self._shown}: wanted an answer of at most {most} bytes"
            raise RefusedError(msg)
        answer.release_conn()
        return bytes(data)

    def renew(self) -> None:
        """See `Source`."""
        self._server.renew()

    def _follow(
        self, headers: dict[str, str], wait: float, end: float
    ) -> BaseHTTPResponse:
        """Return the answer of the server, wherever on it the file has moved."""
        address = whole(self._handle)
        for _ in range(_REDIRECTS):
            answer = self._server.get(address, headers, wait)
            if answer.status not in _MOVED:
                return answer
            _leave(answer, end)
            address = self._moved(address, answer.headers.get("Location", ""))
            if not self._server.has(address):
                msg = (
                    f"{self._shown}: leads to another server, {shown(address)}; "
                    "give that address if it is to be trusted"
                )
                raise RefusedError(msg)
        msg = f"{self._shown}: leads from address to address; give the last one"
        raise RefusedError(msg)

    def _moved(self, address: str, location: str) -> str:
        try:
            return urljoin(address, location)
        except ValueError as err:
            msg = f"{self._shown}: leads to what is no address; give the right one"
            raise RefusedError(msg) from err

    def _part(
        self, answer: BaseHTTPResponse, start: int, stop: int, end: float
    ) -> Part:
        if answer.status != 206:  # noqa: PLR2004  (partial content)
            self._refuse(answer)
        headers = answer.headers
        size = _size(headers.get("Content-Range", ""), start, stop)
        if size is None or headers.get("Content-Encoding", "identity") != "identity":
            msg = f"{self._shown}: the server gives other bytes than it is asked for"
            raise InputError(msg)
        data = _body(answer, min(stop, size) - start, end)
        tag = headers.get("ETag") or headers.get("Last-Modified")
        return Part(data, Version(size, tag))

    def _refuse(self, answer: BaseHTTPResponse) -> NoReturn:
        """Say what a status means."""
        status, where = answer.status, self._shown
        is_error = status >= 400  # noqa: PLR2004  (and only then it can be waited for)
        if status in _LATER or (is_error and status >= 500):  # noqa: PLR2004
            pause = _seconds(answer.headers.get("Retry-After", ""))
            raise Later(f"{status}", is_throttled=status in _MANY, pause=pause)
        if not is_error:
            msg = (
                f"{where}: the server gives no byte ranges (status {status}); "
                "download it first"
            )
            raise UsageError(msg)
        if status in (401, 403, 407):
            msg = (
                f"{where}: the server refuses it ({status}); look at ~/.netrc, or "
                "whether a signed address has expired"
            )
            raise RefusedError(msg)
        if status in (404, 410):
            msg = f"{where}: there is no such file ({status})"
        elif status == 412:  # noqa: PLR2004  (If-Match)
            msg = f"{where}: changed while it was being read; run again"
        elif status == 416:  # noqa: PLR2004  (out of range)
            msg = f"{where}: is empty, or became shorter while it was being read"
        else:
            msg = f"{where}: the server does not give it ({status})"
        raise InputError(msg)

    def _explain(self, error: HTTPError, wait: float) -> NoReturn:
        """Say what went wrong without an answer; no more than its kind is repeated."""
        cause = error.args[0] if error.args else None
        if isinstance(cause, ssl.SSLCertVerificationError):
            msg = f"{self._shown}: the server's certificate is not to be trusted"
            raise RefusedError(msg) from None
        if isinstance(error, LocationValueError):
            self._refuse_name()
        if isinstance(error, NameResolutionError) and _is_unknown(error):
            msg = f"{self._shown}: there is no such host"
            raise InputError(msg) from None
        kinds = {
            NameResolutionError: "its host's address cannot be found",
            NewConnectionError: "no connection",
            TimeoutError: f"no answer in {wait:g} s",
            SSLError: "no secure connection",
            ProtocolError: "the connection broke off",
        }
        reason = next((kinds[kind] for kind in kinds if isinstance(error, kind)), None)
        raise Later(reason or "no answer") from None

    def _refuse_name(self) -> NoReturn:
        msg = f"{self._shown}: no host can have such a name; correct it"
        raise InputError(msg) from None


@contextmanager
def _closed_on_error(answer: BaseHTTPResponse) -> Iterator[None]:
    """Give up the connection of an answer that is not read to its end."""
    try:
        yield
    except BaseException:
        answer.close()
        raise


def _body(answer: BaseHTTPResponse, size: int, end: float) -> bytes:
    """Return so many bytes of an answer, and let its connection serve again."""
    data = bytearray()
    while len(data) < size:
        piece = answer.read1(min(_PIECE_BYTES, size - len(data)))
        if not piece:
            msg = "the answer broke off"
            raise Later(msg)
        if time.monotonic() > end:
            msg = "the answer takes too long"
            raise Later(msg, is_throttled=True)  # fewer at once get more each
        data += piece
    answer.release_conn()
    return bytes(data)


def _leave(answer: BaseHTTPResponse, end: float) -> None:
    """Be done with an answer that is no use; keep its connection if little is left."""
    left = answer.length_remaining
    if left is None or left > _NO_BODY:
        answer.close()
    elif left:
        _body(answer, left, end)
    else:
        answer.drain_conn()  # only what was read to its end counts as answered


def _is_unknown(error: NameResolutionError) -> bool:
    cause = error.__cause__ or error.__context__
    return isinstance(cause, gaierror) and cause.errno == EAI_NONAME


def _size(said: str, start: int, stop: int) -> int | None:
    """Return a file's size by the range of it that came; None if that is another."""
    unit, _, rest = said.partition(" ")
    came, _, size = rest.partition("/")
    is_number = size.isascii() and size.isdigit() and len(size) <= _SIZE_DIGITS
    if unit != "bytes" or not is_number:
        return None
    return int(size) if came == f"{start}-{min(stop, int(size)) - 1}" else None


def _seconds(said: str) -> float:
    """Return what `Retry-After` asks for: seconds, or until a date."""
    if said.isascii() and said.isdigit():
        return float(said[:9])
    try:
        date = parsedate_to_datetime(said)
    except (ValueError, OverflowError):
        return 0
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())
