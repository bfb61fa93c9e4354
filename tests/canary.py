"""A server that nobody should ask, in a process of its own: it writes down who did."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Canary:
    """The server; `requests` are what it was asked, a line each."""

    def __init__(self, folder: Path) -> None:
        """Start it on loopback."""
        self._log = folder / "requests"
        self._log.touch()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._log)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = f"http://127.0.0.1:{self._process.stdout.readline().strip()}/a.tif"

    @property
    def requests(self) -> list[str]:
        """What it was asked so far."""
        return self._log.read_text().splitlines()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    log = Path(sys.argv[1])

    class Handler(BaseHTTPRequestHandler):
        def handle(self):
            with log.open("a") as file:  # also what is no HTTP, or never finished
                file.write(f"connection from {self.client_address[0]}\n")
            super().handle()

        def do_GET(self):
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815  (the library's word)

        def log_message(self, *_args):
            """Be silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
