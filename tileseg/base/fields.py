"""Fields of a dataclass that a file gives, and whether a value is of a field's type."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import date, time
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from tileseg.errors import UsageError

__all__ = [
    "Limits",
    "check_values",
    "checked",
    "fits",
    "of_table",
    "one_of",
    "read_toml",
    "reason",
    "said",
    "written",
]

T = TypeVar("T")

Limits = dict[str, tuple[Callable[[Any], bool], str]]
"""For each field that has some: the test of a value, and what is wanted."""

_WORDS = {
    str: ("a text", "texts"),
    bool: ("true or false", "booleans"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    date: ("a date", "dates"),
    time: ("a time of day", "times of day"),
}
"""What values are called, one and many; all others are tables."""


def fits(value: object, hint: Any) -> bool:  # noqa: ANN401  (a type or a union)
    """Return whether a value, of a TOML file say, is what a field's type says."""
    if hint is Any or isinstance(hint, UnionType):
        return hint is Any or any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is dict:
        _, kind = get_args(hint)  # in TOML and JSON all names are texts
        return isinstance(value, dict) and all(fits(it, kind) for it in value.values())
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        parts = get_args(hint)
        if parts[-1] is ...:
            parts = parts[:1] * len(value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(
        value, (int, float) if hint is float else get_origin(hint) or hint
    )


def said(hint: Any) -> str:  # noqa: ANN401  (a type or a union)
    """Return what a field's type is called by who writes a file."""
    if isinstance(hint, UnionType):  # None is what is not written
        return " or ".join(map(said, _parts(hint)))
    if get_origin(hint) is not tuple:
        return _WORDS.get(hint, ("a table",))[0]
    kind, *rest = get_args(hint)
    many = " or ".join(_WORDS[part][1] for part in _parts(kind))
    return f"a list of {'' if rest == [...] else f'{1 + len(rest)} '}{many}"


def _parts(hint: Any) -> list[Any]:  # noqa: ANN401  (a type or a union)
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return [part for part in parts if part is not NoneType]


def written(value: object) -> str:
    """Return a value as a file has it."""
    if isinstance(value, date | time):
        return str(value)
    is_json = isinstance(value, bool | tuple | list | dict)
    return json.dumps(value, default=str) if is_json else repr(value)


def one_of(*allowed: str) -> tuple[Callable[[Any], bool], str]:
    """Return the test of a field that has one of these values, and what it wants."""
    return allowed.__contains__, f"one of {', '.join(allowed)}"


def check_values(table: Any, limits: Callable[[], Limits]) -> None:  # noqa: ANN401  (a dataclass)
    """Refuse values of other types than their fields', and those beyond limits.

    None has no limits; what is hidden is not repeated.

    Args:
        table: whose values they are.
        limits: says them, where the types are right.

    Raises:
        UsageError: there is one.
    """
    hidden = {item.name for item in fields(table) if not item.repr}

    def refuse(name: str, wanted: str) -> NoReturn:
        got = "" if name in hidden else f"got {written(getattr(table, name))}, "
        msg = f"{name}: {got}wanted {wanted}"
        raise UsageError(msg)

    for item in fields(table):
        if not fits(getattr(table, item.name), item.type):
            refuse(item.name, said(item.type))
    for name, (is_good, wanted) in limits().items():
        if (value := getattr(table, name)) is not None and not is_good(value):
            refuse(name, wanted)


def reason(err: OSError | ValueError) -> str:
    """Return why a file cannot be read, in a few words."""
    if isinstance(err, FileNotFoundError):
        return "no such file"
    return getattr(err, "strerror", None) or str(err)


def read_toml(path: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: it is unreadable.
    """
    try:
        return tomllib.loads(Path(path).read_bytes().decode())
    except (OSError, ValueError) as err:
        msg = f"{path}: cannot be read as TOML: {reason(err)}"
        raise UsageError(msg) from err


def checked(path: str, values: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return the fields that a file gives, lists as tuples, tables as dataclasses.

    Args:
        path: the file's.
        values: what it says.
        kind: the dataclass that the fields are of.

    Raises:
        UsageError: there is no such field, or it has another type.
    """
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    hints: dict[str, Any] = {item.name: item.type for item in fields(kind)}
    hidden = {item.name for item in fields(kind) if not item.repr}
    for key, value in list(values.items()):
        if key not in hints:
            what = kind.__name__.lower()
            has = f"{what} have" if what.endswith("s") else f"a {what} has"
            msg = f"{path}: unknown key {key!r}; {has} {', '.join(hints)}"
            raise UsageError(msg)
        hint = hints[key]
        is_table = isinstance(hint, type) and is_dataclass(hint)
        if is_table and isinstance(value, dict):
            values[key] = of_table(f"{path}: {key}", value, hint)
        elif not fits(value, hint):
            told = "" if key in hidden else f"got {written(value)}, "
            msg = f"{path}: {key}: {told}wanted {said(hint)}"
            raise UsageError(msg)
    return values


def of_table(path: str, values: dict[str, Any], kind: type[T]) -> T:
    """Return the dataclass that a table of a file says; see `checked`."""
    return kind(**checked(path, values, kind))
