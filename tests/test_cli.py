"""What people script against: options, exit codes, one line of JSON per scene."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from making import digests, make_model, make_scene, random_pixels, snapshot
from rasterio.rio.main import main_group as rio

from tileseg.base.builtin import default_model
from tileseg.cli import main

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent

# run.json as the contract has it: these keys are always there.
KEYS = {
    "": "status exit_code error job request_id plan_id started seconds scene model "
    "grid engine counts pixels hectares seams rates decode precision_check memory "
    "spent verdict failures outputs",
    "seconds": "total open plan work load read wait forward hold write stitch verify "
    "vectorize compare",
    "scene": "href width height bands dtype crs transform nodata sha256",
    "model": "name version sha256 classes",
    "grid": "tile halo stride shard blend",
    "engine": "kind workers devices precision batch_size",
    "counts": "shards shards_done shards_skipped tiles tiles_skipped shards_reused "
    "shards_unchanged shards_failed retries worker_restarts",
    "pixels": "total nodata by_class",
    "seams": "border inside ratio",
    "rates": "mpx_s tiles_s forward_tiles_s end_to_end_ratio",
    "decode": "source_pixels decoded_pixels",
    "precision_check": "tiles agreement",
    "memory": "peak_rss_mb above_mb device_mb",
    "spent": "device_seconds kwh kwh_from cost tiles decoded_pixels seconds",
    "verdict": "limit busy phases advice",
}


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path / "scene.tif", random_pixels(130, 171))


@pytest.fixture
def options(scene, model_path, tmp_path):
    """The options of a job that ends well."""
    return {"--input": scene, "--model": model_path, "--output": tmp_path / "out"}


def words(options, *more):
    """Return options as words of a command line."""
    return [
        str(word) for word in (*(w for pair in options.items() for w in pair), *more)
    ]


def call(*arguments):
    """Run `tileseg segment` in this process."""
    return CliRunner().invoke(main, ["segment", *map(str, arguments)])


def assert_one_error_line(result, text):
    """One line on stderr says what is wrong, and nothing says where in the code."""
    lines = [line for line in result.stderr.splitlines() if line[:8] == "tileseg:"]

    assert len(lines) == 1, result.stderr
    assert text in lines[0]
    assert "Traceback" not in result.stderr + result.stdout


def assert_has_all_keys(values):
    for group, names in KEYS.items():
        assert set(names.split()) <= set(values[group] if group else values), group


# Failures: functions of (options, tmp_path) that give the words of the command line
# and a text that the error line must hold.


def directory(options, tmp_path):
    (tmp_path / "folder.tif").mkdir()
    return words(options | {"--input": tmp_path / "folder.tif"}), "folder.tif"


def content(data):
    """Make a case of a file that holds `data`."""

    def case(options, tmp_path):
        (tmp_path / "odd.tif").write_bytes(data)
        return words(options | {"--input": tmp_path / "odd.tif"}), "odd.tif"

    return case


def raster(says, *, bands=3, dtype="uint16", **profile):
    """Make a case of a scene that lacks something."""

    def case(options, tmp_path):
        pixels = random_pixels(60, 70, bands=bands, dtype=dtype)
        make_scene(tmp_path / "odd.tif", pixels, **profile)
        return words(options | {"--input": tmp_path / "odd.tif"}), says

    return case


def option(name, value, says):
    """Make a case of one option."""
    return lambda options, _: (words(options | {name: value}), says)


def card(change, says):
    """Make a case of a model folder that was tampered with."""

    def case(options, tmp_path):
        folder = shutil.copytree(options["--model"], tmp_path / "model")
        change(folder)
        return words(options | {"--model": folder}), says

    return case


def rewrite(folder, old, new):
    path = folder / "card.json"
    path.write_text(path.read_text().replace(old, new))


def append(folder):
    with (folder / "weights.safetensors").open("ab") as file:
        file.write(b"\0")


def occupied(options, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    return words(options), "choose another output"


def forced(options, tmp_path):
    return [*occupied(options, tmp_path)[0], "--overwrite"], "choose another output"


def config(text, says):
    """Make a case of a job file."""

    def case(options, tmp_path):
        (tmp_path / "job.toml").write_text(text)
        return words(options | {"--config": tmp_path / "job.toml"}), says

    return case


def twins(options, tmp_path):
    (tmp_path / "other").mkdir()
    copy = shutil.copy(options["--input"], tmp_path / "other" / "scene.tif")
    return words(options, "--input", copy), "'scene'"


def under_a_file(name):
    """Make a case of a directory that cannot be made, not even by root."""

    def case(options, tmp_path):
        (tmp_path / "file").write_text("mine")
        return words(options | {name: tmp_path / "file" / "below"}), "file/below"

    return case


FAILURES = {
    "missing": (4, option("--input", "nowhere/scene.tif", "nowhere/scene.tif")),
    "directory": (4, directory),
    "empty": (3, content(b"")),
    "text": (3, content(b"not a raster")),
    "xml": (3, content(b"<VRTDataset rasterXSize='1'></VRTDataset>")),
    "html": (3, content(b"<!DOCTYPE html><html>404</html>")),
    "header only": (4, content(b"II*\0\x08\0\0\0")),
    "noise": (4, content(b"II*\0" + bytes(range(256)) * 9)),
    "virtual file": (3, option("--input", "/vsimem/x.tif", "/vsimem")),
    "too few bands": (2, raster("'red'", bands=2)),
    "bands without names": (2, raster("'blue'", names=())),
    "no scale": (2, raster("--scale", scale=None)),
    "complex": (2, raster("complex64", dtype="complex64")),
    "offset alone": (2, option("--offset", "0.1", "scale")),
    "scale that is no number": (2, option("--scale", "nan", "scale")),
    "no workers": (2, option("--workers", "0", "workers")),
    "no batch": (2, option("--batch-size", "-1", "batch_size")),
    "no CUDA": (2, option("--device", "cuda", "CUDA")),
    "no model": (7, option("--model", "nowhere/model", "nowhere/model")),
    "no card": (7, card(lambda at: (at / "card.json").unlink(), "card.json")),
    "text card": (7, card(lambda at: rewrite(at, "{", "<"), "card.json")),
    "short card": (7, card(lambda at: rewrite(at, "mlm:input", "m"), "mlm:input")),
    "odd card": (7, card(lambda at: rewrite(at, '"reflectance"', '"feet"'), "'feet'")),
    "wrong weights": (7, card(append, "sha256")),
    "no weights": (7, card(lambda at: next(at.glob("w*")).unlink(), "weights")),
    "unwritable output": (5, under_a_file("--output")),
    "unwritable work": (5, under_a_file("--work")),
    "foreign files": (5, occupied),
    "foreign files, forced": (5, forced),
    "equal stems": (2, twins),
    "no job file": (2, option("--config", "nowhere.toml", "nowhere.toml")),
    "broken job file": (2, config("shard = = 1", "job.toml")),
    "unknown key": (2, config("shard = 96\ntile_size = 3\n", "'tile_size'")),
    "key with a dash": (2, config("batch-size = 3\n", "'batch-size'")),
    "text for a number": (2, config('workers = "two"\n', "workers")),
    "number for a text": (2, config("blend = 3\n", "blend")),
    "list for a path": (2, config("work = [1]\n", "work")),
    "number for a scene": (2, config("input = 5\n", "input")),
    "numbers for scenes": (2, config("input = [1, 2]\n", "input")),
    "number for an output": (2, config("output = 3\n", "output")),
    "unsafe weights": (
        3,
        card(lambda at: rewrite(at, 's.safetensors"', '.pt"'), ".pt"),
    ),
    "text for a flag": (2, config('confidence = "no"\n', "confidence")),
    "text for bands": (2, config('bands = "red"\n', "bands")),
    "number for bands": (2, config("bands = 3\n", "bands")),
    "unknown band": (2, config("bands = [9, 1, 2]\n", "9")),
    "two bands for three": (2, config("bands = [1, 2]\n", "bands")),
    "shard off the stride": (2, config("shard = 100\n", "shard")),
    "no runs": (2, config("run_shards = [0, 1]\n", "run_shards")),
    "half a run": (2, config("run_shards = [1]\n", "run_shards")),
}


@pytest.mark.parametrize(("code", "case"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_an_exit_code_and_one_line(options, tmp_path, code, case):
    """Nothing is left in the output; before there is a plan nothing at all is left."""
    arguments, text = case(options, tmp_path)
    before = snapshot(tmp_path)
    names = {item.name for item in tmp_path.iterdir()}

    result = call(*arguments)

    assert code == result.exit_code, result.stderr
    assert_one_error_line(result, text)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    names_no_scene = re.search(r"\w+\.toml:|two inputs|names no scene", result.stderr)
    assert len(lines) == (not names_no_scene)
    left = {item.name for item in tmp_path.iterdir()} - names
    assert left <= ({"out.work"} if lines and lines[0]["plan_id"] else set())
    assert before.items() <= snapshot(tmp_path).items()
    for line in lines:
        assert_has_all_keys(line)
        assert ("failed", code) == (line["status"], line["exit_code"])
        assert text in line["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--inptu", "scene.tif"],
        ["--input"],
        ["--workers", "two"],
        ["--blend", "average"],
        ["scene.tif"],
    ],
)
def test_a_wrong_call_is_a_usage_error(arguments):
    result = call(*arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert sum(line.startswith("Error: ") for line in result.stderr.splitlines()) == 1


def test_a_call_without_a_scene_is_a_usage_error():
    result = call()

    assert result.exit_code == 2
    assert_one_error_line(result, "--input")


# Success


def test_success_prints_run_json(options, tmp_path):
    result = call(*words(options))

    values = json.loads(result.stdout)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert_has_all_keys(values)
    assert values == json.loads((tmp_path / "out" / "run.json").read_text())
    assert tuple(values[key] for key in ("status", "exit_code", "error")) == (
        "complete",
        0,
        None,
    )
    assert str(options["--input"]) == values["scene"]["href"]
    files = {item["path"] for item in values["outputs"]}
    assert {item.name for item in (tmp_path / "out").iterdir()} == files | {"run.json"}


def test_a_rerun_prints_the_same_and_does_nothing(options, tmp_path):
    first = call(*words(options))
    before = snapshot(tmp_path)

    second = call(*words(options))

    assert second.exit_code == 0
    assert first.stdout == second.stdout
    assert before == snapshot(tmp_path)


def test_another_result_is_replaced_only_with_overwrite(options, tmp_path):
    call(*words(options))
    before = snapshot(tmp_path)

    refused = call(*words(options, "--scale", "2e-4"))
    kept = snapshot(tmp_path)
    replaced = call(*words(options, "--scale", "2e-4", "--overwrite"))

    assert (refused.exit_code, replaced.exit_code) == (8, 0)
    assert_one_error_line(refused, "--overwrite")
    assert before == kept != snapshot(tmp_path)


def test_a_dry_run_writes_nothing_and_says_what_would_be_done(options, tmp_path):
    before = snapshot(tmp_path)

    result = call(*words(options, "--dry-run"))

    assert result.exit_code == 0
    assert before == snapshot(tmp_path)
    for word in ("runs", "shards", "tiles", "MB to read", "memory"):
        assert word in result.stderr
    values = json.loads(result.stdout)
    assert_has_all_keys(values)
    estimate = values["estimate"]
    assert (estimate["shards"], estimate["tiles"]) == (1, 6 * 8)
    assert options["--input"].stat().st_size == estimate["bytes_to_read"]
    assert estimate["memory_mb"] > 0
    done = json.loads(call(*words(options)).stdout)
    assert done["decode"]["decoded_pixels"] == estimate["decoded_pixels"]


def test_a_dry_run_fails_like_a_run(options, tmp_path):
    result = call(*words(options | {"--input": tmp_path / "nowhere.tif"}, "--dry-run"))

    assert result.exit_code == 4


def test_a_job_file_gives_what_the_options_do_not(options, tmp_path):
    text = 'blend = "cosine"\nconfidence = true\nshard = 96\nbands = [3, 2, 1]\n'
    (tmp_path / "job.toml").write_text(text)

    result = call(*words(options, "--config", tmp_path / "job.toml", "--blend", "crop"))

    values = json.loads(result.stdout)
    assert (values["grid"]["blend"], values["grid"]["shard"]) == ("crop", 96)
    assert "confidence.tif" in {item["path"] for item in values["outputs"]}


def test_polygons_are_an_option(options):
    result = call(*words(options, "--polygons", "fgb"))

    values = json.loads(result.stdout)
    assert "polygons.fgb" in {item["path"] for item in values["outputs"]}
    assert call(*words(options, "--polygons", "shp")).exit_code == 2


def test_a_job_file_may_name_the_scene(options, tmp_path):
    (tmp_path / "job.toml").write_text(f'input = "{options.pop("--input")}"\n')

    result = call(*words(options, "--config", tmp_path / "job.toml"))

    assert result.exit_code == 0


def test_the_output_is_named_after_the_scene(scene, model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = call("--input", scene.name, "--model", model_path)

    assert result.exit_code == 0
    assert (tmp_path / "out" / "scene" / "mask.tif").exists()
    assert {"scene", "scene.work"} == {p.name for p in (tmp_path / "out").iterdir()}


def test_every_scene_is_tried_and_the_worst_code_wins(options, scene, tmp_path):
    other = make_scene(tmp_path / "other.tif", random_pixels(60, 70))
    bad = tmp_path / "bad.tif"
    bad.write_text("not a raster")

    result = call(
        *words(options, "--input", bad, "--input", tmp_path / "gone", "--input", other)
    )

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [str(scene), str(bad), str(tmp_path / "gone"), str(other)] == [
        line["scene"]["href"] for line in lines
    ]
    assert [line["exit_code"] for line in lines] == [0, 3, 4, 0]
    assert result.exit_code == 3
    assert {"scene", "other"} <= {item.name for item in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "bad").exists()
    for name in ("scene", "other"):
        assert (tmp_path / "out" / name / "mask.tif").exists()


# Every way to say it

WAYS = {
    "job": [sys.executable, "jobs/segment.py"],
    "module": [sys.executable, "-m", "tileseg.cli", "segment"],
    "command": [SCRIPTS / "tileseg", "segment"],
    "rio": [SCRIPTS / "rio", "tileseg", "segment"],
}


def start(way, *arguments):
    return subprocess.Popen(
        [*map(str, WAYS[way]), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    """Wait for a process; return it as the test runner returns a call."""
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_same_command(way, options, tmp_path):
    result = end(start(way, *words(options), "-q"))
    failed = end(start(way, *words(options | {"--input": tmp_path / "gone.tif"})))

    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert json.loads(result.stdout) == json.loads(
        (tmp_path / "out" / "run.json").read_text()
    )
    assert failed.returncode == 4
    assert_one_error_line(failed, "gone.tif")


def test_rio_finds_the_plugin():
    result = CliRunner().invoke(rio, ["tileseg", "segment", "--help"])

    assert result.exit_code == 0
    assert "--input" in result.stdout


def test_help_costs_no_heavy_import():
    program = (
        "import sys; from tileseg.cli import main\n"
        "try: main(['segment', '--help'])\n"
        "except SystemExit: print(*sys.modules)"
    )

    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )

    assert "--allow-partial" in result.stdout
    assert set() == {"torch", "rasterio", "matplotlib"} & set(result.stdout.split())


def test_a_log_goes_to_stderr_and_says_more_when_asked(options):
    result = end(start("job", *words(options), "-v"))

    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1
    assert "scene.tif" in result.stderr


def test_a_closed_stderr_stops_nothing(options, tmp_path):
    """Whoever reads the log may go away."""
    process = start("job", *words(options), "-v")
    process.stderr.close()
    process.stdout.read()

    assert process.wait() == 0
    process.stdout.close()
    assert (tmp_path / "out" / "run.json").exists()


# Models


def test_trace_prints_the_classic_network():
    result = CliRunner().invoke(main, ["model", "trace", "unet"])

    assert result.stdout.splitlines() == [
        "Input: [1, 3, 128, 128]",
        "enc1: [1, 64, 128, 128]",
        "enc2: [1, 128, 64, 64]",
        "enc3: [1, 256, 32, 32]",
        "enc4: [1, 512, 16, 16]",
        "bottleneck: [1, 1024, 8, 8]",
        "dec4: [1, 512, 16, 16]",
        "dec3: [1, 256, 32, 32]",
        "dec2: [1, 128, 64, 64]",
        "dec1: [1, 64, 128, 128]",
        "Output: [1, 1, 128, 128]",
    ]


def test_trace_of_a_folder_prints_its_stages(model_path):
    result = CliRunner().invoke(main, ["model", "trace", str(model_path)])

    assert result.stdout.splitlines() == [
        "Input: [1, 3, 32, 32]",
        "enc1: [1, 4, 32, 32]",
        "enc2: [1, 8, 16, 16]",
        "bottleneck: [1, 16, 8, 8]",
        "dec2: [1, 8, 16, 16]",
        "dec1: [1, 4, 32, 32]",
        "Output: [1, 3, 32, 32]",
    ]


def test_the_model_that_comes_with_tileseg_is_the_default():
    for verb in ("trace", "info"):
        default = CliRunner().invoke(main, ["model", verb])
        named = CliRunner().invoke(main, ["model", verb, str(default_model())])

        assert default.exit_code == 0, default.stderr
        assert named.stdout == default.stdout


def test_info_says_what_a_model_eats(model_path):
    result = CliRunner().invoke(main, ["model", "info", str(model_path)])

    assert result.exit_code == 0
    assert result.stdout.split()[:2] == ["folder", str(model_path)]
    for text in ("blue, green, red", "reflectance", "32", "2 class 2", "sha256"):
        assert text in result.stdout


@pytest.mark.parametrize("verb", ["trace", "info"])
def test_a_model_that_is_not_there_is_a_model_error(verb):
    result = CliRunner().invoke(main, ["model", verb, "nowhere/model"])

    assert result.exit_code == 7
    assert_one_error_line(result, "nowhere/model")


# Signals

SIGNALS = {signal.SIGTERM: 75, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A scene and a network that keep a processor busy for some seconds."""
    folder = tmp_path_factory.mktemp("large")
    make_model(folder / "model", tile=128, halo=16, width=16, depth=4)
    scene = make_scene(folder / "scene.tif", random_pixels(1000, 1300))
    (folder / "job.toml").write_text(
        'shard = 480\nrun_shards = [1, 1]\nbatch_size = 4\nprecision = "fp32"\n'
    )
    options = {
        "--input": scene,
        "--model": folder / "model",
        "--config": folder / "job.toml",
    }
    result = call(*words(options | {"--output": folder / "out"}))
    assert result.exit_code == 0
    return options, digests(folder / "out")


