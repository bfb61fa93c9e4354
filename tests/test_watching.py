"""What watches from outside is told the truth: metrics, heartbeat, log lines, costs."""

import json
import logging
import re
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from making import make_scene, random_pixels
from prometheus_client.parser import text_string_to_metric_families

from tileseg.base import metrics
from tileseg.base.logs import JsonLines, about
from tileseg.base.stopping import StopSignal
from tileseg.cli import main
from tileseg.commands.cli_nightly import run_one
from tileseg.commands.console import configure_logging, tell
from tileseg.commands.monitor import Monitor
from tileseg.engines.staff import Staff
from tileseg.errors import DeadlineError, PreemptedError
from tileseg.network.energy import EnergyMeter
from tileseg.nights.nightly_summary import in_line
from tileseg.plans.cost import bill, in_words, total
from tileseg.settings import Job


def read(path):
    """Return {(series, value of its own label): number} of a file of metrics."""
    return {
        (sample.name, *(v for k, v in sample.labels.items() if k != "service")): (
            sample.value
        )
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def nights(tmp_path_factory, model_path):
    """Two nights over a scene and a file that is none: what each left and said."""
    folder = tmp_path_factory.mktemp("nights")
    scenes = folder / "scenes"
    scenes.mkdir()
    (scenes / "a.tif").write_text("not a raster")
    make_scene(scenes / "b.tif", random_pixels(130, 171))
    config = folder / "job.toml"
    config.write_text("price = 36\nwatts = 100\n")
    words = ["nightly", "--scenes", scenes, "--output", folder / "maps"]
    words += ["--model", model_path, "--work", folder / "work", "--config", config]
    words += ["--metrics", folder / "city.prom", "--heartbeat", folder / "beat"]
    words += ["--log-format", "json", "-v"]
    found = []
    with (folder / "log").open("w") as file:
        handler = logging.StreamHandler(file)  # pytest has the command's own
        handler.setFormatter(JsonLines())
        logging.getLogger("tileseg").addHandler(handler)
        _two_nights(words, folder, found)
        logging.getLogger("tileseg").removeHandler(handler)
    return folder, found


def _two_nights(words, folder, found):
    for _ in range(2):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert "Traceback" not in result.stderr
        *_, night = map(json.loads, result.stdout.splitlines())
        found.append((read(folder / "city.prom"), night, result))


def test_every_metric_is_named_as_prometheus_wants_it():
    for name, metric in metrics.METRICS.items():
        assert re.fullmatch(r"tileseg_[a-z0-9]+(_[a-z0-9]+)*", name)
        assert not name.endswith("_total")  # which writers add
        assert metric.kind in ("counter", "gauge")
        assert metric.help


def test_a_night_is_told(nights):
    folder, [(first, night, _), _] = nights
    record = json.loads((folder / "maps" / "b" / "run.json").read_text())

    assert first["tileseg_scenes_total", "complete"] == 1
    assert first["tileseg_scenes_total", "failed"] == 1
    assert first["tileseg_tiles_total",] == record["counts"]["tiles"]
    assert first["tileseg_shards_total", "done"] == record["counts"]["shards"]
    assert first["tileseg_night_scenes", "failed"] == 1
    assert first["tileseg_night_seconds",] == pytest.approx(night["seconds"], abs=1)
    assert first["tileseg_exit_code",] == night["exit_code"] == 3
    assert ("tileseg_progress_ratio",) not in first  # there is no scene in hand
    assert abs(first["tileseg_last_end_timestamp_seconds",] - time.time()) < 300
    assert ("tileseg_last_success_timestamp_seconds",) not in first
    for stage in metrics.STAGES:
        assert first["tileseg_seconds_total", stage] == record["seconds"][stage]


def test_counters_go_on_where_the_file_stands(nights):
    """Else Prometheus would take a night that did more than the last for a part."""
    _, [(first, _, _), (second, _, _)] = nights

    assert second["tileseg_scenes_total", "failed"] == 2
    assert second["tileseg_scenes_total", "complete"] == 1
    assert second["tileseg_scenes_total", "unchanged"] == 1
    for key, value in first.items():
        if key[0].endswith("_total"):
            assert second[key] >= value
    assert second["tileseg_tiles_total",] == first["tileseg_tiles_total",]


def test_two_commands_files_say_whose_they_are(nights):
    folder, _ = nights

    text = (folder / "city.prom").read_text()

    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('service="city"' in line for line in series)


def test_rays_port_is_told_what_workers_do_not_count(nights, monkeypatch):
    """They count while they work; told again, it would be there twice."""
    ray = pytest.importorskip("ray")
    from ray.util.metrics import Counter, Gauge

    from tileseg.engines import meters

    _, [(_, night, _), _] = nights
    told = {}

    def note(meter, value, tags):
        told[(meter.info["name"], *(tags or {}).values())] = value

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(Gauge, "set", note)
    monkeypatch.setattr(Counter, "inc", note)
    worked = [
        metrics.Sample(metrics.METRICS["tileseg_tiles"], 5),
        metrics.Sample(metrics.METRICS["tileseg_scenes"], 1, "complete"),
        metrics.Sample(metrics.METRICS["tileseg_cost"], 0),
    ]
    meters.tell([*worked, *metrics.of_night(night)])

    assert told["tileseg_night_scenes", "failed"] == 1
    assert told["tileseg_scenes", "complete"] == 1
    assert ("tileseg_tiles",) not in told
    assert ("tileseg_cost",) not in told  # Ray refuses 0


def test_the_heartbeat_ends_with_the_command(nights):
    folder, _ = nights

    assert not (folder / "beat").exists()
    assert not list(folder.glob("*.prom.*"))  # nor is there half a file


def test_the_heart_beats_while_there_is_progress(tmp_path):
    beat = tmp_path / "beat"
    with Monitor(None, str(beat)) as monitor:
        assert beat.is_file()
        before = beat.stat().st_mtime_ns
        monitor._beat -= 2  # of the clock: two seconds later
        monitor.beside(lambda _done, _total: None)(1, 2)
        assert beat.stat().st_mtime_ns > before
    assert not beat.exists()


def test_progress_is_of_the_scene_in_hand(tmp_path):
    """What a killed command left is not taken over."""
    path = tmp_path / "a.prom"
    path.write_text('tileseg_progress_ratio{service="a"} 0.25\n')

    with Monitor(str(path)) as monitor:
        monitor._write()
        assert ("tileseg_progress_ratio",) not in read(path)
        monitor._beat -= 2
        monitor.pulse(1, 2)
        monitor._write()
        assert read(path)["tileseg_progress_ratio",] == 0.5

    assert ("tileseg_progress_ratio",) not in read(path)


def test_a_file_that_is_no_metrics_is_begun_anew(tmp_path, caplog):
    path = tmp_path / "a.prom"
    path.write_text('tileseg_tiles_total{service="a} 3\n')

    with Monitor(str(path)):
        pass

    assert read(path)["tileseg_exit_code",] == 0
    assert "begin anew" in caplog.text


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    with Monitor(str(tmp_path / "nowhere" / "a.prom"), str(tmp_path / "no" / "beat")):
        pass

    assert "no metrics" in caplog.text


def test_every_line_of_the_log_is_json_and_says_which_scene(nights):
    folder, [(_, _, result), _] = nights

    text = result.stderr + (folder / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]

    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    of_b = [it for it in lines if it.get("scene") == str(folder / "scenes" / "b.tif")]
    assert {it["shard"] for it in of_b if "shard" in it} == {"0_0"}
    error = next(it for it in lines if it["level"] == "error")
    assert error["scene"].endswith("a.tif")
    assert error["message"].startswith(str(folder / "scenes" / "a.tif"))


def test_a_deadline_is_no_error(monkeypatch, capfd):
    """What is left goes on the next night, as it should."""
    monkeypatch.setattr(logging.root, "handlers", [])
    configure_logging(0, is_quiet=False, log_format="json")
    told = {}
    for error in (DeadlineError("the night is over"), PreemptedError("SIGTERM")):
        staff = Staff()
        with suppress(StopSignal):
            staff.stop.ask(error)
        run_one({"input": "a.tif"}, staff, Monitor())
        line = json.loads(capfd.readouterr().err)
        told[line["message"]] = line["level"]
    configure_logging(0, is_quiet=False)

    assert told == {"the night is over": "info", "SIGTERM": "error"}


def test_the_log_is_json_if_asked_for(monkeypatch, capfd):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", open(2, "w", closefd=False))  # noqa: SIM115

    configure_logging(0, is_quiet=False, log_format="json")
    logging.getLogger("tileseg.x").info("half of it", extra={"shard": "0001_0002"})
    tell("an error", level=logging.ERROR)
    tell("a result")
    configure_logging(0, is_quiet=False)
    tell("a line", level=logging.ERROR)

    out, err = capfd.readouterr()
    first, second, third = err.splitlines()
    assert json.loads(first)["shard"] == "0001_0002"
    second = json.loads(second)
    assert (second["level"], second["message"]) == ("error", "an error")
    assert third == "tileseg: a line"
    assert out == "a result\n"


def test_a_log_line_of_json_hides_secrets_and_keeps_quotes(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'canary"canary')
    record = logging.makeLogRecord({"msg": 'key canary"canary of "b"'})

    with about("https://user:word@host/a.tif?sig=1"):
        line = json.loads(JsonLines().format(record))

    assert line["message"] == 'key [hidden] of "b"'
    assert line["scene"] == "https://[hidden]@host/a.tif?[hidden]"


def test_a_night_sums_up_what_devices_took(nights):
    _, [(values, night, result), (_, again, _)] = nights
    spent = night["spent"]

    assert spent["device_seconds"] > 0
    assert spent["cost"] == pytest.approx(spent["device_seconds"] / 100)
    assert spent["kwh"] == pytest.approx(spent["device_seconds"] * 100 / 3.6e6)
    assert values["tileseg_cost_total",] == pytest.approx(spent["cost"])
    assert "device minutes" in result.stderr
    assert not again["spent"]["device_seconds"]  # nothing was done


def test_what_nobody_knows_is_null():
    job = Job(input="a.tif")

    unknown = bill(3600, None, job)

    assert unknown["kwh"] is unknown["kwh_from"] is unknown["cost"] is None
    assert total([unknown, unknown])["device_seconds"] == 7200
    assert total([])["device_seconds"] is None
    assert in_words(total([])) == ""


def test_what_is_not_zero_is_not_told_as_zero():
    small = {"device_seconds": 0.6, "kwh": 1e-6, "cost": 0.0}

    assert in_words(small) == "<0.1 device minutes, <0.001 kWh, cost 0.00"


@pytest.mark.parametrize(
    ("scenes", "words"), [(0, "no scene"), (1, "1 scene: 1 done"), (2, "2 scenes: ")]
)
def test_scenes_are_counted_as_people_do(scenes, words):
    night = {"counts": {"scenes": scenes, "done": scenes}, "spent": total([])}

    assert in_line(night).startswith(words)


def test_a_gpus_own_counter_is_believed_before_a_guess():
    job = Job(input="a.tif", watts=300, price=2.5)

    counted = bill(7200, 3.6e6, job)

    assert counted == {
        "device_seconds": 7200,
        "kwh": 1,
        "kwh_from": "nvml",
        "cost": 5,
    }


def test_energy_is_the_growth_of_all_counters(monkeypatch):
    """As NVML has it: millijoules since the driver was loaded, GPU by GPU."""
    counters = {"GPU-a": 5_000, "GPU-b": 70_000}
    library = SimpleNamespace(
        __spec__=SimpleNamespace(),
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=counters.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    meter, other = EnergyMeter(["GPU-a", "GPU-b"]), EnergyMeter([])

    counters["GPU-a"] += 1_500
    counters["GPU-b"] += 500

    assert meter.joules() == 2
    assert other.joules() is None  # of a CPU
