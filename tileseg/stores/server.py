"""The connections to one web server, and none into a network that nobody named.

Which server a connection leads to is looked at where it is made: the name that an
address has may lead anywhere.
"""

import logging
import os
import ssl
from base64 import b64encode
from functools import cache
from ipaddress import IPv6Address, ip_address, ip_network
from netrc import NetrcParseError, netrc
from socket import SOCK_STREAM, getaddrinfo, socket
from urllib.parse import urlsplit

import certifi
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection

from tileseg.base.address import is_allowed, netloc
from tileseg.errors import RefusedError

__all__ = ["Server", "judge", "server"]

_CONNECT_SECONDS = 10
_CONNECTIONS = 16  # kept, of one server
# Of IPv6, which Python calls global: another address is hidden in it (RFC 6052 and
# 8215), or it is of a site (RFC 3879).
_NOT_PUBLIC = tuple(map(ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "fec0::/10")))


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


class Server:
    """The connections to one server, which all its files share."""

    def __init__(self, scheme: str, host: str, port: int) -> None:
        """Connect to nothing yet."""
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
        """Return the answer to GET, its body still to be read."""
        return self._open("GET", address, headers, wait)

    def post(
        self, address: str, headers: dict[str, str], wait: float, body: bytes
    ) -> BaseHTTPResponse:
        """Return the answer to POST of a body, likewise."""
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
def server(scheme: str, host: str, port: int) -> Server:
    """Return this process's connections to a server.

    Raises:
        LocationValueError: no host can have such a name.
    """
    return Server(scheme, host, port)


@cache
def _netrc() -> netrc | None:
    try:
        return netrc(os.environ.get("NETRC"))
    except (OSError, NetrcParseError):
        return None
