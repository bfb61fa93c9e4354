"""Every card is a STAC Item of the extensions that it names; no test asks the web."""

import json
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import make_card
from schemas import described, schema, told
from schemas import faults as faults_of_ours
from stac_schemas import faults
from strategies import geometries

from tileseg.base.builtin import MODELS, model_folder
from tileseg.base.classes import LandClass
from tileseg.cards.architecture import KINDS, Architecture, unet
from tileseg.cards.card import Card
from tileseg.cards.drift import PERCENTS, statistics_of
from tileseg.cards.item import read_card, to_stac

AT = "https://stac-extensions.github.io/{}/schema.json"


@pytest.mark.parametrize("name", MODELS)
def test_the_cards_that_come_with_tileseg_are_valid(name):
    item = json.loads((model_folder(name) / "card.json").read_text())

    assert faults(item) == faults_of_ours(item, "card") == []
    assert item == to_stac(read_card(model_folder(name)))


ARCHITECTURES = [
    unet(4, 2),
    Architecture("smp", "FPN", {"arch": "fpn", "encoder_weights": None}, 4, 7),
    Architecture("onnx", "", {"batch": None, "layout": "NHWC"}, 1, 1),
    Architecture("torchscript", "net v2", {}, 1, 1),
    Architecture("exported", "net", {"an odd: name": [1, 2.5]}, 2, 3),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda item: item.kind)
def test_a_card_of_every_kind_is_valid_and_comes_back(architecture, tmp_path):
    assert [item.kind for item in ARCHITECTURES] == list(KINDS)
    weights = f"weights{KINDS[architecture.kind]}"
    card = make_card(architecture=architecture, weights=weights)

    item = to_stac(card)

    assert faults(item) == faults_of_ours(item, "card") == []
    (tmp_path / "card.json").write_text(json.dumps(item))
    assert read_card(tmp_path) == card


def test_nothing_is_said_of_a_card_that_none_has():
    said = schema("card")
    classes = tuple(map(LandClass, (0, 1, 2), ("a", "ä b", "c"), ("00ff00",) * 3))
    known = (statistics_of(np.linspace(0, 1, 101)),) * 3
    odd = make_card(
        name="é", classes=classes, fields=(1,), answers="probabilities", gsd=10.0,
        gsd_range=(9.0, 11.0), temperature=0.9, statistics=known, scenes=(known,),
    )  # fmt: skip
    cards = [odd, *(make_card(architecture=it) for it in ARCHITECTURES)]
    seen = set().union(*(told(to_stac(card), said) for card in cards))

    assert described(said) - seen == {".geometry"}  # null, as it says


FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)
POSITIVE = st.floats(1e-6, 1e6)
WORDS = st.text(min_size=1, max_size=20)
PRINTABLE = WORDS.filter(str.isprintable)
COLORS = st.from_regex("[0-9A-Fa-f]{6}", fullmatch=True)


@st.composite
def cards(draw):
    """Draw a card: any kind of network, odd names, with statistics or without."""
    architecture = draw(st.sampled_from(ARCHITECTURES))
    bands = tuple(draw(st.lists(WORDS, min_size=1, max_size=13)))
    names = draw(st.lists(PRINTABLE, min_size=2, max_size=9, unique=True))
    tile, halo = draw(geometries(least=8, most=64, depth=2))
    per_band = {"min_size": len(bands), "max_size": len(bands)}
    values = np.random.default_rng(draw(st.integers(0, 9))).normal(
        size=(20, len(bands))
    )
    has_statistics = draw(st.booleans())
    known = tuple(map(statistics_of, values.T))
    other = tuple(map(statistics_of, values.T + 3))
    return Card(
        name=draw(WORDS),
        version=draw(WORDS),
        bands=bands,
        unit=draw(st.sampled_from(["reflectance", "dn"])),
        mean=tuple(draw(st.lists(FINITE, **per_band))),
        std=tuple(draw(st.lists(POSITIVE, **per_band))),
        tile=tile,
        halo=halo,
        classes=tuple(LandClass(n, name, draw(COLORS)) for n, name in enumerate(names)),
        outputs=len(names),
        architecture=architecture,
        sha256="0a" * 32,
        answers=draw(st.sampled_from(["logits", "probabilities"])),
        gsd=(gsd := draw(st.none() | POSITIVE)),
        gsd_range=draw(st.sampled_from([None, gsd and (gsd, gsd)])),
        weights=f"weights{KINDS[architecture.kind]}",
        about=draw(st.dictionaries(st.just("datetime") | WORDS, WORDS)),
        statistics=known if has_statistics else None,
        scenes=draw(st.sampled_from([(), (known, other)])) if has_statistics else (),
    )


@given(cards())
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
    max_examples=50,
)
def test_any_card_is_valid_and_comes_back(tmp_path, card):
    item = to_stac(card)

    assert faults(item) == faults_of_ours(item, "card") == []
    (tmp_path / "card.json").write_text(json.dumps(item), encoding="utf-8")
    assert read_card(tmp_path) == card


CLASS = ("properties", "mlm:output", 0, "classification:classes", 0)
BROKEN = {
    "no name": (("properties", "mlm:name"), None),
    "a name MLM does not know": (("properties", "mlm:name"), "é"),
    "a task of no word": (("properties", "mlm:tasks"), ["mapping"]),
    "no bands described": (("properties", "bands"), None),
    "bands of no asset": (("assets", "weights", "bands"), None),
    "statistics of words": (("properties", "bands", 0, "statistics"), {"mean": "x"}),
    "an unknown field of MLM": (("properties", "mlm:halo"), 16),
    "no deviation": (
        ("properties", "mlm:input", 0, "value_scaling", 0, "stddev"),
        None,
    ),
    "a dimension of no bands": (("properties", "mlm:input", 0, "bands"), []),
    "a type of no numbers": (
        ("properties", "mlm:input", 0, "input", "data_type"),
        "double",
    ),
    "a class without a name": ((*CLASS, "name"), None),
    "a class name with a space": ((*CLASS, "name"), "low vegetation"),
    "a class not described": ((*CLASS, "description"), None),
    "a colour": ((*CLASS, "color_hint"), "red"),
    "a checksum": (("assets", "weights", "file:checksum"), "sha256:00"),
    "no artifact type": (("assets", "weights", "mlm:artifact_type"), None),
    "no model": (("assets", "weights", "roles"), ["data"]),
    "no time": (("properties", "datetime"), None),
    "a time in no zone": (("properties", "datetime"), "2026-11-23"),
    "an extension not named": (("stac_extensions", 0), AT.format("file/v2.1.0")),
    "an older STAC": (("stac_version",), "1.0.0"),
}


@pytest.mark.parametrize(("path", "value"), BROKEN.values(), ids=BROKEN)
def test_the_schemas_see_what_is_wrong(path, value):
    item = deepcopy(to_stac(make_card()))
    assert faults(item) == []
    place = item
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value

    assert faults(item) != []


def test_statistics_stand_where_stac_has_them():
    values = np.linspace(0, 1, 101)
    card = make_card(bands=("nir",), statistics=(statistics_of(values),))

    (band,) = to_stac(card)["properties"]["bands"]

    assert band["name"] == "nir"
    said = {"minimum": 0, "maximum": 1, "mean": 0.5, "stddev": 0.291548, "count": 101}
    assert band["statistics"] == said
    assert band["tileseg:quantiles"] == {str(p): p / 100 for p in PERCENTS}
