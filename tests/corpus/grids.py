"""Where rasters may lie, and how large they may be."""

from math import inf, nan

from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from tiff import (
    DOUBLE,
    NORTH_UP,
    SHORT,
    assemble,
    keys,
    located,
    page,
    place,
    text,
    tiff,
)
from writing import noise, raster

PIXELS = noise(2, 45, 71)

TRANSFORMS = {
    "south-up": Affine(10, 0, 500_000, 0, 10, 4_500_000),
    "west-left": Affine(-10, 0, 500_000, 0, -10, 4_600_000),
    "turned-180": Affine(-10, 0, 500_000, 0, 10, 4_600_000),
    "rotated-30": Affine.translation(5e5, 4.6e6)
    @ Affine.rotation(30)
    @ Affine.scale(10, -10),
    "sheared": Affine(10, 3, 500_000, 0.5, -10, 4_600_000),
    "axes-swapped": Affine(0, 10, 500_000, -10, 0, 4_600_000),
    "pixels-oblong": Affine(10, 0, 500_000, 0, -30, 4_600_000),
    "pixels-of-1000-km": Affine(1e6, 0, -3e7, 0, -1e6, 3e7),
    "pixels-of-1-um": Affine(1e-6, 0, 500_000, 0, -1e-6, 4_600_000),
    "origin-no-round-number": Affine(10 / 3, 0, 5e5 / 7, 0, -10 / 3, 4.6e6 / 3),
    "origin-far": Affine(10, 0, 1e15, 0, -10, -1e15),
    "pixels-almost-round": Affine(
        10.000000000000002, 0, 0.1, 0, -9.999999999999998, 0.3
    ),
}

SYSTEMS = {
    "lonlat": "EPSG:4326",
    "compound": "EPSG:32631+5773",
    "lambert-custom": "+proj=lcc +lat_0=46.5 +lon_0=3 +lat_1=49 +lat_2=44 "
    "+x_0=700000 +y_0=6600000 +ellps=GRS80 +units=m",
    "us-feet": "EPSG:2263",
    "web-mercator": "EPSG:3857",
    "polar": "EPSG:3031",
    "axes-north-first": "EPSG:3035",
    "geostationary": "+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84",
    "sinusoidal-sphere": "+proj=sinu +lon_0=0 +R=6371007.181 +units=m",
    "moon": "+proj=eqc +lat_ts=0 +lon_0=0 +R=1737400 +units=m",
    "mars": "+proj=eqc +lat_ts=0 +lon_0=0 +R=3396190 +units=m",
    "engineering": 'LOCAL_CS["site",UNIT["metre",1]]',
    "ellipsoid-unknown": "+proj=longlat +ellps=bessel",
}

SIZES = (
    *((1, 1), (1, 2), (2, 1), (1, 200), (200, 1), (2, 3), (5, 7), (24, 24), (25, 23)),
    *((51, 50), (127, 129), (128, 128), (129, 127), (171, 170), (97, 101), (1, 3001)),
)


def build(corpus):
    for name, transform in TRANSFORMS.items():
        data = assemble(page(PIXELS, tags=located(transform)))
        corpus.fine(
            f"{name}.tif", f"transform: {name}", data, PIXELS, transform=transform
        )
    for name, crs in SYSTEMS.items():
        _in_system(corpus, name, crs)
    for height, width in SIZES:
        pixels = noise(1, height, width)
        name = f"size-{height}x{width}.tif"
        corpus.fine(name, f"{height} rows, {width} columns", tiff(pixels), pixels)
    _longitudes(corpus)
    _half_said(corpus)
    _points(corpus)
    _keys(corpus)


def _in_system(corpus, name, crs):
    transform = (
        Affine(0.01, 0, 3, 0, -0.01, 45) if "lonlat" in (name, crs) else NORTH_UP
    )

    def write(path):
        raster(path, PIXELS, crs=crs, transform=transform)

    odd = f"CRS: {name}"
    corpus.fine(f"crs-{name}.tif", odd, write, PIXELS, transform=transform, crs=crs)


def _longitudes(corpus):
    for name, left in {"0-to-360": 359.9, "antimeridian": 179.9, "beyond": 539}.items():
        transform = Affine(0.01, 0, left, 0, -0.01, 45)
        data = assemble(page(PIXELS, tags=located(transform, 4326)))
        odd = f"longitudes from {left} on"
        facts = {"transform": transform, "crs": "EPSG:4326"}
        corpus.fine(f"longitude-{name}.tif", odd, data, PIXELS, **facts)


