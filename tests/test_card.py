"""The model card: what it says comes back, and a broken one is refused by name."""

import json
from copy import deepcopy

import numpy as np
import pytest
from making import make_card

from tileseg.base.classes import LandClass
from tileseg.cards.card import Card
from tileseg.cards.drift import statistics_of
from tileseg.cards.item import from_stac, read_card, to_stac
from tileseg.errors import ModelError, TilesegError
from tileseg.training.adopt import _classes
from tileseg.training.train_settings import with_colors

INPUT = ("properties", "mlm:input", 0)
OUTPUT = ("properties", "mlm:output", 0)
HYPER = ("properties", "mlm:hyperparameters")
WEIGHTS = ("assets", "weights")
CLASSES = (*OUTPUT, "classification:classes")
SHAPE = (*INPUT, "input", "shape")
BANDS = ("properties", "bands")
STATISTICS = (*BANDS, 1, "statistics")
SCENES = ("properties", "tileseg:scenes")
QUANTILES = (*BANDS, 1, "tileseg:quantiles")


def knowing(**changes):
    """Return a card with statistics."""
    known = tuple(statistics_of(np.linspace(0, 1 + n, 50)) for n in range(3))
    return make_card(statistics=known, scenes=(known, known), **changes)


def write_card(folder, item):
    folder.mkdir(exist_ok=True)
    (folder / "card.json").write_text(json.dumps(item))
    return folder


def changed(path, value):
    """Return a good card's JSON with one place changed."""
    item = deepcopy(to_stac(knowing()))
    place = item
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return item


def without(path):
    """Return a good card's JSON with one place missing."""
    item = deepcopy(to_stac(knowing()))
    place = item
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return item


@pytest.mark.parametrize(
    "card",
    [
        make_card(),
        make_card(outputs=1, bands=["nir"]),
        make_card(outputs=255, tile=128, halo=16, depth=4, width=64),
        make_card(unit="dn", mean=(1e3, 0.0, -5.5), std=(1e-3, 1.0, 1e4)),
        make_card(name="Länder", version="2026.1", sha256="ab" * 32),
        knowing(),
        knowing(name="x", unit="dn"),
        make_card(about={"licence": "CC-BY-4.0", "scores": {"miou": 0.5}}),
    ],
)
def test_a_card_written_and_read_is_the_same(card, tmp_path):
    assert card == read_card(write_card(tmp_path, to_stac(card)))


def test_the_json_says_what_mlm_has_words_for():
    card = make_card(outputs=3, sha256="ab" * 32, tile=128, halo=16)

    item = to_stac(card)

    assert item["type"] == "Feature"
    assert any("mlm" in schema for schema in item["stac_extensions"])
    says = item["properties"]
    assert (says["mlm:name"], says["version"]) == (card.name, card.version)
    assert says["mlm:tasks"] == ["semantic-segmentation"]
    assert says["mlm:architecture"] == "U-Net"
    assert says["mlm:framework"] == "PyTorch"
    (inputs,), (outputs,) = says["mlm:input"], says["mlm:output"]
    assert inputs["bands"] == ["blue", "green", "red"]
    assert inputs["input"]["shape"] == [-1, 3, 128, 128]
    assert {"type": "z-score", "mean": 0.3, "stddev": 0.2} in inputs["value_scaling"]
    assert outputs["result"]["shape"] == [-1, 3, 128, 128]
    assert [part["value"] for part in outputs["classification:classes"]] == [0, 1, 2]
    asset = item["assets"]["weights"]
    assert "mlm:model" in asset["roles"]
    assert asset["file:checksum"] == "1220" + "ab" * 32  # multihash of sha2-256


def test_free_words_are_not_facts():
    """What is `about` the model changes no pixel, so it is not part of a plan."""
    plain, praised = make_card(), knowing(about={"description": "the best"})

    assert plain.facts() == praised.facts()
    assert plain.facts() != make_card(halo=0).facts()


def test_stride_is_the_side_of_a_core():
    assert make_card(tile=128, halo=16).stride == 96


def test_a_class_colour_is_three_bytes():
    assert LandClass(1, "water", "0A80ff").rgb == (10, 128, 255)


