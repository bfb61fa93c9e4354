"""`report.html` says what `run.json` says, needs nothing else, and trusts no text."""

import json
import re
import zlib
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from making import make_model, make_scene, random_pixels
from pyproj import CRS
from rasterio.features import rasterize

from tileseg.geobox import GeoBox
from tileseg.grid import Grid
from tileseg.job import run
from tileseg.masks.overview import mean, mode
from tileseg.outputs import overlay
from tileseg.outputs.overlay import Overlay, fitted, outlines, shards
from tileseg.scenes.area import row_hectares
from tileseg.settings import Job
from tileseg.steps.report import report

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(2)> & {{ 7 * 7 }}',
    "<!--<script>wasser 水",
)
HEIGHT, WIDTH = 213, 329
BOX = GeoBox(
    HEIGHT,
    WIDTH,
    Affine(10, 0, 500_000, 0, -10, 4_600_000),
    CRS.from_epsg(32631).to_wkt(),
)
MOST = 4_000_000
# As npm has them, version 1.9.4.
LEAFLET = {
    "leaflet.js": "db49d009c841f5ca34a888c96511ae936fd9f5533e90d8b2c4d57596f4e5641a",
    "leaflet.css": "a7837102824184820dfa198d1ebcd109ff6d0ff9a2672a074b9a1b4d147d04c6",
    "LICENSE": "53e8dc25862014e4324741ca18fbe3611e11d42ef69f59f86ea8c5389647d4cb",
}


