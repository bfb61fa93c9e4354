"""A raster's outline in longitude and latitude, wherever on the Earth it lies."""

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer

from tileseg.base.longitudes import hull
from tileseg.geobox import GeoBox
from tileseg.scenes.ground import authority_code, footprint

ROWS, COLUMNS = 97, 131
SIDES = np.array([-0.06, 0.03, 0.47, 0.97, 1.06])
LATTICE = np.stack(np.meshgrid(SIDES, SIDES), axis=-1).reshape(-1, 2)
IS_INSIDE = ((LATTICE > 0) & (LATTICE < 1)).all(axis=1)

# CRS, and left, lower, right, upper side in it.
PLACES = {
    "a zone of UTM": ("EPSG:32631", (500_000, 4_500_000, 600_000, 4_600_000)),
    "west of zone 1": ("EPSG:32601", (200_000, 4_500_000, 300_000, 4_600_000)),
    "east of zone 60": ("EPSG:32760", (700_000, 7_100_000, 900_000, 7_200_000)),
    "round the north pole": ("EPSG:3413", (-100_000, -200_000, 300_000, 100_000)),
    "round the south pole": ("EPSG:3031", (-100_000, -200_000, 300_000, 100_000)),
    "to the pole": ("EPSG:3413", (0, 0, 300_000, 100_000)),
    "along the pole": ("EPSG:3413", (-100_000, 0, 100_000, 200_000)),
    "degrees beyond 180": ("EPSG:4326", (170, -10, 190, 10)),
    "degrees beyond -180": ("EPSG:4326", (-190, -10, -170, 10)),
    "degrees beyond 360": ("EPSG:4326", (350, -10, 365, 10)),
    "Mercator beyond its seam": ("EPSG:3857", (19e6, -1e6, 21e6, 1e6)),
    "another middle": ("EPSG:3832", (-1e6, -1e6, 5e6, 3e6)),
}


def box_of(crs, sides, *, rows=ROWS, columns=COLUMNS, turned=0.0, south_up=False):
    west, south, east, north = sides
    across, down = (east - west) / columns, (north - south) / rows
    transform = Affine.translation(west, north) @ Affine.scale(across, -down)
    if south_up:
        transform = Affine.translation(west, south) @ Affine.scale(across, down)
    transform = transform @ Affine.rotation(turned, (columns / 2, rows / 2))
    return GeoBox(rows, columns, transform, CRS.from_user_input(crs).to_wkt())


def places_of(geobox):
    """Return longitude and latitude of places in a raster and around it, (n, 2)."""
    columns, rows = (LATTICE * (geobox.width, geobox.height)).T
    a, b, c, d, e, f = geobox.transform[:6]
    move = Transformer.from_crs(geobox.crs, "OGC:CRS84", always_xy=True).transform
    x, y = move(a * columns + b * rows + c, d * columns + e * rows + f)
    return np.stack([(np.array(x) + 180) % 360 - 180, y], axis=1)


def check(geobox):
    """What is in the raster is in its outline, what is beside it is not."""
    found = footprint(geobox)
    assert found is not None
    shape = shapely.geometry.shape(found.geometry)
    west, south, east, north = found.bbox
    parts = getattr(shape, "geoms", [shape])
    sides = shapely.bounds(shape)

    assert shape.is_valid
    assert all(part.exterior.is_ccw for part in parts)
    assert (sides >= (-180, -90, -180, -90)).all()
    assert (sides <= (180, 90, 180, 90)).all()
    assert (south, north) == pytest.approx((sides[1], sides[3]), abs=2e-5)
    places = places_of(geobox)
    # Or on the cut, at 180 degrees.
    np.testing.assert_array_equal(shapely.intersects_xy(shape, *places.T), IS_INSIDE)
    longitudes, latitudes = places[IS_INSIDE].T
    if west > east:
        assert ((longitudes >= west) | (longitudes <= east)).all()
    else:
        assert ((longitudes >= west) & (longitudes <= east)).all()
    assert ((latitudes >= south) & (latitudes <= north)).all()
    return found


@pytest.mark.parametrize("name", PLACES)
def test_the_outline_holds_the_raster_and_nothing_else(name):
    for south_up in (False, True):
        check(box_of(*PLACES[name], south_up=south_up))


