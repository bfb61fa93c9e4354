"""Jobs killed at random and resumed: what is published is never wrong.

    python tests/chaos.py --seed 1 --runs 100 --output s3
    python tests/chaos.py --runs 0 --races 25

A round kills one job up to three times, at calls of the functions below or after some
time, with other numbers of workers, and then lets it end. After each death the output
is looked at as a reader does; in the end it must be that of an undisturbed run, made
from every shard that had been recorded, with nothing left over. Every attempt is the
real command line in a process of its own, forked off one that has the libraries.
In a race eight of them are started at once, of which one must publish.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import faults

SEGMENT = (
    "torch",
    "rasterio",
    "obstore",
    "tileseg.cli",
    "tileseg.publishing.bucket",
    "tileseg.job",
    "tileseg.engines.engine",
    "tileseg.outputs.stitch",
    "tileseg.polygons.features",
    "tileseg.outputs.quicklook",
    "tileseg.outputs.overlay",
    "tileseg.outputs.stac",
    "tileseg.steps.report",
    "tileseg.outputs.verify",
    "tileseg.steps.products",
    "tileseg.publishing.swap",
    "tileseg.commands.monitor",
)
HANG_SECONDS = 120
TIMED = "report.html"
COUNTED = ("ledger.Ledger.record", "predict.Predictor._forward")
SHARDS = 20
SWITCH = {"local": "publish._replace", "s3": "bucket.Bucket._publish"}
KILLED = -signal.SIGKILL
RECEIPTS_BEHIND = {"local": 0, "s3": 8}  # of the driver, and lost if it is killed
WORK_KEPT = {"lock", "inputs.json"}  # of a work directory, after all went well

# Steps to die at: a function, moments, most calls.
ANYWHERE = """
lock.hold before,after 1
identity.Identities.remember before,torn,after 1
ledger.Ledger.open before,torn,after 1
predict.Predictor._forward before,after 15
maker.Maker._write before,torn,after 60
ledger.Ledger.record before,torn,after 20
stitch.stitch before,after 2
stitch._place before 40
stitch._assemble before,after 2
join.join before 1
features.write_features before,after 1
quicklook.quicklook before,after 1
stac.item before,after 1
report.report before,after 1
products.build after 1
job._close before,torn,after 1
job._clean before,after 1
"""
ON_DISK = """
publish.staging before,after 1
publish.recover before,after 1
publish._replace before,after 1
swap.sync before 7
swap.exchange before,after 1
"""
IN_STORE = """
objects.Objects.write before,after 5
objects.Objects.replace before,after 1
objects.Objects.remove before,after 1
"""


def points(text):
    """Return function, moment and most calls of each point of a table."""
    rows = [line.split() for line in text.split("\n") if line]
    return [
        (name, moment, int(most))
        for name, moments, most in rows
        for moment in moments.split(",")
    ]


# Where the outputs of a round are


class Disk:
    """A local directory."""

    STEPS = ANYWHERE + ON_DISK

    def __init__(self, folder):
        self._folder = folder
        self.output = str(folder / "out")

    def copy(self, other):
        """Hold what another one holds."""
        shutil.copytree(other.output, self.output)

    def age(self):
        """Make what is there older than what comes next: nothing to do."""

    def names(self):
        """Return all that there is, but for work directories and logs."""
        return {
            str(path.relative_to(self._folder))
            for path in self._folder.rglob("*")
            if path.is_file() and path.parts[len(self._folder.parts)] not in OURS
        }

    def read(self, name):
        return (Path(self.output) / name).read_bytes()

    def wanted(self, record):
        """Return the names there should be."""
        return {f"out/{name}" for name in (*listed(record), "run.json")}


class Store:
    """A prefix of a bucket."""

    STEPS = ANYWHERE + IN_STORE

    def __init__(self, folder):
        from obstore.store import from_url

        self.output = f"s3://maps/{folder.parent.name}/{folder.name}"
        self._store = from_url(self.output)

    def copy(self, other):
        """Hold what another one holds."""
        import obstore

        for name in other.names():
            obstore.put(self._store, name, other.read(name))
        self.age()

    def age(self):
        """Make what is there older than what comes next.

        What is not older than the record is left for the next version to sweep.
        """
        from s3 import next_second

        next_second()

    def names(self):
        """Return the names of all objects."""
        import obstore

        return {item["path"] for item in obstore.list(self._store).collect()}

    def read(self, name):
        import obstore

        return bytes(obstore.get(self._store, name).bytes())

    def wanted(self, record):
        """Return the names there should be."""
        return {*listed(record), "run.json"}


PLACES = {"local": Disk, "s3": Store}
OURS = {"log", "streams", "work"}  # what of a round's folder is not its output


def listed(record):
    """Return the paths of a record's outputs."""
    return [item["path"] for item in record["outputs"]]


