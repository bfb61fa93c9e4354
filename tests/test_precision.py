"""The comparison of fast arithmetic with fp32."""

from dataclasses import replace

import pytest
import torch
from making import lively, make_model, make_scene, random_pixels

import tileseg
from tileseg.network.device import Device
from tileseg.network.model import Network
from tileseg.network.unet import UNet
from tileseg.plans.precision import _places, compare
from tileseg.plans.task import prepare
from tileseg.settings import Job


def prepared(scene, model):
    return prepare(Job(input=str(scene), model=str(model), output="x", shard=96))


def _has_bf16(monkeypatch):
    """Let a CPU have bf16's instructions, as far as a job is told."""
    monkeypatch.setattr(
        "tileseg.engines.engine.resolve_device",
        lambda _device, precision: Device(
            "cpu", "any", "bf16" if precision == "auto" else precision
        ),
    )


def test_fp32_agrees_with_itself_wholly(scene_path, model_path):
    check = compare(prepared(scene_path, model_path), Device("cpu", "any", "fp32"))

    assert check.agreement == 1.0
    assert 4 <= check.tiles <= 9


def test_the_corners_and_the_middle_are_looked_at_first(scene_path, model_path):
    task = prepared(scene_path, model_path)

    usual, finer = (
        [(it.shards.row, it.shards.col) for it in places]
        for places in _places(replace(task.grid, shard=task.grid.stride))
    )

    rows, cols = (sorted({at[axis] for at in usual}) for axis in (0, 1))
    corners = {(row, col) for row in rows[::2] for col in cols[::2]}
    assert set(usual[:5]) == corners | {(rows[1], cols[1])}
    assert len({*usual, *finer}) == len(usual) + len(finer) == 81


@pytest.mark.parametrize("corner", [(0, 0), (500, 300), (760, 900)])
def test_a_scene_with_little_data_is_compared_where_it_has_some(
    corner, tmp_path, model_path
):
    row, col = corner
    pixels = random_pixels(1030, 1170)
    pixels[:, :row], pixels[:, row + 240 :] = 0, 0  # nodata
    pixels[:, :, :col], pixels[:, :, col + 240 :] = 0, 0
    scene = make_scene(tmp_path / "scene.tif", pixels)

    check = compare(prepared(scene, model_path), Device("cpu", "any", "fp32"))

    assert check.agreement == 1.0
    assert 4 <= check.tiles <= 9


@pytest.mark.parametrize(
    ("side", "hole", "tiles"),
    [(144, 0, 4), (144, 60, 4), (144, 100, 5), (1600, 0, 9)],
    ids=["small", "half of it", "a third", "larger"],
)
def test_how_many_tiles_are_looked_at(side, hole, tiles, tmp_path, model_path):
    """Four of a small scene, wherever it has data; nine of others."""
    pixels = random_pixels(side, side + 30)
    pixels[:, :hole] = 0  # nodata
    scene = make_scene(tmp_path / "scene.tif", pixels)

    check = compare(prepared(scene, model_path), Device("cpu", "any", "fp32"))

    assert check.tiles == tiles


def test_a_scene_of_nodata_has_nothing_to_compare(tmp_path, model_path):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(200, 150) * 0)
    check = compare(prepared(scene, model_path), Device("cpu", "any", "bf16"))

    assert (check.tiles, check.agreement) == (0, None)


def test_without_a_pixel_to_compare_it_is_fp32(tmp_path, model_path, monkeypatch):
    """Unless bf16 is asked for: there may be data where nobody looked."""
    scene = make_scene(tmp_path / "scene.tif", random_pixels(200, 150) * 0)
    _has_bf16(monkeypatch)
    for precision in ("auto", "bf16"):
        record = tileseg.segment(
            str(scene),
            model=str(model_path),
            output=str(tmp_path / precision),
            precision=precision,
        )
        assert record["precision_check"]["agreement"] is None
        assert record["engine"]["precision"] == {"auto": "fp32"}.get(precision, "bf16")


def test_tiles_without_an_answer_in_fp32_are_the_runs_to_name(tmp_path, model_path):
    """A check must not end a job that would be published with holes there."""
    pixels = random_pixels(410, 300).astype("float32") * 2e-4
    pixels[:, 190:230, 130:170] = 3e38  # in the middle; scaled it is Inf
    scene = make_scene(tmp_path / "scene.tif", pixels, scale=0.5)

    check = compare(prepared(scene, model_path), Device("cpu", "any", "bf16"))

    assert check.tiles > 0
    assert check.agreement > 0.9


def test_the_share_of_equal_labels_is_recorded(scene_path, model_path, tmp_path):
    """bf16 keeps 8 bits: nearly all labels of a random network stay, not all."""
    record = tileseg.segment(
        str(scene_path),
        model=str(model_path),
        output=str(tmp_path / "out"),
        precision="bf16",
    )

    assert record["engine"]["precision"] == "bf16"
    assert 0.9 < record["precision_check"]["agreement"] < 1


@pytest.mark.parametrize(
    ("asked", "resolved"), [("auto", "fp32"), ("bf16", "bf16")], ids=str
)
def test_auto_falls_back_where_labels_differ(
    scene_path, tmp_path, monkeypatch, asked, resolved
):
    """Logits that bf16 cannot tell apart: `auto` gives way, an order is obeyed."""
    module = UNet(3, 3, width=4, depth=2)
    lively(module)
    with torch.no_grad():
        module.final_conv.bias += 3000  # beside it, bf16 loses what differs
    model = make_model(tmp_path / "model", module=module)
    _has_bf16(monkeypatch)
    record = tileseg.segment(
        str(scene_path), model=str(model), output=str(tmp_path / "o"), precision=asked
    )

    assert record["precision_check"]["agreement"] < 0.999
    assert record["engine"]["precision"] == resolved


def test_the_comparison_is_with_the_plain_network(scene_path, model_path, monkeypatch):
    """What runs is compared, not another network in the same numbers."""
    made = []

    class Seen(Network):
        def __init__(self, card, module, device, trim):
            made.append((device.precision, device.network))
            super().__init__(card, module, device, trim)

    monkeypatch.setattr("tileseg.network.model.Network", Seen)
    compare(
        prepared(scene_path, model_path), Device("cpu", "any", "fp32", network="fused")
    )

    assert made == [("fp32", "plain"), ("fp32", "fused")]