@given(
    zone=st.integers(1, 60),
    x=st.floats(150_000, 850_000),
    y=st.floats(100_000, 9_000_000),
    side=st.floats(500, 100_000),
    turned=st.floats(-180, 180),
    is_south=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_so_it_does_wherever_and_however_it_is_turned(zone, x, y, side, turned, **kind):
    code = 32700 if kind["is_south"] else 32600
    check(box_of(f"EPSG:{code + zone}", (x, y, x + side, y + side), turned=turned))


def test_a_box_in_degrees_has_four_corners():
    found = check(box_of("EPSG:4326", (3.5, 41.0, 4.25, 42.0)))

    assert found.bbox == (3.5, 41.0, 4.25, 42.0)
    assert len(found.geometry["coordinates"][0]) == 5


def test_a_scene_across_the_antimeridian_is_two_parts_and_a_box_that_crosses_it():
    found = check(box_of("EPSG:4326", (179.0, -10, 181.5, 10)))

    assert found.bbox == (179.0, -10.0, -178.5, 10.0)
    bounds = [shapely.geometry.Polygon(p[0]).bounds for p in map(list, parts(found))]
    assert sorted(bounds) == [(-180, -10, -178.5, 10), (179, -10, 180, 10)]


def parts(found):
    assert found.geometry["type"] == "MultiPolygon"
    return found.geometry["coordinates"]


@pytest.mark.parametrize(
    "sides",
    [(-180, -90, 180, 90), (0, -90, 360, 90), (-180.5, -90.5, 179.5, 90.5)],
    ids=str,
)
def test_the_whole_earth_is_one_box(sides):
    found = footprint(box_of("EPSG:4326", sides))

    assert found.bbox == (-180, -90, 180, 90)
    assert shapely.geometry.shape(found.geometry).area == 360 * 180


NOWHERE = 'ENGCRS["mine",EDATUM["mine"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'  # noqa: E501
SATELLITE = "+proj=geos +h=35785831 +lon_0=0 +sweep=y"


def test_what_leads_to_no_longitude_has_no_outline():
    plain = box_of("EPSG:32631", PLACES["a zone of UTM"][1])
    disk = box_of(SATELLITE, (-5.5e6, -5.5e6, 5.5e6, 5.5e6))

    assert footprint(GeoBox(ROWS, COLUMNS, plain.transform, None)) is None
    assert footprint(GeoBox(ROWS, COLUMNS, plain.transform, NOWHERE)) is None
    assert footprint(GeoBox(ROWS, COLUMNS, Affine.identity(), plain.crs)) is None
    assert footprint(disk) is None  # its corners are in space


def test_a_crs_has_the_code_that_an_authority_gives_it():
    assert authority_code(CRS.from_epsg(32631).to_wkt()) == "EPSG:32631"
    assert authority_code(CRS(SATELLITE).to_wkt()) is None
    assert authority_code(NOWHERE) is None
    assert authority_code(None) is None


WEST, EAST = st.integers(-180, 179), st.integers(-179, 180)
BOXES = st.tuples(WEST, st.just(-5), EAST, st.just(7)).filter(
    lambda box: box[0] != box[2]
)


def degrees_of(west, east):
    """Return the whole degrees of a box, each by its western side."""
    wide = (east - west) % 360 or 360
    return {(west + n + 180) % 360 - 180 for n in range(wide)}


@given(st.lists(BOXES, min_size=1, max_size=6))
def test_a_hull_is_the_least_box_that_holds_all(boxes):
    west, south, east, north = hull(boxes)
    held = degrees_of(int(west), int(east))
    own = set().union(*(degrees_of(box[0], box[2]) for box in boxes))
    empty = sorted(set(range(-180, 180)) - own)

    assert (south, north) == (-5, 7)
    assert own <= held
    # No run of degrees that is left out could be longer.
    runs, length = [0], 0
    for at in (*empty, *(it + 360 for it in empty)):
        length = length + 1 if (at - 1 + 180) % 360 - 180 in empty else 1
        runs.append(min(length, len(empty)))
    assert 360 - len(held) == max(runs)
    if len(boxes) == 1:
        assert [west, south, east, north] == list(boxes[0])
