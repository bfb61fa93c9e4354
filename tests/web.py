"""A web server that gives ranges of a folder's files, as its settings say.

A process of its own. The settings are a JSON file that is read for every request:

    latency     seconds before each answer
    tag         `etag`, `date`, `weak` or `none`: what says a file's version
    ranges      false: it gives whole files only
    redirect    every request is sent there, with a `body`
    login       the Authorization that it wants; 401 without
    broken      the byte from which on it answers 500
    trickle     seconds between one byte of an answer and the next
    status      the answer to the first `times` requests, with `retry` as Retry-After

Every request is a line of the log: its target, range, status, time, headers
and the client's port.
"""

import asyncio
import json
import re
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Folder:
    """Answers requests for a folder's files."""

    def __init__(self, folder, place):
        self._folder = folder
        self._settings = place / "settings.json"
        self._log = (place / "log.jsonl").open("a")
        self._told, self._answered = {}, 0

    async def serve(self, reader, writer):
        """Answer the requests of a connection, one after the other."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await self._answer(head, writer)
                if re.search("(?i)\r\nconnection: *close", head):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _answer(self, head, writer):
        told = json.loads(self._settings.read_text())
        target = head.split(" ", 2)[1]
        fields = dict(re.findall("\r\n([^:]+): *([^\r]*)", head))
        fields = {name.lower(): value for name, value in fields.items()}
        if told != self._told:
            self._told, self._answered = told, 0
        status, headers, data = self._find(target, fields, told)
        self._answered += 1
        await asyncio.sleep(told.get("latency", 0))
        entry = {"target": target, "range": fields.get("range"), "status": status}
        entry |= {"time": time.time(), "headers": fields}
        entry["port"] = writer.get_extra_info("peername")[1]
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()
        lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(data)}", *headers]
        lines.append(f"Connection: {fields.get('connection', 'keep-alive')}")
        writer.write("\r\n".join([*lines, "", ""]).encode())
        pause = told.get("trickle", 0)
        for piece in (data[i : i + 1] for i in range(len(data))) if pause else [data]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    def _find(self, target, fields, told):  # noqa: PLR0911  (a status each)
        """Return status, headers and body."""
        path = self._folder / unquote(urlsplit(target).path).lstrip("/")
        if self._answered < told.get("times", 0):
            return told["status"], [f"Retry-After: {told['retry']}"], b""
        if to := told.get("redirect"):
            return 302, [f"Location: {to}"], told.get("body", "").encode()
        if told.get("login", fields.get("authorization")) != fields.get(
            "authorization"
        ):
            return 401, [], b""
        if not path.is_file():
            return 404, [], b""
        stat = path.stat()
        date = formatdate(stat.st_mtime, usegmt=True)
        tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
        headers = {
            "etag": [f"ETag: {tag}"],
            "weak": [f"ETag: W/{tag}"],
            "date": [f"Last-Modified: {date}"],
            "none": [],
        }[told.get("tag", "etag")]
        if fields.get("if-match", tag) != tag:
            return 412, headers, b""
        with path.open("rb") as file:
            if not told.get("ranges", True) or "range" not in fields:
                return 200, headers, file.read()
            start, stop = map(int, re.findall(r"\d+", fields["range"]))
            stop = min(stop + 1, stat.st_size)
            if stop > told.get("broken", stop):
                return 500, [], b""
            if start >= stat.st_size:
                return 416, [f"Content-Range: bytes */{stat.st_size}"], b""
            file.seek(start)
            said = f"Content-Range: bytes {start}-{stop - 1}/{stat.st_size}"
            return 206, [*headers, said], file.read(stop - start)


class Site:
    """The test's end of a web server: its address, its settings and its log."""

    def __init__(self, place):
        self._settings = place / "settings.json"
        self._log = place / "log.jsonl"
        self._start = 0
        self.address = ""
        self.be()

    @property
    def host(self):
        """What a job names it by."""
        return urlsplit(self.address).netloc

    def be(self, **settings):
        """Be as these say from now on, and forget the log."""
        fresh = self._settings.with_suffix(".new")
        fresh.write_text(json.dumps(settings))
        fresh.replace(self._settings)
        self._start = self._log.stat().st_size if self._log.exists() else 0

    def log(self):
        """Return the requests since then."""
        with self._log.open() as file:
            file.seek(self._start)
            return [json.loads(line) for line in file]


@contextmanager
def serve(folder, place, *pem):
    """Serve a folder from a process that keeps its settings and log in a place.

    Over https where there is a file of a key and its certificate.
    """
    place.mkdir(exist_ok=True)
    site = Site(place)
    with subprocess.Popen(
        [sys.executable, __file__, folder, place, *pem],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            site.address = process.stdout.readline().strip()
            yield site
        finally:
            process.kill()


async def main(folder, place, *pem):
    """Serve until killed; say where, first."""
    files = Folder(folder, place)
    scheme, tls = "http", None
    if pem:
        scheme, tls = "https", ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*pem)
    server = await asyncio.start_server(files.serve, "127.0.0.1", 0, ssl=tls)
    sys.stdout.write(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:])))
