"""Networks that other libraries made, imported, and compared with those by hand."""

import hashlib
import json
import shutil
import signal
import sys
import warnings
from importlib.metadata import files
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from conftest import quiet_import
from hypothesis import given
from hypothesis import strategies as st
from making import lively, make_card, make_scene, random_pixels
from safetensors.torch import save_file
from torch import nn

from tileseg.cards.architecture import Architecture
from tileseg.cards.item import read_card
from tileseg.cli import main
from tileseg.errors import UsageError
from tileseg.job import run
from tileseg.network.device import Device
from tileseg.network.foreign import _in_parts
from tileseg.network.model import Network, load_module
from tileseg.network.unet import UNet
from tileseg.settings import Job
from tileseg.stores.lock import hold_file
from tileseg.training import adopt
from tileseg.training.adopt import _halo
from tileseg.training.footprint import footprint

pytestmark = pytest.mark.slow  # the libraries alone take half a minute to load

CPU = Device("cpu", "any", "fp32")
RGB = ("--bands", "blue,green,red", "--mean", "0.3", "--std", "0.2")
THREE = (*RGB, "--classes", "water,trees,fields", "--tile", "64")
OFF = 1e-4


@pytest.fixture
def attempt(tmp_path):
    """Import something; return the model folder and what the command said."""

    def bring(source, *options):
        folder = tmp_path / "models" / "imported"
        words = ["model", "import", str(source), "--to", str(folder), *options]
        return folder, CliRunner().invoke(main, words)

    return bring


@pytest.fixture
def bring(attempt):
    """Import something, and remove it: only the folder is used from now on."""

    def succeed(source, *options):
        folder, said = attempt(source, *options)
        assert said.exit_code == 0, said.output
        if source.is_relative_to(folder.parents[1]):
            shutil.rmtree(source) if source.is_dir() else source.unlink()
        return folder

    return succeed


def noise(bands=3, tile=64, number=2):
    """Return scaled tiles, (number, bands, tile, tile)."""
    shape = (number, bands, tile, tile)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def check_same(folder, tiles, right):
    """The network of a model folder gives `right`, (N, K, H, W), for these tiles."""
    card = read_card(folder)
    logits = Network(card, load_module(folder, card), CPU)(tiles)

    assert logits.shape == right.shape
    assert float((logits - right).abs().max()) <= OFF * max(1, float(right.abs().max()))
    assert torch.equal(_labels(logits), _labels(right))
    assert len(_labels(right).unique()) > 1  # a constant would show nothing


def _labels(logits):
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)


def by_hand(module, tiles):
    with torch.inference_mode():
        return module.eval()(tiles)


def enliven(module):
    """Give normalisations and a last layer that make many classes of noise."""
    torch.manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return module.eval()


# The tutorial's U-Net


def unet(outputs=3):
    torch.manual_seed(0)
    module = UNet(3, outputs, width=4, depth=3)
    lively(module)
    return module