def test_a_class_without_a_colour_has_the_same_one_trained_or_imported():
    names = tuple(f"class {n}" for n in range(15))

    trained = with_colors(names)

    imported = _classes(names, (), len(names))
    assert trained == tuple((item.name, item.color) for item in imported)
    assert len({color for _, color in trained}) == 12


def test_a_card_of_an_earlier_version_is_read():
    """One without bands beside the input, titles and statistics, framework in small."""
    card = make_card()
    old = to_stac(card)
    says = old["properties"]
    del says["bands"], old["assets"]["weights"]["bands"]
    says["mlm:framework"] = "pytorch"
    says["mlm:output"][0]["classification:classes"] = [
        {"value": item.value, "name": item.name, "color_hint": item.color}
        for item in card.classes
    ]

    assert card == from_stac(old)


BROKEN = {
    "list": [1, 2],
    "number": 7,
    "no properties": without(("properties",)),
    "no name": without(("properties", "mlm:name")),
    "no version": without(("properties", "version")),
    "no unit": without(("properties", "tileseg:unit")),
    "no halo": without(("properties", "tileseg:halo")),
    "no input": without(("properties", "mlm:input")),
    "two inputs": changed(("properties", "mlm:input"), [{}, {}]),
    "no bands": changed((*INPUT, "bands"), []),
    "bands missing": without((*INPUT, "bands")),
    "a mean too few": without((*INPUT, "value_scaling", 0)),
    "no stddev": without((*INPUT, "value_scaling", 0, "stddev")),
    "stddev 0": changed((*INPUT, "value_scaling", 1, "stddev"), 0),
    "stddev negative": changed((*INPUT, "value_scaling", 1, "stddev"), -0.1),
    "stddev NaN": changed((*INPUT, "value_scaling", 1, "stddev"), float("nan")),
    "stddev infinite": changed((*INPUT, "value_scaling", 1, "stddev"), float("inf")),
    "mean NaN": changed((*INPUT, "value_scaling", 1, "mean"), float("nan")),
    "mean infinite": changed((*INPUT, "value_scaling", 1, "mean"), -float("inf")),
    "mean a word": changed((*INPUT, "value_scaling", 1, "mean"), "bright"),
    "mean null": changed((*INPUT, "value_scaling", 1, "mean"), None),
    "unit": changed(("properties", "tileseg:unit"), "radiance"),
    "shape empty": changed(SHAPE, []),
    "tile a word": changed(SHAPE, [-1, 3, "big", "big"]),
    "tile 0": changed(SHAPE, [-1, 3, 0, 0]),
    "tile negative": changed(SHAPE, [-1, 3, -32, -32]),
    "tile infinite": changed(SHAPE, [-1, 3, 32, float("inf")]),
    "tile not square": changed(SHAPE, [-1, 3, 64, 32]),
    "tile with a fraction": changed(SHAPE, [-1, 3, 32.5, 32.5]),
    "shape of other bands": changed(SHAPE, [-1, 5, 32, 32]),
    "halo too large": changed(("properties", "tileseg:halo"), 12),
    "halo negative": changed(("properties", "tileseg:halo"), -4),
    "halo out of phase": changed(("properties", "tileseg:halo"), 3),
    "tile out of phase": changed(SHAPE, [-1, 3, 34, 34]),
    "no shard": changed(SHAPE, [-1, 3, 280, 280]),
    "classes missing": without(CLASSES),
    "one class": changed(CLASSES, [{"value": 0, "name": "a", "color_hint": "000000"}]),
    "a gap in the classes": changed((*CLASSES, 2, "value"), 3),
    "nodata as a class": changed((*CLASSES, 2, "value"), 255),
    "a class without a name": without((*CLASSES, 1, "name")),
    "two classes of one name": changed((*CLASSES, 1, "title"), "class 0"),
    "a colour": changed((*CLASSES, 1, "color_hint"), "red"),
    "0 logits": changed((*OUTPUT, "result", "shape"), [-1, 0, 32, 32]),
    "2 logits": changed((*OUTPUT, "result", "shape"), [-1, 2, 32, 32]),
    "1 logit": changed((*OUTPUT, "result", "shape"), [-1, 1, 32, 32]),
    "depth 0": changed((*HYPER, "depth"), 0),
    "depth negative": changed((*HYPER, "depth"), -1),
    "depth 30": changed((*HYPER, "depth"), 30),
    "depth beyond any": changed((*HYPER, "depth"), 10**30),
    "width 0": changed((*HYPER, "width"), 0),
    "no width": without((*HYPER, "width")),
    "a band without a name": changed((*INPUT, "bands", 0), ""),
    "statistics of another band": changed((*BANDS, 1, "name"), "nir"),
    "statistics of two bands": without((*BANDS, 1)),
    "statistics of one in three": without((*BANDS, 1, "tileseg:quantiles")),
    "quantiles alone": without(STATISTICS),
    "no median": without((*QUANTILES, "50")),
    "a median NaN": changed((*QUANTILES, "50"), float("nan")),
    "a median below all": changed((*QUANTILES, "50"), -1),
    "quantiles a word": changed(QUANTILES, "many"),
    "statistics of no pixel": changed((*STATISTICS, "count"), 0),
    "statistics without a spread": changed((*STATISTICS, "stddev"), 0),
    "a minimum of a word": changed((*STATISTICS, "minimum"), "low"),
    "a scene of two bands": without((*SCENES, 1, 1)),
    "a scene of other bands": changed((*SCENES, 1, 1, "name"), "nir"),
    "a scene that says nothing": changed((*SCENES, 1), []),
    "a scene NaN": changed((*SCENES, 1, 1, "statistics", "mean"), float("nan")),
    "scenes, and nothing of all": without(BANDS),
    "bands a number": changed(BANDS, 3),
    "no assets": without(("assets",)),
    "no weights": without(WEIGHTS),
    "no checksum": without((*WEIGHTS, "file:checksum")),
    "sha1": changed((*WEIGHTS, "file:checksum"), "1114" + "ab" * 20),
    "short sha256": changed((*WEIGHTS, "file:checksum"), "1220abc"),
}

