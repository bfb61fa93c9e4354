"""What limited a run is said, and is what limited it."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from subprocess import Popen

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from making import make_model, make_scene, random_pixels

from tileseg.base.memory import waited_seconds
from tileseg.cli import main
from tileseg.engines.maker import Maker
from tileseg.job import run
from tileseg.network.model import Network
from tileseg.scenes.reader import Reader
from tileseg.settings import Job
from tileseg.steps.verdict import ENDS, STAGES, Spent, Verdict, judge

SECONDS = st.floats(0, 1e6)
LIMITS = {"start", *STAGES, "idle", *ENDS, "publish"}


@st.composite
def spents(draw):
    """Seconds that fit each other: parts of a whole, stages within their phase."""
    workers = draw(st.integers(1, 100))
    start, work, *ends, rest = (draw(SECONDS) for _ in range(len(ENDS) + 3))
    shares = {name: draw(st.floats(0, 1)) for name in ("load", *STAGES)}
    return Spent(
        total=start + work + sum(ends) + rest,
        work=work,
        finish=sum(ends) + rest,
        workers=workers,
        stages={name: share * work * workers for name, share in shares.items()},
        ends=dict(zip(ENDS, ends, strict=True)),
        **{name: draw(st.booleans()) for name in
           ("is_gpu", "is_remote", "is_striped", "has_polygons")},
    )  # fmt: skip


@given(spents())
def test_any_seconds_have_a_verdict(spent):
    """One of the known limits, shares within 0 to 1, one sentence on one line."""
    verdict = judge(spent)

    if not spent.total:
        assert verdict == Verdict()
        return
    assert verdict.limit in LIMITS
    assert sum(verdict.phases.values()) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in verdict.phases.values())
    assert all(share is None or 0 <= share <= 1 for share in verdict.busy.values())
    assert len(verdict.advice.splitlines()) == 1
    if verdict.limit in STAGES:
        assert verdict.busy[verdict.limit] == max(verdict.busy.values())


@given(st.sampled_from(STAGES), st.floats(0.5, 1), st.integers(1, 9))
def test_the_busiest_stage_is_named(stage, busy, workers):
    """Its share is that of one worker, however many there are."""
    stages = dict.fromkeys(STAGES, 0.2 * 10 * workers)
    stages[stage] = busy * 10 * workers

    verdict = judge(Spent(total=11, work=10, workers=workers, stages=stages))

    assert stage == verdict.limit
    assert verdict.busy[stage] == pytest.approx(busy)


def test_loading_the_network_is_part_of_the_start():
    stages = {"load": 8.0, "forward": 2.0}

    verdict = judge(Spent(total=10, work=10, stages=stages))

    assert verdict.limit == "start"
    assert verdict.busy["forward"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("limit", "traits", "says"),
    [
        ("read", {}, "ZSTD"),
        ("read", {"is_striped": True}, "in tiles"),
        ("read", {"is_remote": True}, "local disk"),
        ("forward", {}, "a GPU shortens it"),
        ("forward", {"is_gpu": True}, "more GPUs"),
        ("forward", {"forwards": 16}, "each tile is forwarded 16 times"),
        ("write", {}, "--work"),
        ("write", {"has_polygons": True}, "polygons are made there"),
    ],
)
def test_the_advice_is_about_this_run(limit, traits, says):
    spent = Spent(total=10, work=9, stages={limit: 8.0}, **traits)

    verdict = judge(spent)

    assert limit == verdict.limit
    assert says in verdict.advice


def test_no_codec_is_proposed_that_is_there(ready, tmp_path, monkeypatch):
    slow(monkeypatch, Reader, "_read", sleep(1.2))
    scene = tmp_path / "scene.tif"
    says = {}
    for codec in ("zstd", "lzw"):
        make_scene(scene, random_pixels(270, 350, seed=1), compress=codec)
        values = judged(
            {**ready, "input": str(scene)}, tmp_path / codec, run_shards=(1, 4)
        )
        says[codec] = values["verdict"]["advice"]

    assert all("a faster disk" in it for it in says.values())
    assert {codec: "ZSTD" in it for codec, it in says.items()} == {
        "zstd": False,
        "lzw": True,
    }


def test_who_does_several_scenes_already_is_not_told_to():
    spent = Spent(total=10, work=1)

    assert "several scenes to one command" in judge(spent).advice
    shared = judge(replace(spent, is_shared=True))
    assert shared.limit == "start"
    assert "several" not in shared.advice


def test_a_scene_that_came_again_is_not_told_of_libraries():
    spent = Spent(total=10, work=1, compare=5)

    verdict = judge(spent)

    assert verdict.limit == "start"
    assert "comparing" in verdict.advice
    assert "libraries" in judge(replace(spent, compare=4)).advice


def test_a_start_is_told_by_what_it_was():
    """The plan's libraries, network and check; or none of ours, but other programs."""
    said = {
        who: judge(Spent(total=10, work=1, plan=5, waited=seconds)).advice
        for who, seconds in (("ours", 2), ("others", 4))
    }

    assert "checking its numbers" in said["ours"]
    assert "checking" not in judge(Spent(total=10, work=1, plan=4)).advice
    assert "other programs" in said["others"]
    assert "libraries" not in said["others"]


