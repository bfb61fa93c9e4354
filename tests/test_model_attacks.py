"""Hostile model folders: exit 3 or 7, and nothing that they hold is ever run."""

import ast
import hashlib
import json
import os
import pickle
import re
import struct
from pathlib import Path

import pytest
from making import make_model, make_scene, random_pixels
from payloads import CHECKPOINTS, pickled

from tileseg.job import run
from tileseg.settings import Job

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return make_model(tmp_path / "model")


@pytest.fixture
def refused(folder, tmp_path):
    """Run a job with the folder; return its record."""

    def attempt():
        scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
        facts = {"input": str(scene), "output": str(tmp_path / "out"), "shard": 96}
        record = run(Job(**facts, model=str(folder), trusted=True))
        assert record.values["exit_code"] in (3, 7), record.values["error"]
        assert len(record.values["error"]) < 1000
        assert "\n" not in record.values["error"]
        assert not (tmp_path / "marker").exists()
        assert not (tmp_path / "out").exists()
        return record.values

    return attempt


def change(folder, **asset):
    """Change what the card says of the weights."""
    path = folder / "card.json"
    item = json.loads(path.read_text())
    item["assets"]["weights"].update(asset)
    path.write_text(json.dumps(item))


def put(folder, name, data):
    """Write other weights, and their true name and hash into the card."""
    (folder / name).write_bytes(data)
    digest = "1220" + hashlib.sha256(data).hexdigest()
    change(folder, href=name, **{"file:checksum": digest})


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_that_could_run_code_is_refused(folder, tmp_path, refused, kind):
    put(folder, "weights.pt", CHECKPOINTS[kind](tmp_path / "marker"))

    assert refused()["exit_code"] == 3


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_renamed_it_is_no_safetensors(folder, tmp_path, refused, kind):
    put(folder, "weights.safetensors", CHECKPOINTS[kind](tmp_path / "marker"))

    assert refused()["exit_code"] == 7


def test_the_marker_would_be_seen(tmp_path):
    """The negative control: the pickles do what they say."""
    pickle.loads(pickled(tmp_path / "marker"))  # noqa: S301  (ours)

    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "href",
    [
        "../weights.safetensors",
        "/etc/weights.safetensors",
        "a/../../weights.safetensors",
        "..\\weights.safetensors",
        "http://127.0.0.1:9/weights.safetensors",
        "file:///etc/weights.safetensors",
        "weights.safetensors\n",
        "weights.safetensors\0.pt",
        "weights.pt",
        "weights",
        "",
        None,
        ["weights.safetensors"],
        "x" * 10_000 + ".pt",
    ],
    ids=lambda href: ascii(href)[:30],
)
def test_weights_elsewhere_are_refused(folder, refused, href):
    change(folder, href=href)

    assert refused()["exit_code"] == 3


@pytest.mark.parametrize("name", ["card.json", "weights.safetensors"])
@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "outside"])
def test_links_out_of_the_folder_are_refused(folder, refused, tmp_path, name, target):
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside if target == "outside" else target)

    assert refused()["exit_code"] == 3


def test_a_link_within_the_folder_is_followed(folder, tmp_path):
    """The negative control."""
    (folder / "weights.safetensors").rename(folder / "blob")
    (folder / "weights.safetensors").symlink_to("blob")
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    facts = {"input": str(scene), "output": str(tmp_path / "out"), "shard": 96}

    assert run(Job(**facts, model=str(folder))).values["exit_code"] == 0


@pytest.mark.parametrize("name", ["card.json", "weights.safetensors"])
def test_a_pipe_is_not_waited_for(folder, refused, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)

    assert refused()["exit_code"] == 7


