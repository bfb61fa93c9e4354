"""A look at files that nobody knows, by a process that may die of it.

It has little memory and time, no secret in its environment, and can write no file. It
opens each file as a job would and decodes its first and last block. One that kills it
is refused, before this process, its workers and their devices meet it.

Loading the libraries takes longer than looking: see `nursery.py`.
"""

import json
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from threading import Lock
from time import process_time
from typing import IO, Any

from tileseg.base.address import is_address
from tileseg.base.environment import scrub
from tileseg.errors import InputError, RefusedError, TilesegError
from tileseg.scenes.gdal import GDAL_ERRORS, is_out_of_memory, look_at
from tileseg.scenes.jail import confine
from tileseg.scenes.nursery import Ending, Nursery, last_line, serve_forks
from tileseg.stores.remote import GIVE_UP_SECONDS, fetcher, lend
from tileseg.stores.source import Part, Version
from tileseg.window import Window

__all__ = ["examine"]

_MEMORY = 448 << 20  # bytes above what the loaded libraries take
_BATCH = 200  # files of one look: so long may one that hangs hold it up
_CPU_SECONDS = 3  # for each band of a file
_WALL_SECONDS = 30  # for each file: a disk may have to wake up
_PASSED_ON = ("GDAL_DATA", "LD_LIBRARY_PATH", "PATH", "PROJ_DATA", "PROJ_LIB")
_QUESTION = re.compile(rb"\? (\d{1,6}) (\d{1,18}) (\d{1,18})\n")
_LONGEST_LINE = 1 << 16
_LONGEST_ANSWER = 4 << 20
_ERRORS = {int(kind.exit_code): kind for kind in (RefusedError, InputError)}


def examine(names: Mapping[str, str]) -> None:
    """Look at files in another process; those that pass may be opened here.

    Args:
        names: what they are called, by paths of local files and handles of remote ones,
            whose bytes are fetched here for that process.

    Raises:
        RefusedError: a header asks for too much, or reading a file takes more memory
            or time than any scene needs, or kills the process.
        InputError: one cannot be opened as a GeoTIFF.
        TilesegError: a remote one cannot be had.
    """
    files = list(names.items())
    for at in range(0, len(files), _BATCH):
        _examine(dict(files[at : at + _BATCH]))


def _examine(names: Mapping[str, str]) -> None:
    first = next(iter(names.values()))
    try:
        ending = _ask(list(names))
    except OSError as err:
        msg = (
            f"{first}: no process can be started to look at it: "
            f"{err.strerror}; trusted = true in a job file does without"
        )
        raise InputError(msg) from err
    if ending.code == 0:
        return
    if ending.code in _ERRORS:
        path, _, reason = last_line(ending.said).partition(": ")
        raise _ERRORS[ending.code](f"{names.get(path, path)}: {reason}")
    if len(names) > 1:  # one of them it was
        for each in names.items():
            _examine(dict([each]))
        return
    said = ending.reason or last_line(ending.said)
    raise _refusal(first, said or f"exit code {ending.code}")


def _refusal(name: str, reason: str) -> RefusedError:
    return RefusedError(
        f"{name}: two blocks of it could not be read with {_MEMORY >> 20} "
        f"MiB in {_CPU_SECONDS} s ({reason}); refused, as it may be hostile; "
        "trusted = true in a job file takes it as it is"
    )


def _ask(paths: Sequence[str]) -> Ending:
    """Have a process look at files; return how it ended."""
    remote = sum(map(is_address, paths))
    limit = _WALL_SECONDS * len(paths) + GIVE_UP_SECONDS * remote
    return _nursery.ask(partial(_serve, paths), limit)


def _serve(
    paths: Sequence[str], tell: Callable[[bytes], None], says: IO[bytes]
) -> bytes:
    """Give a process the bytes of remote files that it asks for; return its last word.

    It asks with a line `? <number of the path> <start> <stop>`, and gets a line with
    the size of the file and that of what follows. Of what it says nothing is believed.
    """
    tell(json.dumps(paths).encode() + b"\n")
    while line := says.readline(_LONGEST_LINE):
        found = _QUESTION.fullmatch(line)
        if not found:
            return line + says.read(_LONGEST_LINE)
        number, start, stop = map(int, found.groups())
        source = fetcher(paths[min(number, len(paths) - 1)])
        data = source.read(start, min(stop, start + _LONGEST_ANSWER))
        tell(b"%d %d\n" % (source.version.size, len(data)) + data)
    return b""


class _Asked:
    """A remote file whose bytes another process fetches: a `Source`."""

    _lock = Lock()

    def __init__(self, number: int) -> None:
        self._number = number

    def get(self, start: int, stop: int, _seen: Version | None, _wait: float) -> Part:
        with self._lock:
            sys.stdout.buffer.write(b"? %d %d %d\n" % (self._number, start, stop))
            sys.stdout.buffer.flush()
            size, length = map(int, sys.stdin.buffer.readline().split())
            return Part(sys.stdin.buffer.read(length), Version(size, None))

    def renew(self) -> None:
        """Do nothing: there is one way only."""


def _environment() -> dict[str, str]:
    """Return what the process needs, and nothing that nobody else may know."""
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",  # every thread reserves memory
        "MALLOC_ARENA_MAX": "1",
    }


_nursery = Nursery("tileseg.scenes.probe", _environment)


def _look_at_all() -> int:
    """Look at the files that the input's first line names: what the process does."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    confine()
    try:
        for number, path in enumerate(json.loads(sys.stdin.buffer.readline())):
            if is_address(path):
                lend(path, _Asked(number))
            _look(path)
    except TilesegError as err:
        sys.stdout.write(str(err))
        return int(err.exit_code)
    return 0


def _take_time() -> None:
    """Begin to count the processor's time anew."""
    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    taken = ceil(process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (taken + _CPU_SECONDS, most))


def _look(path: str) -> None:
    """Open a file; decode two blocks of each band, of its mask and of its overviews.

    A damaged block is no reason to refuse: it is named where it is missed.
    """
    try:
        _take_time()
        with look_at(path) as dataset:
            levels = len(dataset.overviews(1)) if dataset.count else 0
            _decode(dataset)
        for level in range(levels):
            with look_at(path, overview_level=level) as dataset:
                _decode(dataset)
    except GDAL_ERRORS as err:
        msg = f"{path}: cannot be read as a GeoTIFF: {err}"
        raise InputError(msg) from err
    except MemoryError as err:
        raise _refusal(path, str(err) or "no memory is left") from None


def _decode(dataset: Any) -> None:  # noqa: ANN401  (rasterio is untyped)
    for row, col in ((0, 0), (dataset.height - 1, dataset.width - 1)):
        window = Window(row, col, 1, 1).slices
        for index in dataset.indexes:  # each may have blocks of its own
            _take_time()
            with _forgiven():
                dataset.read(index, window=window)
        with _forgiven():
            dataset.read_masks(1, window=window)


@contextmanager
def _forgiven() -> Iterator[None]:
    """Take no notice of what is damaged, but of what does not fit."""
    try:
        yield
    except GDAL_ERRORS as err:
        if is_out_of_memory(err):  # GDAL goes on; who has more would try to hold it
            msg = "a block does not fit"
            raise MemoryError(msg) from None


if __name__ == "__main__":
    scrub()
    serve_forks(_look_at_all)