class Page(HTMLParser):
    """What a browser would make of a page, as far as these tests ask."""

    def __init__(self, data):
        super().__init__()
        self.tags, self.words, self.blocks, self.within = [], [], [], ("", {})
        self.feed(data.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.within = tag, dict(attrs)
        self.tags.append(self.within)

    def handle_endtag(self, _tag):
        self.within = "", {}

    def handle_data(self, data):
        tag, attrs = self.within
        if tag in ("script", "style"):
            self.blocks.append((tag, attrs.get("type"), data))
        else:
            self.words.append(data.strip())

    @property
    def text(self):
        """All that is to be read, in one line."""
        return " ".join(word for word in self.words if word)

    def block(self, tag, kind=None):
        """Return the only script or style of its kind."""
        (found,) = (block for block in self.blocks if block[:2] == (tag, kind))
        return found[2]

    @property
    def data(self):
        """What the map is drawn from."""
        return json.loads(self.block("script", "application/json"))


def make(folder, model, pixels, name="scene", **profile):
    """Segment pixels with everything that a report can show; return the record."""
    scene = make_scene(folder / f"{name}.tif", pixels, **profile)
    job = Job(
        input=str(scene),
        model=str(model),
        trusted=True,
        output=str(folder / name),
        shard=96,
        confidence=True,
        entropy=True,
        probabilities=True,
        polygons="parquet",
    )
    record = run(job)

    assert record.error is None
    return job.output_path, record


def make_hostile(folder):
    """Return an output directory and the record; classes have hostile names."""
    model = make_model(folder / "model")
    card = json.loads((model / "card.json").read_text())
    (output,) = card["properties"]["mlm:output"]
    for entry, name in zip(output["classification:classes"], HOSTILE, strict=True):
        entry["title"] = name
    (model / "card.json").write_text(json.dumps(card))
    return make(folder, model, random_pixels(HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An output directory and the record."""
    return make_hostile(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(made):
    return Page((made[0] / "report.html").read_bytes())


def values_of(facts):
    """Return a raster of the page, (height, width) or (bands, height, width)."""
    data = zlib.decompress(b64decode(facts["data"]))
    shape = -1, facts["height"], facts["width"]
    values = np.frombuffer(data, np.uint8).reshape(shape)
    return values if len(values) > 1 else values[0]


def test_the_page_is_an_output_like_others(made):
    output, record = made
    data = (output / "report.html").read_bytes()

    (listed,) = (it for it in record.values["outputs"] if it["path"] == "report.html")
    assert sha256(data).hexdigest() == listed["sha256"]
    assert len(data) < MOST


def test_the_page_fetches_nothing_and_runs_nothing_but_its_own(made, page):
    """All that could be fetched is in it; its own rules allow no more than that."""
    beside = {item.name for item in made[0].iterdir()} - {"report.html"}
    (rules,) = (
        attrs["content"]
        for tag, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    style, script = page.block("style"), page.block("script")

    assert {attrs["href"] for tag, attrs in page.tags if tag == "a"} == beside
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert not {"src", "srcset", "style"} & set(attrs), attrs
        assert not [name for name in attrs if name.startswith("on")], attrs
    assert "url(" not in style
    assert "@import" not in style
    assert "sourceMappingURL" not in script
    allowed = dict(rule.strip().split(" ", 1) for rule in rules.split(";"))
    for name, text in (("style-src", style), ("script-src", script)):
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert allowed.pop(name) == f"'sha256-{digest}'"
    assert allowed == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_names_are_text_wherever_they_stand(page):
    assert [tag for tag, attrs in page.tags if tag == "script"] == ["script"] * 2
    assert [it["name"] for it in page.data["legends"]["mask"].values()] == list(HOSTILE)
    for name in HOSTILE:
        assert " ".join(name.split()) in " ".join(page.text.split())


def test_no_secret_of_the_record_is_told(made):
    """A job's page is made of what `run.json` says, and that holds none."""
    output, record = made
    facts = page_facts(output)
    record.add_warning("https://me:pass4word@h.org/a.tif?sig=SECRET123")

    text = Page(report(record.told(), *facts)).text

    assert "https://[hidden]@h.org/a.tif?[hidden]" in text
    assert "SECRET123" not in text
    assert "pass4word" not in text
    record.values["warnings"].clear()


def page_facts(output):
    """Return what `report` wants beside the record."""
    data = Page((output / "report.html").read_bytes()).data
    chart = data["chart"]
    chart["colors"] = {int(value): color for value, color in chart["colors"].items()}
    return chart, {"tileseg": "1"}, {"mask.tif": 1234}


def test_the_page_says_what_the_record_says(made, page):
    values = made[1].values

    facts = [values[key] for key in ("plan_id", "request_id", "started")]
    facts += [values["scene"]["sha256"], values["model"]["sha256"]]
    facts += [f"{values['seams']['ratio']:.2f}", "WGS 84 / UTM zone 31N (EPSG:32631)"]
    facts += [f"{HEIGHT * WIDTH:,} pixels"]
    total = sum(values["pixels"]["by_class"].values())
    for name, pixels in values["pixels"]["by_class"].items():
        facts += [f"{100 * pixels / total:.1f} %", f"{values['hectares'][name]:,.0f}"]
    for fact in facts:
        assert fact in page.text
    # Judged a moment earlier, so the numbers are not to the digit those of the record.
    words = re.split(r"\d+%", values["verdict"]["advice"][1:])
    assert all(word in page.text for word in words)


def test_the_same_facts_give_the_same_page(made):
    output, record = made
    facts = page_facts(output)

    assert report(record.told(), *facts) == report(record.told(), *facts)


def test_the_map_of_the_same_run_is_the_same(made, page, tmp_path):
    """But for times; and a scene of another kind has other things to say."""
    output, _ = made
    model = output.parent / "model"

    again, record = make(
        tmp_path, model, random_pixels(HEIGHT, WIDTH), crs=None, transform=None
    )

    other = Page((again / "report.html").read_bytes())
    one, two = page.data["chart"], other.data["chart"]
    for key in ("picture", "rasters", "colors", "origin", "height", "width"):
        assert one[key] == two[key], key
    rings = [
        [feature["rings"] for feature in chart["polygons"]["features"]]
        for chart in (one, two)
    ]
    assert rings[0] == rings[1]
    assert two["metres"] is None
    assert record.values["hectares"] is None
    assert all(
        f"{n:,}" in other.text for n in record.values["pixels"]["by_class"].values()
    )


def test_rasters_of_the_map_are_the_files(made, page):
    rasters = page.data["chart"]["rasters"]

    assert list(rasters) == ["mask", "confidence", "entropy", "probabilities"]
    for name, facts in rasters.items():
        assert facts["step"] == 1
        with rasterio.open(made[0] / f"{name}.tif") as dataset:
            bands = dataset.read()
        np.testing.assert_array_equal(values_of(facts), bands.squeeze())


def test_many_bands_are_halved_until_they_are_small(monkeypatch):
    monkeypatch.setattr(overlay, "_PIXELS", 5 * 40 * 60)
    bands = np.random.default_rng(0).integers(0, 254, (5, 77, 101)).astype(np.uint8)

    found = fitted(bands, mean, 10**6)

    assert found.step == 2
    np.testing.assert_array_equal(found.pixels, mean(bands))
    np.testing.assert_array_equal(values_of(found.to_json()), mean(bands))


def test_outlines_of_the_map_are_those_of_the_file(made, page):
    """Of a scene that is small enough to be shown as it is."""
    file = pq.read_table(made[0] / "polygons.parquet").to_pydict()
    facts = page.data["chart"]["polygons"]

    features = facts["features"]
    found = sorted((it["hectares"], it["class"]) for it in features)
    expected = sorted(zip(file["area_ha"], file["class_id"], strict=True))
    assert facts["step"] == 1
    assert facts["total"] == len(expected)
    for one, other in zip(found, expected[-len(found) :], strict=True):
        assert one[0] == pytest.approx(other[0])
    if len(found) == len(expected):
        assert [it[1] for it in found] == [it[1] for it in expected]


def test_failed_shards_are_named_and_drawn(made):
    output, record = made
    told = record.told()
    told["status"] = "partial"
    told["failures"] = [
        {"shard": [row, 2], "window": [96 * row, 192, 96, 96], "reason": "<b>bad</b>"}
        for row in range(60)
    ]

    page = Page(report(told, *page_facts(output)))

    assert "with holes" in page.text
    assert "60 of 12 shards could not be made" in page.text
    assert "shard 3, 2, pixels from row 288, column 192: <b>bad</b>" in page.text
    assert "and 10 more, see run.json" in page.text
    assert page.data["failures"] == told["failures"][:50]


@settings(max_examples=20)
@given(
    height=st.integers(1, 2100),
    width=st.integers(1, 300),
    classes=st.integers(1, 255),
    is_turned=st.booleans(),
)
def test_a_raster_is_halved_until_it_is_small(height, width, classes, is_turned):
    """Whatever is in it; the law of sizes holds for one pixel too."""
    pixels = np.random.default_rng(0).integers(0, classes, (height, width), np.uint8)
    pixels = pixels.T if is_turned else pixels

    found = fitted(pixels, mode, 20_000)

    assert len(found.packed) <= 20_000
    assert max(found.pixels.shape) <= 2048
    np.testing.assert_array_equal(
        found.pixels.ravel(), np.frombuffer(zlib.decompress(found.packed), np.uint8)
    )
    for whole, part in zip(pixels.shape, found.pixels.shape, strict=True):
        assert (part - 1) * found.step < whole <= part * found.step
    assert set(np.unique(found.pixels)) <= set(np.unique(pixels))


def test_shards_are_where_they_are():
    grid = Grid(height=400, width=1000, tile=32, halo=4, shard=96)
    seconds = {(0, 0): 2.0, (1, 3): 4.0, (4, 10): 1.0}

    found = shards(grid, seconds)

    expected = np.full((400, 1000), 255, np.uint8)
    expected[:96, :96], expected[96:192, 288:384], expected[384:, 960:] = 127, 254, 64
    np.testing.assert_array_equal(found.pixels, expected)


def corners(ring):
    """Return the vertices of a ring: the first, then steps down and across by turns."""
    steps = np.zeros((len(ring) - 1, 2), int)
    steps[0] = ring[:2]
    steps[1::2, 1], steps[2::2, 0] = ring[2::2], ring[3::2]
    return np.cumsum(steps, axis=0)


def outlined(labels, step=1, box=BOX):
    """Return what the page is told, and its rings as shapely polygons."""
    mask = Overlay(labels, step, b"")
    found = outlines(mask, box, left_out=(255,))
    rings = [
        [corners(ring) for ring in feature["rings"]] for feature in found["features"]
    ]
    return found, np.array([shapely.Polygon(first, more) for first, *more in rings])


def burnt(found, polygons):
    """Return the mask that outlines were made of; 255 where there is none."""
    values = [feature["class"] for feature in found["features"]]
    shapes = zip(polygons, values, strict=True)
    return rasterize(shapes, (BOX.height, BOX.width), fill=255, dtype=np.uint8)


@pytest.mark.parametrize("step", [1, 4])
def test_outlines_are_those_of_the_mask_that_is_shown(step):
    """They end where the area does, though its size is no multiple of the step."""
    shape = -(-HEIGHT // step), -(-WIDTH // step)
    pixels = random_pixels(*shape, bands=1)[0]
    labels = np.where(pixels == 0, 255, pixels // 3400).astype(np.uint8)

    found, polygons = outlined(labels, step)

    expected = np.repeat(np.repeat(labels, step, 0), step, 1)[:HEIGHT, :WIDTH]
    assert found["step"] == step
    assert found["total"] == len(polygons)
    assert shapely.is_valid(polygons).all()
    np.testing.assert_array_equal(burnt(found, polygons), expected)
    hectares = [feature["hectares"] for feature in found["features"]]
    np.testing.assert_allclose(hectares, shapely.area(polygons) / 100)


def test_hectares_are_those_of_their_latitude():
    """Those of all areas add up to those of the rows."""
    box = GeoBox(HEIGHT, WIDTH, Affine(0.1, 0, 5, 0, -0.1, 66), "OGC:CRS84")
    box = replace(box, crs=CRS.from_user_input(box.crs).to_wkt())
    labels = np.zeros((-(-HEIGHT // 4), -(-WIDTH // 4)), np.uint8)
    labels[:20] = 1

    found, _ = outlined(labels, 4, box)

    rows = row_hectares(box) * WIDTH
    expected = {0: rows[80:].sum(), 1: rows[:80].sum()}
    for feature in found["features"]:
        assert feature["hectares"] == pytest.approx(expected[feature["class"]], 1e-3)
    unknown, _ = outlined(labels, 4, replace(box, crs=None))
    assert all(feature["hectares"] is None for feature in unknown["features"])


def test_outlines_are_the_largest(monkeypatch):
    monkeypatch.setattr(overlay, "_POLYGONS", 2)
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for value, side in enumerate((3, 40, 1, 20)):
        labels[50 : 50 + side, 60 * value : 60 * value + side] = value

    found, polygons = outlined(labels)

    assert found["total"] == 4
    assert [feature["class"] for feature in found["features"]] == [1, 3]
    assert shapely.equals(polygons[1], shapely.box(180, 50, 200, 70))


@pytest.mark.parametrize(("name", "most"), [("_VERTICES", 300), ("_OUTLINED", 50)])
def test_a_mask_is_halved_until_its_outlines_are_few(monkeypatch, name, most):
    """Of whichever mask they are, the page says so."""
    monkeypatch.setattr(overlay, name, most)
    labels = random_pixels(HEIGHT, WIDTH, bands=1)[0].astype(np.uint8) % 2

    found, _ = outlined(labels)

    expected, step = labels, 1
    while step < found["step"]:
        expected, step = mode(expected), 2 * step
    assert step > 1
    assert found == outlined(expected, step)[0]
    vertices = sum(len(r) - 1 for f in found["features"] for r in f["rings"])
    assert (vertices if name == "_VERTICES" else max(expected.shape)) <= most


def test_nothing_has_no_outlines():
    found, _ = outlined(np.full((HEIGHT, WIDTH), 255, np.uint8))

    assert found == {"total": 0, "step": 1, "features": []}


def luminance(color):
    """Return the relative luminance of "#rrggbb", as WCAG 2 defines it."""
    shares = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = (
        x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares
    )
    return sum(
        x * part for x, part in zip(linear, (0.2126, 0.7152, 0.0722), strict=True)
    )


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(page, scheme):
    """By a contrast of 4.5 at least: WCAG 2, AA."""
    found = re.findall(r"--([\w-]+): (#\w{6})", page.block("style"))
    colors = dict(found[: len(found) // 2] if scheme == 0 else found[len(found) // 2 :])
    behind = "ground", "card", "track"
    pairs = [(word, ground) for word in ("ink", "soft", "accent") for ground in behind]
    pairs += [("card", "accent"), ("card", "warn")]  # badges
    pairs += [("ink", "warn-ground"), ("warn", "warn-ground")]

    for pair in pairs:
        low, high = sorted(luminance(colors[name]) for name in pair)
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


@pytest.mark.parametrize(("name", "digest"), LEAFLET.items())
def test_leaflet_is_the_one_that_was_published(name, digest):
    path = files("tileseg") / "assets/report/leaflet" / name

    assert digest == sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("transform", "is_up"),
    [([10, 0, 0, 0, -10, 0], True), ([10, 0, 0, 0, 10, 0], False),
     ([8, 6, 0, 6, -8, 0], False), ([1.0, 0, 0, 0, 1.0, 0], True)],
)  # fmt: skip
def test_a_map_on_which_north_is_not_up_says_so(made, transform, is_up):
    output, record = made
    run_ = record.told()
    run_["scene"]["transform"] = transform

    text = report(run_, *page_facts(output)).decode()

    assert ("this page, so north is not up in it; " in text) != is_up
