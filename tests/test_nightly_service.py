"""Nights of a file: each does what is due, once, and what it leaves says all of it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from math import inf
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import stac_api
import torch
from click.testing import CliRunner
from making import (
    files_of,
    make_model,
    make_plain,
    make_scene,
    random_pixels,
    read,
    receipts_of,
    snapshot,
)
from schemas import faults

from tileseg import job
from tileseg.base import address
from tileseg.base.stopping import Stop, StopSignal
from tileseg.cli import main
from tileseg.commands import cli_nightly
from tileseg.commands.cli_nightly import run_one
from tileseg.commands.console import deadline
from tileseg.commands.monitor import Monitor
from tileseg.engines.staff import Staff
from tileseg.errors import DeadlineError, ExitCode, OutputError, PreemptedError
from tileseg.nights import nightly_run
from tileseg.nights.nightly_entry import Entry, Outcome, Speed
from tileseg.nights.nightly_file import Schedule, read_night
from tileseg.nights.nightly_page import page
from tileseg.nights.nightly_plan import Choice, Cost, ordered, turns
from tileseg.nights.nightly_run import Tonight, hold_night
from tileseg.nights.nightly_source import Found
from tileseg.nights.nightly_state import State, night_of, read_state
from tileseg.nights.nightly_summary import STATES
from tileseg.nights.series import update
from tileseg.stores.storage import Disk

FIRST = datetime(2026, 5, 31, 22, tzinfo=UTC).astimezone()
DAY = timedelta(days=1)


class Nights:
    """A night's file, and the hour at which it is run."""

    def __init__(self, folder, model):
        self.folder, self.output = folder, folder / "maps"
        self.now, self.more = FIRST, ""
        self.source = f'scenes = "{folder / "scenes"}"'
        self._job = f'model = "{model}"\nprecision = "fp32"\nshard = 48'

    @property
    def path(self):
        path = self.folder / "nightly.toml"
        target = f'output = "{self.output}"\nwork = "{self.folder / "work"}"'
        tables = f"[source]\n{self.source}\n[target]\n{target}\n"
        path.write_text(f"{tables}{self.more}\n[job]\n{self._job}\n")
        return path

    def run(self, *words):
        """Return exit code, records of scenes and summary."""
        words = ["nightly", "--config", self.path, *words]
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert "Traceback" not in result.stderr, result.stderr
        assert result.stdout, result.stderr
        *lines, last = map(json.loads, result.stdout.splitlines())
        assert faults(last, "plan" if "--plan" in words else "night") == []
        return result.exit_code, lines, last

    def take_another_model(self):
        other = make_model(self.folder / "other", seed=9)
        _, *rest = self._job.splitlines()
        self._job = "\n".join([f'model = "{other}"', *rest])

    def state(self):
        return read_state(Disk(self.output))


@pytest.fixture
def nights(tmp_path, model_path, monkeypatch):
    made = Nights(tmp_path, model_path)
    monkeypatch.setattr(nightly_run, "_now", lambda: made.now)
    (tmp_path / "scenes").mkdir()
    return made


@pytest.fixture
def archive(nights):
    """Three scenes, the oldest first; one is none."""
    folder = nights.folder / "scenes"
    make_scene(folder / "b.tif", random_pixels(60, 51))
    make_scene(folder / "c.tif", random_pixels(45, 70, seed=1))
    (folder / "a.tif").write_text("not a raster")
    for at, name in enumerate("abc"):
        os.utime(folder / f"{name}.tif", (at, at))
    return folder


def states(summary):
    return {row["name"]: row["state"] for row in summary["scenes"]}


def whys(plan):
    return {Path(row["output"]).name: row["why"] for row in plan["scenes"]}


def digest(folder):
    """Return the digest of all that is in a folder, times of files too."""
    return hashlib.sha256(repr(snapshot(folder)).encode()).hexdigest()


@pytest.mark.usefixtures("archive")
def test_the_same_night_again_changes_nothing(nights):
    """Not a byte at the target; and it says and exits as it did."""
    first = nights.run()
    before = digest(nights.output)
    nights.now += timedelta(hours=3)  # past midnight, and still that night
    second = nights.run()

    assert first[0] == second[0] == ExitCode.REFUSED
    assert [line["exit_code"] for line in first[1]] == [0, 0, 3]  # newest first
    assert second[1] == []
    assert first[2] == second[2]
    assert states(first[2]) == {"a": "failed", "b": "done", "c": "done"}
    assert before == digest(nights.output)
    assert {item.name for item in nights.output.iterdir()} == {
        "b",
        "c",
        "collection.json",
        "night.html",
        "night.json",
        "night-state.json",
    }
    assert json.loads((nights.output / "night.json").read_text()) == first[2]
    assert not (nights.folder / "work" / ".night").exists()


@pytest.mark.usefixtures("archive")
def test_scenes_that_may_fail_fail_no_command(nights):
    """But for a night that cannot begin or be told of; and who watches hears it."""
    path = nights.folder / "night.prom"

    code, _, summary = nights.run("--scenes-may-fail", "--metrics", path)

    assert (code, summary["exit_code"]) == (0, ExitCode.REFUSED)
    assert 'tileseg_exit_code{service="night"} 0.0' in path.read_text()
    assert nights.run("--scenes-may-fail")[::2] == (0, summary)
    nights.now += DAY
    (nights.output / "night.json").unlink()
    (nights.output / "night.json").mkdir()
    assert nights.run("--scenes-may-fail")[0] == ExitCode.OUTPUT
    (nights.output / "night-state.json").write_text("{")
    words = ["nightly", "--config", str(nights.path), "--scenes-may-fail"]
    assert CliRunner().invoke(main, words).exit_code == ExitCode.OUTPUT


def test_a_failed_scene_is_tried_after_1_2_and_4_nights_then_given_up(nights, archive):
    """A changed one at once; and the others are left alone."""
    for name in "bc":
        (archive / f"{name}.tif").unlink()
    tried, ends = [], {}
    for night in range(10):
        code, lines, summary = nights.run()
        tried += [night] * len(lines)
        ends[night] = code, states(summary)["a"]
        nights.now += DAY

    assert tried == [0, 1, 3, 7]
    assert ends[3] == (3, "failed")
    assert ends[4] == (0, "later")
    assert ends[7] == (3, "given_up")
    assert ends[8] == ends[9] == (0, "given_up")
    assert nights.run("--plan")[2]["counts"] == {"given_up": 1}
    assert len(nights.run("--retry", "a")[1]) == 1
    nights.now += DAY
    make_scene(archive / "a.tif", random_pixels(40, 30))
    assert states(nights.run()[2]) == {"a": "done"}


def test_a_clock_that_was_wrong_puts_off_no_scene(nights, archive):
    for name in "bc":
        (archive / f"{name}.tif").unlink()
    now, nights.now = nights.now, nights.now + 9999 * DAY
    nights.run()

    nights.now = now

    assert whys(nights.run("--plan")[2]) == {"a": "again"}


def test_a_warning_is_said_once(nights, caplog):
    """Whether the night is done or only planned."""
    make_scene(nights.folder / "scenes/one.tif", random_pixels(30, 40))
    nights.run()
    (nights.folder / "scenes/one.tif").unlink()

    for words in ((), ("--plan",)):
        caplog.clear()
        command = ["nightly", "--config", str(nights.path), *words]
        told = CliRunner().invoke(main, command).stderr
        assert (caplog.text + told).count("is it mounted?") == 1


def test_a_source_that_is_empty_all_at_once_is_said(nights, archive, caplog):
    """It may be a disk that is not mounted; a quiet night all the same."""
    for name in "bc":
        (archive / f"{name}.tif").unlink()
    nights.run()
    (archive / "a.tif").unlink()
    nights.now += DAY

    code, lines, told = nights.run()

    assert (code, lines) == (0, [])
    assert "holds no scene, and nights know of 1; is it mounted?" in caplog.text
    assert told["warnings"][0] in caplog.messages
    assert "is it mounted?" in (nights.output / "night.html").read_text()


