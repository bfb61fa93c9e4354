"""STAC Items: the files that hold a model's bands, what they say, what they may not."""

import json
import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from making import NORTH_UP, make_plain, random_pixels, read
from stac import (
    GEOTIFF,
    earth_search,
    landsat,
    make_item,
    of_version_1_1,
    planetary_computer,
)

from tileseg.base.names import is_catalog, scene_name
from tileseg.errors import InputError, RefusedError, TilesegError, UsageError
from tileseg.job import run
from tileseg.scenes.catalog import asset_href, scenes_of, stack_of
from tileseg.scenes.inputs import mosaic_of
from tileseg.settings import Job
from tileseg.stores import documents
from tileseg.window import Window

BGR = ("blue", "green", "red")


@pytest.fixture
def write(tmp_path):
    def to_file(value, name="item.json"):
        (tmp_path / name).write_text(json.dumps(value))
        return str(tmp_path / name)

    return to_file


def facts(layer):
    return [(band.name, band.nodata, band.scale, band.offset) for band in layer.bands]


def test_earth_search_says_which_files_and_what_their_values_mean(write, tmp_path):
    stack = stack_of(write(earth_search()), BGR)

    assert [layer.href for layer in stack] == [
        str(tmp_path / f"{name}.tif") for name in BGR
    ]
    assert [facts(layer) for layer in stack] == [
        [(name, 0, 0.0001, -0.1)] for name in BGR
    ]


def test_names_are_taken_in_any_case_and_order(write):
    stack = stack_of(write(earth_search()), ("NIR", "Swir16", "rededge2"))

    assert [layer.href.rpartition("/")[2] for layer in stack] == [
        "nir.tif",
        "swir16.tif",
        "B06.tif",
    ]
    assert [layer.bands[0].name for layer in stack] == ["NIR", "Swir16", "rededge2"]


def test_the_planetary_computer_goes_by_common_names_and_its_own(write):
    """It says nothing of values, so nothing is guessed from the date."""
    item = write(planetary_computer())

    for wanted in (BGR, ("B02", "b03", "B04")):
        stack = stack_of(item, wanted)
        assert [facts(layer) for layer in stack] == [
            [(name, None, None, None)] for name in wanted
        ]
        assert [layer.href.rpartition("/")[2] for layer in stack] == [
            f"B0{n}_10m.tif?sig=secret" for n in (2, 3, 4)
        ]


def test_landsat_goes_by_key_and_by_band_name(write):
    item = write(landsat())

    by_key, by_name = stack_of(item, ("nir08",)), stack_of(item, ("OLI_B5",))

    assert by_key[0].href == by_name[0].href
    assert facts(by_key[0]) == [("nir08", 0, 2.75e-05, -0.2)]
    assert asset_href(item, "qa_pixel").endswith("LC08_QA_PIXEL.TIF")


def test_a_narrow_infrared_will_do_where_there_is_no_wide_one(write):
    """Landsat has only `nir08`; Sentinel-2 has both, and the wide one is meant."""
    narrow, only = stack_of(write(landsat()), ("nir08",)), landsat()
    only["assets"]["nir"] = {**only["assets"]["nir08"], "href": "./wide.TIF"}
    only["assets"]["nir"]["eo:bands"] = [{"name": "B8", "common_name": "nir"}]

    assert stack_of(write(landsat()), ("nir",))[0].href == narrow[0].href
    assert stack_of(write(only), ("nir",))[0].href.endswith("wide.TIF")


def test_bands_of_one_file_are_one_layer_with_what_the_asset_says_of_all(write):
    (layer,) = stack_of(write(of_version_1_1()), BGR)

    names, nodata, scales, offsets = zip(*facts(layer), strict=True)
    assert names == ("red", "green", "blue", "B4")
    assert all(map(math.isnan, nodata))
    assert scales == (0.001,) * 4
    assert offsets == (-0.1, -0.2, -0.3, -0.4)