def wait_for(condition):
    """Wait until something is there; return it."""
    for _ in range(600):
        if found := condition():
            return found
        time.sleep(0.05)
    return pytest.fail("it never came")


def wait_for_receipts(work):
    """Wait until a shard is done, so that the network is at work on the next."""
    return wait_for(
        lambda: [p for p in work.glob("*/receipts.jsonl") if p.stat().st_size]
    )


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_a_job_soon_and_the_same_command_resumes(
    large, tmp_path, number, workers
):
    options, expected = large
    arguments = words(options | {"--output": tmp_path / "out", "--workers": workers})
    process = start("job", *arguments)
    wait_for_receipts(tmp_path / "out.work")

    process.send_signal(number)
    since = time.monotonic()
    stopped = end(process)
    seconds = time.monotonic() - since
    names = {item.name for item in tmp_path.iterdir()}
    resumed = call(*arguments)

    values = json.loads(stopped.stdout)
    assert SIGNALS[number] == stopped.returncode == values["exit_code"]
    assert values["status"] == "interrupted"
    assert_one_error_line(stopped, "resumes")
    assert seconds < 10
    assert names == {"out.work"}
    assert resumed.exit_code == 0
    assert json.loads(resumed.stdout)["counts"]["shards_reused"] > 0
    assert expected == digests(tmp_path / "out")