def version(place):
    """Return what a reader finds: name to digest, of every file that is listed.

    That of the report says nothing: it tells how long its own run took.

    Raises:
        AssertionError: a file is not what the record says.
    """
    try:
        record = json.loads(place.read("run.json"))
    except FileNotFoundError:
        return None
    found = {}
    for item in record["outputs"]:
        sha256 = hashlib.sha256(place.read(item["path"])).hexdigest()
        assert sha256 == item["sha256"], f"{item['path']} is not what is listed"
        name = item["path"].rpartition("/")[2]
        found[name] = "timed" if name == TIMED else sha256
    return found


# Attempts


class Attempt:
    """A job's process; its streams are files."""

    def __init__(self, words, folder, faulty="", prepare=None):
        """Begin; `prepare` is called in the process before anything else."""
        self._streams = folder / "streams"
        self._streams.mkdir(exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*SEGMENT, "chaos"])
        environ = {
            name: value for name, value in os.environ.items() if name[:4] == "AWS_"
        }
        environ["TILESEG_FAULTS_LOG"] = str(folder / "log")
        paths = [str(self._streams / name) for name in ("out", "err")]
        self.process = context.Process(
            target=_live, args=(words, faulty, paths, environ, prepare)
        )
        self.process.start()

    def end(self, kill_after=HANG_SECONDS):
        """Wait for the process, or kill it; return its exit code."""
        self.process.join(kill_after)
        self.process.kill()
        self.process.join()
        return self.process.exitcode

    def record(self):
        """Return the last line of JSON."""
        return json.loads((self._streams / "out").read_text().splitlines()[-1])

    def said(self):
        """Return the end of what it told on stderr."""
        return (self._streams / "err").read_text()[-2000:]