WRAPPED = {
    "weights.pth": lambda state: state,
    "lightning.ckpt": lambda state: {
        "state_dict": {f"model.{name}": item for name, item in state.items()}
        | {"criterion.weight": torch.ones(3)},
        "epoch": 3,
    },
    "parallel.pt": lambda state: {
        "model_state_dict": {f"module.{name}": item for name, item in state.items()},
        "optimizer": {"lr": 0.1},
    },
    "compiled.pt": lambda state: {
        "model": {f"_orig_mod.{name}": item for name, item in state.items()}
    },
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_checkpoint_of_the_tutorial_is_its_network(tmp_path, bring, name):
    module = unet()
    torch.save(WRAPPED[name](module.state_dict()), tmp_path / name)
    folder = bring(tmp_path / name, *THREE)

    assert read_card(folder).architecture.parameters == {"width": 4, "depth": 3}
    check_same(folder, noise(), by_hand(module, noise()))


def test_safetensors_of_the_tutorial_are_its_network(tmp_path, bring):
    module = unet(outputs=1)
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    options = (*RGB, "--classes", "land,water", "--tile", "64")
    folder = bring(tmp_path / "weights.safetensors", *options)

    check_same(folder, noise(), by_hand(module, noise()))


def test_half_precision_is_kept_as_the_numbers_that_it_is(tmp_path, bring):
    module = unet().half()
    torch.save(module.state_dict(), tmp_path / "half.pth")
    folder = bring(tmp_path / "half.pth", *THREE, "--fields", "fields")

    card = read_card(folder)
    assert (card.fields, card.left_out) == ((2,), (255, 0, 1))
    check_same(folder, noise(), by_hand(module.float(), noise()))


def test_the_card_says_where_it_comes_from(tmp_path, bring):
    path = tmp_path / "weights.pth"
    torch.save(unet().state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    more = ("--about", "licence=MIT", "--gsd", "10", "--colors", "000000,ff0000,00ff00")
    card = read_card(bring(path, *THREE, *more, "--sha256", digest.upper()))

    assert card.about == {
        "imported_from": "weights.pth",
        "imported_sha256": digest,
        "licence": "MIT",
    }
    assert (card.name, card.version, card.gsd) == ("imported", "1", 10)
    assert [item.color for item in card.classes] == ["000000", "ff0000", "00ff00"]
    assert (card.mean, card.std) == ((0.3,) * 3, (0.2,) * 3)


# segmentation_models_pytorch

KINDS = ("Unet", "FPN", "DeepLabV3Plus", "UnetPlusPlus")


def library_network(smp, kind, **arguments):
    torch.manual_seed(1)
    given = {"encoder_name": "resnet18", "in_channels": 3, "classes": 3}
    known = {**given, "encoder_weights": None, **arguments}
    return enliven(getattr(smp, kind)(**known))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pretrained_folder_is_the_librarys_network(smp, tmp_path, bring, kind):
    module = library_network(smp, kind)
    module.save_pretrained(tmp_path / "saved")
    right = by_hand(smp.from_pretrained(tmp_path / "saved"), noise())
    folder = bring(tmp_path / "saved", *THREE)

    assert read_card(folder).architecture.name == kind
    assert sorted(item.name for item in folder.iterdir()) == [
        "card.json",
        "weights.safetensors",
    ]
    check_same(folder, noise(), right)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_of_the_library_is_its_network(smp, tmp_path, bring, kind):
    module = library_network(smp, kind, in_channels=4, classes=1)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    folder = bring(
        tmp_path / "weights.pth",
        *("--bands", "blue,green,red,nir", "--classes", "land,water"),
        *("--mean", "0", "--std", "1", "--tile", "64"),
        *("--smp", f"arch={kind}", "--smp", "encoder_name=resnet18"),
    )

    check_same(folder, noise(4), by_hand(module, noise(4)))


def test_arguments_of_the_library_are_kept(smp, tmp_path, bring):
    shape = {"encoder_depth": 3, "decoder_channels": [32, 16, 8]}
    module = library_network(smp, "Unet", **shape)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    words = ["arch=unet", "encoder_name=resnet18", "encoder_depth=3"]
    words += ["decoder_channels=[32,16,8]"]
    options = [word for item in words for word in ("--smp", item)]
    folder = bring(tmp_path / "weights.pth", *THREE, *options)

    assert read_card(folder).architecture.multiple == 8
    check_same(folder, noise(), by_hand(module, noise()))


def test_what_is_needed_and_not_told_is_asked_for(smp, tmp_path, attempt):
    state = library_network(smp, "FPN").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    _, said = attempt(tmp_path / "weights.pth", *THREE)
    assert (said.exit_code, "--smp arch=Unet" in said.output) == (2, True)

    known = ("--smp", "arch=FPN", "--smp", "encoder_name=resnet18")
    for missing, word in (("--bands", 0), ("--mean", 2), ("--classes", 6)):
        fewer = [item for n, item in enumerate(THREE) if n not in (word, word + 1)]
        folder, said = attempt(tmp_path / "weights.pth", *fewer, *known)
        assert (said.exit_code, missing in said.output) == (2, True), said.output
        assert said.output.count("\n") == 1
        assert not folder.exists()


def test_weights_of_another_encoder_do_not_fit(smp, tmp_path, attempt):
    torch.save(library_network(smp, "FPN").state_dict(), tmp_path / "weights.pth")
    options = ("--smp", "arch=FPN", "--smp", "encoder_name=resnet34")
    folder, said = attempt(tmp_path / "weights.pth", *THREE, *options)

    assert (said.exit_code, "not those of FPN" in said.output) == (7, True)
    assert not folder.parent.exists()


def test_a_network_with_two_answers_is_refused(smp, tmp_path, attempt):
    module = library_network(smp, "Unet", aux_params={"classes": 2})
    module.save_pretrained(tmp_path / "saved")
    _, said = attempt(tmp_path / "saved", *THREE)

    assert (said.exit_code, "answers a tuple" in said.output) == (7, True)


def test_a_tile_that_the_network_does_not_take_is_named(smp, tmp_path, attempt):
    library_network(smp, "Unet").save_pretrained(tmp_path / "saved")
    _, said = attempt(tmp_path / "saved", *THREE, "--tile", "72")

    assert said.exit_code == 2
    assert "no halo fits a tile of 72" in said.output


# A whole job: the mask is what the library gives, tile by tile


def tiled_labels(forward, pixels, valid, card):
    """Return labels, (height, width), of tiles without a margin, made by hand."""
    height, width = pixels.shape[1:]
    tile = card.tile
    mean, std = (np.array(numbers)[:, None, None] for numbers in (card.mean, card.std))
    scaled = np.where(valid, (pixels - mean) / std, 0).astype(np.float32)
    more = [(0, 0), (0, -height % tile), (0, -width % tile)]
    padded = np.pad(scaled, more, mode="symmetric")
    labels = np.zeros(padded.shape[1:], np.uint8)
    for row in range(0, height, tile):
        for column in range(0, width, tile):
            at = slice(row, row + tile), slice(column, column + tile)
            labels[at] = forward(torch.from_numpy(padded[:, *at][None]))[0].argmax(0)
    return labels[:height, :width]


def check_mask(folder, forward, tmp_path, **facts):
    """The mask of a scene is what `forward` gives for its tiles."""
    card = read_card(folder)
    stored = random_pixels(250, 170, bands=len(card.bands))
    scene = make_scene(tmp_path / "scene.tif", stored)
    out = tmp_path / "out"
    facts |= {"input": str(scene), "output": str(out), "model": str(folder)}
    record = run(Job(**facts, trusted=True)).values
    assert record["exit_code"] == 0, record["error"]
    with rasterio.open(out / "mask.tif") as dataset:
        mask = dataset.read(1)
    valid = (stored != 0).all(axis=0)
    right = tiled_labels(forward, stored * 1e-4, valid, card)

    assert np.array_equal(mask == 255, ~valid)
    agreement = (mask == right)[valid].mean()
    assert agreement >= 0.9999, agreement
    assert len(np.unique(mask)) > 2
    return record


def test_a_job_with_the_librarys_network_gives_its_labels(smp, tmp_path, bring):
    module = library_network(smp, "FPN")
    module.save_pretrained(tmp_path / "saved")
    folder = bring(tmp_path / "saved", *THREE, "--halo", "0")

    def forward(tiles):
        return by_hand(module, tiles)

    record = check_mask(folder, forward, tmp_path, precision="fp32")
    assert record["model"]["name"] == "imported"


# torchgeo


@pytest.fixture(scope="module")
def lightning_file(tmp_path_factory):
    """Train torchgeo's own task for a step, and have Lightning save it."""
    quiet_import("segmentation_models_pytorch")
    trainers = quiet_import("torchgeo.trainers")
    lightning = quiet_import("lightning.pytorch")
    callbacks = quiet_import("lightning.pytorch.callbacks")

    def train(**arguments):
        folder = tmp_path_factory.mktemp("lightning")
        torch.manual_seed(2)
        task = trainers.SemanticSegmentationTask(
            backbone="resnet18", class_weights=[1.0, 2.0, 3.0], **arguments
        )
        bands = arguments["in_channels"]
        sample = {
            "image": noise(bands, number=1)[0],
            "mask": torch.arange(64 * 64).reshape(64, 64) % 3,
        }
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=1,
            logger=False,
            callbacks=[callbacks.ModelCheckpoint(folder, filename="last")],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = torch.utils.data.DataLoader([sample, sample], batch_size=2)
            trainer.fit(task, loader, loader)
        return folder / "last.ckpt", trainers.SemanticSegmentationTask

    return train


@pytest.mark.parametrize("model", ["unet", "deeplabv3+"])
def test_a_task_of_torchgeo_is_its_network(lightning_file, bring, model):
    path, task = lightning_file(model=model, in_channels=8, num_classes=3)
    restored = task.load_from_checkpoint(path, map_location="cpu")
    right = by_hand(restored, noise(8))
    bands = ",".join(f"{band}-{time}" for time in "ab" for band in "rgbn")
    options = ("--bands", bands, "--classes", "other,field,border", "--tile", "64")
    folder = bring(path, *options, "--mean", "0", "--std", "3000", "--unit", "dn")

    card = read_card(folder)
    assert (card.unit, card.std) == ("dn", (3000.0,) * 8)
    check_same(folder, noise(8), right)


def test_a_task_with_another_network_is_named(lightning_file, attempt):
    path, _ = lightning_file(model="fcn", in_channels=3, num_classes=3)
    folder, said = attempt(path, *THREE)

    assert (said.exit_code, "'fcn' task" in said.output) == (7, True)
    assert not folder.parent.exists()


# ONNX


def export(module, path, *, dynamic=(), metadata=None, number=1, tile=64):
    """Write a module as ONNX; `dynamic` are the axes of which the size may be any."""
    onnx = quiet_import("onnx")
    axes = {axis: f"size{axis}" for axis in dynamic}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (noise(tile=tile, number=number),),
            str(path),
            dynamo=False,
            input_names=["tiles"],
            output_names=["answers"],
            dynamic_axes={"tiles": axes, "answers": axes},
        )
    model = onnx.load(path)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, path)
    return path


