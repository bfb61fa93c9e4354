"""Unpacked source archives in a folder -> schemas of STAC on stdout, small.

Of extensions: in their own archives, or in what tests of pystac recorded from the web.
"""

import gzip
import json
import sys
from pathlib import Path

import yaml

WANTED = ("classification/v1.1.0", "classification/v2.0.0", "file/v2.1.0", "mlm/v1.5.0",
    "processing/v1.1.0", "processing/v1.2.0", "projection/v2.0.0", "raster/v1.1.0",
    "raster/v2.0.0")  # fmt: skip
CORE = ("item", "common", "bands", "basics", "data-values", "datetime", "instrument",
    "licensing", "provider")  # fmt: skip
_TEXTS = ("$comment", "description", "title", "examples")


def bare(node):
    """Return a schema without its texts, where they are no names of fields."""
    if isinstance(node, dict):
        return {
            key: bare(value)
            for key, value in node.items()
            if not (key in _TEXTS and isinstance(value, str | list))
        }
    return [bare(item) for item in node] if isinstance(node, list) else node


def published(folder):
    """Yield (address, schema) of each extension."""
    for path in sorted(folder.glob("*/json-schema/schema.json")):
        schema = json.loads(path.read_text())
        yield schema["$id"].removesuffix("#"), schema
    for path in sorted(folder.glob("*/tests/cassettes/**/*.yaml")):
        for item in yaml.safe_load(path.read_text())["interactions"]:
            address = item["request"]["uri"]
            if address.endswith("/schema.json"):
                yield address, json.loads(item["response"]["body"]["string"])


def schemas(folder):
    """Return the schemas that what we write goes by, by their addresses."""
    at = "https://stac-extensions.github.io/{}/schema.json"
    wanted = {at.format(name) for name in WANTED}
    found = {key: value for key, value in published(folder) if key in wanted}
    assert found.keys() == wanted, wanted - found.keys()
    (core,) = folder.glob("pystac_core-*/pystac/validation/jsonschemas")
    at = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/{}.json"
    for name in CORE:
        path = core / f"stac-spec/v1.1.0/{name}.json"
        found[at.format(name)] = json.loads(path.read_text())
    at = "https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/{}.json"
    path = core / "stac-spec/v1.1.0/collection.json"
    found[at.format("collection")] = json.loads(path.read_text())
    for name in ("Feature", "Geometry"):
        path = core / f"geojson/{name}.json"
        address = f"https://geojson.org/schema/{name}.json"
        found[address] = json.loads(path.read_text())
    return {key: bare(found[key]) for key in sorted(found)}


if __name__ == "__main__":
    text = json.dumps(schemas(Path(sys.argv[1])), separators=(",", ":"))
    sys.stdout.buffer.write(gzip.compress(text.encode(), mtime=0))
