"""A look at files that nobody knows, by a process that may die of it.

It has little memory and time, no secret in its environment, and can write no file. It
opens each file as a job would and decodes its first and last block. One that kills it
is refused, before this process, its workers and their devices meet it.
"""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from time import process_time
from typing import Any

from tileseg.environment import scrub
from tileseg.errors import InputError, RefusedError, TilesegError
from tileseg.gdal import GDAL_ERRORS, gdal_env, open_dataset
from tileseg.window import Window

__all__ = ["examine"]

_MEMORY = 448 << 20  # bytes above what the loaded libraries take
_CPU_SECONDS = 3  # for each file
_WALL_SECONDS = 30  # likewise: a disk may have to wake up
_PASSED_ON = ("GDAL_DATA", "LD_LIBRARY_PATH", "PATH", "PROJ_DATA", "PROJ_LIB")
_ERRORS = {int(kind.exit_code): kind for kind in (RefusedError, InputError)}


def examine(paths: Sequence[str]) -> None:
    """Look at local files in another process; those that pass may be opened here.

    Raises:
        RefusedError: a header asks for too much, or reading a file takes more memory
            or time than any scene needs, or kills the process.
        InputError: one cannot be opened as a GeoTIFF.
    """
    code, said = _ask(paths)
    if code == 0:
        return
    if code in _ERRORS:
        raise _ERRORS[code](said)
    if len(paths) > 1:  # one of them it was
        for path in paths:
            examine([path])
        return
    msg = (
        f"{paths[0]}: two blocks of it could not be read with {_MEMORY >> 20} MiB in "
        f"{_CPU_SECONDS} s ({said}); refused, as it may be hostile; "
        "trusted = true in a job file takes it as it is"
    )
    raise RefusedError(msg)


def _ask(paths: Sequence[str]) -> tuple[int, str]:
    """Return the exit code of a process that looks at the files, and what it said."""
    # -P: a folder that is worked in may hold anything, modules too.
    command = [sys.executable, "-P", "-m", "tileseg.probe", *paths]
    try:
        answer = subprocess.run(  # noqa: S603  (our own program, and no shell)
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_WALL_SECONDS * len(paths),
            check=False,
            start_new_session=True,  # Ctrl-C is for this process: no file is hostile
        )
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL, f"no answer in {_WALL_SECONDS} s"
    code = answer.returncode
    if code < 0:
        return code, f"killed by signal {-code}"
    said = answer.stdout if code in _ERRORS else answer.stderr
    return code, said.decode(errors="replace").strip().rpartition("\n")[2]


def _environment() -> dict[str, str]:
    """Return what the process needs, and nothing that nobody else may know."""
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",  # every thread reserves memory
    }


def _main() -> None:
    """Look at the files that the command line names: what the process does."""
    scrub()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + _MEMORY)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    try:
        for path in sys.argv[1:]:
            _limit(resource.RLIMIT_CPU, ceil(process_time()) + _CPU_SECONDS)
            _look(path)
    except TilesegError as err:
        sys.stdout.write(str(err))
        sys.exit(int(err.exit_code))


def _limit(what: int, most: int) -> None:
    resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


def _look(path: str) -> None:
    """Open a file, and decode two blocks of it, of its mask and of its overviews.

    A damaged block is no reason to refuse: it is named where it is missed.
    """
    try:
        with gdal_env():
            with open_dataset(path) as dataset:
                levels = len(dataset.overviews(1)) if dataset.count else 0
                _decode(dataset)
            for level in range(levels):
                with open_dataset(path, overview_level=level) as dataset:
                    _decode(dataset)
    except GDAL_ERRORS as err:
        msg = f"{path}: cannot be read as a GeoTIFF: {err}"
        raise InputError(msg) from err


def _decode(dataset: Any) -> None:  # noqa: ANN401  (rasterio is untyped)
    for row, col in ((0, 0), (dataset.height - 1, dataset.width - 1)):
        window = Window(row, col, 1, 1).slices
        with suppress(*GDAL_ERRORS):
            dataset.read(1, window=window)
            dataset.read_masks(1, window=window)


if __name__ == "__main__":
    _main()
