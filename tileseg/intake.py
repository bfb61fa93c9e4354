"""Options and a job file -> the fields of a job for each scene. Knows no command."""

from collections.abc import Sequence
from typing import Any

from tileseg.address import allow
from tileseg.errors import UsageError

__all__ = ["job_file", "one_each", "scenes_of", "stated"]


def scenes_of(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of a job for each scene, from the options and the job file.

    Raises:
        UsageError: no scene, two scenes of one name, or a bad job file.
    """
    from tileseg.inputs import find_scenes
    from tileseg.settings import scene_name

    given, config = options.pop("inputs"), options.pop("config")
    values = {**job_file(config, is_one=True), **stated(options)}
    allow(values.get("hosts", ()))
    listed = values.pop("input", ())
    inputs = find_scenes(given or ((listed,) if isinstance(listed, str) else listed))
    if not inputs:
        msg = "no scene: give --input SCENE"
        raise UsageError(msg)
    if len(inputs) == 1:
        return [{**values, "input": inputs[0]}]
    if values.get("join"):
        return [{**values, "input": inputs}]
    names = [scene_name(item) for item in inputs]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        msg = f"two inputs are named {double!r}: they would share an output directory"
        raise UsageError(msg)
    return one_each(inputs, {**job_file(config, is_one=False), **stated(options)})


def job_file(path: str | None, *, is_one: bool) -> dict[str, Any]:
    """Return what a job file says; for several scenes no places of a record's one."""
    from tileseg.settings import is_record, read_job

    values = read_job(path, _fetched(path)) if path else {}
    if path and is_record(path) and not is_one:
        return {k: v for k, v in values.items() if k not in ("output", "work")}
    return values


def _fetched(path: str) -> bytes | None:
    """Return the bytes of a job file in an object store; None for one on a disk."""
    from tileseg.objects import open_storage
    from tileseg.settings import is_remote

    if not is_remote(path):
        return None
    folder, _, name = path.rpartition("/")
    try:
        return open_storage(folder).read(name)
    except FileNotFoundError as err:
        msg = f"{path}: there is no such object"
        raise UsageError(msg) from err


def stated(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a job that the command line states."""
    return {
        key: value
        for key, value in options.items()
        if value is not None and key != "scenes"
    }


def one_each(inputs: Sequence[str], values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of a job for each scene, with directories of their own."""
    from tileseg.settings import scene_name, within

    output = values.get("output", "out")
    work = values.get("work")
    return [
        {
            **values,
            "input": name,
            "output": within("output", output, scene_name(name)),
            "work": within("work", work, scene_name(name)) if work else "",
        }
        for name in inputs
    ]
