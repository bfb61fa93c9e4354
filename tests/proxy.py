"""An HTTP proxy before a real server that does to requests what a script says.

A process of its own, with one connection for one request. The script is a JSON file,
a list of rules, and is read again for every request; a new text starts the counts
anew. The first rule that acts decides. A rule's keys:

    method, target    regular expressions, of all of it and of a part; any if left out
    after, every      pass so many matching requests, then act on each `every`-th
    times             act so often at most
    action            answer (`status`, `code`), reset, short, stall, stall_body, lose
                      (pass it on, then drop the answer) or throttle (`rate` a second)

Every request is a line of the log: its method, target, status, time and the action.
"""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

START_SECONDS = 20
FOREVER = 3600


class Script:
    """The rules, and how often each has matched and acted."""

    def __init__(self, path):
        self._path = path
        self._text = ""
        self._rules = []
        self._matched = Counter()
        self._acted = Counter()
        self._tokens = {}

    def find(self, method, target):
        """Return the rule that acts on a request; an empty one if none does."""
        if (text := self._path.read_text()) != self._text:
            self.__init__(self._path)
            self._text, self._rules = text, json.loads(text)
        for number, rule in enumerate(self._rules):
            if self._acts(number, rule, method, target):
                self._acted[number] += 1
                return rule
        return {}

    def _acts(self, number, rule, method, target):
        if not re.fullmatch(rule.get("method", ".*"), method):
            return False
        if not re.search(rule.get("target", ""), target):
            return False
        self._matched[number] += 1
        past = self._matched[number] - rule.get("after", 0)
        if past < 1 or past % rule.get("every", 1):
            return False
        if self._acted[number] >= rule.get("times", past):
            return False
        return rule["action"] != "throttle" or self._is_over(number, rule["rate"])

    def _is_over(self, number, rate):
        """Take a token of the bucket, which holds one second's; say if it is empty."""
        now = time.monotonic()
        tokens, then = self._tokens.get(number, (rate, now))
        tokens = min(rate, tokens + (now - then) * rate)
        self._tokens[number] = (max(tokens - 1, tokens % 1), now)
        return tokens < 1


class Proxy:
    """What happens to one connection after the other."""

    def __init__(self, upstream, script, log):
        self._upstream = upstream
        self._script = script
        self._log = log

    async def serve(self, reader, writer):
        """Answer the one request of a connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            body = await reader.readexactly(int(size[1]) if size else 0)
        except asyncio.IncompleteReadError:
            writer.close()
            return
        method, target, _ = head.decode().split(" ", 2)
        rule = self._script.find(method, target)
        entry = {"method": method, "target": target, "time": time.time()}
        entry |= {"status": 0, "action": rule.get("action", "")}
        try:
            await self._answer(head + body, rule, entry, writer)
        except ConnectionError:
            pass  # the client has gone
        finally:
            writer.close()

    async def _answer(self, request, rule, entry, writer):
        action = entry["action"]
        if action == "stall":
            self._note(entry)
            await asyncio.sleep(FOREVER)
        if action == "reset":
            self._note(entry)
            self._reset(writer)
            return
        if action in ("answer", "throttle"):
            entry["status"] = rule.get("status", 503)
            answer = _refusal(entry["status"], rule.get("code", "SlowDown"))
        else:
            answer = await self._pass_on(request)
            entry["status"] = int(answer.split(b" ", 2)[1])
        self._note(entry)
        if action == "lose":
            self._reset(writer)
        elif action in ("short", "stall_body"):
            writer.write(_half(answer))
            await writer.drain()
            await asyncio.sleep(FOREVER if action == "stall_body" else 0)
        else:
            writer.write(answer)
            await writer.drain()

    async def _pass_on(self, request):
        """Send a request as it came, its Host too, which is signed; return the answer.

        Only the connection is to end with it.
        """
        reader, writer = await asyncio.open_connection(*self._upstream)
        writer.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer

    def _reset(self, writer):
        """End a connection as a dead peer does, with RST."""
        line = writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    def _note(self, entry):
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()


def _refusal(status, code):
    """Return the answer of an S3 server that says no."""
    text = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    head = f"HTTP/1.1 {status} No\r\nContent-Length: {len(text)}\r\n"
    return (head + "Connection: close\r\n\r\n").encode() + text


def _half(answer):
    """Return the head of an answer and half its body, or half the head."""
    head, end, body = answer.partition(b"\r\n\r\n")
    return head + end + body[: len(body) // 2] if body else head[: len(head) // 2]


class Line:
    """The test's end of a proxy: its address, its script and its log."""

    def __init__(self, folder):
        self._script = folder / "rules.json"
        self._log = folder / "requests.jsonl"
        self._start = 0
        self.address = ""
        self.obey()

    def obey(self, *rules):
        """Follow these rules from now on, and forget the log."""
        fresh = self._script.with_suffix(".new")
        fresh.write_text(json.dumps(rules) + " " * (time.monotonic_ns() % 1000))
        fresh.replace(self._script)
        self._start = self._log.stat().st_size if self._log.exists() else 0

    def log(self, method=".*", target=""):
        """Return the requests since the rules that match, as the proxy saw them."""
        with self._log.open() as file:
            file.seek(self._start)
            entries = [json.loads(line) for line in file if line.endswith("\n")]
        return [
            entry
            for entry in entries
            if re.fullmatch(method, entry["method"])
            and re.search(target, entry["target"])
        ]


@contextmanager
def stand_before(address, folder):
    """Run a proxy before a server's address; give the test's end of it."""
    line = Line(folder)
    with subprocess.Popen(
        [sys.executable, __file__, address, folder], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line.address = process.stdout.readline().strip()
            yield line
        finally:
            process.kill()


async def main(address, folder):
    """Serve until killed; say where, first."""
    parts = urlsplit(address)
    with (folder / "requests.jsonl").open("a") as log:
        proxy = Proxy((parts.hostname, parts.port), Script(folder / "rules.json"), log)
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20)
        sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
