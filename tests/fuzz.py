"""Mutate small rasters and read each as a job does, in a child that may die of it.

    python tests/fuzz.py --cases 10000 --seed 1

A case is known by its seed and number; one that fails is kept as a file. It fails when
the child crashes, takes too long or too much memory, or ends otherwise than well (0) or
with an error that a person can act on (2, 3, 4).
"""

import argparse
import contextlib
import json
import resource
import select
import struct
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Self

import numpy as np

HERE = Path(__file__).parent
GOOD = {0, 2, 3, 4}
SECONDS = 10
"""What a child may take for a file of a few kilobytes."""
MEGABYTES = 600
"""What a child may have resident, its libraries included."""
ADDRESS_SPACE = (
    4 << 30
)  # bytes; beyond it the child gets a MemoryError, not the machine
_PIXELS = 1 << 20  # of a scene that is read whole
_SEED_BYTES = 60_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a file."""

    code: int
    """The exit code a job would have; negative: the signal that killed the child."""
    says: str = ""
    """The error's message, or a traceback."""
    seconds: float = 0.0
    megabytes: float = 0.0
    """Resident at most."""

    @property
    def fault(self) -> str:
        """What is wrong with it; empty if nothing."""
        if self.code not in GOOD:
            return f"exit {self.code}: {self.says}"
        if self.seconds > SECONDS:
            return f"took {self.seconds:.1f} s"
        if self.megabytes > MEGABYTES:
            return f"took {self.megabytes:.0f} MB"
        return ""