def test_a_night_whose_time_was_over_before_says_so(nights, archive, caplog):
    """Nothing failed; and somebody who started it should know."""
    (archive / "a.tif").unlink()
    end = nights.now + timedelta(hours=1)
    nights.more = f'[night]\ndeadline = "{end:%H:%M}"'
    nights.run()
    make_scene(archive / "d.tif", random_pixels(30, 40, seed=2))
    nights.now = end + timedelta(hours=2)

    code, lines, told = nights.run()

    assert (code, lines) == (0, [])
    (text,) = told["warnings"]
    assert text.startswith("nothing was begun, 1 scene waits: the night's deadline, ")
    assert text in caplog.text
    assert json.loads((nights.output / "night.json").read_bytes()) == told
    assert nights.run("--plan")[2]["counts"] == {"no time": 1, "unchanged": 2}
    nights.now += DAY
    assert states(nights.run()[2])["d"] == "done"
    assert told["warnings"]


def test_a_night_that_begins_late_says_until_when_it_goes_on(nights, archive, caplog):
    """After its deadline, in the morning say; one in the evening is in time."""
    (archive / "a.tif").unlink()
    late, early = nights.now + timedelta(hours=-1), nights.now + timedelta(hours=8)
    for clock, is_late in ((early, False), (late, True)):
        nights.more = f'[night]\ndeadline = "{clock:%H:%M}"'
        caplog.clear()
        plan = nights.run("--plan")[2]
        until = f"{late:%H:%M}: it goes on until the next one, {plan['deadline']}"
        assert (until in caplog.text) == is_late
    assert plan["deadline"] == (late + DAY).isoformat()

    first, again = nights.run()[2], nights.run()[2]

    assert first == again == json.loads((nights.output / "night.json").read_bytes())
    assert [until in it for it in first["warnings"]] == [True]
    nights.more = "[night]\nhours = 20"
    assert nights.run()[2]["warnings"] == []


def test_hours_are_each_runs_own(nights, archive):
    """One that ended by itself takes nothing from the one that is started later."""
    (archive / "a.tif").unlink()
    nights.more = "[night]\nhours = 2"
    afternoon = nights.now - timedelta(hours=8)
    nights.now = afternoon
    assert nights.run()[2]["deadline"] == (afternoon + timedelta(hours=2)).isoformat()
    make_scene(archive / "d.tif", random_pixels(30, 40, seed=2))
    nights.now = FIRST

    code, lines, told = nights.run()

    assert (code, len(lines), told["warnings"]) == (0, 1, [])
    assert told["started"] == afternoon.isoformat()
    assert told["deadline"] == (FIRST + timedelta(hours=2)).isoformat()


def test_who_goes_on_after_a_kill_has_the_hours_that_were_left(
    nights, archive, monkeypatch
):
    """Even if no scene had ended; what is started when they are over has its own."""
    for name in "ab":
        (archive / f"{name}.tif").unlink()
    nights.more = "[night]\nhours = 2"
    first = (nights.now + timedelta(hours=2)).isoformat()

    def die(*_args, **_more):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(cli_nightly, "run_one", die)
        for _ in range(2):
            CliRunner().invoke(main, ["nightly", "--config", str(nights.path)])
            nights.now += timedelta(minutes=50)
    assert nights.run("--plan")[2]["deadline"] == first
    with monkeypatch.context() as patch:
        patch.setattr(job, "carry_out", stop_in_hand(PreemptedError("SIGTERM")))
        assert nights.run()[2]["deadline"] == first
    assert nights.run("--plan")[2]["deadline"] == first
    assert states(nights.run()[2]) == {"c": "done"}
    plan = nights.run("--plan")[2]
    assert plan["deadline"] != first, "the one before had ended by itself"
    nights.now += timedelta(hours=3)
    assert nights.run("--plan")[2]["deadline"] > first


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("words", [(), ("--plan",)])
@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        ('gates = {canary = "none.npz"}', ExitCode.INPUT, "canary none.npz: no such"),
        ('aoi = "none.gpkg"', ExitCode.INPUT, "--aoi none.gpkg: "),
        ('mask = ["no.tif in 3"]', ExitCode.INPUT, "tileseg: mask no.tif: cannot be "),
        ('resolution = "card"', ExitCode.USAGE, "does not say it (tileseg:gsd)"),
        ('device = "cuda"', ExitCode.USAGE, "device cuda: this machine shows no"),
        ("workers = 0", ExitCode.USAGE, "nightly.toml: [job] workers: got 0"),
    ],
)
def test_what_no_scene_can_do_is_said_before_the_night(nights, told, code, said, words):
    """Else every scene would fail of it, and be given up in the end."""
    if "cuda" in told and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    nights._job += f"\n{told}"

    result = CliRunner().invoke(main, ["nightly", "--config", str(nights.path), *words])

    assert result.exit_code == code
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not nights.output.exists()


@pytest.mark.usefixtures("archive")
def test_a_model_that_is_not_there_is_named_by_its_option(nights):
    nights._job = 'model = "/nix"'

    result = CliRunner().invoke(main, ["nightly", "--config", str(nights.path)])

    assert result.exit_code == ExitCode.MODEL
    assert "model /nix: no model here" in result.stderr
    assert not nights.output.exists()


@pytest.mark.usefixtures("archive")
def test_a_webhook_that_cannot_be_is_said_before_the_night(nights):
    nights.more = '[night]\nwebhook = "env:NO_SUCH_NAME"'

    for words in ((), ("--plan",)):
        command = ["nightly", "--config", str(nights.path), *words]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == ExitCode.USAGE
        assert "[night] webhook: env:NO_SUCH_NAME: no such env" in result.stderr
        assert not nights.output.exists()


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("words", [(), ("--plan",)])
def test_a_target_that_cannot_be_written_is_one_line(nights, words):
    """Before anything is begun."""
    (nights.folder / "file").write_text("")
    nights.output = nights.folder / "file" / "maps"

    result = CliRunner().invoke(main, ["nightly", "--config", str(nights.path), *words])

    assert result.exit_code == ExitCode.OUTPUT
    (line,) = result.stderr.splitlines()
    assert f"[target] output: {nights.output}: cannot be written: " in line


@pytest.mark.usefixtures("archive")
def test_what_failed_is_tried_again_when_the_file_says_otherwise(nights):
    """Also if no pixel depends on it: it may have failed of just that."""
    nights.more = "[night]\nretries = 0"
    assert states(nights.run()[2]) == {"a": "given_up", "b": "done", "c": "done"}
    nights.now += DAY
    assert whys(nights.run("--plan")[2])["a"] == "given_up"

    nights._job += '\nhosts = ["a.org"]'

    assert whys(nights.run("--plan")[2]) == {
        "a": "options",
        "b": "unchanged",
        "c": "unchanged",
    }
    assert len(nights.run()[1]) == 1
    assert whys(nights.run("--plan")[2])["a"] == "given_up"


@pytest.mark.slow
def test_results_are_no_scenes(nights, archive):
    """Where a pattern finds them, nor is unfinished work."""
    (archive / "a.tif").unlink()
    nights.source = f'scenes = "{nights.folder}/**/*.tif"'
    assert states(nights.run()[2]) == {"b": "done", "c": "done"}
    (nights.folder / "work").mkdir(exist_ok=True)
    shutil.copy(archive / "b.tif", nights.folder / "work" / "d.tif")
    words = ["nightly", "--scenes", f"{nights.folder}/**/*.tif", "--output"]
    words += [nights.output, "--work", nights.folder / "work", "--dry-run"]

    assert states(nights.run()[2]) == {"b": "done", "c": "done"}
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert json.loads(result.stdout.splitlines()[-1])["counts"]["scenes"] == 2


def test_a_source_in_the_target_is_refused(nights, archive):
    """Nothing of it would be a scene, and nobody would know why."""
    for scenes in (f"{archive}", f"{archive}/*.tif"):
        nights.source, nights.output = f'scenes = "{scenes}"', archive
        result = CliRunner().invoke(main, ["nightly", "--config", str(nights.path)])
        assert result.exit_code == ExitCode.USAGE
        assert "[source] scenes: " in result.stderr
        assert "lies in the target's output or work" in result.stderr


