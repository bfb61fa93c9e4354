"""The schemas of what tileseg writes, taken at their word: no key more, none less."""

import json
from functools import cache
from importlib.resources import files

from jsonschema import Draft202012Validator


@cache
def schema(name):
    """Return the schema of `run`, `card`, `night` ..., whose objects are closed.

    One that does not say which of its keys are always there has all of them.
    """
    text = (files("tileseg") / f"assets/{name}.schema.json").read_text()
    return json.loads(text, object_hook=_closed)


def _closed(said):
    if "properties" not in said or isinstance(said.get("type"), dict):
        return said  # no schema, but the properties of one
    return {"required": list(said["properties"]), "additionalProperties": False, **said}


def faults(document, name):
    """Return where a document is not what its schema says, and why."""
    found = Draft202012Validator(schema(name)).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def described(said, at=""):
    """Return the paths of everything that has a description, the document apart."""
    below = {**said.get("properties", {}), "[]": said.get("items")}
    paths = {at} if at and "description" in said else set()
    paths |= {f"{at}={it['const']}" for it in said.get("oneOf", ())}
    return paths.union(
        *(described(it, f"{at}.{key}") for key, it in below.items() if it)
    )


def told(document, said, at=""):
    """Return the paths of what a document says of that, and is not null.

    Of what has one of some values, each described, also which.
    """
    if "oneOf" in said:
        return {at, f"{at}={document}"}
    if document is None:
        return set()
    if isinstance(document, list):
        kind = said.get("items", {})
        return {at}.union(*(told(it, kind, f"{at}.[]") for it in document))
    known = said.get("properties", {}) if isinstance(document, dict) else {}
    return {at}.union(
        *(told(document.get(key), it, f"{at}.{key}") for key, it in known.items())
    )
