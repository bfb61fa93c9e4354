"""GeoJSON on the round Earth: cut where RFC 7946 wants it, and nowhere else."""

import json

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import CRS, Transformer
from shapely.geometry import shape
from test_polygonize import write

from tileseg.errors import OutputError
from tileseg.geobox import GeoBox
from tileseg.polygons.features import write_features
from tileseg.polygons.join import join
from tileseg.polygons.table import Meaning
from tileseg.polygons.vectorize import polygonise
from tileseg.steps.polygonize import Wish, polygonize

SIDE = 10.0  # metres, of a pixel


def blobs(height, width):
    """Return a mask of round patches, with nodata and small pieces."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 3, (height // 7 + 2, width // 7 + 2), np.uint8)
    row, col = np.mgrid[:height, :width]
    sway = 3 * np.sin(row / 5) + 3 * np.cos(col / 4)
    mask = coarse[
        ((row + sway + 3) // 7).astype(int), ((col + sway + 3) // 7).astype(int)
    ]
    mask[random.random(mask.shape) < 0.01] = 255
    return mask


def across(turned):
    """Return the transform of pixels on both sides of 180 degrees, in UTM 1."""
    x, y = Transformer.from_crs(4326, 32601, always_xy=True).transform(180, 60)
    place = Affine(SIDE, 0, x - 40.3 * SIDE, 0, -SIDE, y)
    return place @ Affine.rotation(turned)


def shapes_of(path):
    """Return the shapes of a GeoJSON file, as its own text has them."""
    document = json.loads(path.read_bytes())
    assert "crs" not in document
    return np.array([shape(it["geometry"]) for it in document["features"]], object)


def counted_on(shapes):
    """Return them with the western half of the Earth east of the eastern."""
    return shapely.transform(shapes, lambda at: at + (360 * (at[:, :1] < 0) * (1, 0)))


@pytest.mark.parametrize("simplify", [None, SIDE])
@pytest.mark.parametrize("turned", [0, 31.7])
def test_a_projected_scene_across_180_degrees_has_neither_gap_nor_overlap(
    tmp_path, turned, simplify
):
    """Beside the same polygons uncut: equal areas, and both sides of a border fit."""
    mask = write(
        tmp_path / "scene.tif",
        blobs(83, 97),
        transform=across(turned),
        crs=rasterio.CRS.from_epsg(32601),
    )
    for suffix in ("geojson", "gpkg"):
        wish = Wish(mask=mask, output=tmp_path / f"it.{suffix}", simplify=simplify)
        polygonize(wish)

    found = shapes_of(tmp_path / "it.geojson")
    parts = shapely.get_parts(found)
    whole = uncut(tmp_path / "it.gpkg")
    west, _, east, _ = shapely.bounds(parts).T
    assert len(parts) > len(found) > 80
    assert shapely.is_valid(found).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(parts)).all()
    assert {"Polygon", "MultiPolygon"} == {it.geom_type for it in found}
    assert (west >= -180).all()
    assert (east <= 180).all()
    assert (east - west).max() < 0.02
    together = counted_on(parts)
    areas = shapely.area(counted_on(found))
    assert areas == pytest.approx(shapely.area(whole), rel=1e-3)  # by new vertices
    assert areas.sum() == pytest.approx(shapely.area(whole).sum(), rel=1e-6)
    if simplify:
        assert shapely.coverage_is_valid(together)
    union = shapely.union_all(together)
    area = shapely.area(together).sum()
    assert shapely.area(union) == pytest.approx(area, rel=1e-6 if simplify else 1e-4)


def uncut(path):
    """Return a file's polygons in degrees, rounded, counted on from 0 to 360."""
    _, _, wkb, _ = pyogrio.raw.read(path)
    to_lonlat = Transformer.from_crs(32601, 4326, always_xy=True).transform
    flat = shapely.transform(shapely.from_wkb(wkb), to_lonlat, interleaved=False)
    return counted_on(shapely.transform(flat, lambda at: np.round(at, 7)))


def around(crs, transform, mask):
    """Return the meaning and the areas of a mask somewhere."""
    box = GeoBox(*mask.shape, transform, CRS.from_epsg(crs).to_wkt())
    pieces = polygonise(mask, None, box.window, left_out=(255,))
    return list(join([[pieces]])), Meaning({0: "a", 1: "b", 2: "c"}, box)


@pytest.mark.parametrize(("crs", "pole"), [(3413, 90), (3031, -90)])
def test_a_pole_lies_in_what_goes_round_it(tmp_path, crs, pole):
    """A disc of one class round it, in another one, of which it is the hole."""
    row, col = np.mgrid[:40, :46]
    mask = (np.hypot(row - 20.2, col - 22.7) < 9).astype(np.uint8)
    areas, meaning = around(crs, Affine(25e3, 0, -22.7 * 25e3, 0, -25e3, 505e3), mask)
    path = tmp_path / "polygons.geojson"

    write_features(areas, meaning, path)

    disc, ring = sorted(
        shapes_of(path), key=lambda it: abs(it.centroid.y), reverse=True
    )
    near = shapely.points(np.linspace(-179, 179, 50), np.full(50, pole * 0.999))
    assert shapely.is_valid([disc, ring]).all()
    assert disc.covers(near).all()
    assert not ring.intersects(near).any()
    assert shapely.bounds(disc).tolist()[::2] == [-180, 180]
    assert abs(np.array(shapely.bounds(disc)[1::2])).max() == 90
    assert shapely.area(shapely.intersection(disc, ring)) == 0
    assert shapely.area(shapely.union(disc, ring)) == pytest.approx(
        disc.area + ring.area
    )


@pytest.mark.parametrize("columns", [4, 9])
def test_the_whole_turn_is_not_cut(tmp_path, columns):
    """A side from -180 to 180 degrees leads round the Earth, not nowhere."""
    mask = np.zeros((5, columns), np.uint8)
    turn = 2 * 20_037_508.342789244
    transform = Affine(turn / columns, 0, -turn / 2, 0, -1e6, 2.5e6)
    areas, meaning = around(3857, transform, mask)
    path = tmp_path / "polygons.geojson"

    write_features(areas, meaning, path)

    (found,) = shapes_of(path)
    assert found.is_valid
    assert shapely.bounds(found).tolist()[::2] == [-180, 180]
    assert found.area == pytest.approx(shapely.box(*found.bounds).area)


def test_what_is_not_on_the_earth_is_said(tmp_path):
    areas, meaning = around(
        3571, Affine(5e5, 0, -2e7, 0, -5e5, 1.5e7), np.zeros((60, 80), np.uint8)
    )

    with pytest.raises(OutputError, match="has no longitude and latitude"):
        write_features(areas, meaning, tmp_path / "polygons.geojson")