def test_waiting_for_a_core_is_told_from_sleeping():
    """Of two programs that want the same core, each waits half of the time."""
    if not Path("/proc/thread-self/schedstat").exists():
        pytest.skip("needs a kernel that says so")

    def beside_another():
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread
        with Popen([sys.executable, "-c", "while True: pass"]) as other:
            waits = [waited(lambda: time.sleep(0.5)), waited(work)]
            other.kill()
        return waits

    def waited(what):
        before = waited_seconds()
        what()
        return waited_seconds() - before

    def work():
        end = time.monotonic() + 1
        while time.monotonic() < end:
            pass

    with ThreadPoolExecutor(1) as pool:
        asleep, at_work = pool.submit(beside_another).result()

    assert asleep < 0.2 < at_work


def test_one_worker_that_is_idle_is_not_told_to_be_fewer():
    verdict = judge(Spent(total=11, work=10, stages={"read": 2.0}))

    assert verdict.limit == "idle"
    assert "fewer" not in verdict.advice


def test_workers_with_nothing_to_do_are_idle():
    stages = {"read": 3.0, "forward": 6.0, "write": 1.0}

    verdict = judge(Spent(total=11, work=10, workers=8, stages=stages))

    assert verdict.limit == "idle"
    assert "fewer" in verdict.advice


# Stages that are slow on purpose: nobody else's speed can outweigh it


def sleep(seconds):
    """Return something to be done before a function's own work."""
    return lambda: time.sleep(seconds)


