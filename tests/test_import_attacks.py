"""Hostile files to import: refused, nothing of them run, and no trace left."""

import hashlib
import io
import json
import os
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import quiet_import
from making import make_scene, random_pixels
from payloads import CHECKPOINTS, torchscript
from safetensors.torch import save
from torch import nn

from tileseg.cards.item import to_stac
from tileseg.cli import main
from tileseg.errors import RefusedError
from tileseg.job import run
from tileseg.network.foreign import open_onnx
from tileseg.network.unet import UNet
from tileseg.settings import Job

OPTIONS = (
    *("--bands", "blue,green,red", "--classes", "water,trees,fields"),
    *("--mean", "0", "--std", "1", "--tile", "64"),
)


@pytest.fixture
def attempt(tmp_path):
    """Import something; what it refuses leaves everything as it was."""

    def bring(source, *options, codes=(3,)):
        before = _listing(tmp_path)
        folder = tmp_path / "models" / "imported"
        words = ["model", "import", str(source), "--to", str(folder), *OPTIONS]
        said = CliRunner().invoke(main, [*words, *options])

        assert said.exit_code in codes, said.output
        assert said.output.startswith("tileseg: ")
        assert said.output.count("\n") == 1
        assert len(said.output) < 1000
        assert _listing(tmp_path) == before
        return said.output

    return bring


def _listing(folder):
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*"))