def onnx_by_hand(path, tiles, one_by_one=False):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = tiles.split(1) if one_by_one else [tiles]
    return torch.cat(
        [
            torch.from_numpy(session.run(None, {name: part.contiguous().numpy()})[0])
            for part in parts
        ]
    )


def test_onnx_of_any_size_is_what_onnxruntime_gives(tmp_path, bring):
    path = export(unet(), tmp_path / "any.onnx", dynamic=(0, 2, 3))
    right = onnx_by_hand(path, noise())
    folder = bring(path, *THREE)

    assert (folder / "weights.onnx").is_file()
    assert read_card(folder).architecture.parameters["batch"] is None
    check_same(folder, noise(), right)


def test_a_job_with_onnx_gives_its_labels(tmp_path, bring):
    path = export(unet(), tmp_path / "any.onnx", dynamic=(0, 2, 3))
    kept = tmp_path.with_suffix(".onnx")
    kept.write_bytes(path.read_bytes())
    folder = bring(path, *THREE, "--halo", "0")

    def forward(tiles):
        return onnx_by_hand(kept, tiles)

    record = check_mask(folder, forward, tmp_path)
    assert record["engine"]["precision"] == "fp32"


DEEPNESS = {
    "model_type": "Segmentor",
    "class_names": {"0": "background", "1": "trees", "2": "roads"},
    "resolution": 25.0,
    "tiles_size": 64,
    "tiles_overlap": 25,
    "standardization_mean": [0.5, 0.25, 0.0],
    "standardization_std": [0.2, 0.4, 1.0],
}