def test_of_scale_and_offset_one_implies_the_other(write):
    item = of_version_1_1()
    del item["assets"]["image"]["raster:scale"]
    for band in item["assets"]["image"]["bands"][1:]:
        del band["raster:offset"]

    (layer,) = stack_of(write(item), BGR)

    pairs = [(band.scale, band.offset) for band in layer.bands]
    assert pairs == [(1, -0.1), (None, None), (None, None), (None, None)]


def test_an_offset_that_is_applied_and_to_be_applied_is_refused(write):
    """Some items of Earth Search say both; a guess would be wrong by 0.1."""
    both, once = earth_search(applied=True), earth_search(applied=True, offset=0)

    with pytest.raises(UsageError, match="give --scale and --offset"):
        stack_of(write(both), BGR)
    assert stack_of(write(both), BGR, with_scale=False)[0].bands[0].scale is None
    assert stack_of(write(once), BGR)[0].bands[0].offset == 0


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("pan", "no band 'pan' in a GeoTIFF; it has blue, green, red, nir, rededge1"),
        ("rededge", "more than one band goes by 'rededge': rededge1, rededge2"),
        ("thumbnail", "no band 'thumbnail'"),
        ("red-jp2", "no band 'red-jp2'"),
        (3, "go by name, got 3"),
    ],
)
def test_a_band_that_is_missing_or_ambiguous_is_named(write, wanted, said):
    with pytest.raises(UsageError, match=said):
        stack_of(write(earth_search()), ("blue", wanted))


def test_data_goes_before_what_does_not_say_so(write):
    item = earth_search()
    item["assets"]["old"] = item["assets"]["red"] | {"roles": [], "href": "./old.tif"}

    (layer,) = stack_of(write(item), ("red",))

    assert layer.href.endswith("red.tif")


@pytest.mark.parametrize(
    "href",
    [
        "../secret.tif",
        "/etc/secret.tif",
        "a/../../secret.tif",
        "file:///etc/secret.tif",
        "FILE:///etc/secret.tif",
        "red.tif\0",
        "",
    ],
)
def test_a_local_item_names_no_file_outside_its_folder(tmp_path, href):
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "item.json"
    path.write_text(json.dumps(make_item({"red": {"href": href, "type": GEOTIFF}})))

    with pytest.raises(RefusedError, match="below its own folder"):
        stack_of(str(path), ("red",))


def test_a_link_leads_out_of_the_folder_no_more_than_a_name(tmp_path):
    (tmp_path / "inner").mkdir()
    make_plain(tmp_path / "secret.tif", random_pixels(20, 30))
    (tmp_path / "inner" / "red.tif").symlink_to(tmp_path / "secret.tif")
    path = tmp_path / "inner" / "item.json"
    path.write_text(json.dumps(make_item({"red": {"href": "red.tif"}})))

    with pytest.raises(RefusedError):
        stack_of(str(path), ("red",))


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("./a/red.tif", "s3://maps/2024/a/red.tif"),
        ("https://example.org/red.tif?sig=1", "https://example.org/red.tif?sig=1"),
        ("/etc/red.tif", None),
        ("\\\\host\\red.tif", None),
        ("file:///etc/red.tif", None),
        ("ftp://example.org/red.tif", None),
        ("/vsicurl/http://example.org/red.tif", None),
        ("vrt://red.tif", None),
    ],
)
def test_a_remote_item_names_addresses_only(monkeypatch, href, expected):
    item = make_item({"red": {"href": href, "type": GEOTIFF}})
    monkeypatch.setattr(documents, "_bytes", lambda _: json.dumps(item).encode())

    if expected:
        assert stack_of("s3://maps/2024/item.json", ("red",))[0].href == expected
    else:
        with pytest.raises(RefusedError):
            stack_of("s3://maps/2024/item.json", ("red",))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"type": "Feature"}',
        b'{"type": "Catalog", "id": "x"}',
        b'{"type": "FeatureCollection", "features": 3}',
        b"[" * 100_000,
        json.dumps(make_item({"red": 3})).encode(),
        json.dumps(
            make_item({"red": {"href": "r.tif", "eo:bands": {"a": 1}}})
        ).encode(),
        json.dumps(
            make_item({"red": {"href": "r.tif", "raster:bands": [{"scale": "x"}]}})
        ).encode(),
        json.dumps(
            make_item({"red": {"href": "r.tif", "raster:bands": [{"scale": True}]}})
        ).encode(),
        json.dumps(make_item({"red": {"href": 3}})).encode(),
        json.dumps(make_item({"red": {"href": "r.tif", "roles": 5}})).encode(),
        json.dumps(make_item([])).encode(),
    ],
)
def test_what_is_no_item_is_one_line(tmp_path, data):
    path = tmp_path / "item.json"
    path.write_bytes(data)

    with pytest.raises(TilesegError) as caught:
        [stack_of(scene, ("red",)) for scene in scenes_of(str(path))]

    assert caught.value.exit_code in (2, 4)
    assert "item.json" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.data())
