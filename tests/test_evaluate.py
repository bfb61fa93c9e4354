"""Masks against what is known of the ground; the whole is the windows' oracle."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from making import NORTH_UP
from numpy.testing import assert_array_equal
from rasterio.features import shapes
from rasterio.transform import from_origin
from rasterio.warp import transform

from tileseg.cli import main
from tileseg.errors import InputError, RefusedError, UsageError
from tileseg.evaluation import evaluate as module
from tileseg.evaluation.evaluate import Question, evaluate
from tileseg.evaluation.reference import open_reference
from tileseg.evaluation.scorecard import as_picture, as_text
from tileseg.geobox import GeoBox

NAMES = ("water", "land", "rock")
UTM = "EPSG:32631"
SHAPE = 61, 47


def write(path, labels, *, place=NORTH_UP, crs=UTM, tags=NAMES, first=0, **more):
    """Write a raster of classes; the tags name `first` and what follows it."""
    height, width = labels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=height, width=width,
        dtype=labels.dtype, crs=crs, transform=place, **{"nodata": 255, **more},
    ) as dataset:  # fmt: skip
        dataset.write(labels, 1)
        names = {f"CLASS_{n}": name for n, name in enumerate(tags, start=first)}
        dataset.update_tags(**names)
    return str(path)


def patchy(seed, shape=SHAPE, side=7):
    """Return classes in patches, some of them nodata."""
    random = np.random.default_rng(seed)
    coarse = random.choice(
        [0, 1, 2, 255], [n // side + 1 for n in shape], p=[0.3, 0.3, 0.3, 0.1]
    )
    labels = coarse.repeat(side, 0).repeat(side, 1)[: shape[0], : shape[1]]
    noise = random.random(shape) < 0.1
    return np.where(noise, random.integers(0, 3, shape), labels).astype(np.uint8)


def write_features(path, features, crs=None):
    """Write (geometry, properties) as GeoJSON."""
    items = [{"type": "Feature", "geometry": g, "properties": p} for g, p in features]
    whole = {"type": "FeatureCollection", "features": items}
    if crs:
        whole["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(whole))
    return str(path)


def write_points(path, places):
    """Write (row, column, class) as GeoJSON points at pixel centres."""
    xs, ys = zip(*[NORTH_UP @ (c + 0.5, r + 0.5) for r, c, _ in places], strict=True)
    lonlat = zip(*transform(UTM, "EPSG:4326", xs, ys), strict=True)
    return write_features(path, [
        ({"type": "Point", "coordinates": at}, {"class": place[2]})
        for at, place in zip(lonlat, places, strict=True)
    ])  # fmt: skip


@pytest.fixture
def mask(tmp_path):
    return write(tmp_path / "mask.tif", patchy(0))


def counted(truth, mapped):
    """Return the table, the simple way."""
    counts = np.zeros((3, 4), int)
    for known, found in zip(truth.ravel(), mapped.ravel(), strict=True):
        if known != 255:
            counts[known, 3 if found == 255 else found] += 1
    return counts


# References


def test_a_raster_is_compared_pixel_by_pixel(mask, tmp_path):
    truth = write(tmp_path / "truth.tif", patchy(1))

    found = evaluate(Question(mask=mask, reference=truth))

    assert_array_equal(found.confusion.counts, counted(patchy(1), patchy(0)))
    areas = [(patchy(0) == value).sum() * 0.01 for value in range(3)]
    np.testing.assert_allclose(found.mapped, areas)
    assert (found.unit, found.areas, found.calibration) == ("ha", None, None)


@pytest.mark.parametrize("side", [5, 16, 61])
def test_windows_change_nothing(mask, tmp_path, monkeypatch, side):
    truth = write(tmp_path / "truth.tif", patchy(1))
    sure = np.random.default_rng(5).integers(0, 255, SHAPE).astype(np.uint8)
    confidence = write(tmp_path / "confidence.tif", sure)
    question = Question(mask=mask, reference=truth, confidence=confidence)
    whole = evaluate(question).as_dict()

    monkeypatch.setattr(module, "_SIDE", side)

    assert evaluate(question).as_dict() == whole
    assert whole["calibration_error"] is not None
    assert 0 < whole["boundary_macro_f1"] < 1


def test_the_calibration_error_is_that_of_the_paper(mask, tmp_path):
    """Over 15 bins of confidence; a place without any counts for nothing."""
    sure = np.random.default_rng(5).integers(0, 256, SHAPE).astype(np.uint8)
    question = Question(
        mask=mask,
        reference=write(tmp_path / "truth.tif", patchy(1)),
        confidence=write(tmp_path / "confidence.tif", sure),
    )

    found = evaluate(question).calibration.error

    is_counted = (patchy(1) != 255) & (sure != 255)
    said, right = sure[is_counted] / 254, (patchy(0) == patchy(1))[is_counted]
    bins = np.minimum(said * 15, 14).astype(int)
    gaps = [abs((said - right)[bins == number].sum()) for number in range(15)]
    assert found == pytest.approx(sum(gaps) / len(said))


def test_a_raster_of_another_grid_is_read_by_its_nearest_pixel(mask, tmp_path):
    """Three times finer, and moved by whole pixels: the middle one of nine counts."""
    fine = patchy(1).repeat(3, 0).repeat(3, 1)
    place = NORTH_UP @ Affine.translation(-2, -4) @ Affine.scale(1 / 3)
    moved = np.full((fine.shape[0] + 12, fine.shape[1] + 6), 255, np.uint8)
    moved[12:, 6:] = fine
    truth = write(tmp_path / "truth.tif", moved, place=place)

    found = evaluate(Question(mask=mask, reference=truth))

    assert_array_equal(found.confusion.counts, counted(patchy(1), patchy(0)))


def test_the_same_numbers_in_another_zone_are_another_place(mask, tmp_path):
    """Tiles of Sentinel-2 are called alike in every zone of UTM."""
    truth = write(tmp_path / "truth.tif", patchy(1), crs="EPSG:32632")

    with pytest.raises(UsageError, match="says nothing of any pixel"):
        evaluate(Question(mask=mask, reference=truth))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("way", ["mask", "alpha"])
def test_what_the_file_itself_hides_is_not_known(mask, tmp_path, way, shift):
    """On the mask's grid, and on another one."""
    labels = np.pad(patchy(1), ((shift, 0), (0, 0))).clip(0, 2)
    is_seen = np.indices(labels.shape).sum(axis=0) % 3 > 0
    truth = tmp_path / "truth.tif"
    alpha = {"count": 2, "alpha": "yes"} if way == "alpha" else {"count": 1}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            truth, "w", driver="GTiff", height=labels.shape[0], width=labels.shape[1],
            dtype="uint8", crs=UTM, **alpha,
            transform=NORTH_UP @ Affine.translation(0, -shift),
        ) as dataset,
    ):  # fmt: skip
        dataset.write(labels, 1)
        if way == "alpha":
            dataset.write(np.where(is_seen, 255, 0).astype(np.uint8), 2)
        else:
            dataset.write_mask(is_seen)

    found = evaluate(Question(mask=mask, reference=str(truth)))

    wanted = np.where(is_seen, labels, 255)[shift:]
    assert_array_equal(found.confusion.counts, counted(wanted, patchy(0)))