def _half_said(corpus):
    nowhere = {"transform": Affine.identity(), "crs": None}
    bare = assemble(page(PIXELS))
    corpus.fine("nowhere.tif", "says not where it lies", bare, PIXELS, **nowhere)
    data = assemble(page(PIXELS, tags=place(NORTH_UP)))
    corpus.fine("crs-none.tif", "a transform and no CRS", data, PIXELS, crs=None)
    data = assemble(page(PIXELS, tags=keys(32631)))
    odd = "a CRS and no transform"
    facts = {"transform": Affine.identity()}
    corpus.fine("transform-none.tif", odd, data, PIXELS, **facts)

    def with_world_file(path):
        path.write_bytes(bare)
        path.with_suffix(".tfw").write_text("10\n0\n0\n-10\n500005\n4599995\n")

    odd = "a world file beside it, which is not read"
    corpus.fine("world-file.tif", odd, with_world_file, PIXELS, **nowhere)
    for name, (step, code, says) in {
        "zero": (0.0, 2, "GCPs or RPCs only"),
        "nan": (nan, 4, "transform"),
        "inf": (inf, 4, "transform"),
    }.items():
        tags = keys(32631) | {
            33550: (DOUBLE, (step, step, 0)),
            33922: (DOUBLE, (0, 0, 0, 5e5, 4.6e6, 0)),
        }
        data = assemble(page(PIXELS, tags=tags))
        odd = f"pixels of size {step}"
        corpus.bad(f"pixels-{name}.tif", odd, data, code, says)
    data = assemble(page(PIXELS, tags=located(Affine(10, 5, 0, 20, 10, 0))))
    for name, terms in {
        "of-1-pm": (1e-12, 0, 500_000, 0, -1e-12, 4_600_000),
        "at-1e100": (10, 0, 1e100, 0, -10, 4_600_000),
        "of-1e200": (1e200, 0, 0, 0, -1e200, 0),
        "of-1e-200": (1e-200, 0, 0, 0, -1e-200, 0),
    }.items():
        data = assemble(page(PIXELS, tags=located(Affine(*terms))))
        odd = "pixels that no number of 64 bits tells apart"
        corpus.bad(f"pixels-{name}.tif", odd, data, 4, "transform")
    odd = "all pixels on one line: the transform has no inverse"
    corpus.bad("pixels-on-a-line.tif", odd, data, 4, "transform")


def _points(corpus):
    """What is placed by points, or speaks of points."""
    data = assemble(page(PIXELS, tags=located(point=True)))
    corpus.fine("point.tif", "AREA_OR_POINT is Point", data, PIXELS)

    def with_gcps(path):
        corners = ((0, 0), (0, 71), (45, 0), (45, 71))
        points = [
            GroundControlPoint(row, col, 500_000 + 10 * col, 4_600_000 - 11 * row)
            for row, col in corners
        ]
        raster(path, PIXELS, transform=None, crs=CRS.from_epsg(32631), gcps=points)

    odd = "placed by GCPs only"
    corpus.bad("gcps.tif", odd, with_gcps, 2, "GCPs or RPCs only")
    rpc = (DOUBLE, (0.0,) * 2 + (1.0,) * 10 + (0.0,) * 80)
    data = assemble(page(PIXELS, tags={50844: rpc}))
    corpus.bad("rpcs.tif", "placed by RPCs only", data, 2, "GCPs or RPCs only")
    data = assemble(page(PIXELS, tags=located() | {50844: rpc}))
    odd = "RPCs beside a transform, which counts"
    corpus.fine("rpcs-and-transform.tif", odd, data, PIXELS)
    ties = [(0, 0, 0, 9, 9, 0), (71, 0, 0, 8, 8, 0), (0, 45, 0, 7, 7, 0)]
    matrix = place(Affine(10, 3, 500_000, 0.5, -10, 4_600_000))
    tags = keys(32631) | matrix | {33922: (DOUBLE, sum(ties, ()))}
    data = assemble(page(PIXELS, tags=tags))
    odd = "GCPs beside a matrix, which counts"
    corpus.fine(
        "gcps-and-matrix.tif", odd, data, PIXELS, transform=TRANSFORMS["sheared"]
    )


def _keys(corpus):
    """GeoTIFF keys that say rubbish."""
    rubbish = {
        "cut-short": (1, 1, 0, 9, 1024, 0, 1, 1),
        "version-9": (9, 9, 9, 1, 1024, 0, 1, 1),
        "beyond-the-text": (1, 1, 0, 2, 1024, 0, 1, 1, 1026, 34737, 4000, 4000),
    }
    words = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 29_999)
    data = assemble(page(PIXELS, tags=place(NORTH_UP) | {34735: (SHORT, words)}))
    odd = "a CRS whose number nobody knows: some plane in metres"
    crs = 'LOCAL_CS["unnamed",UNIT["metre",1],AXIS["Easting",EAST],'
    crs += 'AXIS["Northing",NORTH]]'
    corpus.fine("keys-code-unknown.tif", odd, data, PIXELS, crs=crs)
    for name, words in rubbish.items():
        tags = place(NORTH_UP) | {34735: (SHORT, words), 34737: text("short|")}
        data = assemble(page(PIXELS, tags=tags))
        odd = f"GeoTIFF keys: {name}"
        corpus.fine(f"keys-{name}.tif", odd, data, PIXELS, crs=None)
