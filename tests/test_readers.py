"""Every file of polygons is the same to readers that others wrote."""

import json
import sqlite3
from pathlib import Path

import duckdb
import duckdb_extension_spatial
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from making import NORTH_UP
from pyproj import Transformer
from rasterio.features import shapes
from shapely.geometry import shape
from test_polygonize import write

from tileseg.steps.polygonize import Wish, polygonize

FORMATS = ["gpkg", "parquet", "fgb", "geojson", "geojsonl"]
TAGS = {
    "CLASS_0": "wood",
    "MODEL": "a 1",
    "ACQUISITIONDATETIME": "2024-05-17T10:30:00Z",
}


@pytest.fixture(scope="module")
def mask():
    """Classes with small pieces, holes and nodata; not square."""
    random = np.random.default_rng(4)
    coarse = random.integers(0, 3, (31, 44), np.uint8)
    mask = np.ascontiguousarray(coarse.repeat(5, 0).repeat(5, 1)[:, :213])
    mask[random.random(mask.shape) < 0.05] = 3
    mask[20:60, 70:90] = 255
    return mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mask):
    """A file of each format, all of one mask."""
    folder = tmp_path_factory.mktemp("readers")
    path = write(folder / "classes.tif", mask, tags=TAGS)
    for suffix in FORMATS:
        output = folder / f"it.{suffix}"
        polygonize(Wish(mask=path, output=output, attributes={"year": 2024}))
    return folder


@pytest.fixture(scope="module")
def expected(mask):
    """Class -> count, area on the ground, area in degrees: as GDAL traces the mask."""
    found = shapes(mask, mask != 255, connectivity=4, transform=NORTH_UP)
    outlines, values = zip(*((shape(it), int(v)) for it, v in found), strict=True)
    to_lonlat = Transformer.from_crs(32631, 4326, always_xy=True).transform
    degrees = shapely.transform(outlines, to_lonlat, interleaved=False)
    degrees = shapely.transform(degrees, lambda at: np.round(at, 7))
    ground, found = shapely.area(outlines), {}
    for value in set(values):
        own = np.equal(values, value)
        sums = ground[own].sum(), shapely.area(degrees[own]).sum()
        found[value] = values.count(value), *sums
    return found


def by_pyogrio(path):
    meta, _, wkb, fields = pyogrio.raw.read(path)
    columns = dict(zip(meta["fields"], fields, strict=True))
    return columns["class_id"], shapely.area(shapely.from_wkb(wkb)), columns["area_ha"]


def by_geopandas(path):
    is_parquet = path.suffix == ".parquet"
    frame = (geopandas.read_parquet if is_parquet else geopandas.read_file)(path)
    assert frame.crs == rasterio.CRS.from_epsg(4326 if "json" in path.suffix else 32631)
    assert frame.is_valid.all()
    assert set(frame["model"]) == {"a 1"}
    return frame["class_id"], shapely.area(frame.geometry.to_numpy()), frame["area_ha"]


def by_duckdb(path):
    """With its spatial extension, whose signature it checks; nothing is fetched."""
    base = Path(duckdb_extension_spatial.__file__).parent
    (extension,) = base.rglob("spatial.duckdb_extension")
    is_parquet = path.suffix == ".parquet"
    rows = f"{'read_parquet' if is_parquet else 'ST_Read'}('{path}')"
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        connection.execute(f"LOAD '{extension}'")
        names = connection.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()  # noqa: S608
        name = next(it[0] for it in names if it[1].startswith("GEOMETRY"))
        query = f"SELECT class_id, ST_Area({name}), area_ha FROM {rows}"  # noqa: S608
        return zip(*connection.execute(query).fetchall(), strict=True)


def by_itself(path):
    """By what the format is made of: SQLite, Parquet, JSON."""
    if path.suffix == ".gpkg":
        with sqlite3.connect(path) as connection:
            rows = connection.execute(
                "SELECT class_id, geom, area_ha FROM polygons"
            ).fetchall()
            (indexed,) = connection.execute(
                "SELECT count(*) FROM rtree_polygons_geom"
            ).fetchone()
        connection.close()
        assert indexed == len(rows)
        # A header of 8 bytes, and the box that its flags say.
        boxes = {0: 0, 1: 32}
        blobs = [it[8 + boxes[it[3] >> 1 & 7] :] for _, it, _ in rows]
        return (
            [it[0] for it in rows],
            shapely.area(shapely.from_wkb(blobs)),
            [it[2] for it in rows],
        )
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        areas = shapely.area(shapely.from_wkb(table["geometry"].to_numpy()))
        return table["class_id"].to_numpy(), areas, table["area_ha"].to_numpy()
    text = path.read_text()
    if path.suffix == ".geojsonl":
        features = list(map(json.loads, text.splitlines()))
    else:
        features = json.loads(text)["features"]
    said = [it["properties"] for it in features]
    areas = shapely.area([shape(it["geometry"]) for it in features])
    return [it["class_id"] for it in said], areas, [it["area_ha"] for it in said]


READERS = {
    by_pyogrio: [
        "gpkg",
        "fgb",
        "geojson",
        "geojsonl",
    ],  # its GDAL is built without Parquet
    by_geopandas: FORMATS,
    by_duckdb: FORMATS,
    by_itself: ["gpkg", "parquet", "geojson", "geojsonl"],
}


@pytest.mark.parametrize(
    ("reader", "suffix"),
    [(reader, suffix) for reader, known in READERS.items() for suffix in known],
)
def test_every_reader_finds_the_same_areas(folder, expected, reader, suffix):
    classes, areas, hectares = map(np.asarray, reader(folder / f"it.{suffix}"))

    for value, (count, ground, degrees) in expected.items():
        own = classes == value
        area = degrees if suffix.startswith("geojson") else ground
        assert own.sum() == count
        assert areas[own].sum() == pytest.approx(area, rel=1e-6)
        assert hectares[own].sum() == pytest.approx(ground / 10_000)
    assert len(classes) == sum(count for count, *_ in expected.values())
