"""Segment very large GeoTIFFs with a U-Net, without losing anything."""

from os import PathLike, fspath
from typing import Any

__all__ = ["__version__", "segment"]

__version__ = "0.1.0"


def segment(input: str | PathLike[str], **options: Any) -> dict[str, Any]:  # noqa: A002, ANN401  (the command line's word; any field of a Job)
    """Segment one scene, as `tileseg segment` does, and return its `run.json`.

    Args:
        input: a local GeoTIFF.
        options: fields of `tileseg.task.Job`: `model`, `output`, `confidence` ...

    Raises:
        KeyboardInterrupt: it was interrupted; the same call resumes.
        TilesegError: see `tileseg.errors`; `exit_code` says who must act.
    """
    from tileseg.errors import InterruptedRunError
    from tileseg.job import run
    from tileseg.settings import Job

    for key, value in options.items():
        if isinstance(value, (PathLike, list)):
            options[key] = tuple(value) if isinstance(value, list) else fspath(value)
    record = run(Job(input=fspath(input), **options))
    if isinstance(record.error, InterruptedRunError):
        raise KeyboardInterrupt from record.error
    if record.error:
        raise record.error
    return record.values
