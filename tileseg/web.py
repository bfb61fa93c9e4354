"""What web servers give, ranges of files above all; the only owner of urllib3.

Which server a connection leads to is looked at where it is made: the name that an
address has may lead anywhere.
"""

import logging
import os
import ssl
import time
from base64 import b64encode
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from ipaddress import IPv6Address, ip_address, ip_network
from netrc import NetrcParseError, netrc
from socket import EAI_NONAME, SOCK_STREAM, gaierror, getaddrinfo, socket
from typing import NoReturn
from urllib.parse import urljoin, urlsplit

import certifi
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
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
from tileseg.address import is_allowed, netloc, shown, split, whole
from tileseg.errors import InputError, RefusedError, UsageError
from tileseg.source import Later, Part, Version

__all__ = ["WebFile"]

_CONNECT_SECONDS = 10
_ANSWER_TIMES = 3  # what an answer may take, while bytes come, in waits for one
_CONNECTIONS = 16  # kept, of one server
_REDIRECTS = 5
_PIECE_BYTES = 1 << 18
_NO_BODY = 1 << 16  # what is read of an answer that is no use, to keep its connection
_LATER = {408, 425, 429}
_MANY = {429, 503}
_MOVED = {301, 302, 303, 307, 308}
# Of IPv6, which Python calls global: another address is hidden in it (RFC 6052 and
# 8215), or it is of a site (RFC 3879).
_NOT_PUBLIC = tuple(map(ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "fec0::/10")))
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
            self._server = _server(parts.scheme, host, port)
        except LocationValueError:
            self._refuse_name()

    def get(self, start: int, stop: int, seen: Version | None, wait: float) -> Part:
        """See `Source`."""
        headers = {
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": f"tileseg/{__version__}",
            **self._server.login(),
        }
        if seen and seen.tag and seen.tag[0] == '"':
            headers["If-Match"] = seen.tag
        end = time.monotonic() + _ANSWER_TIMES * wait
        try:
            answer = self._follow(headers, wait, end)
            try:
                return self._part(answer, start, stop, end)
            except BaseException:
                answer.close()
                raise
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
        asked = {
            "Accept-Encoding": "identity",
            "User-Agent": f"tileseg/{__version__}",
            **self._server.login(),
            **headers,
        }
        end = time.monotonic() + _ANSWER_TIMES * wait
        try:
            if body is None:
                answer = self._follow(asked, wait, end)
            else:
                answer = self._server.post(whole(self._handle), asked, wait, body)
            try:
                if answer.status in _LATER or answer.status >= 500:  # noqa: PLR2004
                    self._refuse(answer)
                return answer.status, self._whole_body(answer, most, end)
            except BaseException:
                answer.close()
                raise
        except HTTPError as err:
            self._explain(err, wait)

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


class _Plain(HTTPConnection):
    """A connection that says nothing to a server that may not be read."""

    def _new_conn(self) -> socket:
        judge(self.host, self.port)
        return _checked(super()._new_conn(), self.host, self.port)


class _Secure(HTTPSConnection):
    """The same."""

    def _new_conn(self) -> socket:
        judge(self.host, self.port)
        return _checked(super()._new_conn(), self.host, self.port)


def judge(host: str, port: int) -> None:
    """Refuse a host that leads within before it sees so much as a connection.

    Raises:
        RefusedError: it does, and nobody named it.
    """
    try:
        found = getaddrinfo(host, port, type=SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # whoever connects says so
    addresses = {str(where[0]) for *_, where in found}
    if not (is_allowed(host.lower(), port) or all(map(_is_public, addresses))):
        raise _refusal(host, port)


def _checked(line: socket, host: str, port: int) -> socket:
    """Return a connection, if it leads to the public or to a host that was named.

    Again, since a name may lead elsewhere by now.
    """
    if is_allowed(host.lower(), port) or _is_public(line.getpeername()[0]):
        return line
    line.close()
    raise _refusal(host, port)


def _refusal(host: str, port: int) -> RefusedError:
    msg = (
        f"{host}: is an address of this machine or its network, which are read only "
        f'where they are named: hosts = ["{host}:{port}"] in a job file'
    )
    return RefusedError(msg)


def _is_public(address: str) -> bool:
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if any(ip in net for net in _NOT_PUBLIC) or ip.sixtofour or ip.teredo:
            return False
        ip = ip.ipv4_mapped or ip
    return ip.is_global and not ip.is_multicast


class _Server:
    """The connections to one server, which all its files share."""

    def __init__(self, scheme: str, host: str, port: int) -> None:
        self._origin = scheme, host, port
        # Its debug messages say whole addresses.
        logging.getLogger("urllib3").setLevel(logging.WARNING)
        self._pool = self._make()

    def _make(self) -> HTTPConnectionPool:
        scheme, host, port = self._origin
        if scheme == "http":
            plain = HTTPConnectionPool(host, port, maxsize=_CONNECTIONS)
            plain.ConnectionCls = _Plain
            return plain
        trust = ssl.create_default_context()
        if not trust.get_ca_certs():  # a slim container has none of its own
            trust.load_verify_locations(certifi.where())
        pool = HTTPSConnectionPool(host, port, maxsize=_CONNECTIONS, ssl_context=trust)
        pool.ConnectionCls = _Secure
        return pool

    def get(
        self, address: str, headers: dict[str, str], wait: float
    ) -> BaseHTTPResponse:
        return self._open("GET", address, headers, wait)

    def post(
        self, address: str, headers: dict[str, str], wait: float, body: bytes
    ) -> BaseHTTPResponse:
        return self._open("POST", address, headers, wait, body)

    def _open(
        self,
        method: str,
        address: str,
        headers: dict[str, str],
        wait: float,
        body: bytes | None = None,
    ) -> BaseHTTPResponse:
        parts = urlsplit(address)
        target = parts.path or "/"
        return self._pool.urlopen(
            method,
            f"{target}?{parts.query}" if parts.query else target,
            body=body,
            headers=headers,
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            timeout=Timeout(connect=min(_CONNECT_SECONDS, wait), read=wait),
        )

    def has(self, address: str) -> bool:
        """Return whether an address is one of this server."""
        try:
            parts = urlsplit(address)
            return (parts.scheme, *netloc(parts)) == self._origin
        except (KeyError, ValueError):
            return False

    def renew(self) -> None:
        """Connect anew from now on; what is under way ends on its own connection."""
        self._pool = self._make()

    def login(self) -> dict[str, str]:
        """Return what ~/.netrc (or the file that NETRC names) says for this host.

        Over https alone, whose certificate proves the host, on any port.
        """
        found = _netrc() if self._origin[0] == "https" else None
        known = found and found.hosts.get(self._origin[1])
        if not known:
            return {}
        user, _, password = known
        word = b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {word}"}


@cache
def _server(scheme: str, host: str, port: int) -> _Server:
    return _Server(scheme, host, port)


@cache
def _netrc() -> netrc | None:
    try:
        return netrc(os.environ.get("NETRC"))
    except (OSError, NetrcParseError):
        return None
