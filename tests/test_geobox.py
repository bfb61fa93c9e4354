"""Where a raster lies."""

import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import array_bounds
from rasterio.windows import Window as RasterioWindow
from rasterio.windows import transform as window_transform
from strategies import WINDOWS

from tileseg.geobox import GeoBox
from tileseg.window import Window

TRANSFORMS = {
    "north-up": Affine(10, 0, 500_000, 0, -10, 4_600_000),
    "south-up": Affine(10, 0, 500_000, 0, 10, 4_600_000),
    "rotated": Affine(8.66, 5, 500_000, 5, -8.66, 4_600_000),
    "sheared": Affine(10, 3, 0.5, 0, -7, 1.25),
    "degrees": Affine(1 / 3600, 0, -180, 0, -1 / 3600, 90),
}


@pytest.fixture(params=TRANSFORMS)
def transform(request):
    return TRANSFORMS[request.param]


@given(window=WINDOWS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_crop_agrees_with_rasterio(name, window):
    geobox = GeoBox(41, 30, TRANSFORMS[name], None)
    box = RasterioWindow(window.col, window.row, window.width, window.height)

    cropped = geobox.crop(window)

    assert (window.height, window.width) == (cropped.height, cropped.width)
    assert cropped.transform.almost_equals(
        window_transform(box, geobox.transform), precision=1e-6
    )


@given(WINDOWS, st.integers(0, 60), st.integers(0, 60))
def test_a_pixel_keeps_its_place_on_the_ground(window, row, col):
    """Pixel (row, col) of the crop is pixel (window.row + row, ...) of the whole."""
    geobox = GeoBox(41, 30, TRANSFORMS["rotated"], None)

    here = geobox.transform @ (window.col + col, window.row + row)

    assert pytest.approx(here) == geobox.crop(window).transform @ (col, row)


@pytest.mark.parametrize("name", ["north-up", "south-up", "degrees"])
@pytest.mark.parametrize(
    "window", [Window(0, 0, 41, 30), Window(3, 5, 1, 1), Window(40, 0, 1, 30)]
)
def test_bounds_contain_the_cropped_bounds(name, window):
    geobox = GeoBox(41, 30, TRANSFORMS[name], None)
    x, y, cropped_x, cropped_y = (
        sorted(pair)
        for box in (geobox, geobox.crop(window))
        for pair in zip(*two_corners(box), strict=True)
    )

    assert x[0] <= cropped_x[0] < cropped_x[1] <= x[1]
    assert y[0] <= cropped_y[0] < cropped_y[1] <= y[1]


def two_corners(geobox):
    left, bottom, right, top = array_bounds(
        geobox.height, geobox.width, geobox.transform
    )
    return (left, bottom), (right, top)


def test_the_whole_window_crops_to_itself(transform):
    geobox = GeoBox(41, 30, transform, "any text")

    assert geobox == geobox.crop(geobox.window)


def test_crops_of_crops_add_up(transform):
    geobox = GeoBox(41, 30, transform, None)

    twice = geobox.crop(Window(3, 4, 30, 20)).crop(Window(-2, 7, 5, 6))

    assert twice.transform.almost_equals(
        geobox.crop(Window(1, 11, 5, 6)).transform, precision=1e-6
    )


def test_the_crs_is_kept_verbatim():
    text = 'PROJCRS["not even a real one"]'

    assert (
        text == GeoBox(4, 3, TRANSFORMS["rotated"], text).crop(Window(1, 1, 1, 1)).crs
    )