def test_onnx_of_one_size_brings_what_deepness_says(tmp_path, bring):
    """A tile of 64 with a quarter of overlap: an eighth is thrown away on each side."""
    path = export(unet(), tmp_path / "fixed.onnx", metadata=DEEPNESS, number=2)
    right = torch.cat(
        [onnx_by_hand(path, noise(number=4)[at : at + 2]) for at in (0, 2)]
    )[:3]
    folder = bring(path, "--bands", "blue,green,red")

    card = read_card(folder)
    assert [item.name for item in card.classes] == ["background", "trees", "roads"]
    assert (card.tile, card.halo, card.gsd, card.unit) == (64, 8, 0.25, "dn")
    assert card.mean == (127.5, 63.75, 0.0)
    assert card.std == (51.0, 102.0, 255.0)
    assert card.architecture.parameters["batch"] == 2
    check_same(folder, noise(number=4)[:3], right)


def test_what_is_told_goes_before_what_the_file_says(tmp_path, bring):
    path = export(unet(), tmp_path / "fixed.onnx", metadata=DEEPNESS)
    card = read_card(bring(path, *THREE, "--gsd", "10", "--halo", "4"))

    assert [item.name for item in card.classes] == ["water", "trees", "fields"]
    assert (card.gsd, card.halo, card.unit) == (10, 4, "reflectance")
    assert (card.mean, card.std) == ((0.3,) * 3, (0.2,) * 3)


