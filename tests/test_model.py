"""Card and weights become a network, or a refusal that says why."""

import hashlib
import io
import json

import pytest
import torch
from making import lively, make_card, make_model

from tileseg.cards.item import read_card
from tileseg.errors import ModelError, UsageError
from tileseg.network.device import Device, resolve_device, worker_devices
from tileseg.network.model import Network, load, load_module, save
from tileseg.network.unet import UNet

CPU = Device("cpu", "any", "fp32")


@pytest.fixture
def folder(tmp_path):
    """A model folder of its own, to be spoilt."""
    return make_model(tmp_path / "model")


def replace_weights(folder, data):
    """Put other bytes into a model folder and their true hash into its card."""
    path = folder / "card.json"
    item = json.loads(path.read_text())
    digest = hashlib.sha256(data).hexdigest()
    item["assets"]["weights"]["file:checksum"] = "1220" + digest
    path.write_text(json.dumps(item))
    (folder / "weights.safetensors").write_bytes(data)


def refusal(folder):
    """Return the one line that says why a model cannot be loaded."""
    with pytest.raises(ModelError) as caught:
        load(folder, read_card(folder), CPU)

    assert caught.value.exit_code == 7
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_network_saved_and_loaded_is_the_same(outputs, tmp_path):
    """Every weight, to the last bit, and every logit."""
    torch.manual_seed(1)
    module = UNet(2, outputs, width=3, depth=2)
    lively(module)
    card_facts = {"outputs": outputs, "bands": ("red", "nir"), "width": 3}
    folder = make_model(tmp_path / "model", module=module, **card_facts)
    tiles = torch.randn(2, 2, 32, 32)

    network = load(folder, read_card(folder), CPU)

    state = load_module(folder, read_card(folder)).state_dict()
    assert module.state_dict().keys() == state.keys()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(module(tiles), network(tiles), rtol=1e-5, atol=1e-5)


def test_equal_weights_are_equal_bytes():
    """The hash names the weights, not the moment they were saved."""
    torch.manual_seed(0)
    module = UNet(width=2, depth=1)

    data, sha256 = save(module)

    assert (data, sha256) == save(module)
    assert hashlib.sha256(data).hexdigest() == sha256


def test_saving_takes_channels_last_weights():
    module = UNet(width=2, depth=1)
    _, sha256 = save(module)

    assert (sha256) == save(module.to(memory_format=torch.channels_last))[1]


def test_wrong_weights_are_refused_by_both_hashes(folder):
    path = folder / "weights.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    message = refusal(folder)

    assert str(path) in message
    assert read_card(folder).sha256 in message
    assert hashlib.sha256(path.read_bytes()).hexdigest() in message


def test_missing_weights_are_named(folder):
    (folder / "weights.safetensors").unlink()

    assert str(folder / "weights.safetensors") in refusal(folder)


def test_weights_that_are_a_folder_are_named(folder):
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").mkdir()

    assert str(folder / "weights.safetensors") in refusal(folder)


@pytest.mark.parametrize(
    "module",
    [
        UNet(3, 3, width=5, depth=2),
        UNet(3, 3, width=4, depth=1),
        UNet(3, 2, width=4, depth=2),
        UNet(4, 3, width=4, depth=2),
        torch.nn.Conv2d(3, 3, 1),
    ],
    ids=["width", "depth", "outputs", "bands", "another network"],
)
def test_weights_of_another_shape_are_refused(module, folder):
    """The hash is right, the shapes are not those that the card describes."""
    data, _ = save(module)
    replace_weights(folder, data)

    message = refusal(folder)

    assert str(folder / "weights.safetensors") in message
    assert "do not fit" in message


def test_a_weight_too_many_is_refused(folder):
    module = UNet(3, 3, width=4, depth=2)
    module.register_buffer("extra", torch.zeros(1))
    replace_weights(folder, save(module)[0])

    assert "extra" in refusal(folder)


def pickled():
    file = io.BytesIO()
    torch.save(UNet(3, 3, width=4, depth=2).state_dict(), file)
    return file.getvalue()


@pytest.mark.parametrize(
    "data", [b"", b"no weights", pickled()], ids=["empty", "text", "pickle"]
)
def test_bytes_that_are_not_safetensors_are_refused(data, folder):
    """Nothing is ever unpickled, whatever its hash."""
    replace_weights(folder, data)

    assert str(folder / "weights.safetensors") in refusal(folder)


def test_truncated_weights_are_refused(folder):
    data = (folder / "weights.safetensors").read_bytes()
    replace_weights(folder, data[: len(data) // 2])

    assert str(folder / "weights.safetensors") in refusal(folder)


def test_a_network_answers_in_fp32_whatever_it_computes_in(folder):
    card = read_card(folder)
    tiles = torch.randn(2, 3, 32, 32)
    full, half = (
        load(folder, card, Device("cpu", "any", precision))(tiles)
        for precision in ("fp32", "bf16")
    )

    assert full.dtype == half.dtype == torch.float32
    torch.testing.assert_close(full, half, rtol=0.1, atol=0.2)


def test_a_network_keeps_no_gradients(folder):
    logits = load(folder, read_card(folder), CPU)(torch.zeros(1, 3, 32, 32))

    assert not logits.requires_grad


def test_a_network_knows_its_card():
    card = make_card()

    assert Network(card, UNet(3, 3, width=4, depth=2), CPU).card is card


def test_the_cpu_is_what_was_asked_for():
    device = resolve_device("cpu", "fp32")

    assert ("cpu", "fp32", torch.float32) == (
        device.name,
        device.precision,
        device.dtype,
    )
    assert device.hardware


def test_auto_is_resolved_to_a_device_and_a_precision():
    device = resolve_device()

    assert device.name in ("cpu", "cuda")
    assert device.precision in ("fp32", "bf16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_a_usage_error():
    with pytest.raises(UsageError, match="CUDA") as caught:
        resolve_device("cuda")

    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("asked", "names"), [(None, ["cpu"]), (2, ["cpu", "cpu"])])
def test_workers_share_the_cpu(asked, names):
    assert names == worker_devices(CPU, asked)
