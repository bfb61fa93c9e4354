"""What is installed is what was chosen; what is built depends on the source only."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
SETS = ("base", "ray", "dev", "tools", "peers")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[\w,]+\])?==([^\s;\\]+)", re.MULTILINE)


def pins(name):
    """Return the versions that a file pins, by canonical name."""
    found = _PIN.findall((FOLDER / name).read_text())
    return {canonicalize_name(package): version for package, version in found}


LOCKED = {package: v for name in SETS[:2] for package, v in pins(f"{name}.txt").items()}


@pytest.mark.parametrize("name", SETS)
def test_everything_in_a_lock_has_its_hashes(name):
    text = (FOLDER / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))

    assert len(entries) == len(pins(f"{name}.txt"))
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in text  # no index, no url: what the machine is set to


@pytest.mark.parametrize("name", SETS)
def test_a_lock_is_fresh(name):
    """It has what its `.in` pins, and there is no other version in another set."""
    locked = pins(f"{name}.txt")

    assert pins(f"{name}.in").items() <= locked.items()
    if name not in ("tools", "peers"):  # those have a venv of their own
        both = LOCKED.keys() & locked.keys()
        assert {key: LOCKED[key] for key in both} == {key: locked[key] for key in both}


def needed(name, extras=(), seen=None):
    """Return all that a distribution needs here, directly or not."""
    seen = set() if seen is None else seen
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        key = canonicalize_name(requirement.name)
        marker = requirement.marker
        wanted = marker is None or any(
            marker.evaluate({"extra": extra}) for extra in ("", *extras)
        )
        if wanted and (key, *requirement.extras) not in seen:
            seen.add((key, *requirement.extras))
            needed(key, requirement.extras, seen)
    return {item[0] for item in seen}


def test_all_that_is_needed_is_locked():
    """Else the index would decide, on the day, what runs beside the secrets.

    But for torch and what comes with its build.
    """
    found = {
        name
        for name in needed("tileseg", ("ray", "remote"))
        if not name.startswith(("cuda-", "nvidia-")) and name not in ("torch", "triton")
    }

    assert found - LOCKED.keys() == set()


def test_the_lock_lies_in_the_ranges_of_the_project():
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *chain.from_iterable(extras)]
    torch = pins("torch.txt")
    for line in lines:
        requirement = Requirement(line)
        version = (pins("dev.txt") | LOCKED | torch)[
            canonicalize_name(requirement.name)
        ]
        assert requirement.specifier.contains(version), line


def test_the_security_floors_hold():
    """torch 2.6: `weights_only` was not safe before; ray 2.58: token authentication."""
    ranges = {item.name: item.specifier for item in map(Requirement, _all_lines())}

    assert not ranges["torch"].contains("2.5.1")
    assert not ranges["ray"].contains("2.51.0")


def not_listed(sbom, wanted):
    """Return the pins that a CycloneDX document does not list in their version."""
    listed = {
        (canonicalize_name(item["name"]), item.get("version"))
        for item in sbom["components"]
    }
    return sorted(wanted.items() - listed)


def test_a_bill_of_materials_lists_every_pin_that_is_installed():
    """Of `make sbom`; the Dockerfile installs the same sets."""
    path = ROOT / "dist" / "sbom.json"
    if not path.exists():
        pytest.skip("there is no dist/sbom.json: make sbom")
    sbom = json.loads(path.read_text())
    wanted = {
        name: version
        for name, version in (LOCKED | pins("torch.txt")).items()
        if find_distribution(name) == version
    }

    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "tileseg",
    )
    assert len(wanted) > 80
    assert not_listed(sbom, wanted) == []


def test_what_a_bill_of_materials_leaves_out_is_found():
    sbom = {"components": [{"name": "Jinja2", "version": "3.1.6"}]}

    assert not_listed(sbom, {"jinja2": "3.1.6"}) == []
    assert not_listed(sbom, {"jinja2": "3.1.7", "numpy": "1"}) == [
        ("jinja2", "3.1.7"),
        ("numpy", "1"),
    ]


def find_distribution(name):
    """Return the version that is installed here; None for one that is not."""
    try:
        return distribution(name).version
    except PackageNotFoundError:  # another platform's, by its marker
        return None


def _all_lines():
    return [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["ray"]]


def test_torch_alone_is_not_locked_by_hash():
    """Its build is chosen where it is installed, so its files are not known here."""
    assert pins("torch.txt").keys() == {"torch"}
    assert "torch" not in LOCKED


def test_a_file_with_another_hash_is_not_installed(tmp_path):
    """pip keeps to the hashes since the files have them, without being told."""
    text = (FOLDER / "base.txt").read_text()
    entry = re.search(r"^affine==.*?(?=\n\S)", text, re.MULTILINE | re.DOTALL)[0]
    lines = tmp_path / "requirements.txt"
    lines.write_text(re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, entry))
    wheel = tmp_path / "affine-3.0.1-py3-none-any.whl"
    wheel.write_bytes(b"PK\5\6" + bytes(18))

    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
    command += ["--find-links", str(tmp_path), "--target", str(tmp_path / "x")]
    answer = subprocess.run(
        [*command, "-r", str(lines)],
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode != 0
    assert "DO NOT MATCH THE HASHES" in answer.stderr


def test_a_wheel_built_twice_is_the_same(tmp_path):
    """Whatever the clock, the folder and the rights that new files get."""
    built = []
    for number, mask in enumerate((0o022, 0o077)):
        source = tmp_path / f"source{number}"
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / name, source / name)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(
            ROOT / "tileseg", source / "tileseg", ignore=ignore, copy_function=_copy
        )
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
            cwd=source,
            check=True,
            capture_output=True,
            umask=mask,
        )
        [wheel] = (source / "dist").glob("*.whl")
        built.append(wheel.read_bytes())

    assert built[0] == built[1]


def _copy(source, target):
    """Copy a file's bytes only: its times and rights become others."""
    shutil.copyfile(source, target)