class Last(nn.Module):
    """A network with the bands last, as TensorFlow has them."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, tiles):
        return self.module(tiles.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def test_onnx_with_the_bands_last_is_turned(tmp_path, bring):
    onnx = quiet_import("onnx")
    path = tmp_path / "last.onnx"
    turned = noise().permute(0, 2, 3, 1).contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Last(unet()).eval(), (turned[:1],), str(path), dynamo=False)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[3].dim_value == 3
    right = onnx_by_hand(path, turned, one_by_one=True).permute(0, 3, 1, 2)

    check_same(bring(path, *THREE), noise(), right)


def test_a_network_that_ends_in_softmax_gives_probabilities(tmp_path, bring):
    module = nn.Sequential(unet(), nn.Softmax(dim=1))
    path = export(module, tmp_path / "softmax.onnx", dynamic=(0,))
    right = onnx_by_hand(path, noise())
    folder = bring(path, *THREE)

    card = read_card(folder)
    assert card.answers == "probabilities"
    logits = Network(card, load_module(folder, card), CPU)(noise())
    assert float((logits.softmax(dim=1) - right).abs().max()) <= OFF
    assert torch.equal(logits.argmax(dim=1), right.argmax(dim=1))


def test_one_answer_between_0_and_1_must_be_told(tmp_path, attempt):
    module = nn.Sequential(unet(outputs=1), nn.Sigmoid())
    path = export(module, tmp_path / "sigmoid.onnx", dynamic=(0,))
    options = (*RGB, "--classes", "land,water", "--tile", "64")
    folder, said = attempt(path, *options)
    assert (said.exit_code, "--answers" in said.output) == (2, True)
    assert not folder.exists()

    folder, said = attempt(path, *options, "--answers", "probabilities")
    assert said.exit_code == 0, said.output
    card = read_card(folder)
    logits = Network(card, load_module(folder, card), CPU)(noise())
    right = onnx_by_hand(path, noise())
    assert float((logits.sigmoid() - right).abs().max()) <= OFF


def test_logits_are_not_taken_for_probabilities(tmp_path, attempt):
    torch.save(unet().state_dict(), tmp_path / "weights.pth")
    _, said = attempt(tmp_path / "weights.pth", *THREE, "--answers", "probabilities")

    assert (said.exit_code, "no probabilities" in said.output) == (2, True)


def csmask(name):
    """Return a file of ukis-csmask, without importing that."""
    return next(
        Path(item.locate()) for item in files("ukis-csmask") if item.name == name
    )


@pytest.fixture
def csmask_options():
    facts = json.loads(csmask("model_4b_l2a.json").read_text())["data"]
    bands = facts["dataset_statistics"]["band_names"]
    mean, std = facts["dataset_statistics"]["img"]
    return (
        *("--bands", ",".join(bands), "--classes", "clear,cloud,shadow"),
        *("--mean", ",".join(map(str, mean)), "--std", ",".join(map(str, std))),
    )


def test_a_published_cloud_mask_is_what_onnxruntime_gives(bring, csmask_options):
    path = csmask("model_4b_l2a.onnx")
    tiles = noise(4, 256, 2)
    folder = bring(path, *csmask_options)

    card = read_card(folder)
    assert (card.tile, card.halo, card.outputs) == (256, 32, 3)
    assert (folder / card.weights).read_bytes() == path.read_bytes()
    check_same(folder, tiles, onnx_by_hand(path, tiles))


def test_a_published_cloud_mask_takes_one_size(attempt, csmask_options):
    path = csmask("model_4b_l2a.onnx")
    folder, said = attempt(path, *csmask_options, "--tile", "128")

    assert (said.exit_code, "tiles of 128 pixels" in said.output) == (7, True)
    assert not folder.parent.exists()


def test_a_job_with_a_published_cloud_mask_gives_its_labels(
    tmp_path, bring, csmask_options
):
    path = csmask("model_4b_l2a.onnx")
    folder = bring(path, *csmask_options, "--halo", "0")

    def forward(tiles):
        return onnx_by_hand(path, tiles)

    record = check_mask(folder, forward, tmp_path, batch_size=2)
    assert record["engine"]["precision"] == "fp32"


def test_onnx_computes_in_its_own_numbers(tmp_path, bring):
    folder = bring(export(unet(), tmp_path / "any.onnx", dynamic=(0, 2, 3)), *THREE)
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    facts = {"input": str(scene), "output": str(tmp_path / "out"), "trusted": True}
    record = run(Job(**facts, model=str(folder), precision="bf16")).values

    assert record["exit_code"] == 2
    assert "computes as it was saved" in record["error"]


@pytest.mark.parametrize(
    ("library", "extra"),
    [("segmentation_models_pytorch", "smp"), ("onnxruntime", "onnx")],
)
def test_a_library_that_is_not_installed_is_named(
    smp, tmp_path, attempt, monkeypatch, library, extra
):
    library_network(smp, "FPN").save_pretrained(tmp_path / "smp")
    export(unet(), tmp_path / "onnx.onnx")
    monkeypatch.setitem(sys.modules, library, None)
    source = tmp_path / ("smp" if extra == "smp" else "onnx.onnx")
    folder, said = attempt(source, *THREE)

    assert said.exit_code == 7
    assert f"pip install 'tileseg[{extra}]'" in said.output
    assert not folder.parent.exists()


def test_a_library_that_cannot_be_loaded_is_named(tmp_path, attempt, monkeypatch):
    """As where torchvision is for CUDA and torch is not."""
    name, said = "segmentation_models_pytorch", "operator torchvision::nms is missing"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError({said!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    state = {"segmentation_head.0.weight": torch.zeros(3, 16, 3, 3)}
    torch.save(state, tmp_path / "weights.pth")
    words = ("--smp", "arch=Unet", "--smp", "encoder_name=resnet18")
    folder, told = attempt(tmp_path / "weights.pth", *THREE, *words)

    assert (told.exit_code, told.output.count("\n")) == (7, 1)
    assert f"{said}; if that is torchvision" in told.output
    assert not folder.parent.exists()


def test_an_imported_folder_can_be_looked_at(smp, tmp_path, bring):
    library_network(smp, "FPN").save_pretrained(tmp_path / "saved")
    folder = bring(tmp_path / "saved", *THREE)
    info = CliRunner().invoke(main, ["model", "info", str(folder)])
    trace = CliRunner().invoke(main, ["model", "trace", str(folder)])

    assert (info.exit_code, trace.exit_code) == (0, 0)
    assert "imported_from    saved" in info.output
    assert "decoder: [1, 128, 16, 16]" in trace.output
    assert "Output: [1, 3, 64, 64]" in trace.output


# Programs

PROGRAMS = {"torchscript": "net.pt", "exported": "net.pt2"}


def program(kind, path):
    """Write a network with its own program; return the network."""
    module = unet().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "torchscript":
            torch.jit.trace(module, noise()).save(path)
        else:
            torch.export.save(torch.export.export(module, (noise(),)), path)
    return module


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_trusted_program_gives_what_it_gave(tmp_path, bring, kind):
    path = tmp_path / PROGRAMS[kind]
    module = program(kind, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    folder = bring(path, *THREE, "--trust-model-code", "--sha256", digest)
    tiles = noise(number=3)  # of which the exported one takes two at once

    assert read_card(folder).architecture.kind == kind
    check_same(folder, tiles, by_hand(module, tiles))


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_job_runs_a_program_only_where_it_is_trusted(tmp_path, bring, kind):
    path = tmp_path / PROGRAMS[kind]
    module = program(kind, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    trust = ("--trust-model-code", "--sha256", digest)
    folder = bring(path, *THREE, *trust, "--halo", "0")
    scene = make_scene(tmp_path / "small.tif", random_pixels(70, 90))
    facts = {"input": str(scene), "output": str(tmp_path / "no"), "trusted": True}
    refused = run(Job(**facts, model=str(folder)))
    assert refused.values["exit_code"] == 3
    assert "--trust-model-code" in refused.values["error"]

    def forward(tiles):
        return by_hand(module, tiles)

    check_mask(folder, forward, tmp_path, trust_model_code=True)


# The parts


@given(
    st.sampled_from([1, 2, 8, 16, 32]),
    st.integers(4, 80),
    st.none() | st.integers(0, 500),
)
def test_a_halo_that_is_chosen_fits(multiple, steps, wish):
    """The card takes it; where there is none at all, that is said."""
    tile = multiple * steps
    try:
        halo = _halo(tile, multiple, wish)
    except UsageError:
        return
    network = Architecture("smp", "FPN", {}, multiple=multiple, floats=1)
    card = make_card(tile=tile, halo=halo, architecture=network)

    assert card.stride % multiple == 0


@pytest.mark.parametrize(
    ("tile", "multiple", "halo"), [(128, 16, 16), (256, 32, 32), (512, 32, 64)]
)
def test_the_usual_halo_is_an_eighth(tile, multiple, halo):
    assert _halo(tile, multiple, None) == halo


@given(st.integers(1, 7), st.integers(1, 5))
def test_a_network_that_takes_some_tiles_at_once_gets_those(number, batch):
    seen = []

    def forward(tiles):
        seen.append(len(tiles))
        return tiles * 2

    tiles = torch.arange(number * 4.0).reshape(number, 1, 2, 2)

    assert torch.equal(_in_parts(forward, tiles, batch), tiles * 2)
    assert set(seen) == {batch}


def test_a_footprint_is_what_is_held_at_once():
    """A chain holds two pictures at a time, however long it is."""
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(9)]
    tiles = torch.zeros(1, 8, 40, 56)
    picture = tiles.nbytes
    with torch.inference_mode():
        _, held = footprint(nn.Sequential(*layers), tiles)

    assert held == 2 * picture * 3 // 2


# The folder


def test_a_folder_that_is_there_is_left_alone(tmp_path, attempt):
    torch.save(unet().state_dict(), tmp_path / "weights.pth")
    other = tmp_path / "models" / "imported" / "notes.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    folder, said = attempt(tmp_path / "weights.pth", *THREE)

    assert (said.exit_code, "something is there" in said.output) == (2, True)
    assert list(folder.parent.rglob("*")) == [folder, other]


def test_a_folder_that_cannot_be_written_is_not_begun(tmp_path, attempt):
    torch.save(unet().state_dict(), tmp_path / "weights.pth")
    (tmp_path / "models").write_text("a file")
    _, said = attempt(tmp_path / "weights.pth", *THREE)

    assert said.exit_code == 5, said.output
    assert sorted(tmp_path.iterdir()) == [tmp_path / "models", tmp_path / "weights.pth"]


def test_what_a_killed_import_left_goes_with_the_next_one(tmp_path, attempt):
    """Not while it may still be at work, and nothing of another folder's."""
    torch.save(unet().state_dict(), tmp_path / "weights.pth")
    models = tmp_path / "models"
    stale = models / f".imported.staging.{uuid4().hex}"
    other = models / f".imported-too.staging.{uuid4().hex}"
    for folder in (stale, other):
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"half")

    with hold_file(models / ".imported.lock"):
        folder, said = attempt(tmp_path / "weights.pth", *THREE)
    assert said.exit_code == 8, said.output
    assert sorted(models.iterdir()) == sorted([stale, other])
    folder, said = attempt(tmp_path / "weights.pth", *THREE)

    assert said.exit_code == 0, said.output
    assert sorted(models.iterdir()) == sorted([other, folder])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_leaves_nothing(tmp_path, attempt, monkeypatch, number, code):
    """It comes when the weights are written and the card is not."""
    torch.save(unet().state_dict(), tmp_path / "weights.pth")
    seen = []

    def stopped(folder, _card):
        seen.extend(item.name for item in folder.iterdir())
        signal.raise_signal(number)

    monkeypatch.setattr(adopt, "write_card", stopped)
    _, said = attempt(tmp_path / "weights.pth", *THREE)

    assert said.exit_code == code, said.output
    assert said.output.count("\n") == 1
    assert seen == ["weights.safetensors"]
    assert list(tmp_path.iterdir()) == [tmp_path / "weights.pth"]