def test_no_document_is_a_traceback(tmp_path_factory, data):
    """Whatever stands in the place of one of its values."""
    item = data.draw(st.sampled_from([earth_search(), landsat(), of_version_1_1()]))
    at = item
    while isinstance(at, (dict, list)) and at:
        keys = st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at)))
        holder, key = at, data.draw(keys)
        at = at[key]
        if data.draw(st.booleans()):
            break
    holder[key] = data.draw(JSON)
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_text(json.dumps(item))

    try:
        scenes_of(str(path))
        stack_of(str(path), BGR)
    except (InputError, RefusedError, UsageError):
        pass


def test_a_document_too_large_is_not_read(write):
    item = earth_search()
    item["properties"]["noise"] = "x" * (16 << 20)

    with pytest.raises(RefusedError, match="at most"):
        stack_of(write(item), BGR)


def test_a_collection_is_a_scene_for_each_item(write):
    items = [earth_search(name="one"), earth_search(name="two.SAFE")]
    path = write({"type": "FeatureCollection", "features": items}, "found.json")

    scenes = scenes_of(path)

    assert scenes == [f"{path}#one", f"{path}#two.SAFE"]
    assert [scene_name(name) for name in scenes] == ["one", "two.SAFE"]
    assert stack_of(scenes[1], BGR) == stack_of(write(items[1]), BGR)
    with pytest.raises(InputError, match="0 items with the id 'three'"):
        stack_of(f"{path}#three", BGR)


def test_two_items_of_one_id_are_named(write):
    items = [earth_search(), earth_search()]

    with pytest.raises(UsageError, match="two items with the id"):
        scenes_of(write({"type": "FeatureCollection", "features": items}))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a/item.json", True),
        ("a/found.geojson#id", True),
        ("https://example.org/v1/collections/s2/items/S2B.SAFE", True),
        ("https://example.org/item.json?token=1", True),
        ("https://example.org/collections/s2/items/S2B?token=1", True),
        ("s3://maps/item.json", True),
        ("a/scene.tif", False),
        ("https://example.org/scene.tif?next=/item.json", False),
        ("a/scene.json.tif", False),
    ],
)
def test_a_document_goes_by_its_name(source, expected):
    assert is_catalog(source) == expected