def test_a_summary_has_one_shape(nights, archive):
    """With a night's file and without."""
    for name in "bc":
        (archive / f"{name}.tif").unlink()
    _, _, told = nights.run()
    words = ["nightly", "--scenes", archive, "--output", nights.folder / "plain"]

    result = CliRunner().invoke(main, [str(word) for word in words])

    plain = json.loads(result.stdout.splitlines()[-1])
    written = json.loads((nights.folder / "plain/night.json").read_bytes())
    assert written.keys() == plain.keys() == told.keys()
    assert plain["counts"] == told["counts"]
    assert plain["scenes"][0].keys() == told["scenes"][0].keys()
    assert plain["scenes"][0]["name"] == "a"


@pytest.mark.usefixtures("archive")
def test_retry_names_scenes_that_are_known(nights):
    nights.run()

    for word in ("all", "a", "a.tif", nights.folder / "scenes/a.tif"):
        code, lines, _ = nights.run("--retry", word)
        assert (code, len(lines)) == (3, 1)

    words = ["nightly", "--config", str(nights.path), "--retry", "d"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == ExitCode.USAGE
    assert "retry: d: nothing is known of such a scene" in result.stderr


@pytest.mark.slow
def test_what_changed_is_made_again_and_nothing_else(nights, archive, tmp_path):
    """A scene, an option, or its results that are gone; new scenes come first."""
    (archive / "a.tif").unlink()
    nights.run()
    kept = snapshot(nights.output / "c")
    make_scene(archive / "b.tif", random_pixels(60, 51, seed=9))
    make_scene(archive / "d.tif", random_pixels(30, 40, seed=2))
    os.utime(archive / "d.tif", (0, 0))
    nights.now += DAY

    assert whys(nights.run("--plan")[2]) == {
        "d": "new",
        "b": "changed",
        "c": "unchanged",
    }
    _, lines, _ = nights.run()
    assert [Path(it["scene"]["href"]).stem for it in lines] == ["d", "b"]
    assert kept == snapshot(nights.output / "c")
    # As if it had been made from nothing.
    other = Nights(tmp_path / "other", nights.folder)
    other.folder.mkdir()
    other._job, other.source = nights._job, nights.source
    other.run()
    for name in "bcd":
        mask = Path(name, "mask.tif")
        assert (nights.output / mask).read_bytes() == (other.output / mask).read_bytes()
    (nights.output / "d" / "run.json").rename(tmp_path / "aside")
    (nights.output / "d").rename(tmp_path / "d")
    nights._job += "\nconfidence = true"

    assert set(whys(nights.run("--plan")[2]).values()) == {"options"}
    nights._job = nights._job.replace("\nconfidence = true", "")
    assert whys(nights.run("--plan")[2])["d"] == "gone"


@pytest.mark.slow
def test_a_touched_scene_is_looked_at_and_found_unchanged(nights, archive):
    """What changed is its bytes' business: a moved mount makes no scene again."""
    nights.run()
    before = snapshot(nights.output / "b")
    os.utime(archive / "b.tif", (9, 9))
    nights.now += DAY
    words = ["nightly", "--config", str(nights.path), "--plan"]
    plan = CliRunner().invoke(main, words).stderr

    _, lines, summary = nights.run()

    assert re.search(r"b\.tif .* the scene changed, or was only touched\n", plan)
    assert states(summary)["b"] == "unchanged"
    assert len(lines) == 2  # and the one that failed
    assert before == snapshot(nights.output / "b")


@pytest.mark.slow
def test_without_overwrite_results_of_other_plans_stay(nights, archive):
    nights._job += "\noverwrite = false"
    (archive / "a.tif").unlink()
    nights.run()
    nights._job += "\nconfidence = true"
    nights.now += DAY

    code, lines, summary = nights.run()
    nights.now += DAY
    again = nights.run()

    assert code == 0
    assert [line["exit_code"] for line in lines] == [8, 8]
    assert set(states(summary).values()) == {"kept"}
    assert again[:2] == (0, [])
    assert set(states(again[2]).values()) == {"kept"}


def stop_in_hand(error):
    """Return what does a scene's first shards, then ends with an error."""
    real = job.carry_out

    def process(task, ledger, staff, record, progress, **more):
        def stop(done, total):
            progress(done, total)
            if receipts_of(task.job):
                staff.stop.ask(error)

        return real(task, ledger, staff, record, stop, **more)

    return process


@pytest.mark.parametrize(
    ("error", "code"),
    [(DeadlineError("the night is over"), 0), (PreemptedError("SIGTERM: stopped"), 75)],
)
def test_a_stopped_scene_goes_on_and_comes_first(
    nights, archive, monkeypatch, error, code
):
    """At the deadline that is as it should be; the rest waits."""
    (archive / "a.tif").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(job, "carry_out", stop_in_hand(error))
        first = nights.run("--scenes-may-fail")
    assert first[0] == code == first[2]["exit_code"]
    assert states(first[2]) == {"b": "waiting", "c": "waiting"}
    nights.now += DAY

    second = nights.run()

    assert second[0] == 0
    assert [Path(it["scene"]["href"]).stem for it in second[1]] == ["c", "b"]
    assert second[1][0]["counts"]["shards_reused"] > 0
    assert states(second[2]) == {"b": "done", "c": "done"}
    assert second[2]["counts"]["done"] == 2
    # Of the one that two nights did nobody knows how fast it was.
    assert len(nights.state().speed.samples) == 1


def test_what_a_killed_night_began_is_planned_by_what_is_left(
    nights, archive, monkeypatch
):
    """And comes first, though nobody took note of it."""
    for name in "ab":
        (archive / f"{name}.tif").unlink()
    make_scene(archive / "c.tif", random_pixels(200, 190))
    with monkeypatch.context() as patch:
        patch.setattr(job, "carry_out", stop_in_hand(PreemptedError("SIGTERM")))
        nights.run()
    (nights.output / "night-state.json").unlink()
    make_scene(archive / "d.tif", random_pixels(20, 20))

    first, _ = nights.run("--plan")[2]["scenes"]

    assert (Path(first["output"]).name, first["why"]) == ("c", "begun")
    assert 0 < first["tiles"] < 9 * 8


def test_the_deadline_is_a_wish_to_stop():
    stop = Stop()

    with pytest.raises(StopSignal, match="the night is over"), deadline(stop, 0.05):
        time.sleep(20)

    assert isinstance(stop.error, DeadlineError)
    with deadline(Stop(), 0.05), Stop().patient():
        pass
    time.sleep(0.1)  # nobody rings any more


def test_no_scene_begins_that_would_not_end_in_time(nights, archive):
    """By the tiles that it has and the time that former ones took."""
    (archive / "a.tif").unlink()
    end = nights.now + timedelta(hours=8)
    nights.more = f"[night]\ndeadline = {end:%H:%M}:00"
    nights.run()
    make_scene(archive / "big.tif", random_pixels(200, 190))
    make_scene(archive / "small.tif", random_pixels(20, 30))
    state = nights.state()
    state.speed = Speed(((1, 300.0, 600.0),))  # 72 tiles take 6 h, 2 tiles 10 minutes
    nights.output.joinpath("night-state.json").write_bytes(state.as_bytes())
    nights.now += timedelta(hours=3)
    before = digest(nights.output)

    words = ["nightly", "--config", str(nights.path), "--plan"]
    result = CliRunner().invoke(main, words)
    plan = json.loads(result.stdout)
    _, first, second, *_, last = result.stderr.splitlines()[-6:]

    assert before == digest(nights.output)
    assert plan["deadline"] == end.isoformat()
    rows = {Path(row["output"]).name: row for row in plan["scenes"]}
    assert [rows["big"][key] for key in ("runs", "tiles", "seconds")] == [
        False,
        72,
        21600,
    ]
    assert [rows["small"][key] for key in ("runs", "tiles", "seconds")] == [
        True,
        2,
        600,
    ]
    assert rows["small"]["device_minutes"] == 20
    assert rows["small"]["bytes"] > 0
    told = {line.split()[1].rpartition("/")[2]: line for line in (first, second)}
    assert told["big.tif"].startswith("-")
    assert told["big.tif"].endswith("no time before the deadline")
    assert told["small.tif"].split()[2:] == ["2", "0.0", "20.0", "new"]
    assert "1 of 4 scenes, 2 tiles" in last
    nights.now = end - timedelta(minutes=9)
    code, lines, summary = nights.run()
    assert (code, lines) == (0, [])
    assert summary["counts"]["waiting"] == 2
    waiting = [row for row in summary["scenes"] if row["state"] == "waiting"]
    assert {row["error"] for row in waiting} == {"no time left before the deadline"}
    assert (
        "no time left before the deadline" in (nights.output / "night.html").read_text()
    )
    before = digest(nights.output)
    nights.now += timedelta(minutes=1)
    assert nights.run()[:2] == (0, [])
    assert before == digest(nights.output)


def test_the_file_is_what_was_said_last(nights, archive):
    """Also by a call that does nothing, where scenes came or went; then it stays."""
    end = nights.now + timedelta(hours=8)
    nights.more = f"[night]\ndeadline = {end:%H:%M}:00"
    code, _, first = nights.run()
    assert (code, first["counts"]["failed"]) == (ExitCode.REFUSED, 1)
    written = nights.output / "night.json"
    (archive / "a.tif").unlink()

    code, lines, summary = nights.run()

    assert (code, lines, states(summary)) == (0, [], {"b": "done", "c": "done"})
    assert json.loads(written.read_bytes()) == summary
    make_scene(archive / "d.tif", random_pixels(20, 20))
    nights.now += timedelta(hours=8)  # too late for it
    assert states(nights.run()[2])["d"] == "waiting"
    before = digest(nights.output)
    _, _, summary = nights.run()
    assert before == digest(nights.output)
    assert json.loads(written.read_bytes()) == summary


def test_without_a_nights_file_it_is_too(nights, archive):
    for name in "bc":
        (archive / f"{name}.tif").unlink()
    words = ["nightly", "--scenes", archive, "--output", nights.output]

    result = CliRunner().invoke(main, [str(word) for word in words])

    summary = json.loads(result.stdout.splitlines()[-1])
    assert json.loads((nights.output / "night.json").read_bytes()) == summary
    assert summary["seconds"] > 0


def test_plan_and_bill_are_in_one_measure(nights, archive):
    """Device time is that of `spent`, everywhere; workers' time has its own name."""
    (archive / "a.tif").unlink()
    _, lines, summary = nights.run()
    took = {it["name"]: it["device_minutes"] for it in summary["scenes"]}

    spent = {
        Path(it["scene"]["href"]).stem: it["spent"]["device_seconds"] for it in lines
    }
    assert took == {name: pytest.approx(s / 60) for name, s in spent.items()}
    billed = summary["spent"]["device_seconds"] / 60
    assert summary["device_minutes"] == pytest.approx(billed)
    assert summary["worker_minutes"] == pytest.approx(
        sum(it["seconds"]["total"] * it["engine"]["workers"] / 60 for it in lines)
    )
    samples = nights.state().speed.samples
    assert [it[2] for it in samples] == list(spent.values())


def test_tiles_without_a_valid_pixel_count_in_plan_and_sample_alike(nights):
    """Else scenes with much nodata would seem to take many times as long."""
    pixels = random_pixels(200, 190)
    pixels[:, :, 40:] = 0
    make_scene(nights.folder / "scenes/edge.tif", pixels)
    planned = nights.run("--plan")[2]["tiles"]

    _, (record,), summary = nights.run()

    assert record["counts"]["tiles_skipped"] > record["counts"]["tiles"]
    (sample,) = nights.state().speed.samples
    assert sample[0] == planned == summary["tiles"]


def test_a_scene_that_never_opened_has_made_nothing(nights, archive):
    for name in "bc":
        (archive / f"{name}.tif").unlink()

    _, _, told = nights.run()

    (row,) = told["scenes"]
    keys = ("seconds", "tiles", "bytes", "device_minutes", "worker_minutes")
    assert (row["state"], {row[key] for key in keys}) == ("failed", {None})
    assert set(told["spent"].values()) == {None}


def test_what_a_night_took_is_that_of_all_its_attempts(nights, archive, monkeypatch):
    """Stopped, gone on with, changed, retried; the next night begins anew."""
    for name in "ab":
        (archive / f"{name}.tif").unlink()
    nights._job += "\nprice = 3600.0\nwatts = 3.6e6"
    with monkeypatch.context() as patch:
        patch.setattr(job, "carry_out", stop_in_hand(PreemptedError("SIGTERM")))
        tries = [nights.run()]
    tries.append(nights.run())
    make_scene(archive / "c.tif", random_pixels(60, 51, seed=5))
    tries.append(nights.run())
    make_scene(archive / "c.tif", random_pixels(60, 51, seed=6))
    tries.append(nights.run("--retry", "c"))
    state = json.loads((nights.output / "night-state.json").read_bytes())

    def sums(tries):
        records = [line for _, lines, _ in tries for line in lines]
        held = sum(it["spent"]["device_seconds"] for it in records)
        total = sum(it["seconds"]["total"] for it in records)
        return {
            "spent": pytest.approx(
                dict.fromkeys(("device_seconds", "kwh", "cost"), held)
            ),
            "tiles": sum(it["spent"]["tiles"] for it in records),
            "device_minutes": pytest.approx(held / 60),
            "worker_minutes": pytest.approx(total / 60),
        }

    for end in range(1, 5):
        (_, lines, told), expected = tries[end - 1], sums(tries[:end])
        assert len(lines) == 1
        assert {key: told[key] for key in expected} == expected
        assert told["scenes"][0]["tiles"] == expected["tiles"]
    assert nights.run()[2] == tries[-1][2]
    del state["forgotten"]  # as an older tileseg left it
    (nights.output / "night-state.json").write_text(json.dumps(state))
    nights.now += DAY
    make_scene(archive / "c.tif", random_pixels(60, 51, seed=7))
    anew = nights.run()
    assert {key: anew[2][key] for key in sums([anew])} == sums([anew])


def test_a_plan_tells_what_cannot_be_opened(nights, archive):
    """In its row and its table; what is known of the others is still added up."""
    (archive / "empty.tif").touch()
    whole = (archive / "b.tif").read_bytes()
    (archive / "short.tif").write_bytes(whole[: len(whole) // 2])
    before = snapshot(nights.folder)

    result = CliRunner().invoke(
        main, ["nightly", "--config", str(nights.path), "--plan"]
    )

    plan = json.loads(result.stdout)
    rows = {Path(row["output"]).name: row for row in plan["scenes"]}
    (nights.folder / "nightly.toml").unlink()
    assert before == snapshot(nights.folder)
    assert result.exit_code == 0
    for name in ("a", "empty", "short"):
        assert f"{name}.tif: " in rows[name]["error"]
        assert rows[name]["error"] in result.stderr
        assert rows[name]["device_minutes"] is None
    good = [rows[name] for name in "bc"]
    assert [row["error"] for row in good] == [None, None]
    assert plan["device_minutes"] == sum(row["device_minutes"] for row in good) > 0


def test_an_error_calls_a_scene_as_the_source_does(nights, monkeypatch):
    """Not by where it lies on this machine."""
    monkeypatch.chdir(nights.folder)
    nights.source = 'scenes = "scenes"'
    make_scene(Path("scenes/bad.tif"), random_pixels(60, 51))
    Path("scenes/bad.tif").write_bytes(Path("scenes/bad.tif").read_bytes()[:3000])

    for row in (nights.run("--plan")[2], nights.run()[2]):
        (told,) = row["scenes"]
        assert told["scene"] == "scenes/bad.tif"
        assert told["error"].startswith("scenes/bad.tif: cannot be read as a GeoTIFF")


def test_a_first_plan_measures_a_few_tiles_and_later_ones_do_not(nights, archive):
    """Where a night told how long devices take, that counts; of nothing nobody asks."""
    (archive / "a.tif").unlink()
    first = nights.run("--plan")[2]
    assert first["device_minutes_from"] == "tiles"
    assert all(row["device_minutes"] > 0 for row in first["scenes"])
    nights.run()
    make_scene(archive / "d.tif", random_pixels(33, 40, seed=3))

    later = nights.run("--plan")[2]

    assert later["device_minutes_from"] == "scenes"
    tiles, speed = later["tiles"], nights.state().speed
    assert later["device_minutes"] == pytest.approx(speed.device_seconds(tiles) / 60)
    nights.source = f'scenes = "{nights.folder / "maps"}"'
    nights.output = nights.folder / "none"
    empty = nights.run("--plan")[2]
    assert (empty["device_minutes"], empty["device_minutes_from"]) == (0, None)


def test_what_is_parked_costs_nothing_until_it_is_released(nights):
    """Its next try computes nothing, says the plan; who lets it go makes nothing."""
    make_scene(nights.folder / "scenes/one.tif", random_pixels(60, 51))
    nights._job += "\ngates = {nodata = 0.0}"
    assert states(nights.run()[2]) == {"one": "parked"}
    nights.now += DAY

    plan = nights.run("--plan")[2]

    (row,) = plan["scenes"]
    assert (row["why"], row["runs"], plan["device_minutes"]) == ("judged", True, 0)
    assert (row["tiles"], row["bytes"]) == (0, 0)
    summary = nights.run()[2]
    assert (states(summary), summary["tiles"]) == ({"one": "parked"}, 0)
    words = ["release", str(nights.output / "one")]
    assert CliRunner().invoke(main, words).exit_code == 0
    summary = nights.run()[2]
    assert states(summary) == {"one": "released"}
    assert summary["counts"]["done"] == 0
    told = summary["scenes"][0]
    assert [told[key] for key in ("tiles", "bytes", "seconds")] == [None] * 3
    html = (nights.output / "night.html").read_text()
    assert "<b>1</b> released" in html
    assert "<b>0</b> made tonight" in html
    nights.now += DAY
    assert states(nights.run()[2]) == {"one": "unchanged"}


def test_plan_and_retry_know_what_is_parked(nights):
    """In the night that parked it, too: no failure, and a retry only judges."""
    make_scene(nights.folder / "scenes/one.tif", random_pixels(60, 51))
    nights._job += "\ngates = {nodata = 0.0}"
    first = nights.run()[2]
    words = ["nightly", "--config", str(nights.path), "--plan"]

    told = CliRunner().invoke(main, words).stderr
    retried = nights.run("--plan", "--retry", "all")[2]
    summary = nights.run("--retry", "one")[2]

    assert "parked at a gate: tileseg release, or --retry; next try 2026-06-01" in told
    assert whys(nights.run("--plan")[2]) == {"one": "parked"}
    (row,) = retried["scenes"]
    assert (row["why"], row["tiles"], row["runs"]) == ("judged", 0, True)
    assert states(summary) == {"one": "parked"}
    assert summary["spent"] == first["spent"]
    assert summary["tiles"] == first["tiles"] > 0
    assert summary["scenes"][0]["attempts"] == 1
    nights.take_another_model()
    assert whys(nights.run("--plan", "--retry", "one")[2]) == {"one": "options"}


def test_a_night_without_results_links_no_collection(nights, archive):
    for name in "bc":
        (archive / f"{name}.tif").unlink()
    nights.run()

    html = (nights.output / "night.html").read_text()

    for link in re.findall(r'href="\./([^"]+)"', html):
        assert (nights.output / link).exists()


def test_a_link_that_leads_nowhere_is_a_scene_that_fails(nights, archive):
    """It is named, as any that cannot be read; and done when it leads somewhere."""
    for name in "abc":
        (archive / f"{name}.tif").unlink()
    (archive / "lost.tif").symlink_to(nights.folder / "away.tif")

    code, _, summary = nights.run()

    assert (code, states(summary)) == (ExitCode.INPUT, {"lost": "failed"})
    assert "lost.tif: " in summary["scenes"][0]["error"]
    make_scene(nights.folder / "away.tif", random_pixels(30, 40))
    nights.now += DAY
    assert states(nights.run()[2]) == {"lost": "done"}


def test_how_long_a_scene_takes_is_told_from_former_ones():
    """What each scene takes apart from what each tile takes; eight are remembered."""
    speed = Speed()
    assert speed.seconds(10) is None
    for tiles, seconds in ((10, 30.0), (20, 40.0), (40, 60.0)):
        spent = {"device_seconds": seconds / 2}
        whole = Outcome(state="done", tiles=tiles, seconds=seconds, spent=spent)
        speed = speed.and_of(whole)
        assert speed == speed.and_of(replace(whole, is_whole=False))
        assert speed == speed.and_of(replace(whole, state="failed"))
    assert speed.seconds(1000) == pytest.approx(1020)
    assert speed.device_seconds(1000) == pytest.approx(510)
    for _ in range(8):
        same = Outcome(state="done", tiles=5, seconds=10.0, spent=spent)
        speed = speed.and_of(same)
    assert speed.seconds(100) == 200
    assert len(speed.samples) == 8


def choice(name, why="new", tiles=None, taken=None, **known):
    entry = Entry(scene=name, mark="1", asked="1", state="", night="", **known)
    taken = taken and datetime(2026, 5, taken, tzinfo=UTC)
    made = Choice(Found(f"{name}.tif", "1", taken), {}, why, entry)
    made.__dict__["cost"] = tiles and Cost(tiles, 100)
    return made


def taken_in_time(due, seconds, per_tile=1.0):
    """Return who is begun in a night of so many seconds."""
    spent, begun = [], []
    speed = Speed(((10, 10 * per_tile, 1),)) if per_tile else Speed()
    left = lambda: seconds - sum(spent)  # noqa: E731
    for it, has_time in turns(due, lambda: speed, left, seconds):
        if has_time:
            begun.append(it.found.name)
            spent.append((it.cost.tiles if it.cost else 0) * per_tile)
    return begun


def test_time_is_filled_first_things_first():
    """What is too long for any night has what is left: it goes on the next night."""
    due = [choice(*it) for it in (("a", "new", 60), ("huge", "new", 500))]
    due += [choice("b", "new", 50), choice("c", "new", 30), choice("broken")]

    assert taken_in_time(due, 100) == ["a", "c", "broken", "huge"]
    assert taken_in_time(due, 30) == ["c"]
    assert taken_in_time(due, 0) == []
    assert taken_in_time(due, 1, per_tile=0) == [it.found.name for it in due]
    assert [ok for _, ok in turns(due, Speed, lambda: None, inf)] == [True] * 5


@pytest.mark.parametrize(
    ("night", "order"),
    [
        (Schedule(), "fbcade"),
        (Schedule(order="oldest"), "fcbaed"),
        (Schedule(order="smallest"), "fbcade"),
        (Schedule(order="name"), "fabcde"),
        (Schedule(first=("[ed]", "c")), "decfba"),
    ],
)
def test_the_order_is_the_schedules(night, order):
    """Patterns first, then what was begun, and what is made again last."""
    choices = [
        choice("a", tiles=9),
        choice("b", tiles=2, taken=20),
        choice("c", tiles=5, taken=10),
        choice("d", "changed", tiles=1, taken=31),
        choice("e", "options", tiles=3, taken=30),
        choice("f", "begun", tiles=8),
        choice("g", "given_up"),
        choice("h", "later"),
    ]

    assert "".join(it.found.name for it in ordered(choices, night)) == order


def test_two_scenes_of_one_name_are_never_one(nights):
    """The first has the results; the other fails each night, and is named itself."""
    for name in "xy":
        (nights.folder / name).mkdir()
        (nights.folder / name / "a.tif").write_text("not a raster")
    listed = nights.folder / "list.txt"
    listed.write_text("x/a.tif\ny/a.tif\n")
    nights.source = f'scenes = "{listed}"'

    code, lines, summary = nights.run()
    before = digest(nights.output)
    again = nights.run()
    plan = nights.run("--plan")[2]

    assert [line["exit_code"] for line in lines] == [ExitCode.REFUSED]
    told = [(Path(row["scene"]).parent.name, row) for row in summary["scenes"]]
    assert [(name, row["exit_code"]) for name, row in told] == [("x", 3), ("y", 2)]
    assert "another scene's results go to" in told[1][1]["error"]
    assert again == (code, [], summary)
    assert digest(nights.output) == before
    assert plan["counts"] == {"later": 1, "double": 1}
    assert [row["error"] is None for row in plan["scenes"]] == [False, True]


@pytest.fixture
def namesakes(nights):
    """List scenes by their folder, of one name; return what lists others."""

    def lists(*folders):
        text = "".join(f"{folder}/a.tif\n" for folder in folders)
        (nights.folder / "list.txt").write_text(text)

    for seed, folder in enumerate("xy"):
        (nights.folder / folder).mkdir()
        pixels = random_pixels(40, 30, seed=seed)
        make_scene(nights.folder / folder / "a.tif", pixels)
    nights.source = f'scenes = "{nights.folder / "list.txt"}"'
    lists("x", "y")
    return lists


def owners(summary):
    """Return what became of a scene, by its folder."""
    return {Path(it["scene"]).parent.name: it["state"] for it in summary["scenes"]}


def test_a_scene_that_is_gone_is_not_replaced_by_another_of_its_name(nights, namesakes):
    """Unless somebody says so; nor by one that comes first in the source."""
    assert owners(nights.run()[2]) == {"x": "done", "y": "failed"}
    before = digest(nights.output / "a")
    nights.now += DAY
    namesakes("y", "x")
    assert owners(nights.run()[2]) == {"y": "failed", "x": "unchanged"}
    namesakes("y")
    nights.now += DAY

    code, _, summary = nights.run()
    again = nights.run()
    nights.now += DAY
    later = nights.run()

    assert code == ExitCode.USAGE
    assert owners(summary) == {"y": "failed"}
    (row,) = summary["scenes"]
    assert f"holds the results of {nights.folder / 'x' / 'a.tif'};" in row["error"]
    assert again == (code, [], summary)
    assert later[:2] == (code, [])
    assert later[2]["scenes"][0]["error"] == row["error"]
    assert digest(nights.output / "a") == before
    assert owners(nights.run("--retry", "a")[2]) == {"y": "done"}
    assert digest(nights.output / "a") != before


def test_a_scene_that_lies_elsewhere_is_still_the_same(nights, namesakes):
    """By its bytes, or by size and time; then it may change as any."""
    namesakes("x")
    nights.run()
    before = digest(nights.output / "a")
    scene = (nights.folder / "x" / "a.tif").read_bytes()
    (nights.folder / "y" / "a.tif").write_bytes(scene)
    namesakes("y")
    nights.now += DAY
    assert owners(nights.run()[2]) == {"y": "unchanged"}
    assert digest(nights.output / "a") == before
    (nights.folder / "z").mkdir()
    shutil.copy2(nights.folder / "y" / "a.tif", nights.folder / "z" / "a.tif")
    namesakes("z")
    nights.now += DAY
    assert nights.run()[:2] == (0, [])
    nights.now += DAY

    make_scene(nights.folder / "z" / "a.tif", random_pixels(40, 30, seed=7))

    assert owners(nights.run()[2]) == {"z": "done"}


def test_the_page_links_and_shows_what_a_person_is_to_look_at(tmp_path):
    """What is parked lies beside what is live; a scene whose name is taken has none."""
    known = Entry(scene="x/a.tif", mark="", asked="", state="done", night="")
    known = replace(known, products=("report.html", "quicklook.png"))
    (tmp_path / "b.parked").mkdir()
    matplotlib.image.imsave(tmp_path / "b.parked/quicklook.png", np.zeros((9, 9)))
    scenes = {"a": known, "b": replace(known, scene="x/b.tif", state="parked")}
    row = dict.fromkeys(("exit_code", "error", "seconds", "tiles", "next"))
    row |= {"bytes": None, "device_minutes": None, "attempts": 0, "output": "maps"}
    rows = [
        {**row, "name": name, "scene": scene, "state": state}
        for name, scene, state in (
            ("a", "y/a.tif", "failed"),
            ("a", "x/a.tif", "done"),
            ("b", "x/b.tif", "parked"),
        )
    ]
    counts = {"scenes": 3, **dict.fromkeys(STATES, 0)}
    bill = {"device_seconds": None, "kwh": None, "cost": None}
    summary = {"night": "2026-06-01", "started": "", "seconds": 0.0, "deadline": None}
    summary["warnings"] = []
    summary |= {"exit_code": 2, "counts": counts, "tiles": 0, "bytes": 0}
    summary |= {"device_minutes": 0, "spent": bill, "scenes": rows}

    html = page(summary, Disk(tmp_path), scenes).decode()

    assert re.findall(r'href="(\./[^"]*html)"', html) == [
        "./b.parked/report.html",
        "./a/report.html",
    ]
    assert re.findall('alt="Quicklook of (.*)"', html) == ["b"]


def live(folder, request, status="complete"):
    """Return a record of what a person made live, as far as nights read it."""
    outputs = [{"path": f"{folder}/item.json"}]
    return {"request_id": request, "status": status, "outputs": outputs}


def test_the_night_links_what_a_person_made_live():
    """In a store each version has its own folder; a plain run of tonight has no say."""
    state = State(night="2026-06-01", is_told=True)
    entry = Entry(scene="a.tif", mark="", asked="", state="", night="")
    new, old = "new/item.json", "old/item.json"
    facts = {"item": new, "products": (new,), "request": "2"}
    for name, kind in (("a", "done"), ("b", "parked")):
        outcome = Outcome(state=kind, exit_code=3 * (name == "b"), **facts)
        state.add(name, entry, outcome, Schedule(retries=0))
    state.is_told = True

    assert not state.turn("c", live("new", "2"), new, is_released=False)
    assert not state.turn("a", live("new", "2"), new, is_released=False)
    assert state.is_told
    for name in "ab":
        assert state.turn(name, live("old", "1"), old, is_released=False)
    assert {it.item for it in state.scenes.values()} == {old}
    assert [it.state for it in state.scenes.values()] == ["kept", "parked"]
    assert state.scenes["b"].given_up
    assert not state.is_told
    assert state.turn("b", live("new", "2"), new, is_released=True)
    known = state.scenes["b"]
    assert (known.state, known.exit_code, known.given_up) == ("released", 0, False)


@pytest.mark.parametrize(
    ("kind", "status", "seconds"),
    [
        ("done", "complete", 9.0),
        ("unchanged", "complete", None),
        ("partial", "partial", 9.0),
    ],
)
def test_what_is_known_of_a_scene_is_of_what_is_live(kind, status, seconds):
    """However often a person switches: `kept` while another's plan is live."""
    state = State(night="2026-06-01")
    entry = Entry(scene="a.tif", mark="", asked="", state="", night="")
    code = 10 * (kind == "partial")
    made = Outcome(state=kind, request="3", exit_code=code, seconds=seconds)
    state.add("a", entry, made, Schedule(retries=0))

    for request, told in (("2", "kept"), ("1", "kept"), ("3", kind), ("1", "kept")):
        item = f"{request}/item.json"
        assert state.turn("a", live(request, request, status), item, is_released=False)
        known = state.scenes["a"]
        assert (known.state, known.given_up) == (told, False)
        assert (known.exit_code, bool(known.error)) == (
            (8, True) if told == "kept" else (code, False)
        )


def spend(nights, act):
    """Run a night as the command does; act when a scene has ended."""
    night = Tonight(read_night(str(nights.path)))
    with Staff() as staff:
        for each, _ in night.turns():
            night.add(each, run_one(each.facts, staff, Monitor(), pulse=night.save))
            act()
    night.leave()
    return night.summary()


@pytest.mark.parametrize(
    ("word", "state", "why"),
    [((), "released", "unchanged"), (("--discard",), "waiting", "new")],
)
def test_what_a_person_releases_while_a_night_runs_stays(
    nights, archive, word, state, why
):
    """The night goes on, and forgets nothing of it."""
    (archive / "a.tif").unlink()
    nights._job += "\ngates = {nodata = 0.0}"
    output, words = nights.output / "c", []

    def release():
        if not words:
            words.extend(["release", *word, str(output)])
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 0, result.stderr

    summary = spend(nights, release)

    assert states(summary) == {"b": "parked", "c": state}
    assert json.loads((nights.output / "night.json").read_bytes()) == summary
    assert whys(nights.run("--plan")[2])["c"] == why
    names = {item.name for item in nights.output.iterdir()}
    assert not any(name.startswith(".") for name in names)


@pytest.mark.slow
def test_a_rollback_while_a_night_runs_stays(nights):
    """In the Collection, too, and the next night finds all as it should be."""
    make_scene(nights.folder / "scenes/one.tif", random_pixels(60, 51))
    nights._job += "\nkeep = 1"
    nights.run()
    before = products(nights.output / "one")
    nights.take_another_model()
    nights.now += DAY
    nights.run()
    make_scene(nights.folder / "scenes/two.tif", random_pixels(45, 70, seed=1))
    nights.now += DAY

    def roll_back():
        result = CliRunner().invoke(main, ["rollback", str(nights.output / "one")])
        assert result.exit_code == 0, result.stderr

    assert states(spend(nights, roll_back)) == {"one": "kept", "two": "done"}

    assert products(nights.output / "one") == before
    told = (nights.output / "collection.json").read_bytes()
    assert len(json.loads(told)["summaries"]["tileseg:models"]) == 2
    assert nights.run()[:2] == (0, [])
    assert told == (nights.output / "collection.json").read_bytes()


@pytest.mark.usefixtures("archive")
def test_a_state_that_cannot_be_written_ends_no_night(nights, monkeypatch):
    """Each scene is done; that it cannot be told is said at the end."""
    monkeypatch.setattr(nightly_run, "_SAVE_PAUSE", 0)

    def spoil():
        state = nights.output / "night-state.json"
        if state.is_file():
            state.unlink()
            state.mkdir()

    with pytest.raises(OutputError, match=r"night-state\.json"):
        spend(nights, spoil)

    assert {"b", "c"} < {item.name for item in nights.output.iterdir()}


def test_for_what_is_not_its_fault_no_scene_is_given_up():
    """A full disk or a store that fails: again the next night, however often."""
    state, entry = State(), choice("a").known
    for night in range(20):
        state.begin(FIRST + night * DAY)
        outcome = Outcome(state="failed", exit_code=ExitCode.STORAGE, error="no")
        entry = state.add("a", entry, outcome, Schedule(retries=0))
        assert entry.next == night_of(FIRST + (night + 1) * DAY)
        assert not entry.given_up
    assert state.add(
        "a", entry, replace(outcome, exit_code=ExitCode.INPUT), Schedule(retries=0)
    ).given_up


def test_the_series_reads_only_what_is_new(nights, archive):
    """And is, byte by byte, what reading every Item gives."""
    nights.run()
    make_scene(archive / "d.tif", random_pixels(33, 40, seed=3))
    nights.now += DAY
    asked = []

    class Counting(Disk):
        def read(self, name):
            asked.append(name)
            return super().read(name)

    storage, state = Counting(nights.output), nights.state()
    items = dict.fromkeys("bc", "item.json")
    update(storage, "maps", items, state.series)
    assert asked == ["collection.json"]

    nights.run()
    told = (nights.output / "collection.json").read_bytes()
    (nights.output / "collection.json").unlink()
    update(Disk(nights.output), "maps", dict.fromkeys("bcd", "item.json"))
    assert told == (nights.output / "collection.json").read_bytes()
    assert len(json.loads(told)["links"]) == 3


def test_metrics_say_how_long_the_night_took(nights, monkeypatch):
    """This run of it, too."""
    (nights.folder / "scenes/a.tif").write_text("not a raster")
    ticks = (FIRST + timedelta(seconds=at) for at in count())
    monkeypatch.setattr(nightly_run, "_now", lambda: next(ticks))

    _, _, summary = nights.run("--metrics", nights.folder / "night.prom")

    lines = (nights.folder / "night.prom").read_text().splitlines()
    [line] = [it for it in lines if it.startswith("tileseg_night_seconds")]
    assert float(line.split()[-1]) == summary["seconds"] > 0


@pytest.mark.usefixtures("archive")
def test_metrics_are_told_while_there_is_a_port(nights, monkeypatch):
    """Ray's ends with the engine."""
    told = []
    for owner, name in ((Monitor, "sum_up"), (Staff, "__exit__")):
        real = getattr(owner, name)

        def note(*args, real=real, name=name):
            told.append(name)
            return real(*args)

        monkeypatch.setattr(owner, name, note)

    nights.run()

    assert told == ["sum_up", "__exit__"]


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("other", [[], ["--work", "elsewhere"], ["--output", "else"]])
def test_one_night_at_a_time(nights, other, monkeypatch):
    """At one output, or with one place for work; and then nothing of it stays."""
    monkeypatch.chdir(nights.folder)
    file = read_night(str(nights.path))

    with hold_night(file):
        words = ["nightly", "--config", str(nights.path), *other]
        result = CliRunner().invoke(main, words)

    assert result.exit_code == ExitCode.BUSY
    names = {item.name for item in nights.folder.iterdir()}
    assert names == {"nightly.toml", "scenes"}


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"version": 1}'])
def test_a_state_that_cannot_be_read_is_said(nights, text):
    nights.output.mkdir()
    (nights.output / "night-state.json").write_text(text)

    result = CliRunner().invoke(main, ["nightly", "--config", str(nights.path)])

    assert result.exit_code == ExitCode.OUTPUT
    assert "night-state.json: " in result.stderr


def test_options_that_are_no_nights(nights, archive):
    """--scenes is as it was; a night's file needs to be one."""
    for words, said in (
        (["--scenes", archive, "--plan"], "are for a night's file"),
        (["--scenes", archive, "--scenes-may-fail"], "are for a night's file"),
        ([], "give --scenes, or a night's file"),
        (["--config", nights.path, "--dry-run"], "give --plan"),
        (["--config", nights.folder / "none.toml"], "cannot be read as TOML"),
    ):
        result = CliRunner().invoke(main, ["nightly", *map(str, words)])
        assert result.exit_code == ExitCode.USAGE, result.stderr
        assert said in result.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with stac_api.serve(tmp_path_factory.mktemp("api")) as site:
        yield site


def test_nights_of_a_stac_api(nights, server, monkeypatch):
    """Items are read again when their turn comes, so signed hrefs are fresh."""
    monkeypatch.setattr(address, "_allowed", set())
    server.be(sign=True)
    files = server.folder / "files"
    for at, name in enumerate(("one.v1", "two"), start=1):
        facts = {"crs": "EPSG:32631", "nodata": 0}
        make_plain(files / f"{name}.tif", random_pixels(40 + at, 50, seed=at), **facts)
        server.put(name, day=f"2026-05-2{at}")
    server.put("cloudy", day="2026-05-22", clouds=90)
    server.put("late", day="2026-05-30")
    nights.source = (
        f'stac = "{server.address}/v1"\ncollections = ["s2"]\nsince = "30 days"\n'
        "cloud_cover = 50"
    )
    nights._job += f'\nhosts = ["{server.host}"]\nscale = 0.0001'
    nights.more = f'[night]\nwebhook = "{server.address}/hook"'

    code, lines, summary = nights.run()

    assert states(summary) == {"late": "failed", "one.v1": "done", "two": "done"}
    assert code == ExitCode.INPUT
    assert "sig=" not in json.dumps([lines, summary])
    state = (nights.output / "night-state.json").read_text()
    assert "sig=" not in state
    item = json.loads((nights.output / "one.v1" / "item.json").read_text())
    origin = next(it for it in item["links"] if it["rel"] == "derived_from")
    assert origin["href"] == f"{server.address}/v1/collections/s2/items/one.v1"
    hooks = [it for it in server.log() if it["path"] == "/hook"]
    assert json.loads(hooks[0]["body"])["night"]["counts"]["failed"] == 1
    (nights.output / "night.html").unlink()
    (nights.output / "night.html").mkdir()
    nights.now += DAY
    words = ["nightly", "--config", str(nights.path)]
    assert "night.html: cannot be written" in CliRunner().invoke(main, words).stderr
    assert len([it for it in server.log() if it["path"] == "/hook"]) == 2
    (nights.folder / "work").rename(nights.folder / "aside")
    (nights.folder / "work").write_text("in the way")
    assert CliRunner().invoke(main, words).exit_code == ExitCode.OUTPUT
    told = json.loads(server.log()[-1]["body"])
    assert "work/.night" in told["text"]
    (nights.folder / "work").unlink()
    nights.source = f'stac = "{server.address}/gone"'
    words = ["nightly", "--config", str(nights.path)]
    assert CliRunner().invoke(main, words).exit_code == ExitCode.INPUT
    told = json.loads(server.log()[-1]["body"])
    assert told["text"].startswith("tileseg: the night did not begin: http://127.0.0.1")
    assert faults(told["night"], "night") == []
    assert (told["night"]["exit_code"], told["night"]["scenes"]) == (ExitCode.INPUT, [])
    scene = make_scene(nights.folder / "one.tif", random_pixels(41, 50, seed=1))
    nights.source = f'scenes = "{scene}"'
    before, nights.output = nights.output, nights.folder / "plain"
    nights.run()
    assert (
        read(nights.output / "one/mask.tif") == read(before / "one.v1/mask.tif")
    ).all()


LATER = """
import sys, time
from tileseg import job
from tileseg.cli import main
real = job.carry_out
def process(task, ledger, staff, record, progress, **more):
    def slow(done, total):
        progress(done, total)
        time.sleep(0.3)
    return real(task, ledger, staff, record, slow, **more)
job.carry_out = process
main(sys.argv[1:])
"""
"""A night whose scenes take a while, and say how far they are."""


def start(nights):
    """Start a night as a process of its own."""
    words = ["nightly", "--config", nights.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", LATER, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_next_scene_of_the_nights_order_is_hashed_ahead(nights, archive, hashed):
    (archive / "a.tif").unlink()

    nights.run()

    assert hashed == ["c.tif in turn", "b.tif ahead"]


@pytest.mark.slow
def test_a_stop_waits_for_nobody_who_hashes_the_next_scene(nights, archive):
    for name in "ac":
        (archive / f"{name}.tif").unlink()
    make_scene(archive / "b.tif", random_pixels(290, 270))
    with (archive / "huge.tif").open("wb") as file:
        file.truncate(1 << 38)  # minutes of hashing, and no room
    os.utime(archive / "huge.tif", (1, 1))
    nights._job += "\ngrace = 1"
    with start(nights) as process:
        wait_for(lambda: str(archive / "huge.tif") in files_of(process.pid))
        process.terminate()
        output, errors = process.communicate(timeout=60)

    assert process.returncode == 75, errors
    assert states(json.loads(output.splitlines()[-1])) == {
        "b": "waiting",
        "huge": "waiting",
    }
    assert not (nights.folder / "work" / "huge").exists()


@pytest.mark.usefixtures("archive")
def test_a_night_that_is_killed_forgets_no_scene_that_ended(nights, monkeypatch):
    """However short they were; where saving takes long it is done less often."""
    monkeypatch.setattr(nightly_run, "_SAVE_PAUSE", 0)
    monkeypatch.setattr(Tonight, "leave", lambda _: False)  # so far it does not come

    nights.run()

    told = {name: entry.state for name, entry in nights.state().scenes.items()}
    assert told == {"a": "failed", "b": "done", "c": "done"}


@pytest.mark.slow
def test_a_killed_night_goes_on_and_says_all_of_it(nights, archive):
    """What was done before is in the summary; nobody waits for the dead one's lock."""
    nights.now = datetime.now(UTC)
    (archive / "a.tif").unlink()
    make_scene(archive / "b.tif", random_pixels(290, 270))
    os.utime(archive / "b.tif", (1, 1))
    with start(nights) as process:
        journal = nights.folder / "work" / "b"
        wait_for(lambda: any(journal.glob("*/receipts.jsonl")))
        process.kill()
    assert (nights.output / "c" / "run.json").exists()
    assert not (nights.output / "night.json").exists()
    rows = {Path(it["output"]).name: it for it in nights.run("--plan")[2]["scenes"]}
    assert rows["b"]["why"] == "begun"
    assert 0 < rows["b"]["tiles"] < 13 * 12

    code, lines, summary = nights.run()

    assert code == 0
    assert [Path(it["scene"]["href"]).stem for it in lines] == ["b"]
    assert lines[0]["counts"]["shards_reused"] > 0
    assert states(summary) == {"b": "done", "c": "done"}
    links = json.loads((nights.output / "collection.json").read_text())["links"]
    assert len(links) == 2
    before = digest(nights.output)
    assert nights.run()[2] == summary
    assert before == digest(nights.output)


@pytest.mark.slow
def test_the_scene_in_hand_is_stopped_at_the_deadline(nights, archive):
    """And the night has gone well; the next one goes on."""
    nights.now = datetime.now(UTC)
    for name in "abc":
        (archive / f"{name}.tif").unlink()
    make_scene(archive / "long.tif", random_pixels(900, 870))
    nights._job += "\ngrace = 1"
    state = State()
    state.begin(nights.now)
    nights.output.mkdir()
    nights.output.joinpath("night-state.json").write_bytes(state.as_bytes())
    nights.more = "[night]\nhours = 0.005"  # 18 s from when it began: now

    with start(nights) as process:
        output, errors = process.communicate(timeout=200)

    assert process.returncode == 0, errors
    *_, summary = map(json.loads, output.splitlines())
    assert states(summary) == {"long": "waiting"}
    assert summary["exit_code"] == 0
    assert "the night is over" in summary["scenes"][0]["error"]


def products(folder):
    """Return what a result is, but for its record, which says who made it live."""
    found = snapshot(folder)
    del found["run.json"]
    return found


@pytest.mark.slow
def test_what_a_person_rolled_back_stays_and_the_collection_follows(nights):
    """No night makes it again; the Collection is that of Items that are live."""
    make_scene(nights.folder / "scenes/one.tif", random_pixels(60, 51))
    make_scene(nights.folder / "scenes/two.tif", random_pixels(45, 70, seed=1))
    nights._job += "\nkeep = 1"
    nights.run()
    before = products(nights.output / "one")
    nights.take_another_model()
    nights.now += DAY
    nights.run()
    words = ["rollback", str(nights.output / "one")]
    for tonight, known in (("kept", "kept"), ("done", "unchanged"), ("kept", "kept")):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.stderr
        assert whys(nights.run("--plan")[2])["one"] == known
        assert states(nights.run()[2])["one"] == tonight

    nights.now += DAY
    code, lines, summary = nights.run("--retry", "one")

    assert (code, [it["exit_code"] for it in lines]) == (0, [8])
    nights.now += DAY
    assert whys(nights.run("--plan")[2]) == {"one": "kept", "two": "unchanged"}
    code, lines, summary = nights.run()
    assert (code, lines) == (0, [])
    assert states(summary) == {"one": "kept", "two": "unchanged"}
    assert products(nights.output / "one") == before
    told = (nights.output / "collection.json").read_bytes()
    (nights.output / "collection.json").unlink()
    update(Disk(nights.output), "maps", dict.fromkeys(["one", "two"], "item.json"))
    assert told == (nights.output / "collection.json").read_bytes()
    assert len(json.loads(told)["summaries"]["tileseg:models"]) == 2


@pytest.mark.slow
def test_a_result_that_a_gate_parks_is_judged_again_and_then_waits(nights):
    """The one before stays live, and in the Collection; nothing is computed twice."""
    make_scene(nights.folder / "scenes/one.tif", random_pixels(60, 51))
    nights.run()
    live, told = (
        snapshot(nights.output / "one"),
        (nights.output / "collection.json").read_bytes(),
    )
    cloudy = random_pixels(60, 51, nodata=0.8)
    make_scene(nights.folder / "scenes/one.tif", cloudy)
    nights._job += "\ngates = {nodata = 0.3}"
    tried = []
    for _ in range(9):
        nights.now += DAY
        _, lines, summary = nights.run()
        tried += [line["seconds"]["work"] for line in lines]
        assert states(summary)["one"] == "parked"
        assert snapshot(nights.output / "one") == live
    assert (nights.output / "one.parked/mask.tif").exists()
    assert len(tried) == 4, "the retries"
    assert states(summary) == {"one": "parked"}
    assert nights.run("--plan")[2]["counts"] == {"parked": 1}
    assert (nights.output / "collection.json").read_bytes() == told

    output = str(nights.output / "one")
    before = (nights.output / "night-state.json").read_bytes()
    shutil.copytree(f"{output}.parked", nights.folder / "parked")
    assert CliRunner().invoke(main, ["release", "--discard", output]).exit_code == 0
    assert whys(nights.run("--plan")[2]) == {"one": "new"}
    (nights.folder / "parked").rename(f"{output}.parked")
    (nights.output / "night-state.json").write_bytes(before)

    result = CliRunner().invoke(main, ["release", output])
    assert result.exit_code == 0, result.stderr
    code, lines, summary = nights.run()
    assert (code, lines, states(summary)) == (0, [], {"one": "unchanged"})
    assert json.loads((nights.output / "night.json").read_bytes()) == summary
