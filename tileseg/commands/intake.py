"""Options and a job file -> the fields of a job for each scene. Knows no command."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tileseg.base.address import allow
from tileseg.base.fields import checked, reason
from tileseg.base.locations import is_remote, within
from tileseg.base.names import scene_name
from tileseg.errors import UsageError

__all__ = ["job_file", "one_each", "read_job", "scenes_of", "stated"]


def scenes_of(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of a job for each scene, from the options and the job file.

    Raises:
        UsageError: no scene, two scenes of one name, or a bad job file.
    """
    from tileseg.scenes.inputs import find_scenes

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
    values = read_job(path) if path else {}
    if path and _is_record(path) and not is_one:
        return {k: v for k, v in values.items() if k not in ("output", "work")}
    return values


def read_job(path: str) -> dict[str, Any]:
    """Read the fields of a `Job` from a TOML file, or from a run's record (JSON).

    Raises:
        UsageError: the file is unreadable or names a field that there is not.
    """
    from tileseg.settings import Job

    try:
        text = _read(path).decode()
        is_json = _is_record(path)
        values = _recorded(path, json.loads(text)) if is_json else tomllib.loads(text)
    except (OSError, ValueError) as err:
        msg = f"{path}: cannot be read as a job file: {reason(err)}"
        raise UsageError(msg) from err
    return checked(path, values, Job)


def _is_record(path: str) -> bool:
    """Return whether a job file is the record of a run."""
    return Path(path).suffix == ".json"


def _recorded(path: str, record: Any) -> dict[str, Any]:  # noqa: ANN401  (what JSON can say)
    """Return the job of a run's record."""
    wanted = "wanted run.json or last-attempt.json of tileseg, or a job file in TOML"
    if not isinstance(record, dict) or not {"request_id", "plan_id"} <= record.keys():
        msg = f"{path}: is no record of a run; {wanted}"
        raise UsageError(msg)
    job = record.get("job")
    if not isinstance(job, dict):
        msg = f"{path}: does not say which job it is the record of; {wanted}"
        raise UsageError(msg)
    return job


def _read(path: str) -> bytes:
    """Return the bytes of a job file, on a disk or in an object store."""
    if not is_remote(path):
        return Path(path).read_bytes()
    from tileseg.stores.objects import open_storage

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