class Child:
    """A process that reads one file after another; another when it dies."""

    def __init__(self) -> None:
        self._process = self._start()

    @staticmethod
    def _start() -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, __file__, "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def look(self, path: Path, *, seconds: float = 3 * SECONDS, model="") -> Answer:
        """Return what comes of a file; a child that hangs is killed.

        With a model's folder a job on the file is prepared, else the file is read.
        """
        process, start = self._process, perf_counter()
        process.stdin.write(json.dumps([str(path), str(model)]).encode() + b"\n")
        process.stdin.flush()
        is_ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if is_ready else b""
        if line:
            return Answer(**json.loads(line))
        process.kill()
        code = process.wait()
        self.close()
        self._process = self._start()
        says = "killed: no answer" if not is_ready else "died"
        return Answer(code, says, perf_counter() - start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def serve() -> None:
    """Answer for every path that comes; this is the child."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        # ^ 5: the peak of what is resident begins anew.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        start = perf_counter()
        path, model = json.loads(line)
        code, says = _outcome(
            partial(_prepare, path, model) if model else partial(_read, path)
        )
        seconds = perf_counter() - start
        answer = {"code": code, "says": says, "seconds": seconds}
        sys.stdout.write(json.dumps(answer | {"megabytes": _peak()}) + "\n")
        sys.stdout.flush()


def _peak() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _outcome(action: Callable[[], None]) -> tuple[int, str]:
    """Return the exit code and message of a job that does this."""
    from tileseg.errors import TilesegError

    try:
        action()
    except TilesegError as err:
        return int(err.exit_code), str(err)
    except BaseException:  # noqa: BLE001  (whatever it is, it is a bug)
        return 1, traceback.format_exc()
    return 0, ""


def _prepare(path: str, model: str) -> None:
    """Do all that a job does before it reads."""
    from tileseg.plans.task import prepare
    from tileseg.settings import Job

    output = f"{path}.out"
    prepare(Job(input=path, model=model, output=output, bands=(1,), scale=1.0))


def _read(path: str) -> None:
    """Open a scene and read it: all, or its first and its last shard."""
    from tileseg.grid import Grid, Run
    from tileseg.scenes.reader import Reader
    from tileseg.scenes.scene import open_scene
    from tileseg.window import Window

    scene = open_scene(path)
    box = scene.geobox
    grid = Grid(height=box.height, width=box.width, tile=32, halo=4, shard=96)
    last = Window(grid.shape.height - 1, grid.shape.width - 1, 1, 1)
    parts = [Window(0, 0, 1, 1), last]
    if box.height * box.width <= _PIXELS:
        parts = [grid.shape]
    reader = Reader(scene, scene.bands[:3], grid)
    for part in parts:
        for strip in reader.strips(Run(part)):
            assert strip.valid.shape == strip.pixels.shape[1:]


WORDS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 127, 128, 255, 256, 512, 32_767, 32_768)
WORDS += (65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def mutate(seeds: list[bytes], random: np.random.Generator) -> bytes:
    """Return one of the seeds, changed in a few places."""
    data = bytearray(seeds[random.integers(len(seeds))])
    for _ in range(random.integers(1, 5)):
        change = CHANGES[random.choice(len(CHANGES), p=WEIGHTS)]
        data = change(data, seeds, random) or bytearray(b"\0")
    return bytes(data)


def _entry(data: bytearray, _seeds: list, random: np.random.Generator) -> bytearray:
    """Put a telling number into a field of the directory: tag, type, count or value."""
    order = ">" if data[:2] == b"MM" else "<"
    is_big = data[2:4] in (b"+\0", b"\0+")
    at, word, size, head = (8, "Q", 20, 8) if is_big else (4, "I", 12, 2)
    try:
        (start,) = struct.unpack_from(order + word, data, at)
        (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
        entry = start + head + size * int(random.integers(max(1, min(count, 99))))
        field, kind = (
            (0, "H"),
            (2, "H"),
            (4, word),
            (4 + struct.calcsize(word), word),
            (4 + struct.calcsize(word), "H"),
        )[random.choice(5, p=(0.1, 0.15, 0.2, 0.35, 0.2))]
        value = int(random.choice(WORDS)) & (0xFFFF if kind == "H" else 0xFFFFFFFF)
        struct.pack_into(order + kind, data, entry + field, value)
    except (struct.error, OverflowError):
        return _byte(data, _seeds, random)
    return data


def _value(data: bytearray, _seeds: list, random: np.random.Generator) -> bytearray:
    """Put a telling number anywhere."""
    kind = "<>"[random.integers(2)] + "BHIQ"[random.integers(4)]
    if len(data) >= struct.calcsize(kind):
        at = int(random.integers(len(data) - struct.calcsize(kind) + 1))
        most = 2 ** (8 * struct.calcsize(kind)) - 1
        struct.pack_into(kind, data, at, min(int(random.choice(WORDS)), most))
    return data


def _byte(data: bytearray, _seeds: list, random: np.random.Generator) -> bytearray:
    """Flip one bit, in the second half of the file more often: the directory."""
    half = len(data) // 2 if random.random() < 0.7 else 0
    at = int(random.integers(half, len(data)))
    data[at] ^= 1 << int(random.integers(8))
    return data


def _some(data: bytearray, _seeds: list, random: np.random.Generator) -> bytearray:
    """Fill a stretch with noise."""
    start, stop = _stretch(data, random)
    data[start:stop] = random.bytes(stop - start)
    return data


def _zero(data: bytearray, _seeds: list, random: np.random.Generator) -> bytearray:
    """Fill a stretch with zeros."""
    start, stop = _stretch(data, random)
    data[start:stop] = bytes(stop - start)
    return data


def _cut(data: bytearray, _seeds: list, random: np.random.Generator) -> bytearray:
    """Take a stretch out, or all from somewhere on."""
    start, stop = _stretch(data, random)
    return data[:start] + (data[stop:] if random.random() < 0.5 else b"")


def _splice(data: bytearray, seeds: list, random: np.random.Generator) -> bytearray:
    """Put a stretch of another seed over one of this."""
    other = seeds[random.integers(len(seeds))]
    start, stop = _stretch(bytearray(other), random)
    data[start:stop] = other[start:stop]
    return data


def _stretch(data: bytearray, random: np.random.Generator) -> tuple[int, int]:
    start = int(random.integers(len(data)))
    return start, min(len(data), start + int(random.integers(1, 400)))


CHANGES = (_entry, _value, _byte, _some, _zero, _cut, _splice)
WEIGHTS = (0.5, 0.1, 0.15, 0.05, 0.05, 0.05, 0.1)


def seeds_of(folder: Path) -> list[bytes]:
    """Build the corpus; return its small files that can be read, 30 of all kinds."""
    sys.path.insert(0, str(HERE / "corpus"))
    import build

    cases = build.build(folder)
    paths = [folder / case.name for case in cases.values() if case.code == 0]
    small = [path for path in paths if path.stat().st_size < _SEED_BYTES]
    return [path.read_bytes() for path in small[:: max(1, len(small) // 30)]]


def cases_of(seeds: list[bytes], seed: int, numbers: range) -> Iterator[tuple]:
    """Yield (number, bytes) of each case."""
    for number in numbers:
        yield number, mutate(seeds, np.random.default_rng((seed, number)))


def fuzz(seed: int, numbers: range, *, children: int, keep: Path) -> dict[int, Answer]:
    """Return the faulty answers by the numbers of their cases; keep their files."""
    faults, codes = {}, Counter()

    def work(part: range) -> None:
        with Child() as child:
            for number, data in cases_of(seeds, seed, part):
                path = folder / f"{number}.tif"
                path.write_bytes(data)
                answer = child.look(path)
                codes[answer.code] += 1
                if answer.fault:
                    faults[number] = answer
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"seed-{seed}-case-{number}.tif").write_bytes(data)
                path.unlink()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        seeds = seeds_of(folder / "seeds")
        parts = [numbers[start::children] for start in range(children)]
        with ThreadPoolExecutor(children) as pool:
            list(pool.map(work, parts))
    sys.stderr.write(f"seed {seed}, {len(numbers)} cases: exits {dict(codes)}\n")
    return faults


def main() -> int:
    """Fuzz as the command line says; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--children", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"))
    given = parser.parse_args()
    numbers = range(given.first, given.first + given.cases)
    faults = fuzz(given.seed, numbers, children=given.children, keep=given.keep)
    for number, answer in sorted(faults.items()):
        sys.stdout.write(f"seed {given.seed}, case {number}: {answer.fault}\n")
    return bool(faults)


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        serve()
    else:
        sys.exit(main())