def test_beyond_a_smaller_raster_nothing_is_known(mask, tmp_path):
    """Not even where it has no nodata value."""
    part = np.where(patchy(1) == 255, 1, patchy(1))[:20, 10:30]
    place = NORTH_UP @ Affine.translation(10, 0)
    truth = write(tmp_path / "truth.tif", part, place=place, nodata=None)

    found = evaluate(Question(mask=mask, reference=truth))

    assert_array_equal(found.confusion.counts, counted(part, patchy(0)[:20, 10:30]))


def test_classes_are_told_by_name_and_may_be_renamed(mask, tmp_path):
    """Other numbers, other names, 16 bits: what each is in the mask can be said."""
    codes = np.array([41, 42, 300], np.uint16)
    stored = np.where(patchy(1) == 255, 0, codes[np.minimum(patchy(1), 2)])
    truth = write(tmp_path / "t.tif", stored.astype(np.uint16), nodata=0, tags=())
    named = write(
        tmp_path / "n.tif",
        (2 - patchy(1).astype(int)).clip(0).astype(np.uint8),
        tags=NAMES[::-1],
        nodata=None,
    )

    with pytest.raises(UsageError, match=r"class 41 .*0 water.*--rename 41=CLASS"):
        evaluate(Question(mask=mask, reference=truth))
    with pytest.raises(UsageError, match=r"class 41, renamed 'wet', is not one of"):
        evaluate(Question(mask=mask, reference=truth, renamed={"41": "wet"}))
    renamed = {"41": "water", "42": "1", "300": "255"}
    found = evaluate(Question(mask=mask, reference=truth, renamed=renamed))
    by_name = evaluate(Question(mask=mask, reference=named))

    wanted = counted(patchy(1), patchy(0))
    assert_array_equal(found.confusion.counts[:2], wanted[:2])
    assert not found.confusion.counts[2].any()
    assert_array_equal(by_name.confusion.counts[:2], wanted[:2])