def put(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["net.pt", "net.ckpt", "net.safetensors"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_that_could_run_code_is_refused(tmp_path, attempt, kind, name):
    """Whatever it is called; a folder `marker` would be the trace of its code."""
    path = put(tmp_path, name, CHECKPOINTS[kind](tmp_path / "marker"))
    if kind.startswith("pickle behind") and name == "net.safetensors":
        attempt(path, codes=(2, 3, 7))
    else:
        attempt(path)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_called_onnx_it_is_none(tmp_path, attempt, kind):
    attempt(
        put(tmp_path, "net.onnx", CHECKPOINTS[kind](tmp_path / "marker")), codes=(3, 7)
    )


def test_code_beside_good_weights_is_refused(tmp_path, attempt):
    class Evil:
        def __reduce__(self):
            return os.system, (f"mkdir {tmp_path / 'marker'}",)

    state = UNet(3, 3, width=4, depth=2).state_dict()
    torch.save({"state_dict": state, "hyper_parameters": Evil()}, tmp_path / "net.ckpt")

    assert "posix.system" in attempt(tmp_path / "net.ckpt")


# Arguments of a network that are none


@pytest.mark.usefixtures("smp")
@pytest.mark.parametrize("depth", [100, 900, 5_000])
def test_arguments_in_arguments_without_end_are_refused(tmp_path, attempt, depth):
    saved = tmp_path / "saved"
    saved.mkdir()
    text = f'{{"_model_class": "Unet", "x": {"[" * depth}{"]" * depth}}}'
    put(saved, "config.json", text.encode())
    put(saved, "model.safetensors", save({"x": torch.zeros(1)}))

    attempt(saved, codes=(3, 7))


def test_a_number_of_bands_without_end_is_refused(tmp_path, attempt):
    facts = {"model": "unet", "backbone": "resnet18", "in_channels": float("inf")}
    state = {"model.x": torch.zeros(1)}
    file = {"state_dict": state, "hyper_parameters": facts}
    torch.save(file, tmp_path / "net.ckpt")

    assert "no plain value" in attempt(tmp_path / "net.ckpt", codes=(7,))


# Bombs


def _bomb(size):
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w") as entry,
    ):
        for _ in range(size >> 24):
            entry.write(bytes(1 << 24))
    return file.getvalue()


@pytest.mark.timeout(60)
def test_an_archive_that_grows_is_refused_before_it_does(tmp_path, attempt):
    assert "bomb" in attempt(put(tmp_path, "net.pth", _bomb(1 << 28)))


def test_an_archive_that_says_one_file_many_times_is_refused(tmp_path, attempt):
    """Its directory names the same bytes again and again."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
        archive.filelist *= 1000

    assert "bomb" in attempt(put(tmp_path, "net.pth", file.getvalue()))


def test_nobody_is_told_to_read_a_file_in_an_unsafe_way(tmp_path, attempt):
    """As torch does of what it refuses."""
    said = attempt(put(tmp_path, "net.pth", b"\x93NUMPY\x01\x00v\x00"))

    assert "Weights only load failed" in said
    assert "weights_only" not in said


def test_a_tensor_larger_than_its_file_is_refused(tmp_path, attempt):
    state = {"enc1.0.weight": torch.zeros(1).expand(1 << 20, 1 << 20, 3, 3)}
    torch.save(state, tmp_path / "net.pth")

    assert "bomb" in attempt(tmp_path / "net.pth")


def test_a_tensor_without_numbers_counts_for_nothing(tmp_path, attempt):
    """A shape on the meta device takes no place in a file."""
    torch.save(
        {"enc1.0.weight": torch.zeros(9, 3, 3, 3, device="meta")}, tmp_path / "a.pt"
    )

    attempt(tmp_path / "a.pt", codes=(7,))


def _header(tensor):
    text = json.dumps({"x": tensor}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 10**8) + b"{}" * 100,
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        _header({"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}),
    ],
    ids=["endless", "huge", "longer than its file", "deep", "a shape"],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, attempt, header):
    attempt(put(tmp_path, "net.safetensors", header))


# Broken files


def _exported(path, network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (torch.zeros(1, 3, 64, 64),))
        torch.export.save(program, path)


def _onnx(path, network):
    quiet_import("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiles = (torch.zeros(1, 3, 64, 64),)
        torch.onnx.export(network, tiles, str(path), dynamo=False)


WRITERS = {
    "net.pth": lambda path, network: torch.save(network.state_dict(), path),
    "old.pth": lambda path, network: torch.save(
        network.state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "net.safetensors": lambda path, network: path.write_bytes(
        save(dict(network.state_dict()))
    ),
    "net.pt": lambda path, _network: path.write_bytes(torchscript(None)),
    "net.pt2": _exported,
    "net.onnx": _onnx,
}


@pytest.mark.parametrize("name", WRITERS)
def test_half_a_file_is_no_model(tmp_path, attempt, name):
    path = tmp_path / name
    WRITERS[name](path, UNet(3, 3, width=4, depth=2).eval())
    whole = path.read_bytes()
    for part in (0, 1, 7, 100, len(whole) // 3, len(whole) - 1000, len(whole) - 1):
        attempt(put(tmp_path, name, whole[:part]), codes=(3, 7))


@pytest.mark.parametrize("source", ["nothing.pth", ".", "pipe", "/dev/zero"])
def test_what_is_no_file_is_not_waited_for(tmp_path, attempt, source):
    os.mkfifo(tmp_path / "pipe")

    attempt(tmp_path / source, codes=(7,))


# Programs


@pytest.mark.parametrize("name", ["net.pt", "net.pt2", "net.pth", "net.safetensors"])
@pytest.mark.parametrize("kind", ["net.pt", "net.pt2"])
def test_a_program_is_refused_unless_it_is_the_one_that_is_trusted(
    tmp_path, attempt, kind, name
):
    WRITERS[kind](tmp_path / kind, UNet(3, 3, width=4, depth=2).eval())
    path = (tmp_path / kind).rename(tmp_path / name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    assert "--trust-model-code" in attempt(path)
    assert "--sha256" in attempt(path, "--trust-model-code")
    attempt(path, "--sha256", digest)
    wrong = digest[::-1]
    assert "not what was meant" in attempt(
        path, "--trust-model-code", "--sha256", wrong
    )


def test_weights_of_another_digest_are_refused(tmp_path, attempt):
    WRITERS["net.pth"](tmp_path / "net.pth", UNet(3, 3, width=4, depth=2))

    assert "not what was meant" in attempt(tmp_path / "net.pth", "--sha256", "0" * 64)


# ONNX with numbers elsewhere


def _varint(number, length):
    """Return a number under 128 in as many bytes as are asked for."""
    return (
        bytes([number | 0x80] + [0x80] * (length - 2) + [0])
        if length > 1
        else bytes([number])
    )


def _elsewhere(location):
    """Return an ONNX network one of whose tensors is in another file."""
    onnx = quiet_import("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    weight = kind(name="w", data_type=kind.FLOAT, dims=[3, 3, 1, 1])
    weight.data_location = kind.EXTERNAL
    weight.external_data.add(key="location", value=location)
    shape = ["n", 3, 64, 64]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", kind.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


@pytest.mark.parametrize(
    "location",
    ["beside.bin", "../beside.bin", "/etc/passwd", "a/../../b", "*/_ORT_MEM_ADDR_/*"],
)
def test_onnx_with_numbers_elsewhere_is_refused(
    tmp_path, attempt, location, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "beside.bin", np.ones(9, np.float32).tobytes())

    assert "another file" in attempt(put(tmp_path, "net.onnx", _elsewhere(location)))


def test_onnxruntime_would_read_it(tmp_path, monkeypatch):
    """The negative control: it takes a file of the folder that a process is in."""
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    put(tmp_path, "beside.bin", np.full(9, 2, np.float32).tobytes())
    session = onnxruntime.InferenceSession(_elsewhere("beside.bin"))
    tiles = np.ones((1, 3, 64, 64), np.float32)

    assert session.run(None, {"x": tiles})[0].min() == 6


@pytest.mark.parametrize("tag", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_spelling_of_a_location_is_seen(tag, size):
    """Protobuf lets a number have more bytes than it needs, and fields any order."""
    onnx = quiet_import("onnx")
    key = _varint(0x0A, tag) + _varint(8, size) + b"location"
    value = b"\x12\x0abeside.bin"
    for pair in (key + value, value + key):
        read = onnx.StringStringEntryProto.FromString(pair)
        assert (read.key, read.value) == ("location", "beside.bin")
        with pytest.raises(RefusedError, match="another file"):
            open_onnx(b"anything" + pair + b"more", "cpu")


def test_a_format_of_onnxruntimes_own_is_refused(tmp_path, attempt):
    attempt(put(tmp_path, "net.onnx", bytes(4) + b"ORTM" + bytes(100)))


# Folders of save_pretrained


@pytest.fixture
def saved(smp, tmp_path):
    torch.manual_seed(0)
    module = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=3)
    module.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_out_of_the_folder_is_refused(saved, tmp_path, attempt, name):
    (saved / name).rename(tmp_path / name)
    (saved / name).symlink_to(tmp_path / name)

    assert "link" in attempt(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder_name", "tu-hf-hub:somebody/resnet18"),
        ("encoder_name", "tu-local-dir:/tmp"),
        ("encoder_name", "../../resnet18"),
        ("encoder_name", ["resnet18"] * 100),
        ("decoder_channels", [10**9, 128, 64, 32, 16]),
        ("decoder_channels", [16] * 10**5),
        ("in_channels", 10**12),
        ("classes", 10**12),
        ("upsampling", 1e300),
    ],
    ids=str,
)
def test_a_folder_that_asks_for_too_much_is_refused(saved, attempt, key, value):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, key: value}))

    attempt(saved)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 10**5, '{"_model_class": 3}', '{"_model_class": "Evil"}'],
)
def test_a_folder_with_a_broken_config_is_no_model(saved, attempt, text):
    (saved / "config.json").write_text(text)

    attempt(saved, codes=(7,))


def test_a_pickle_in_such_a_folder_is_not_read(saved, tmp_path, attempt):
    (saved / "model.safetensors").unlink()
    put(saved, "pytorch_model.bin", CHECKPOINTS["torch zip"](tmp_path / "marker"))

    attempt(saved, codes=(7,))


# Model folders that were not imported here


def _folder(tmp_path, *, kind, name, data, parameters):
    """Write a model folder of a network of another library, by hand."""
    from making import make_card

    from tileseg.cards.architecture import Architecture

    folder = tmp_path / "model"
    folder.mkdir()
    put(folder, name, data)
    card = make_card(
        architecture=Architecture(kind, "any", parameters, multiple=1, floats=1),
        weights=name,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    (folder / "card.json").write_text(json.dumps(to_stac(card)))
    return folder


FOLDERS = {
    "onnx elsewhere": lambda: {
        "kind": "onnx",
        "name": "weights.onnx",
        "data": _elsewhere("/etc/passwd"),
        "parameters": {"input": "x", "output": "y"},
    },
    "torchscript": lambda: {
        "kind": "torchscript",
        "name": "weights.pt",
        "data": torchscript(None),
        "parameters": {},
    },
    "a hub": lambda: {
        "kind": "smp",
        "name": "weights.safetensors",
        "data": save({"x": torch.zeros(1)}),
        "parameters": {"arch": "unet", "encoder_name": "tu-hf-hub:somebody/net"},
    },
    "too large": lambda: {
        "kind": "smp",
        "name": "weights.safetensors",
        "data": save({"x": torch.zeros(1)}),
        "parameters": {"arch": "unet", "decoder_channels": [10**9] * 5},
    },
    "too deep": lambda: {
        "kind": "smp",
        "name": "weights.safetensors",
        "data": save({"x": torch.zeros(1)}),
        "parameters": {"arch": "unet", "x": json.loads("[" * 300 + "]" * 300)},
    },
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_hostile_model_folder_is_refused(tmp_path, kind):
    folder = _folder(tmp_path, **FOLDERS[kind]())
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    facts = {"input": str(scene), "output": str(tmp_path / "out"), "shard": 96}
    record = run(Job(**facts, model=str(folder), trusted=True))

    assert record.values["exit_code"] == 3, record.values["error"]
    assert not (tmp_path / "out").exists()


def test_a_model_folder_whose_network_gives_something_else_is_named(tmp_path):
    """A program may give anything: here two answers for three classes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(
            torch.jit.trace(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 8, 8)), file
        )
    program = {"kind": "torchscript", "name": "weights.pt", "parameters": {}}
    folder = _folder(tmp_path, data=file.getvalue(), **program)
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    facts = {"input": str(scene), "output": str(tmp_path / "out"), "shard": 96}
    job = Job(**facts, model=str(folder), trusted=True, trust_model_code=True)
    record = run(job)

    assert record.values["exit_code"] in (7, 12), record.values["error"]
    assert "the network gives" in record.values["error"]
