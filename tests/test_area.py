"""How many hectares a pixel covers."""

import numpy as np
import pytest
from affine import Affine
from pyproj import CRS, Transformer

from tileseg.geobox import GeoBox
from tileseg.scenes.area import row_hectares, row_metres

METRES_10 = Affine(10, 0, 500_000, 0, -10, 4_600_000)

ENGINEERING = (
    'ENGCRS["plan",EDATUM["site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],'
    'LENGTHUNIT["metre",1]]'
)


def wkt(code):
    return CRS.from_user_input(code).to_wkt("WKT2_2019")


def equal_area(geobox, row):
    """Return the hectares of the middle pixel of a row, in an equal-area plane."""
    column = geobox.width // 2
    steps = np.linspace(0, 1, 33)[:-1]
    outline = [(s, 0) for s in steps] + [(1, s) for s in steps]
    outline += [(1 - s, 1) for s in steps] + [(0, 1 - s) for s in steps]
    places = [geobox.transform @ (column + x, row + y) for x, y in outline]
    to_plane = Transformer.from_crs(geobox.crs, "EPSG:6933", always_xy=True)
    x, y = to_plane.transform(*zip(*places, strict=True))
    x, y = np.array(x) - x[0], np.array(y) - y[0]
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 / 10_000


@pytest.mark.parametrize(
    ("transform", "hectares"),
    [
        (METRES_10, 0.01),
        (Affine(10, 0, 0, 0, 10, 0), 0.01),  # south up
        (Affine(6, -8, 0, 8, 6, 0), 0.01),  # rotated
        (Affine(30, 0, 0, 0, -20, 0), 0.06),  # not square
        (Affine(10, 5, 0, 0, -10, 0), 0.01),  # sheared
    ],
)
def test_projected_metres_are_the_plane_area(transform, hectares):
    area = row_hectares(GeoBox(41, 30, transform, wkt("EPSG:32631")))

    np.testing.assert_allclose(area, np.full(41, hectares), rtol=1e-12)


def test_us_survey_feet_are_not_metres():
    """1200 / 3937 of a metre each, not 0.3048."""
    area = row_hectares(GeoBox(3, 2, Affine(100, 0, 0, 0, -100, 0), wkt("EPSG:2263")))

    np.testing.assert_allclose(area, [(100 * 1200 / 3937) ** 2 / 1e4] * 3, rtol=1e-12)


def test_a_height_beside_the_map_changes_nothing():
    """A compound CRS: UTM with heights in feet."""
    area = row_hectares(GeoBox(3, 2, METRES_10, wkt("EPSG:32631+6360")))

    np.testing.assert_allclose(area, [0.01] * 3, rtol=1e-12)


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.001, 0, 20, 0, -0.001, 60.02),
        Affine(0.001, 0, 20, 0, 0.001, 59.98),
        Affine(0.0005, 0.0005, 20, 0.0005, -0.0005, 60),
        Affine(0.1, 0, -170, 0, -0.1, 62),
    ],
    ids=["north-up", "south-up", "rotated", "coarse"],
)
@pytest.mark.parametrize("code", ["EPSG:4326", "OGC:CRS84", "EPSG:4258", "EPSG:4979"])
def test_degrees_agree_with_an_equal_area_map(code, transform):
    """At 60 degrees north a square degree is half as wide as at the equator."""
    geobox = GeoBox(41, 30, transform, wkt(code))

    area = row_hectares(geobox)

    expected = [equal_area(geobox, row) for row in range(41)]
    np.testing.assert_allclose(area, expected, rtol=1e-3)


def test_rows_towards_the_pole_are_smaller():
    geobox = GeoBox(90, 30, Affine(1, 0, 0, 0, -1, 90), wkt("EPSG:4326"))

    area = row_hectares(geobox)

    assert (np.diff(area) > 0).all()
    assert area.min() > 0


def test_the_whole_earth_has_its_area():
    """360 columns of all rows add up to the ellipsoid: 51,006,562,172 ha."""
    geobox = GeoBox(180, 360, Affine(1, 0, -180, 0, -1, 90), wkt("EPSG:4326"))

    earth = 360 * row_hectares(geobox).sum()

    assert earth == pytest.approx(51_006_562_172, rel=1e-3)


def test_half_a_pixel_beyond_the_poles_is_none():
    """Global grids may have their pixels' middles on the poles."""
    geobox = GeoBox(181, 360, Affine(1, 0, -180, 0, -1, 90.5), wkt("EPSG:4326"))

    earth = 360 * row_hectares(geobox).sum()
    across, down = row_metres(geobox)

    assert earth == pytest.approx(51_006_562_172, rel=1e-3)
    assert np.isfinite(across).all()
    assert down.sum() == pytest.approx(20_003_931, rel=1e-6)


def test_grads_are_not_degrees():
    """NTF (Paris) counts 400 to the circle."""
    degrees = GeoBox(3, 2, Affine(0.009, 0, 2, 0, -0.009, 45), wkt("EPSG:4275"))
    grads = GeoBox(3, 2, Affine(0.01, 0, 2, 0, -0.01, 50), wkt("EPSG:4807"))

    np.testing.assert_allclose(row_hectares(grads), row_hectares(degrees), rtol=1e-4)


@pytest.mark.parametrize(
    "crs",
    [
        None,
        "",
        "no crs at all",
        ENGINEERING,
    ],
    ids=["none", "empty", "nonsense", "engineering"],
)
def test_nothing_is_said_where_the_ground_is_unknown(crs):
    assert row_hectares(GeoBox(4, 3, METRES_10, crs)) is None