def test_a_signal_ends_all_scenes(large, tmp_path):
    options, _ = large
    other = shutil.copy(options["--input"], tmp_path / "other.tif")
    process = start(
        "job", *words(options | {"--output": tmp_path / "out"}), "--input", other
    )
    wait_for_receipts(tmp_path / "out" / "scene.work")

    process.send_signal(signal.SIGTERM)
    stopped = end(process)

    assert stopped.returncode == 75
    assert len(stopped.stdout.splitlines()) == 1
    assert {"scene.work"} == {item.name for item in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_is_immediate(large, tmp_path, number):
    """One batch of all tiles takes seconds; nobody waits for it twice."""
    options, expected = large
    arguments = words(options | {"--output": tmp_path / "out", "--batch-size": 200})
    config = tmp_path / "job.toml"
    config.write_text('precision = "fp32"\n')
    arguments += ["--config", config]
    process = start("job", *arguments)
    wait_for(lambda: list((tmp_path / "out.work").glob("*/plan.json")))
    time.sleep(1)  # the network is loaded, and the one batch begun

    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)
    since = time.monotonic()
    stopped = end(process)
    seconds = time.monotonic() - since

    assert stopped.returncode == -number
    assert seconds < 1
    assert not (tmp_path / "out").exists()
    resumed = call(*words(options | {"--output": tmp_path / "out"}))
    assert resumed.exit_code == 0
    assert expected == digests(tmp_path / "out")
    assert {"out", "out.work", "job.toml"} == {i.name for i in tmp_path.iterdir()}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_torch_is_loaded_ends_the_job_as_well(options, tmp_path, number):
    process = start("job", *words(options))
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "libtorch" in maps.read_text())

    process.send_signal(number)
    stopped = end(process)

    assert SIGNALS[number] == stopped.returncode, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", np.linspace(0.0, 1.0, 6))
def test_a_job_killed_at_any_time_resumes_to_the_same_bytes(large, tmp_path, moment):
    """Nothing cleans up after SIGKILL; the rerun does."""
    options, expected = large
    arguments = words(options | {"--output": tmp_path / "out"})
    process = start("job", *arguments)
    wait_for((tmp_path / "out.work").exists)
    time.sleep(4 * moment)

    os.kill(process.pid, signal.SIGKILL)
    end(process)
    resumed = call(*arguments)

    assert resumed.exit_code == 0, resumed.stderr
    assert expected == digests(tmp_path / "out")
    assert {"out", "out.work"} == {item.name for item in tmp_path.iterdir()}
    assert {"lock", "inputs.json"} >= {
        item.name for item in (tmp_path / "out.work").iterdir()
    }