UNSAFE = {
    "above": changed((*WEIGHTS, "href"), "../weights.safetensors"),
    "absolute": changed((*WEIGHTS, "href"), "/etc/passwd"),
    "remote": changed((*WEIGHTS, "href"), "https://example.com/w.safetensors"),
    "the parent": changed((*WEIGHTS, "href"), ".."),
    "nameless": changed((*WEIGHTS, "href"), ""),
    "in a pickle": changed((*WEIGHTS, "href"), "weights.pt"),
}


@pytest.mark.parametrize(
    ("code", "item"),
    [
        *((7, item) for item in BROKEN.values()),
        *((3, item) for item in UNSAFE.values()),
    ],
    ids=[*BROKEN, *UNSAFE],
)
def test_a_broken_card_is_refused_in_one_line(code, item, tmp_path):
    """Exit 7, or 3 where it could run code; naming the file; never a traceback."""
    write_card(tmp_path, item)

    with pytest.raises(TilesegError) as caught:
        read_card(tmp_path)

    message = str(caught.value)
    assert code == caught.value.exit_code
    assert str(tmp_path / "card.json") in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "data",
    [b"", b"not json", b'{"type": ', b"\xff\xfe\x00", b'{"type": "Feature"}', b"null"],
)
def test_a_file_that_is_no_card_is_refused_in_one_line(data, tmp_path):
    (tmp_path / "card.json").write_bytes(data)

    with pytest.raises(ModelError) as caught:
        read_card(tmp_path)

    message = str(caught.value)
    assert str(tmp_path / "card.json") in message
    assert len(message.splitlines()) == 1


def test_a_folder_without_a_card_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"card\.json") as caught:
        read_card(tmp_path / "nowhere")

    assert str(tmp_path / "nowhere") in str(caught.value)


def test_a_card_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "card.json").mkdir()

    with pytest.raises(ModelError, match=r"card\.json"):
        read_card(tmp_path)


def test_a_bad_card_made_in_python_is_a_value_error():
    facts = {name: getattr(make_card(), name) for name in Card.__slots__}

    with pytest.raises(ValueError, match="halo 9"):
        Card(**{**facts, "halo": 9})