def slow(monkeypatch, owner, name, before):
    """Do something before each call of a function of tileseg."""
    function = getattr(owner, name)

    def slowly(*args, **kwargs):
        before()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, slowly)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A scene of 3 x 4 shards and a model; torch and GDAL have been loaded."""
    folder = tmp_path_factory.mktemp("verdict")
    scene = make_scene(folder / "scene.tif", random_pixels(270, 350, seed=1))
    model = make_model(folder / "model")
    facts = {"input": str(scene), "model": str(model), "shard": 96, "trusted": True}
    # Where there is bf16, the check of it at the start would be as slow.
    facts["precision"] = "fp32"
    judged(facts, folder)
    return facts


def judged(facts, tmp_path, **options):
    record = run(Job(**facts, output=str(tmp_path / "out"), **options))

    assert record.error is None
    return record.values


@pytest.mark.parametrize(
    ("stage", "owner", "name", "seconds"),
    [
        ("read", Reader, "_read", 1.2),  # of three runs
        ("forward", Network, "__call__", 0.5),  # of 12 batches, two at a time
        ("write", Maker, "_write_layer", 0.3),  # of 12 shards
    ],
)
def test_a_stage_that_is_slow_is_what_limits(
    stage, owner, name, seconds, ready, tmp_path, monkeypatch
):
    slow(monkeypatch, owner, name, sleep(seconds))

    values = judged(ready, tmp_path, run_shards=(1, 4))

    verdict, spent = values["verdict"], values["seconds"]
    assert stage == verdict["limit"], verdict
    assert verdict["busy"][stage] > 0.5
    assert max(verdict["phases"].values()) == verdict["phases"]["work"]
    if stage == "write":  # more shards wait for it than may
        assert spent["hold"] > 0.3 * spent["write"]


def test_looking_for_what_changed_is_what_limits(ready, tmp_path, monkeypatch):
    """A scene whose bytes are others and whose pixels are not: no network is asked."""
    scene = make_scene(tmp_path / "scene.tif", random_pixels(270, 350, seed=1))
    facts = {**ready, "input": str(scene), "incremental": True}
    judged(facts, tmp_path)
    make_scene(scene, random_pixels(270, 350, seed=1), compress="lzw")
    slow(monkeypatch, Reader, "_read", sleep(2))

    values = judged(facts, tmp_path)

    assert values["counts"]["shards_unchanged"] == 12
    assert values["verdict"]["limit"] == "start"
    assert "comparing" in values["verdict"]["advice"]


def test_of_several_workers_the_share_is_that_of_one(ready, tmp_path, monkeypatch):
    slow(monkeypatch, Network, "__call__", sleep(0.8))

    values = judged(ready, tmp_path, workers=2, run_shards=(1, 1))

    assert 0.5 < values["verdict"]["busy"]["forward"] <= 1
    assert values["seconds"]["forward"] > values["seconds"]["work"]


@pytest.mark.parametrize(
    ("limit", "owner", "name"),
    [
        ("start", "tileseg.engines.worker:Recipe", "network"),
        pytest.param("start", "tileseg.job", "prepare", marks=pytest.mark.slow),
        pytest.param(
            "stitch", "tileseg.outputs.stitch", "stitch", marks=pytest.mark.slow
        ),
        pytest.param(
            "verify", "tileseg.outputs.verify", "verify_mask", marks=pytest.mark.slow
        ),
        pytest.param(
            "publish", "tileseg.outputs.overlay", "overlays", marks=pytest.mark.slow
        ),
    ],
)
def test_what_is_slow_before_and_after_is_what_limits(
    limit, owner, name, ready, tmp_path, monkeypatch
):
    slow(monkeypatch, resolve_name(owner), name, sleep(4))

    verdict = judged(ready, tmp_path)["verdict"]

    assert limit == verdict["limit"], verdict


@pytest.mark.parametrize(
    ("verb", "inputs", "is_shared"),
    [
        ("segment", ["--input", "a.tif"], False),
        ("segment", ["--input", "a.tif", "--input", "b.tif"], True),
        ("nightly", ["--scenes", "a.tif"], True),
    ],
)
def test_the_command_knows_whether_it_does_several(
    verb, inputs, is_shared, ready, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.tif", "b.tif"):
        make_scene(tmp_path / name, random_pixels(40, 40))
    slow(monkeypatch, resolve_name("tileseg.job"), "prepare", sleep(4))
    words = [*inputs, "--model", ready["model"], "--precision", "fp32"]

    result = CliRunner().invoke(main, [verb, *words, "--output", "out"])

    assert result.exit_code == 0, result.stderr
    advice = json.loads(result.stdout.splitlines()[0])["verdict"]["advice"]
    assert advice.startswith("starting took")
    assert is_shared is ("several scenes" not in advice)


def test_what_is_there_already_is_not_judged_again(ready, tmp_path):
    """The second run repeats what is said in the record."""
    first, second = judged(ready, tmp_path), judged(ready, tmp_path)

    assert first == second
    assert first["verdict"]["advice"]


def test_a_failed_run_has_no_verdict(ready, tmp_path):
    record = run(Job(**{**ready, "input": "no.tif"}, output=str(tmp_path / "out")))

    assert record.values["verdict"]["limit"] is None
    assert set(STAGES) == set(record.values["verdict"]["busy"])