def test_a_tag_says_which_value_it_names(mask, tmp_path):
    """The first class may be 1, as where 0 is nodata."""
    stored = np.where(patchy(1) == 255, 0, patchy(1) + 1).astype(np.uint8)
    truth = write(tmp_path / "truth.tif", stored, first=1, nodata=0)

    found = evaluate(Question(mask=mask, reference=truth))

    assert_array_equal(found.confusion.counts, counted(patchy(1), patchy(0)))


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32631"])
def test_polygons_are_the_raster_that_they_were_made_of(mask, tmp_path, crs):
    labels = patchy(1)
    pieces = shapes(labels, labels != 255, transform=NORTH_UP)
    features = [(shape, {"kind": NAMES[int(value)]}) for shape, value in pieces]
    if crs == "EPSG:4326":
        features = [(rasterio.warp.transform_geom(UTM, crs, g), p) for g, p in features]
    truth = write_features(tmp_path / "truth.json", features, crs)

    found = evaluate(Question(mask=mask, reference=truth, column="kind"))

    assert_array_equal(found.confusion.counts, counted(labels, patchy(0)))
    assert found.areas is None


def test_every_point_is_counted_once_and_areas_are_estimated(mask, tmp_path):
    """Twice at one place too; nodata is never right."""
    labels = patchy(0)
    random = np.random.default_rng(3)
    rows, cols = random.integers(0, 61, 90), random.integers(0, 47, 90)
    truth = [NAMES[random.integers(3)] for _ in rows]
    places = [*zip(rows, cols, truth, strict=True)] * 2
    points = write_points(tmp_path / "points.json", places)

    found = evaluate(Question(mask=mask, reference=points))

    known = np.array([NAMES.index(name) for name in truth] * 2)
    wanted = counted(known, np.tile(labels[rows, cols], 2))
    assert_array_equal(found.confusion.counts, wanted)
    assert found.areas.area.sum() == pytest.approx(found.mapped.sum())
    assert found.boundary is None
    alone = Question(mask=mask, reference=points, is_sample=False)
    assert evaluate(alone).areas is None


@pytest.mark.parametrize("place", [(0, 0, "sky"), (61, 0, "water"), (0, -1, "land")])
def test_a_point_that_fits_nothing_is_refused(mask, tmp_path, place):
    points = write_points(tmp_path / "points.json", [place])

    with pytest.raises(UsageError, match=r"points\.json"):
        evaluate(Question(mask=mask, reference=points))


def test_a_raster_without_a_crs_has_nothing_beside_it(mask, tmp_path):
    """Said alike of a mask and of a scene to train on: both are a raster's grid."""
    nowhere = GeoBox(*SHAPE, NORTH_UP @ NORTH_UP.translation(1, 0), None)
    points = write_points(tmp_path / "points.json", [(3, 5, "water")])

    for path, said in ((mask, "another grid than its raster"), (points, "no CRS")):
        opened = open_reference(path, nowhere, NAMES, {}, "class")
        with pytest.raises(UsageError, match=said) as caught, opened:
            pass
        assert "mask" not in str(caught.value).removeprefix(path)


# Borders


