"""A STAC API over a folder of Items, as its settings say: a process of its own.

FOLDER/items/*.json are its Items, FOLDER/files what their assets name (byte ranges and
all), both looked at anew for every request. FOLDER/api.json, read each time too:

    methods     how /search is advertised: ["GET", "POST"]
    extensions  what it conforms to: ["query", "sort"]
    page        Items of one answer, whatever is asked
    next        where the next page is instead
    sign        true: hrefs end with ?sig=N, each time another; a search's open no file
    fail        so many requests are answered 503 first
    hook        the status of what is posted to /hook

Every request is a line of FOLDER/log.jsonl: method, path, body, headers.
"""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

DEFAULTS = {
    "methods": ["GET", "POST"],
    "extensions": ["query", "sort"],
    "page": 100,
    "hook": 200,
}
CORE = "https://api.stacspec.org/v1.0.0/"
JSON = "application/json"


class Api(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    counts = {"failed": 0, "signed": 0}  # noqa: RUF012  (of the one server)

    def log_message(self, *_args):
        """Say nothing."""

    def do_GET(self):
        self._serve(None)

    def do_POST(self):
        self._serve(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def _serve(self, body):
        told = {**DEFAULTS, **json.loads((self.folder / "api.json").read_text())}
        entry = {"method": self.command, "path": self.path, "body": body}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({**entry, "headers": dict(self.headers)}) + "\n")
        if self.counts["failed"] < told.get("fail", 0):
            self.counts["failed"] += 1
            self._answer(503, b"")
            return
        path = urlsplit(self.path).path
        if path == "/hook":
            self._answer(told["hook"], b"ok")
        elif path.startswith("/files/"):
            self._file(path, told)
        else:
            value = self._value(path, body, told)
            self._answer(404 if value is None else 200, json.dumps(value).encode())

    def _answer(self, status, data, headers=()):
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    @property
    def root(self):
        return f"http://{self.headers['Host']}/v1"

    def _value(self, path, body, told):
        """Return what JSON is there; None for nothing."""
        if path == "/v1":
            return self._landing(told)
        if path == "/v1/search":
            query = parse_qs(urlsplit(self.path).query)
            flat = {key: values[0] for key, values in query.items()}
            return self._search(json.loads(body) if body else flat, told)
        if found := re.fullmatch(r"/v1/collections/([^/]+)/items/([^/]+)", path):
            items = (item for item in self._items() if item["id"] == found[2])
            return self._signed(next(items, None), told, "fresh")
        return None

    def _landing(self, told):
        links = [
            {"rel": "search", "type": "application/geo+json", "method": method}
            | {"href": f"{self.root}/search"}
            for method in told["methods"]
        ]
        classes = [f"{CORE}item-search#{name}" for name in told["extensions"]]
        return {
            "type": "Catalog",
            "id": "test",
            "stac_version": "1.0.0",
            "description": "Items of a test",
            "conformsTo": [f"{CORE}core", f"{CORE}item-search", *classes],
            "links": [{"rel": "self", "href": self.root, "type": JSON}, *links],
        }

    def _items(self):
        paths = sorted((self.folder / "items").glob("*.json"))
        return [json.loads(path.read_text()) for path in paths]

    def _signed(self, item, told, age):
        if item and told.get("sign"):
            self.counts["signed"] += 1
            for asset in item["assets"].values():
                asset["href"] += f"?sig={age}-{self.counts['signed']}"
        return item

    def _search(self, asked, told):
        found = [item for item in self._items() if matches(item, asked)]
        if asked.get("sortby") in ("-properties.datetime", sorted_by("datetime")):
            found.sort(key=lambda item: item["properties"]["datetime"], reverse=True)
        start = int(asked.get("token", 0))
        stop = start + min(int(asked.get("limit", 10)), told["page"])
        links = []
        if stop < len(found):
            link = {"rel": "next", "href": told.get("next", f"{self.root}/search")}
            if self.command == "POST":
                link |= {"method": "POST", "body": {**asked, "token": stop}}
            else:
                kept = urlsplit(self.path).query.split("&token=")[0]
                link["href"] += f"?{kept}&token={stop}"
            links.append(link)
        features = [self._signed(item, told, "old") for item in found[start:stop]]
        return {"type": "FeatureCollection", "features": features, "links": links}

    def _file(self, path, told):
        file = self.folder / path.lstrip("/")
        if told.get("sign") and "?sig=fresh-" not in self.path:
            self._answer(403, b"")
            return
        if not file.is_file():
            self._answer(404, b"")
            return
        data = file.read_bytes()
        start, stop = map(int, re.findall(r"\d+", self.headers["Range"]))
        piece = data[start : stop + 1]
        said = f"bytes {start}-{start + len(piece) - 1}/{len(data)}"
        tag = f'"{file.stat().st_mtime_ns:x}"'
        self._answer(206, piece, (("Content-Range", said), ("ETag", tag)))


def sorted_by(name):
    """Return what POST says for -properties.<name>."""
    return [{"field": f"properties.{name}", "direction": "desc"}]


def matches(item, asked):
    """Return whether an Item is what is asked for."""
    facts = item["properties"]
    names = listed(asked.get("collections"))
    return all(
        (
            not names or item["collection"] in names,
            not asked.get("bbox") or meets(item["bbox"], listed(asked["bbox"])),
            not asked.get("intersects") or within(item, asked["intersects"]),
            not asked.get("datetime")
            or is_between(facts["datetime"], asked["datetime"]),
            all(map(holds, *pairs(asked.get("query"), facts))),
        )
    )


def listed(value):
    return value.split(",") if isinstance(value, str) else value


def meets(one, other):
    west, south, east, north = map(float, other)
    return one[0] <= east and west <= one[2] and one[1] <= north and south <= one[3]


def within(item, area):
    from shapely.geometry import shape

    area = json.loads(area) if isinstance(area, str) else area
    return shape(item["geometry"]).intersects(shape(area))


def is_between(at, asked):
    start, end = (*asked.split("/"), asked)[:2]
    first = moment(start) if start != ".." else datetime.min.replace(tzinfo=UTC)
    last = moment(end) if end != ".." else datetime.max.replace(tzinfo=UTC)
    return first <= moment(at) <= last


def moment(text):
    return datetime.fromisoformat(text)


def pairs(query, facts):
    query = json.loads(query) if isinstance(query, str) else query or {}
    rules = [(key, *rule) for key, rules in query.items() for rule in rules.items()]
    return [facts.get(key) for key, *_ in rules], [rule for _, *rule in rules]


def holds(value, rule):
    verb, wanted = rule
    return value is not None and {"lte": value <= wanted, "eq": value == wanted}[verb]


class Site:
    """The test's end of it."""

    def __init__(self, folder):
        self.folder, self.address = folder, ""

    @property
    def host(self):
        return urlsplit(self.address).netloc

    def be(self, **settings):
        """Be as these say from now on, without Items and log."""
        (self.folder / "api.json").write_text(json.dumps(settings))
        (self.folder / "log.jsonl").write_text("")
        for path in (self.folder / "items").iterdir():
            path.unlink()

    def log(self):
        lines = (self.folder / "log.jsonl").read_text().splitlines()
        return list(map(json.loads, lines))

    def put(self, name, *, day="2026-05-01", box=(3, 41, 4, 42), clouds=5, **facts):
        """Have an Item whose one asset is files/<name>.tif."""
        west, south, east, north = box
        ring = [[west, south], [east, south], [east, north], [west, north]]
        item = {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": name,
            "collection": "s2",
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            "bbox": list(box),
            "properties": {"datetime": f"{day}T10:00:00Z", "eo:cloud_cover": clouds},
            "links": [],
            "assets": {
                "image": {
                    "href": f"{self.address}/files/{name}.tif",
                    "type": "image/tiff; application=geotiff",
                    "roles": ["data"],
                    "bands": [{"name": b} for b in ("blue", "green", "red")],
                }
            },
        }
        item["properties"] |= facts
        (self.folder / "items" / f"{name}.json").write_text(json.dumps(item))


@contextmanager
def serve(folder):
    """Serve a folder from a process."""
    (folder / "items").mkdir()
    (folder / "files").mkdir()
    site = Site(folder)
    site.be()
    words = [sys.executable, __file__, folder]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            site.address = process.stdout.readline().strip()
            yield site
        finally:
            process.kill()


if __name__ == "__main__":
    Api.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
