"""What STAC and its extensions, by their schemas, say of a document; not by the web."""

import gzip
import json
from pathlib import Path

from jsonschema import Draft7Validator
from jsonschema_specifications import REGISTRY as SPECIFICATIONS
from referencing import Resource
from referencing.jsonschema import DRAFT7

FILE = Path(__file__).parent / "schemas" / "stac" / "schemas-1.1.0.json.gz"
_CORE = "https://schemas.stacspec.org/v1.1.0/{0}-spec/json-schema/{0}.json"
_OF = {"Feature": _CORE.format("item"), "Collection": _CORE.format("collection")}


def registry():
    schemas = json.loads(gzip.decompress(FILE.read_bytes()))
    return SPECIFICATIONS.with_resources(
        (address, Resource.from_contents(schema, default_specification=DRAFT7))
        for address, schema in schemas.items()
    )


REGISTRY = registry()


def faults(document):
    """Return where an Item or a Collection breaks STAC's schema and those it names."""
    named = (_OF[document["type"]], *document["stac_extensions"])
    each = (Draft7Validator({"$ref": it}, registry=REGISTRY) for it in named)
    return [error.json_path for it in each for error in it.iter_errors(document)]
