"""Every command in infra/ does what it is for, with the arguments it has there."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from making import make_scene, random_pixels
from manifests import INFRA, JOBS, ROOT, built
from s3 import serve

from tileseg.cli import main
from tileseg.nights.nightly_file import read_night

UNIT = INFRA / "systemd" / "tileseg-nightly.service"
TIMER = UNIT.with_suffix(".timer")
NIGHT = UNIT.with_name("nightly.toml")
ENTRYPOINTS = {folder: built(folder)[0]["spec"]["entrypoint"] for folder in JOBS}


def unit(path):
    """Return a unit's sections; of a setting that is there twice both, line by line."""
    parser = configparser.RawConfigParser(strict=False, delimiters="=")
    parser.optionxform = str
    parser.read(path)
    return parser


def lay_out(folder):
    """Make what the commands expect, below `folder` instead of /."""
    for name in ("data/scenes", "srv/tileseg/scenes"):
        (folder / name).mkdir(parents=True)
        make_scene(folder / name / "scene.tif", random_pixels(130, 171))
    for name in ("tmp", "srv/tileseg/maps", "var/lib/tileseg/metrics"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def lay_night(path, folder):
    """Put a night's file where its command finds it; what it names lies there too."""
    text = path.read_text().replace("s3://archive/", "/data/")
    at = folder / ("etc/tileseg" if path.parent == UNIT.parent else "config")
    at.mkdir(parents=True)
    (at / path.name).write_text(re.sub(r'"(\S+)"', lambda it: moved(it, folder), text))


def moved(found, folder):
    return f'"{below(found[1], folder)}"'


def below(word, folder):
    """Return a word of a command, or of a night's file, as it is below a folder."""
    word = re.sub(r"^/(data|config|etc|tmp|srv|var)/", rf"{folder}/\1/", word)
    return word.replace("s3://scratch/", "s3://maps/scratch/").replace("cuda", "cpu")


def run(command, folder):
    """Run a command of infra/ below a folder, on a CPU; return its lines of JSON."""
    program, *words = [below(word, folder) for word in shlex.split(command)]
    verb = Path(words.pop(0)).stem if program == "python" else words.pop(0)
    result = CliRunner().invoke(main, [verb, *words])
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(command, lines):
    """See that a command made a map, and that a second one has nothing to do."""
    if " nightly" in command or "nightly.py" in command:
        assert lines[-1]["counts"]["done"] == 1
        assert lines[-1]["counts"]["scenes"] == 1
    assert lines[0]["status"] == "complete"


@pytest.mark.parametrize("folder", ["overlays/small/job", "scene"])
def test_the_job_of_a_manifest_makes_its_map(folder, tmp_path):
    lay_out(tmp_path)
    lay_night(INFRA / "overlays/small/nightly.toml", tmp_path)

    check(ENTRYPOINTS[folder], run(ENTRYPOINTS[folder], tmp_path))

    assert (tmp_path / "data/maps/scene/mask.tif").is_file()


def test_a_scene_that_fails_costs_no_further_cluster(tmp_path):
    """The night has ended, which is all that KubeRay asks; night.json says the rest."""
    lay_out(tmp_path)
    lay_night(INFRA / "overlays/small/nightly.toml", tmp_path)
    (tmp_path / "data/scenes/scene.tif").write_text("half a file")

    *_, night = run(ENTRYPOINTS["overlays/small/job"], tmp_path)

    assert (night["exit_code"], night["counts"]["failed"]) == (3, 1)


@pytest.mark.slow
def test_the_large_clusters_job_makes_its_map_in_a_store(tmp_path):
    """The same night again finds it there."""
    lay_out(tmp_path)
    lay_night(INFRA / "overlays/large/nightly.toml", tmp_path)
    (tmp_path / "store").mkdir()
    command = ENTRYPOINTS["overlays/large/job"]

    with serve(tmp_path / "store"):
        lines = run(command, tmp_path)
        again = run(command, tmp_path)

    check(command, lines)
    assert {it["path"].rpartition("/")[2] for it in lines[0]["outputs"]} >= {"mask.tif"}
    assert again == lines[-1:]


def test_the_unit_makes_its_map_and_its_metrics(tmp_path):
    lay_out(tmp_path)
    lay_night(NIGHT, tmp_path)
    command = unit(UNIT)["Service"]["ExecStart"]

    check(command, run(command, tmp_path))

    assert (tmp_path / "srv/tileseg/maps/scene/mask.tif").is_file()
    text = (tmp_path / "var/lib/tileseg/metrics/nightly.prom").read_text()
    assert 'tileseg_night_scenes{service="nightly",state="done"} 1.0' in text


def test_the_unit_may_write_where_its_command_does():
    """All else is read-only to it."""
    service = unit(UNIT)["Service"]
    words = shlex.split(service["ExecStart"])
    places = service["ReadWritePaths"].split()
    places += [f"/var/lib/{name}" for name in service["StateDirectory"].split()]

    assert service["ProtectSystem"] == "strict"
    target = read_night(NIGHT).target
    for name in (target.output, target.work, words[words.index("--metrics") + 1]):
        assert any(Path(name).is_relative_to(place) for place in places), name


def test_the_unit_has_no_more_rights_than_it_needs():
    service = unit(UNIT)["Service"]

    for name in (
        "NoNewPrivileges", "ProtectHome", "PrivateTmp", "ProtectKernelModules",
        "RestrictNamespaces", "RestrictSUIDSGID", "LockPersonality",
    ):  # fmt: skip
        assert service[name] == "yes", name
    assert service["User"] not in ("", "root")
    assert service["CapabilityBoundingSet"] == ""
    assert service["Type"] == "oneshot"  # a night that is still on is not begun again
    assert service["SuccessExitStatus"] == "75"


def test_the_timer_is_the_units_and_makes_good_what_was_missed():
    assert TIMER.stem == UNIT.stem
    assert unit(TIMER)["Timer"]["Persistent"] == "true"
    assert unit(TIMER)["Install"]["WantedBy"] == "timers.target"


SYSTEMD = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="there is no systemd-analyze"
)


@SYSTEMD
def test_systemd_understands_the_units(tmp_path):
    program = shutil.which("true")
    for path in (UNIT, TIMER):
        text = path.read_text().replace("/opt/tileseg/.venv/bin/tileseg", program)
        (tmp_path / path.name).write_text(text)

    answer = _analyze("verify", *tmp_path.iterdir())

    assert (answer.returncode, answer.stderr) == (0, "")


@SYSTEMD
def test_systemd_finds_the_unit_well_guarded():
    """Of 100 points of exposure, a tenth each of what it says."""
    answer = _analyze("security", "--offline=yes", "--threshold=20", UNIT)

    assert answer.returncode == 0, answer.stdout


def _analyze(*words):
    return subprocess.run(
        [shutil.which("systemd-analyze"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