def test_borders_may_be_off_by_the_tolerance_and_no_more(tmp_path):
    truth = np.zeros(SHAPE, np.uint8)
    truth[:, 20:] = 1
    moved = np.roll(truth, 2, axis=1)
    moved[:, :2] = 0
    files = {
        "mask": write(tmp_path / "mask.tif", moved),
        "reference": write(tmp_path / "truth.tif", truth),
    }

    exact = [
        evaluate(Question(**files, tolerance=reach)).boundary.macro_f1
        for reach in (0, 1, 2)
    ]

    assert exact == [0, 0, 1]


# What goes wrong


def test_files_that_are_not_what_they_should_be_are_refused(mask, tmp_path):
    text = tmp_path / "text"
    text.write_text("no")
    bare = write(tmp_path / "bare.tif", patchy(0), tags=())
    far = write(tmp_path / "far.tif", patchy(1), place=from_origin(0, 0, 10, 10))

    with pytest.raises(RefusedError, match="GeoJSON"):
        evaluate(Question(mask=mask, reference=str(text)))
    with pytest.raises(InputError, match="cannot be read"):
        evaluate(Question(mask=str(text), reference=mask))
    with pytest.raises(InputError, match="No such file"):
        evaluate(Question(mask=mask, reference=str(tmp_path / "gone")))
    with pytest.raises(UsageError, match="CLASS_"):
        evaluate(Question(mask=bare, reference=mask))
    with pytest.raises(UsageError, match="says nothing of any pixel"):
        evaluate(Question(mask=mask, reference=far))
    with pytest.raises(UsageError, match="not a confidence raster"):
        evaluate(Question(mask=mask, reference=mask, confidence=far))


def test_a_mask_whose_values_nothing_names_is_refused(tmp_path):
    shifted = write(tmp_path / "shifted.tif", patchy(0), first=1)
    few = write(tmp_path / "few.tif", patchy(0), tags=NAMES[:2])

    with pytest.raises(UsageError, match="tags name 1, 2, 3; wanted 0, 1, 2"):
        evaluate(Question(mask=shifted, reference=shifted))
    with pytest.raises(UsageError, match="holds 2, which no CLASS_<value> tag names"):
        evaluate(Question(mask=few, reference=shifted))


# What a person sees


def test_the_command_prints_tables_json_and_a_picture(mask, tmp_path):
    write(tmp_path / "confidence.tif", patchy(4))
    truth = write(tmp_path / "truth.tif", patchy(1))
    picture = tmp_path / "score.png"

    tables = CliRunner().invoke(
        main, ["evaluate", mask, truth, "--picture", str(picture)]
    )
    values = CliRunner().invoke(main, ["evaluate", mask, truth, "--json", "--sample"])

    assert tables.exit_code == values.exit_code == 0
    found = json.loads(values.stdout)
    assert (
        f"accuracy {found['accuracy']:.3f} at {found['places']:,} places"
        in tables.stdout
    )
    assert "(ECE)" in tables.stdout
    for kind in ("macro", "weighted"):
        (line,) = (row for row in tables.stdout.splitlines() if row.startswith(kind))
        said = [f"{score:.3f}" for score in found[kind].values()]
        assert line.split()[1:5] == said
    assert found["classes"][0]["estimated_error"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_sample_that_is_too_small_says_what_it_lacks(mask, tmp_path):
    """Two places of each mapped class estimate areas, and draw them; else who lacks."""
    labels, places = patchy(0), []
    for value in range(3):
        places += [(*at, "water") for at in np.argwhere(labels == value)[:2].tolist()]

    whole, part = (
        evaluate(Question(mask=mask, reference=write_points(tmp_path / "p", some)))
        for some in (places, places[:-1])
    )

    assert "of the area is mapped right" in as_text(whole)
    assert "no areas" not in as_text(whole)
    assert as_text(part).endswith("no areas: fewer than 2 places are mapped rock")
    assert len(as_picture(whole)) > len(as_picture(part))


def test_every_class_is_named_in_text_and_picture(mask):
    found = evaluate(Question(mask=mask, reference=mask))

    assert all(name in as_text(found) for name in NAMES)
    assert found.confusion.accuracy == 1
    assert len(as_picture(found)) > 10_000
