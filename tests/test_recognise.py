"""What is recognised in a file: a network in its wrappers, one of several answers."""

import numpy as np
import pytest
import torch
from conftest import quiet_import
from hypothesis import given
from hypothesis import strategies as st

from tileseg.errors import ModelError, UsageError
from tileseg.network.foreign import OnnxNetwork
from tileseg.network.unet import UNet
from tileseg.training.adopt import Told, adopt
from tileseg.training.recognise import _unwrapped

STATE = UNet(3, 2, width=2, depth=1).state_dict()
PREFIXES = ("model.", "module.", "_orig_mod.", "net.", "network.")
TOLD = Told(
    bands=("blue", "green", "red"),
    classes=("water", "trees", "fields", "rock"),
    mean=(0.3,),
    std=(0.2,),
)


@given(st.lists(st.sampled_from(PREFIXES), max_size=5))
def test_wrappers_come_off_in_any_order_and_however_often(prefixes):
    wrapped = {"".join(prefixes) + name: item for name, item in STATE.items()}

    assert _unwrapped(wrapped) == STATE


@pytest.mark.parametrize(
    ("wrap", "other"),
    [
        ("{}module.{}", "n_averaged"),  # AveragedModel
        ("{}model.{}", "criterion.weight"),  # Lightning
        ("{}model._orig_mod.{}", "accuracy.confmat"),
    ],
)
@pytest.mark.parametrize("around", ["", "module.", "_orig_mod.net."])
def test_what_stands_beside_a_network_is_left(wrap, other, around):
    wrapped = {wrap.format(around, name): item for name, item in STATE.items()}

    assert _unwrapped({around + other: torch.ones(()), **wrapped}) == STATE


def test_what_only_some_tensors_have_is_no_wrapper():
    """Else a part of a network would be taken for all of it."""
    state = {"net.0.weight": torch.ones(1), "head.weight": torch.ones(1)}

    assert _unwrapped(state) == state


ANSWERS = {
    "coarse": ["n", 4, 32, 32],
    "classes": ["n", 4, 64, 64],
    "again": ["n", 4, 64, 64],
    "vector": ["n", 4, 1, 1],
}


def save_onnx(path, *answers, **says):
    """Write a network with some of these answers: maps, and a vector."""
    onnx = quiet_import("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["tiles", "weights"], ["classes"]),
        helper.make_node("Neg", ["classes"], ["again"]),
        helper.make_node(
            "AveragePool", ["classes"], ["coarse"], kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node(
            "ReduceMean", ["classes"], ["vector"], axes=[2, 3], keepdims=0
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("tiles", kind, ["n", 3, 64, 64])],
        [helper.make_tensor_value_info(name, kind, ANSWERS[name]) for name in answers],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.helper.set_model_props(model, says)
    path.write_bytes(model.SerializeToString())
    return path


def test_of_several_answers_the_map_of_classes_is_taken_and_named(tmp_path, caplog):
    import onnxruntime

    path = save_onnx(tmp_path / "net.onnx", "coarse", "vector", "classes")
    tiles = torch.randn(3, 3, 64, 64)

    found = adopt(path, TOLD, folder_name="net")

    assert "classes is taken: coarse (tensor(float) ['n', 4, 32, 32])" in caplog.text
    network = OnnxNetwork(found.weights, found.card.architecture.parameters)
    session = onnxruntime.InferenceSession(path)
    (right,) = session.run(["classes"], {"tiles": tiles.numpy()})
    np.testing.assert_allclose(network(tiles).numpy(), right, atol=1e-6)


@pytest.mark.parametrize(
    ("answers", "count"),
    [(("classes", "again"), 2), (("coarse", "vector"), 0), (("coarse",), 0)],
)
def test_answers_of_which_none_or_several_may_be_meant_are_refused(
    tmp_path, answers, count
):
    path = save_onnx(tmp_path / "net.onnx", *answers)

    with pytest.raises(ModelError, match=f"found {count}: save it") as caught:
        adopt(path, TOLD, folder_name="net")

    for name in answers:
        assert name in str(caught.value)


def test_of_one_answer_nothing_is_said(tmp_path, caplog):
    path = save_onnx(tmp_path / "net.onnx", "classes")

    adopt(path, TOLD, folder_name="net")

    assert not caplog.text


@pytest.mark.parametrize("tile", ["Infinity", "[64]", "1e999", '"wide"'])
def test_metadata_that_is_none_is_said_to_be(tmp_path, tile):
    path = save_onnx(tmp_path / "net.onnx", "classes", tiles_size=tile)

    with pytest.raises(ModelError, match="its metadata cannot be read"):
        adopt(path, TOLD, folder_name="net")


@pytest.mark.parametrize("tile", [8, 10**12])
def test_a_tile_that_no_job_could_use_is_asked_for(tmp_path, tile):
    """Before anything is tried with it: memory, and time, would not end."""
    path = save_onnx(tmp_path / "net.onnx", "classes", tiles_size=f"{tile}")

    with pytest.raises(UsageError, match=f"tile is of {tile} pixels.*--tile"):
        adopt(path, TOLD, folder_name="net")
