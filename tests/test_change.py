"""What changed between two masks; the whole is the oracle for windows."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import schemas
import shapely
from affine import Affine
from click.testing import CliRunner
from cogs import faults
from hypothesis import given, settings
from hypothesis import strategies as st
from making import NORTH_UP
from numpy.testing import assert_array_equal
from pyproj import Geod
from rasterio.features import rasterize
from scipy import ndimage
from test_evaluate import NAMES, SHAPE, patchy, write
from test_report import HOSTILE, Page, values_of

from tileseg.changes.hysteresis import COUNTS, TOO_SMALL, UNDECIDED, Patch, Rule, settle
from tileseg.cli import main
from tileseg.errors import ExitCode
from tileseg.evaluation.evaluate import Question, evaluate
from tileseg.publishing.publish import staging
from tileseg.window import Window

PIXEL = 0.01  # hectares
VOID = 255


def oracle(codes, sure, rule):
    """Return what becomes of each pixel, from the whole array at once."""
    found = np.full(codes.shape, UNDECIDED)
    for code in np.unique(codes[codes != VOID]):
        pieces, count = ndimage.label((codes == code) & (sure >= rule.low))
        for piece in range(1, count + 1):
            here = pieces == piece
            if sure[here].max() >= rule.high:
                found[here] = COUNTS if here.sum() >= rule.least else TOO_SMALL
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    shape=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    least=st.integers(0, 6),
)
def test_what_counts_does_not_depend_on_windows(seed, shape, size, least):
    """Pieces wind through windows, and meet only below them, to the left, ..."""
    random = np.random.default_rng(seed)
    codes = random.choice([1, 5, VOID], shape, p=[0.55, 0.25, 0.2]).astype(np.uint8)
    sure = random.integers(0, 255, shape).astype(np.uint8)
    rule = Rule(high=int(random.integers(100, 255)), low=60, least=least)
    may_count = np.where(sure >= rule.low, codes, VOID).astype(np.uint8)
    whole = Window(0, 0, *shape)
    rows = [
        [
            Window(row, col, *size).intersect(whole)
            for col in range(0, shape[1], size[1])
        ]
        for row in range(0, shape[0], size[0])
    ]

    def patch(at):
        ones = np.ones(at.height, np.int64)
        parts = may_count[at.slices], sure[at.slices]
        return Patch.of(*parts, ones, window=at, void=VOID)

    verdicts = settle(((patch(at) for at in row) for row in rows), rule)
    found = np.zeros(shape, np.uint8)
    for at in (at for row in rows for at in row):
        found[at.slices] = verdicts.of(patch(at))

    assert_array_equal(oracle(codes, sure, rule), found)


def write_run(folder, labels, sure=None, plan="p", **options):
    """Write what a run leaves."""
    folder.mkdir()
    write(folder / "mask.tif", labels, **options)
    if sure is not None:
        options |= {"tags": ()}
        write(folder / "confidence.tif", sure, **options)
    (folder / "run.json").write_text(json.dumps({"plan_id": plan}))
    return folder


def certainties(seed, labels):
    """Return confidences, smooth enough that pieces have more than one pixel."""
    random = np.random.default_rng(seed)
    shape = labels.shape
    coarse = random.integers(100, 300, [n // 5 + 1 for n in shape])
    sure = coarse.repeat(5, 0).repeat(5, 1)[: shape[0], : shape[1]]
    sure = (sure + random.integers(-30, 25, shape)).clip(0, 254)
    return np.where(labels == VOID, VOID, sure).astype(np.uint8)


@pytest.fixture
def arrays():
    old, new = patchy(1), patchy(2)
    new[:30] = np.where(np.random.default_rng(3).random((30, 47)) < 0.8, old[:30], 1)
    return old, new, certainties(4, old), certainties(5, new)


@pytest.fixture
def runs(arrays, tmp_path):
    """Two runs; the second has its classes in another order."""
    old, new, *sure = arrays
    turned = np.array([2, 0, 1, *range(3, 256)], np.uint8)[new]
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    names = tuple(NAMES[number] for number in (1, 2, 0))
    return (
        write_run(tmp_path / "old", old, sure[0], "first", **tiles),
        write_run(tmp_path / "new", turned, sure[1], "second", tags=names, **tiles),
    )


def invoke(old, new, output, *options):
    args = [str(old), str(new), "--output", str(output), "--workers", "1", *options]
    return CliRunner().invoke(main, ["change", *args])


def made(*args):
    """Return the record of a comparison that succeeds."""
    result = invoke(*args)
    assert result.exit_code == ExitCode.OK, result.stderr
    record = json.loads((args[2] / "change.json").read_text())
    assert schemas.faults(record, "change") == []
    return record


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def expected_raster(arrays, rule, classes=3):
    """Return the codes that the raster should have, from the whole arrays."""
    old, new, *sure = (item.astype(int) for item in arrays)
    is_known = (old != VOID) & (new != VOID)
    codes = np.where(is_known, old * classes + new, VOID)
    least = np.where(np.stack(sure) <= 254, sure, 0).min(axis=0)
    differ = is_known & (old != new)
    outcome = oracle(np.where(differ, codes, VOID), least, rule)
    left_out = np.array([0, classes**2, classes**2 + 1])[outcome]
    return codes, np.where(differ & (outcome != COUNTS), left_out, codes)


RULE = Rule(high=204, low=127, least=4)  # 0.8 and 0.5 of 254, 0.04 ha
OPTIONS = "--confidence", "0.8,0.5", "--min-area", "0.04"


def test_a_comparison_is_what_the_whole_arrays_say(runs, arrays, tmp_path, monkeypatch):
    """Matrix, raster, tags and polygons; in many windows and in one, to the byte."""
    once = made(*runs, tmp_path / "once", *OPTIONS)
    monkeypatch.setattr("tileseg.steps.polygonize._SIDE", 16)
    monkeypatch.setattr("tileseg.steps.polygonize._LEAST_SIDE", 16)
    record = made(*runs, tmp_path / "out", *OPTIONS)

    codes, wanted = expected_raster(arrays, RULE)
    path = tmp_path / "out" / "change.tif"
    assert_array_equal(wanted, read(path))
    assert {9, 10, VOID} < set(np.unique(wanted))
    names = {f["path"] for f in record["outputs"]} | {"change.json"}
    assert names == {item.name for item in (tmp_path / "out").iterdir()}
    for name in ("change.tif", "change.gpkg", "change.png", "change.html"):
        one, other = (tmp_path / it / name for it in ("once", "out"))
        assert one.read_bytes() == other.read_bytes()
    assert once == record

    counts = np.bincount(wanted.ravel(), minlength=256)
    assert record["pixels"]["matrix"] == counts[:9].reshape(3, 3).tolist()
    left_out = [
        np.bincount(codes[wanted == code], minlength=9).reshape(3, 3)
        for code in (9, 10)
    ]
    assert record["pixels"]["undecided_matrix"] == left_out[0].tolist()
    assert record["pixels"]["too_small_matrix"] == left_out[1].tolist()
    assert record["pixels"]["nodata"] == counts[VOID]
    np.testing.assert_allclose(
        record["hectares"]["matrix"], PIXEL * counts[:9].reshape(3, 3), rtol=1e-12
    )
    differing = ((codes != VOID) & (codes % 4 != 0)).sum()
    assert record["undecided_share"] == pytest.approx(counts[9] / differing)
    assert [record[it]["plan"] for it in ("old", "new")] == ["first", "second"]
    assert record["classes"] == list(NAMES)
    assert record["grid"]["code"] == "EPSG:32631"
    assert record["grid"]["wkt2"].startswith("PROJCRS[")

    assert faults(path) == []
    with rasterio.open(path) as dataset:
        tags, table = dataset.tags(), dataset.colormap(1)
        assert (dataset.transform, dataset.crs) == (NORTH_UP, "EPSG:32631")
    assert (tags["CLASS_1"], tags["CLASS_9"]) == ("water > land", "undecided")
    told = {code: int(tags.get(f"PIXELS_{code}", 0)) for code in range(11)}
    assert told == dict(enumerate(counts[:11].tolist()))
    assert tags["CLASS_4"] == "land unchanged"
    assert table[0] == table[4] != table[1]
    itself = evaluate(Question(mask=str(path), reference=str(path)))
    assert itself.confusion.accuracy == 1


@pytest.mark.parametrize("side", [1000, 20])
def test_the_page_shows_what_the_files_say(runs, arrays, tmp_path, monkeypatch, side):
    """Pixel by pixel, or of each cell the first; however it was read."""
    monkeypatch.setattr("tileseg.changes.transitions._MAP_SIDE", side)
    monkeypatch.setattr("tileseg.steps.polygonize._SIDE", 16)
    monkeypatch.setattr("tileseg.steps.polygonize._LEAST_SIDE", 16)
    made(*runs, tmp_path / "out", *OPTIONS)

    page = Page((tmp_path / "out" / "change.html").read_bytes())

    rasters, legends = page.data["chart"]["rasters"], page.data["legends"]
    step = -(-max(SHAPE) // side)
    for name, labels in zip(("old", "new"), arrays, strict=False):
        assert rasters[name]["step"] == step
        assert_array_equal(values_of(rasters[name]), labels[::step, ::step])
        assert [it["name"] for it in legends[name].values()] == list(NAMES)
    shown = values_of(rasters["change"])
    if step == 1:
        _, wanted = expected_raster(arrays, RULE)
        with rasterio.open(tmp_path / "out" / "change.tif") as dataset:
            tags = dataset.tags()
        for code in np.unique(wanted[wanted != VOID]):
            (value,) = np.unique(shown[wanted == code])
            name = tags[f"CLASS_{code}"]
            told = {"undecided": "undecided or too small"}.get(name, name)
            told = "undecided or too small" if name == "too small" else told
            told = "unchanged" if name.endswith("unchanged") else told
            assert legends["change"][str(value)]["name"] == told
        assert_array_equal(shown == VOID, wanted == VOID)
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    beside = {item.name for item in (tmp_path / "out").iterdir()}
    assert links == beside - {"change.html"}


@pytest.mark.parametrize(
    ("place", "is_up"),
    [(NORTH_UP, True), (NORTH_UP @ Affine.scale(1, -1), False),
     (NORTH_UP @ Affine.rotation(20), False)],
)  # fmt: skip
def test_the_page_says_when_north_is_not_up(arrays, tmp_path, place, is_up):
    runs = [
        write_run(tmp_path / name, labels, place=place)
        for name, labels in zip("ab", arrays, strict=False)
    ]
    made(*runs, tmp_path / "out")

    page = Page((tmp_path / "out" / "change.html").read_bytes())

    assert ("own pixels, so north is not up in it; " in page.text) != is_up


def test_the_page_believes_no_name_and_warns(arrays, tmp_path):
    """Classes of hostile names, masks of two models, one of them without confidence."""
    old, new, sure, _ = arrays
    runs = [
        write_run(tmp_path / name, labels, *some, tags=HOSTILE)
        for name, labels, some in (("a", old, (sure,)), ("b", new, ()))
    ]
    for run, model in zip(runs, HOSTILE, strict=False):
        with rasterio.open(run / "mask.tif", "r+") as dataset:
            dataset.update_tags(MODEL=model, MODEL_SHA256=model)
    record = made(*runs, tmp_path / "out")

    page = Page((tmp_path / "out" / "change.html").read_bytes())

    assert [tag for tag, attrs in page.tags if tag == "script"] == ["script"] * 2
    text = " ".join(page.text.split())
    for name in HOSTILE:
        assert " ".join(name.split()) in text
    assert record["new"]["model"] == {"name": HOSTILE[1], "sha256": HOSTILE[1]}
    assert "b/mask.tif has no confidence" in text
    assert "are of different models" in text
    for size in np.array(record["hectares"]["matrix"]).ravel():
        assert f"{size:.3g}" in text
    assert "a to b" in text


def test_a_kept_version_is_called_by_its_scene_and_time(runs, tmp_path):
    kept = tmp_path / "scene.versions" / "20261126T204628-7e475a8e"
    shutil.copytree(runs[0], kept)
    made(kept, runs[1], tmp_path / "out")

    page = Page((tmp_path / "out" / "change.html").read_bytes())

    assert f"scene 20261126T204628 to {Path(runs[1]).name}" in page.text


def test_what_a_killed_comparison_left_goes_with_the_next(runs, tmp_path):
    with staging(tmp_path / "out", "change.json") as left:
        (left / "change.tif").write_bytes(b"half")
        kept = left.rename(tmp_path / "kept")
        left.mkdir()
    kept.rename(left)
    assert left.exists()

    made(*runs, tmp_path / "out", "--overwrite")

    assert not left.exists()


def test_polygons_are_the_changes_of_the_raster(runs, arrays, tmp_path):
    record = made(*runs, tmp_path / "out", *OPTIONS, "--polygons", "fgb")

    meta, _, shapes, columns = pyogrio.raw.read(tmp_path / "out" / "change.fgb")
    table = dict(zip(meta["fields"].tolist(), columns, strict=True))
    _, wanted = expected_raster(arrays, RULE)
    is_change = (wanted < 9) & (wanted % 4 != 0)
    at = [
        NAMES.index(a) * 3 + NAMES.index(b)
        for a, b in zip(table["from"], table["to"], strict=True)
    ]
    burnt = zip(shapely.from_wkb(shapes), at, strict=True)
    again = rasterize(burnt, SHAPE, fill=VOID, transform=NORTH_UP)
    assert_array_equal(np.where(is_change, wanted, VOID), again)
    assert table["area_ha"].sum() == pytest.approx(PIXEL * is_change.sum())
    assert table["area_ha"].min() >= 0.04 - 1e-9
    assert record["polygons"] == len(at) > 5


def test_without_confidence_every_difference_counts_and_that_is_said(arrays, tmp_path):
    old, new, sure, _ = arrays
    silent = write(tmp_path / "a.tif", old), write(tmp_path / "b.tif", new)
    said = invoke(*silent, tmp_path / "out")

    assert "neither has a confidence" in said.stdout
    certain = np.full_like(old, 254)
    everything = Rule(high=0, low=0, least=0)
    _, wanted = expected_raster((old, new, certain, certain), everything)
    assert_array_equal(wanted, read(tmp_path / "out" / "change.tif"))
    refused = invoke(*silent, tmp_path / "no", "--confidence", "0.8")
    assert refused.exit_code == ExitCode.USAGE
    assert "confidence.tif" in refused.stderr

    half = write_run(tmp_path / "half", old, sure)
    said = invoke(half, silent[1], tmp_path / "one")
    assert "b.tif has no confidence" in said.stdout
    _, wanted = expected_raster(
        (old, new, sure, certain), Rule(high=204, low=127, least=0)
    )
    assert_array_equal(wanted, read(tmp_path / "one" / "change.tif"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"place": NORTH_UP @ Affine.translation(1, 0)}, "got transform"),
        ({"crs": "EPSG:32632"}, "got CRS EPSG:32632, wanted EPSG:32631"),
        ({"shape": (61, 46)}, "got size 46 61, wanted 47 61"),
        ({"tags": ("water", "land", "ice")}, "more: ice; less: rock"),
        ({"tags": NAMES[:2]}, "more: none; less: rock"),
        ({"tags": ()}, "no CLASS_<value> tags"),
    ],
)
def test_masks_that_do_not_lie_on_each_other_are_refused(tmp_path, options, words):
    shape = options.pop("shape", SHAPE)
    old = write(tmp_path / "old.tif", np.zeros(SHAPE, np.uint8))
    new = write(tmp_path / "new.tif", np.zeros(shape, np.uint8), **options)

    result = invoke(old, new, tmp_path / "out")

    assert result.exit_code == ExitCode.USAGE
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(it.name for it in tmp_path.iterdir()) == ["new.tif", "old.tif"]


def test_a_value_that_no_class_has_and_a_folder_without_a_mask_are_refused(tmp_path):
    old = write(tmp_path / "old.tif", np.zeros(SHAPE, np.uint8))
    new = write(tmp_path / "new.tif", np.full(SHAPE, 7, np.uint8))

    strange, empty = (invoke(old, it, tmp_path / "out") for it in (new, tmp_path))

    assert strange.exit_code == ExitCode.USAGE
    assert "holds 7" in strange.stderr
    assert empty.exit_code == ExitCode.INPUT
    assert "has no mask.tif" in empty.stderr
    assert not (tmp_path / "out").exists()


def test_no_comparison_is_put_into_a_run(runs):
    result = invoke(*runs, runs[1] / "change")

    assert result.exit_code == ExitCode.USAGE
    assert "a run's output" in result.stderr
    assert {item.name for item in runs[1].iterdir()} == {
        "mask.tif",
        "confidence.tif",
        "run.json",
    }


def test_what_a_mask_in_the_file_hides_is_not_known(tmp_path, arrays):
    """And nothing that `evaluate` would compare."""
    old, new, *_ = arrays
    plain = write(tmp_path / "new.tif", new)
    first = write(tmp_path / "old.tif", old)
    masked = write(tmp_path / "masked.tif", np.where(new == VOID, 0, new), nodata=None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as it:
        it.write_mask(new != VOID)

    records = [
        made(first, it, tmp_path / name) for name, it in (("a", plain), ("b", masked))
    ]

    assert records[0]["pixels"] == records[1]["pixels"]
    scores = [evaluate(Question(mask=it, reference=first)) for it in (plain, masked)]
    assert_array_equal(*(score.confusion.counts for score in scores))


@pytest.mark.parametrize("text", ["2", "0.5,0.8", "x", "0.8,", "0.1.2", "0.8,0.5,0.2"])
def test_thresholds_are_two_shares(runs, tmp_path, text):
    result = invoke(*runs, tmp_path / "out", "--confidence", text)

    assert result.exit_code == ExitCode.USAGE
    assert "--confidence" in result.stderr


def test_areas_of_degrees_are_geodesic(tmp_path):
    """Rows near a pole are narrower; --min-area goes by that."""
    place = Affine(0.01, 0, 20, 0, -0.02, 80)
    old, new = np.zeros((60, 40), np.uint8), np.zeros((60, 40), np.uint8)
    new[3:50, 5:20], new[0, 39], new[59, 39] = 2, 1, 1
    masks = [
        write(tmp_path / f"{n}.tif", it, place=place, crs="EPSG:4326")
        for n, it in enumerate((old, new))
    ]

    def hectares(row):
        top, low = 80 - 0.02 * row, 80 - 0.02 * (row + 1)
        at = [20.2, 20.21, 20.21, 20.2], [top, top, low, low]
        area, _ = Geod(ellps="WGS84").polygon_area_perimeter(*at)
        return abs(area) / 10_000

    between = (hectares(0) + hectares(59)) / 2
    record = made(*masks, tmp_path / "out", "--min-area", str(between))

    sizes = record["hectares"]
    wanted = 15 * sum(map(hectares, range(3, 50)))
    assert sizes["matrix"][0][2] == pytest.approx(wanted, rel=1e-6)
    assert sizes["matrix"][0][1] == pytest.approx(hectares(59), rel=1e-6)
    assert sizes["too_small"] == pytest.approx(hectares(0), rel=1e-6)


def test_many_classes_have_codes_of_16_bits(tmp_path):
    """And only those that the raster holds are named."""
    names = tuple(f"kind {number}" for number in range(16))
    old = (np.arange(50 * 30) % 16).astype(np.uint8).reshape(50, 30)
    new = np.roll(old, 1, axis=1)
    masks = [
        write(tmp_path / f"{n}.tif", it, tags=names) for n, it in enumerate((old, new))
    ]

    made(*masks, tmp_path / "out")

    path = tmp_path / "out" / "change.tif"
    wanted = old.astype(int) * 16 + new
    assert_array_equal(wanted, read(path))
    assert faults(path) == []
    with rasterio.open(path) as dataset:
        tags = {it for it in dataset.tags() if it.startswith("CLASS_")}
        assert dataset.nodata == 65_535
        assert dataset.colormap(1)[int(wanted.max())][3] == 255
    assert tags == {f"CLASS_{code}" for code in np.unique(wanted)}


SOUTH_UP, ROTATED = NORTH_UP @ Affine.scale(1, -1), NORTH_UP @ Affine.rotation(31)


@pytest.mark.parametrize(
    ("shape", "place"),
    [((1, 1), NORTH_UP), ((700, 1), SOUTH_UP), ((530, 3), ROTATED)],
)
def test_a_raster_is_a_cog_however_narrow_and_turned(tmp_path, shape, place):
    random = np.random.default_rng(0)
    old, new = random.integers(0, 3, (2, *shape)).astype(np.uint8)
    masks = [
        write(tmp_path / f"{n}.tif", it, place=place) for n, it in enumerate((old, new))
    ]

    made(*masks, tmp_path / "out")

    path = tmp_path / "out" / "change.tif"
    assert_array_equal(old * 3 + new, read(path))
    # One column should have overviews, of which none could be narrower.
    said = [text for text in faults(path) if "overviews" not in text or shape[1] > 1]
    assert said == []


def test_where_nothing_changed_there_is_an_empty_answer(tmp_path):
    """Of a mask without a CRS in pixels; names of 16 letters are told in full."""
    names = ("low vegetation", "low vegetables", "wood")
    place = {"crs": None, "place": Affine.identity()}
    mask = write(tmp_path / "mask.tif", patchy(1), tags=names, **place)
    result = invoke(mask, mask, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "change.json").read_text())

    head, *rows = result.stdout.splitlines()[:4]
    assert head.endswith(" low vegetation low vegetables          wood")
    assert [len(row) for row in rows] == [len(head)] * 3
    assert "changed 0 px" in result.stdout
    assert (record["undecided_share"], record["hectares"]) == (None, None)
    assert record["polygons"] == 0
    assert len(pyogrio.raw.read(tmp_path / "out" / "change.gpkg")[2]) == 0
    refused = invoke(mask, mask, tmp_path / "no", "--min-area", "1")
    assert refused.exit_code == ExitCode.USAGE
    for text in ("nan", "inf"):
        refused = invoke(mask, mask, tmp_path / "no", "--min-area", text)
        assert refused.exit_code == ExitCode.USAGE


def test_the_same_question_is_answered_once_and_no_other_over_it(runs, tmp_path):
    output = tmp_path / "out"
    record, before = made(*runs, output), (output / "change.tif").stat()

    # Wherever one stands when asking it.
    relative = (os.path.relpath(run) for run in runs)
    again = invoke(*relative, output, "--json")
    other = invoke(*runs, output, "--confidence", "0.9")

    assert json.loads(again.stdout) == record
    assert (output / "change.tif").stat() == before
    assert other.exit_code == ExitCode.BUSY
    assert "--overwrite" in other.stderr
    third = made(*runs, output, "--confidence", "0.9", "--overwrite")
    assert third["rule"]["high"] == 0.9 == third["rule"]["low"]
    assert third["request_id"] != record["request_id"]


@pytest.mark.parametrize("place", ["pair._read", "change.as_picture"])
def test_a_stopped_comparison_leaves_what_was_there(runs, tmp_path, monkeypatch, place):
    output = tmp_path / "out"
    record = made(*runs, output)
    there = sorted(item.name for item in tmp_path.iterdir())

    def stopped(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(f"tileseg.changes.{place}", stopped)
    result = invoke(*runs, output, "--confidence", "0.9", "--overwrite")

    assert result.exit_code == ExitCode.PREEMPTED
    assert sorted(item.name for item in tmp_path.iterdir()) == there
    assert json.loads((output / "change.json").read_text()) == record


def test_a_mask_that_changes_meanwhile_is_noticed(runs, tmp_path, monkeypatch):
    from tileseg.changes import change as module

    carry_out = module._carry_out

    def touched(*args):
        (runs[1] / "mask.tif").touch()
        return carry_out(*args)

    monkeypatch.setattr(module, "_carry_out", touched)
    result = invoke(*runs, tmp_path / "out")

    assert result.exit_code == ExitCode.INPUT
    assert "changed while it was being read" in result.stderr
    assert not (tmp_path / "out").exists()
