"""Pages that tell the fields of files, from the dataclasses and schemas of the code."""

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from inspect import cleandoc, getsource
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tileseg.base.bounds import Gates
from tileseg.base.fields import said as in_toml
from tileseg.nights.nightly_file import OF_A_NIGHT, Schedule, Source, Target
from tileseg.settings import Job
from tileseg.training.train_settings import BASE_RATE, RATE, Settled, Training

__all__ = ["TOLD", "pages"]

_ASSETS = Path(__file__).parents[2] / "tileseg/assets"

TOLD = {
    "tileseg/settings.py": "job-file.md",
    "tileseg/base/bounds.py": "job-file.md",
    "tileseg/nights/nightly_file.py": "nightly-file.md",
    "tileseg/training/train_settings.py": "training-file.md",
    **{
        f"tileseg/assets/{name}.schema.json": f"{name}-json.md"
        for name in ("run", "card", "night", "plan", "metrics", "change")
    },
}
"""File of the repository that tells the fields -> page."""

_NONE = (
    "Fields that are not needed may be left out. Where a meaning speaks of None or of"
    " empty, that is what leaving it out means."
)
_NEEDED = "needed"
_ALWAYS = "All keys are always there, `null` where they do not apply."


def pages() -> dict[str, str]:
    """Return page -> Markdown."""
    return {
        "job-file.md": _job(),
        "nightly-file.md": _nightly(),
        "training-file.md": _training(),
        "run-json.md": _of_schema("run", _ALWAYS),
        "card-json.md": _of_schema("card", "What begins with `tileseg:` is ours."),
        "night-json.md": _of_schema("night", _ALWAYS),
        "plan-json.md": _of_schema("plan", f"Of `tileseg nightly --plan`. {_ALWAYS}"),
        "metrics-json.md": _of_schema("metrics", "In a model folder that was trained."),
        "change-json.md": _of_schema("change", _ALWAYS),
    }


def _job() -> str:
    return f"""# Job file

TOML, for `--config` of `tileseg segment` and `tileseg check`. {_NONE}

{_of_class(Job, Job._limits())}
## `[gates]`

What a result must pass before it goes live.

{_of_class(Gates)}"""


def _nightly() -> str:
    return f"""# nightly.toml

TOML, for `--config` of `tileseg nightly`. {_NONE}

## `[source]`

{_of_class(Source, Source._limits())}
## `[target]`

{_of_class(Target)}
## `[night]`

{_of_class(Schedule, Schedule._limits())}
## `[job]`

Fields of a [job](job-file.md) but `{"`, `".join(OF_A_NIGHT)}`; `overwrite` is `true`,
and `again` `false`, where the file does not say otherwise.
"""


def _training() -> str:
    settled = Settled(scenes=("",), labels=("",), to="model")
    table = _of_class(Training, settled._limits(), Settled)
    table = table.replace("`RATE`", f"{RATE:g}").replace(
        "`BASE_RATE`", f"{BASE_RATE:g}"
    )
    return f"""# Training's file

TOML, for `--config` of `tileseg train`. {_NONE}

{table}"""


def _of_class(
    kind: type,
    limits: Mapping[str, tuple[Any, str]] = MappingProxyType({}),
    defaults: type | None = None,
) -> str:
    """Return a table of a dataclass' fields.

    Args:
        kind: the class, its fields with a docstring each.
        limits: field -> what tells, and says, which values are good.
        defaults: a class that has others of the same fields.
    """
    known = {item.name: _default(item) for item in fields(defaults or kind)}
    meanings = dict(_meanings(kind))
    rows = [
        (
            f"`{item.name}`",
            in_toml(item.type),
            "" if known[item.name] == _NEEDED else limits.get(item.name, ("", ""))[1],
            known[item.name],
            meanings[item.name],
        )
        for item in fields(kind)
    ]
    return _table(("field", "type", "wanted", "default", "meaning"), rows)


def _meanings(kind: type) -> Iterator[tuple[str, str]]:
    """Give each field of a dataclass with the docstring below it."""
    (tree,) = ast.parse(getsource(kind)).body
    for item, below in pairwise(tree.body):
        match item, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, cleandoc(text)


def _default(item: "Field[Any]") -> str:
    """Return a default as TOML has it; nothing where there is none to tell."""
    if item.default is MISSING:
        return "" if item.default_factory is not MISSING else _NEEDED
    plain = item.default not in (None, "", ()) and not isinstance(item.default, Gates)
    return f"`{json.dumps(item.default)}`" if plain else ""


def _of_schema(name: str, words: str) -> str:
    """Return the page of a JSON schema: its keys, and those of each object in it."""
    schema = json.loads((_ASSETS / f"{name}.schema.json").read_text("utf-8"))
    text = f"# {schema['title']}\n\n{schema['description']} {words}\n\n"
    text += _keys(schema["properties"].items())
    for key, said in schema["properties"].items():
        if rows := list(_below(said)):
            text += f"\n## `{key}`\n\n{said['description']}.\n\n{_keys(rows)}"
    return text


def _below(said: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Give each key below an object or list with what is said of it."""
    for key, it in said.get("properties", {}).items():
        yield at + key, it
        yield from _below(it, f"{at}{key}.")
    if "items" in said:
        yield from _below(said["items"], f"{at.rstrip('.')}[].".removeprefix("[]."))


def _keys(items: Iterable[tuple[str, Any]]) -> str:
    rows = [(f"`{key}`", _kinds(said), _meaning(said)) for key, said in items]
    return _table(("key", "type", "meaning"), rows)


def _kinds(said: Mapping[str, Any]) -> str:
    """Return what JSON calls a type, or the values that there are."""
    cases = said.get("oneOf", [said] if "const" in said else [])
    if values := said.get("enum") or [it["const"] for it in cases]:
        return ", ".join(map(_value, values))
    kinds = said["type"] if isinstance(said["type"], list) else [said["type"]]
    return " or ".join(kinds)


def _meaning(said: Mapping[str, Any]) -> str:
    """Return what is said of a key, and of each value that it may have."""
    cases = (
        f"{_value(it['const'])}: {it['description']}" for it in said.get("oneOf", ())
    )
    return f"{said['description']} {'; '.join(cases)}"


def _value(value: object) -> str:
    return "null" if value is None else f"`{value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    plain = (" | ".join(" ".join(it.split()) for it in row) for row in cells)
    return "".join(f"| {line} |\n" for line in plain)