def _live(words, faulty, paths, environ, prepare):
    """Be a process of the command line."""
    for number, path in enumerate(paths, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    os.environ.update(environ)
    import torch

    from tileseg.cli import main

    torch.set_num_threads(1)  # two processors, and some of us at once
    faults.install(faulty)
    if prepare:
        prepare()
    main(words)


def log_of(functions):
    return " ".join(f"{name}:after:*:log" for name in functions)


# Rounds


@dataclass
class Arena:
    """A scene, two plans for it, and what each of them gives."""

    folder: Path
    output: str
    work: str
    seconds: float = 0
    versions: dict = field(default_factory=dict)
    kills: int = 0
    story: list = field(default_factory=list)

    def __post_init__(self):
        """Make them, and run both plans undisturbed."""
        if not (self.folder / "scene.tif").exists():
            subject = [sys.executable, __file__, "--make", str(self.folder)]
            subprocess.run(subject, check=True)  # torch's threads are not to be forked
        for name in ("old", "new"):
            place, folder = self.place(name)
            words = self.words(place, folder, workers=1, is_old=name == "old")
            began = time.monotonic()
            attempt = Attempt(words, folder)
            assert attempt.end() == 0, attempt.said()
            self.seconds = time.monotonic() - began
            self.versions[name] = version(place)
        self.old = self.place("old")[0]
        assert self.versions["new"] != self.versions["old"]

    def place(self, name):
        """Return an output, and a folder beside it."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return PLACES[self.output](folder), folder

    def work_of(self, folder):
        if self.work == "s3":
            return f"s3://maps/{self.folder.name}/work-{folder.name}"
        return str(folder / "work")

    def words(self, place, folder, *, workers, is_old=False):
        """Return the arguments of the command line."""
        return [
            "segment",
            f"--input={self.folder / 'scene.tif'}",
            f"--model={self.folder / 'model'}",
            f"--config={self.folder / 'job.toml'}",
            f"--output={place.output}",
            f"--work={self.work_of(folder)}",
            f"--workers={workers}",
            f"--blend={'cosine' if is_old else 'crop'}",
            "--polygons=gpkg",
            "--confidence",
            "--overwrite",
        ]

    def kept(self, folder):
        """Return the names of all that lies in the work directory."""
        if self.work == "s3":
            return Store(folder.with_name(f"work-{folder.name}")).names()
        work = folder / "work"
        return {str(p.relative_to(work)) for p in work.rglob("*") if p.is_file()}

    def run(self, seed, number, deaths=()):
        """Play a round; return a line about it.

        Args:
            seed: with the number it decides everything.
            number: of the round.
            deaths: where to die, with a previous version; none: as may be.

        Raises:
            AssertionError: something is wrong.
        """
        choice = random.Random(f"{seed} {number}")
        place, folder = self.place(f"round-{seed}-{number}")
        allowed = [None]
        if choice.random() < 0.5 or deaths:
            place.copy(self.old)
            allowed = [self.versions["old"]]
        self.story = story = ["previous" if allowed[0] else "empty"]
        recorded = doubtful = behind = 0
        for death in deaths or self._deaths(choice, place):
            attempt, code = self._attempt(choice, place, folder, death)
            story.append(f"{death} {code}")
            assert code in (0, KILLED), attempt.said()
            place.age()
            self.kills += code == KILLED
            seen = version(place)
            assert seen in (*allowed, self.versions["new"]), f"{story}: {seen}"
            if seen == self.versions["new"]:
                allowed = []
            else:
                recorded += faults.logged(folder / "log")[COUNTED[0]]
                doubtful += code == KILLED  # between disk and log, perhaps
                behind += RECEIPTS_BEHIND[self.work] * (code == KILLED)
        attempt, code = self._attempt(choice, place, folder, "")
        story.append(str(code))
        assert code == 0, attempt.said()
        record = attempt.record()
        self._check(place, folder, record)
        reused = record["counts"]["shards_reused"]
        if allowed:  # else it was published before the last attempt
            assert recorded - behind <= reused, (recorded, reused)
            assert reused <= recorded + doubtful, (recorded, reused)
        shutil.rmtree(folder)
        return f"{number:4}  {', '.join(story)}: reused {reused}"

    def _deaths(self, choice, place):
        for _ in range(choice.randint(1, 3)):
            if choice.random() < 0.2:
                yield f"{choice.uniform(0, self.seconds):.3f}s"
            else:
                name, moment, most = choice.choice(points(place.STEPS))
                yield f"{name}:{moment}:{choice.randint(1, most)}:kill"

    def _attempt(self, choice, place, folder, death):
        """Run the job once; return it and its exit code."""
        (folder / "log").write_text("")
        words = self.words(place, folder, workers=choice.randint(1, 3))
        is_timed = death.endswith("s")
        faulty = f"{log_of(COUNTED)} {'' if is_timed else death}"
        attempt = Attempt(words, folder, faulty)
        code = attempt.end(float(death[:-1]) if is_timed else HANG_SECONDS)
        return attempt, code

    def _check(self, place, folder, record):
        """Hold a finished job against an undisturbed one."""
        counts = record["counts"]
        assert version(place) == self.versions["new"], "not the undisturbed result"
        assert counts["shards"] == counts["shards_done"] == SHARDS, counts
        assert counts["shards_failed"] == 0, counts
        assert place.wanted(record) == place.names(), place.names()
        assert set() == self.kept(folder) - WORK_KEPT, self.kept(folder)

    def race(self, number, count=8):
        """Start jobs at once; return how many published, and the exit codes."""
        place, folder = self.place(f"race-{number}")
        (folder / "log").write_text("")
        switch = SWITCH[self.output]
        attempts = []
        for runner in range(count):
            # In every other race they do not meet before they publish.
            own = folder / "streams" / (str(runner) if number % 2 else "work")
            own.mkdir(parents=True, exist_ok=True)
            words = self.words(place, own, workers=1)
            attempts.append(Attempt(words, folder, log_of([switch])))
        codes = sorted(attempt.end() for attempt in attempts)
        assert version(place) == self.versions["new"], codes
        record = json.loads(place.read("run.json"))
        assert place.wanted(record) == place.names(), place.names()
        published = faults.logged(folder / "log")[switch]
        shutil.rmtree(folder)
        return published, codes


def make(folder):
    """Make a scene of 5 x 4 shards, no multiple of a tile, and a model.

    Both are smooth: few polygons, so that a round is short.
    """
    import torch
    from making import lively, make_model, make_scene, random_pixels

    from tileseg.network.unet import UNet

    coarse = random_pixels(21, 16)
    pixels = coarse.repeat(20, axis=1).repeat(20, axis=2)[:, :410, :300]
    make_scene(folder / "scene.tif", pixels)
    torch.manual_seed(0)
    network = UNet(3, 3, width=4, depth=2)
    lively(network)
    with torch.inference_mode():
        for kernel in network.parameters():
            if kernel.dim() == 4:
                kernel.copy_(kernel.mean((2, 3), keepdim=True).expand_as(kernel))
        seen = torch.from_numpy(pixels[None, :, :408].astype("float32") / 2000 - 1.5)
        network.final_conv.bias -= network(seen).mean(dim=(0, 2, 3))
    make_model(folder / "model", module=network)
    (folder / "job.toml").write_text(
        'shard = 96\nrun_shards = [2, 2]\nprecision = "fp32"\nbatch_size = 16\n'
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first round"
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--races", type=int, default=0)
    parser.add_argument("--output", choices=PLACES, default="local")
    parser.add_argument("--work", choices=PLACES, default="local")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if "s3" in (options.output, options.work):
            from s3 import serve

            (folder / "s3").mkdir()
            stack.enter_context(serve(folder / "s3"))
        (folder / "arena").mkdir()
        arena = Arena(folder / "arena", options.output, options.work)
        wrong = 0
        for number in range(options.first, options.first + options.runs):
            try:
                line = arena.run(options.seed, number)
            except AssertionError as err:
                wrong += 1
                line = f"{number:4}  WRONG {arena.story}: {err}"
            print(line, flush=True)  # noqa: T201
        for number in range(options.races):
            published, codes = arena.race(number)
            wrong += published != 1 or not set(codes) <= {0, 8}
            print(f"race {number}: {published} published, exits {codes}", flush=True)  # noqa: T201
        counted = f"{options.runs} runs, {arena.kills} kills, {options.races} races"
        print(f"{counted}, {wrong} wrong")  # noqa: T201
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
