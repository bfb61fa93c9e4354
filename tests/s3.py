"""A real S3 server on loopback, and the environment that leads to it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import from_url

SECRET = "open-sesame-4711"  # noqa: S105  (of the server that is started here)
START_SECONDS = 60


def free_ports(number):
    """Return ports that nobody has; all are held until all are known."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(number)]
        for item in held:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in held]


def start(folder):
    """Start a server that keeps its files in a folder; return it and its address."""
    names = ("s3", "master", "volume", "filer")
    ports = free_ports(2 * len(names))
    words = [
        f"-{name}.port{kind}={ports.pop()}" for name in names for kind in ("", ".grpc")
    ]
    identity = {
        "name": "test",
        "credentials": [{"accessKey": "tester", "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                Path(sys.executable).with_name("weed"),
                "server",
                f"-dir={folder / 'data'}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-s3",
                f"-s3.config={folder / 's3.json'}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-volume.max=20",
                "-master.volumeSizeLimitMB=64",
                "-master.telemetry=false",
                *words,
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    return server, f"http://127.0.0.1:{words[0].partition('=')[2]}"


def await_bucket(server, folder):
    """Wait until the server takes an object; it makes the bucket for it."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            obstore.put(from_url("s3://maps/first"), "object", b"x")
        except (BaseError, OSError):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail((folder / "log").read_text()[-2000:])
            time.sleep(0.2)
        else:
            return


def next_second():
    """Wait until what is written next is younger than all that there is.

    The store's times are whole seconds, of this machine's clock.
    """
    time.sleep(1.02 - time.time() % 1)


@contextmanager
def environment(address):
    """Set the address and credentials of a server, as users have them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield


def contents(output, address):
    """Return path to bytes of all objects of a prefix, from the server at `address`."""
    store = from_url(output.replace(" ", "%20"), endpoint=address)
    listed = obstore.list(store).collect()
    return {
        item["path"]: bytes(obstore.get(store, item["path"]).bytes()) for item in listed
    }


def plain(path):
    """Return a product's path without the digits that are others each time."""
    return re.sub("(?<=[0-9a-f]{32})-[0-9a-f]{8}/", "/", path)


@contextmanager
def serve(folder):
    """Run a server that keeps its files in a folder; give its address.

    Its bucket `maps` is there, and the environment leads to it.
    """
    process, address = start(folder)
    try:
        with environment(address):
            await_bucket(process, folder)
            yield address
    finally:
        process.kill()  # it is slow to end otherwise, and its files are nobody's
        process.wait()