def _header(values, data=b""):
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 10**8) + b"{}" * 100,
        _header(b"[" * 100_000),
        _header(b'{"a":' * 50_000),
        _header({"x": TENSOR | {"shape": [2**62, 2**62]}}, bytes(4)),
        _header({"x": TENSOR | {"data_offsets": [0, 2**40]}}, bytes(4)),
        _header({"x": TENSOR | {"data_offsets": [4, 0]}}, bytes(4)),
        _header({"x": TENSOR, "y": TENSOR}, bytes(4)),
        _header({"x": TENSOR | {"dtype": "EVIL"}}, bytes(4)),
        _header({"x" * 100_000: TENSOR}, bytes(4)),
    ],
    ids=lambda data: ascii(data[:12]),
)
def test_broken_safetensors_are_refused(folder, refused, data):
    put(folder, "weights.safetensors", data)

    assert refused()["exit_code"] == 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"width": 4', '"width": 1000000000000'),
        ('"width": 4', '"width": 100000'),
        ('"width": 4', '"width": ' + "9" * 5000),
        ('"width": 4', '"width": 1e999'),
        ('"depth": 2', '"depth": 9'),
        ('"tileseg:halo": 4', '"tileseg:halo": -1000000'),
        ('"tileseg:halo": 4', '"tileseg:halo": ' + "[" * 100_000),
        ("class 1", "class \\u001b[2J"),
        ("class 1", "class \\n"),
        ("class 1", "c" * 101),
        ("class 1", ""),
    ],
    ids=lambda text: text[:24],
)
def test_a_card_that_asks_for_too_much_is_refused(folder, refused, old, new):
    path = folder / "card.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))

    assert refused()["exit_code"] == 7


@pytest.mark.parametrize("data", [b"[" * 10**6, b" " * (2 << 20), b"\0" * 100, b"\xff"])
def test_what_is_no_card_is_refused(folder, refused, data):
    (folder / "card.json").write_bytes(data)

    assert refused()["exit_code"] == 7


def test_a_wide_network_is_not_built_to_see_that_the_weights_do_not_fit(folder):
    """A width of 20,000 would be 600 GB."""
    from tileseg.cards.item import read_card
    from tileseg.errors import ModelError
    from tileseg.network.model import load_module

    text = (folder / "card.json").read_text()
    (folder / "card.json").write_text(text.replace('"width": 4', '"width": 20000'))

    with pytest.raises(ModelError, match="do not fit"):
        load_module(folder, read_card(folder))


SOURCES = sorted([*(ROOT / "tileseg").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])
# A checkpoint is read as tensors, numbers and words; a program where it is trusted.
ALLOWED = {
    "checkpoint.py": {"torch.load"},
    "foreign.py": {"torch.jit.load", "torch.export.load"},
}
FORBIDDEN = re.compile(
    r"(pickle|cPickle|dill|joblib|shelve|marshal|cloudpickle|(torch\.)?(hub|jit|export)"
    r"|yaml|os\.system|torch\.load)(\.\w+)*|eval|exec|compile|__import__"
)


def _names(tree):
    """Yield the dotted names that a source imports or calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def forbidden(source):
    """Return what a source uses that could run what it reads."""
    tree = ast.parse(source)
    found = {name for name in _names(tree) if FORBIDDEN.fullmatch(name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            found |= {node.arg} if ast.unparse(node.value) != "False" else set()
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
            said = {keyword.arg for keyword in node.keywords}
            found |= {"np.load"} - {"np.load" if "allow_pickle" in said else ""}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_that_could_run_what_it_reads_is_used(path):
    assert forbidden(path.read_text()) == ALLOWED.get(path.name, set())


def test_torch_loads_weights_only():
    tree = ast.parse((ROOT / "tileseg/network/checkpoint.py").read_text())
    calls = [
        {word.arg: ast.unparse(word.value) for word in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]

    assert [call["weights_only"] for call in calls] == ["True"]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load; import torch; torch.load('x')",
        "torch.load(x, weights_only=True)",
        "eval('1')",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "torch.hub.load_state_dict_from_url(x)",
        "from torch import hub",
    ],
)
def test_the_gate_finds_what_it_looks_for(source):
    if "hub.load" in source:
        source = "import torch.hub\n" + source
    assert forbidden(source)
