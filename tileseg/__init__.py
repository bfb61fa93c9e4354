"""Segment very large GeoTIFFs with a U-Net, without losing anything."""

from os import PathLike, fspath
from typing import Any

__all__ = ["__version__", "segment"]

__version__ = "0.1.0"


def segment(
    input: str | PathLike[str] | list[str | PathLike[str]],  # noqa: A002  (the command line's word)
    **options: Any,  # noqa: ANN401  (any field of a Job)
) -> dict[str, Any]:
    """Segment one scene, as `tileseg segment` does, and return its `run.json`.

    Args:
        input: a GeoTIFF or STAC Item; several files with `join`.
        options: fields of `tileseg.settings.Job`: `model`, `output`, `confidence` ...

    Raises:
        KeyboardInterrupt: it was interrupted; the same call resumes.
        TilesegError: see `tileseg.errors`; `exit_code` says who must act.
    """
    from tileseg.errors import InterruptedRunError
    from tileseg.job import run
    from tileseg.settings import Job

    facts = {key: _plain(value) for key, value in options.items()}
    record = run(Job(input=_plain(input), **facts))
    if isinstance(record.error, InterruptedRunError):
        raise KeyboardInterrupt from record.error
    if record.error:
        raise record.error
    return record.values


def _plain(value: Any) -> Any:  # noqa: ANN401  (any field of a Job)
    """Return a value as a `Job` has it: paths as text, lists as tuples."""
    if isinstance(value, list):
        return tuple(map(_plain, value))
    return fspath(value) if isinstance(value, PathLike) else value
