"""As much of a Kubernetes API server as kubectl asks to wait for one RayJob."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

NAME = "tileseg-nightly"
VERSION = {"groupVersion": "ray.io/v1", "version": "v1"}
GROUP = {"name": "ray.io", "versions": [VERSION], "preferredVersion": VERSION}
RESOURCE = {"name": "rayjobs", "singularName": "rayjob", "namespaced": True}
RESOURCE |= {"kind": "RayJob", "verbs": ["get", "list", "watch"]}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        url = urlsplit(self.path)
        rayjob = self.server.rayjob
        version = rayjob()["metadata"]["resourceVersion"]
        answers = {
            "/api": {"kind": "APIVersions", "versions": []},
            "/apis": {"kind": "APIGroupList", "groups": [GROUP]},
            "/apis/ray.io/v1": {
                "kind": "APIResourceList",
                "groupVersion": "ray.io/v1",
                "resources": [RESOURCE],
            },
            "rayjobs": {
                "apiVersion": "ray.io/v1",
                "kind": "RayJobList",
                "metadata": {"resourceVersion": version},
                "items": [rayjob()],
            },
            NAME: rayjob(),
        }
        path = url.path if url.path in answers else url.path.rpartition("/")[2]
        query = parse_qs(url.query)
        self.send_response(200 if path in answers else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if query.get("watch") == ["true"]:
            self.server.watching.set()
            self._watch(rayjob, query["resourceVersion"][0])
        elif path in answers:
            self._say(answers[path])

    def _watch(self, rayjob, seen):
        with suppress(OSError):  # kubectl goes when it has seen enough
            while not self.server.is_over.wait(0.05):
                if (found := rayjob())["metadata"]["resourceVersion"] != seen:
                    seen = found["metadata"]["resourceVersion"]
                    self._say({"type": "MODIFIED", "object": found})

    def _say(self, value):
        self.wfile.write(json.dumps(value).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, *_):
        pass


class Cluster:
    """Where one RayJob is, and what KubeRay says of it."""

    def __init__(self, server):
        self.address = f"http://127.0.0.1:{server.server_port}"
        self._server, self._facts = server, (1, {})
        server.rayjob = self._rayjob
        server.watching, server.is_over = threading.Event(), threading.Event()

    def _rayjob(self):
        number, status = self._facts
        named = {"name": NAME, "namespace": "tileseg", "uid": "1"}
        named["resourceVersion"] = str(number)
        whole = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": named}
        return {**whole, "status": status}

    def say(self, **status):
        self._facts = self._facts[0] + 1, status

    def wait_for_a_watcher(self):
        assert self._server.watching.wait(60)
        time.sleep(0.2)


@contextmanager
def serve():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    cluster = Cluster(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield cluster
    finally:
        server.is_over.set()
        server.shutdown()
        server.server_close()