def test_an_item_is_segmented_like_the_one_file_that_has_its_bands(
    tmp_path, write, model_path
):
    """Files of their own, one of them coarser; scale and offset by the Item."""
    pixels = random_pixels(130, 170) + 1000
    coarse = pixels[:, 1::2, 1::2]
    place = {"crs": "EPSG:32631", "nodata": 0}
    for name, layer in zip(BGR, pixels, strict=True):
        make_plain(tmp_path / f"{name}.tif", layer[None], **place)
    item = write(earth_search())
    output = {"model": str(model_path), "shard": 96}
    one = make_plain(tmp_path / "one.tif", pixels, **place)

    got = run(Job(input=item, output=str(tmp_path / "a"), **output))
    plain = {"scale": 1e-4, "offset": -0.1, "bands": (1, 2, 3)}
    wanted = run(Job(input=str(one), output=str(tmp_path / "b"), **output, **plain))

    assert got.values["exit_code"] == wanted.values["exit_code"] == 0
    mask = read(tmp_path / "a" / "mask.tif")
    assert (mask == read(tmp_path / "b" / "mask.tif")).all()
    assert len(got.values["scene"]["files"]) == 3
    assert coarse.shape == (3, 65, 85)


def test_an_asset_of_the_item_is_a_mask_within_the_area(tmp_path, write, model_path):
    """Masked, outside and nodata pixels are counted apart, and each is nodata."""
    pixels = random_pixels(130, 170)
    place = {"crs": "EPSG:32631", "nodata": 0}
    for name, layer in zip(BGR, pixels, strict=True):
        make_plain(tmp_path / f"{name}.tif", layer[None], **place)
    classes = np.full((1, 65, 85), 4, np.uint8)
    classes[:, 20:40, 30:60] = 9
    coarse = NORTH_UP @ Affine.scale(2)
    make_plain(tmp_path / "SCL.tif", classes, crs="EPSG:32631", transform=coarse)
    corners = [[500_400, 4_599_700], [501_300, 4_599_700], [500_400, 4_598_900]]
    area = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    feature = {"type": "Feature", "properties": {}, "geometry": area}
    collection = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
    aoi = write(collection, "area.geojson")
    facts = {"input": write(earth_search()), "model": str(model_path), "shard": 48}

    made = {}
    for name, more in {
        "plain": {},
        "masked": {"mask": ("asset:scl in 8,9",)},
        "both": {"mask": ("asset:scl in 8,9",), "aoi": aoi},
    }.items():
        job = Job(**facts, output=str(tmp_path / name), **more)
        made[name] = run(job).values
        assert made[name]["exit_code"] == 0, made[name]["error"]

    mask = {name: read(tmp_path / name / "mask.tif") for name in made}
    hidden = np.zeros((130, 170), bool)
    hidden[40:80, 60:120] = True
    assert (mask["masked"][hidden] == 255).all()
    valid = (pixels > 0).all(axis=0)
    assert made["masked"]["pixels"]["masked"] == (hidden & valid).sum()
    window = Window(*made["both"]["grid"]["area"])
    assert window == Window(30, 40, 80, 90)
    rows, cols = np.mgrid[:80, :90] + 0.5
    inside = rows / 80 + cols / 90 < 1
    expected = np.where(inside, mask["masked"][window.slices], 255)
    assert (mask["both"] != expected).sum() == 0
    pixels_of = made["both"]["pixels"]
    assert pixels_of["outside"] == (~inside).sum()
    assert pixels_of["masked"] == (inside & (hidden & valid)[window.slices]).sum()


def test_a_mask_that_is_no_asset_is_named(tmp_path, write, model_path):
    facts = {"model": str(model_path), "output": str(tmp_path / "out")}
    scene = str(make_plain(tmp_path / "blue.tif", random_pixels(20, 30)))
    item = write(earth_search())

    other = run(Job(input=item, mask=("asset:cloud in 1",), **facts)).values
    none = run(Job(input=scene, mask=("asset:scl in 1",), **facts)).values

    assert other["exit_code"] == none["exit_code"] == 2
    assert "no asset 'cloud'" in other["error"]
    assert "no one STAC Item" in none["error"]


def test_a_scale_that_is_given_goes_before_the_items(write):
    item = write(earth_search())

    (stack,) = mosaic_of(Job(input=item, scale=2.0), BGR)

    assert [layer.bands[0].scale for layer in stack] == [None] * 3
