"""What the environment may say to GDAL and PROJ: where their data lie, and no more.

rasterio, pyogrio and pyproj carry a copy each, and all of them read it: some when they
are loaded, some at any later time. So it is made clean before that, in every process of
ours; a program that calls `tileseg.segment` keeps its own. Standard library only.
"""

import logging
import os

__all__ = ["scrub"]

logger = logging.getLogger(__name__)

_PREFIXES = (
    "CPL_",
    "GDAL_",
    "GTIFF_",
    "OGR_",
    "OSR_",
    "PROJ_",
    "TIFF_",
    "VRT_",
    "VSI_",
)
_KEPT = {"CPL_TMPDIR", "GDAL_DATA", "PROJ_DATA", "PROJ_LIB"}
# Of the drivers only GTiff, COG and MEM are asked for by us. These would follow what a
# file says to other files, to the network or into code, if anything ever asked them.
_FOLLOWERS = (
    "ADBC,AmigoCloud,CSW,Carto,DAAS,DERIVED,EEDA,EEDAI,Elasticsearch,GDALG,"
    "GML,GMLAS,GNMDatabase,GNMFile,GPSBabel,GTI,HTTP,KMLSUPEROVERLAY,LIBKML,"
    "MRF,MapML,NGW,OAPIF,OGCAPI,OGR_VRT,OSM,PDF,PDS4,PLMOSAIC,PLSCENES,"
    "PMTiles,Rasterlite,SAFE,SENTINEL2,STACIT,STACTA,TIL,VRT,WCS,WFS,WMS,"
    "WMTS,ZARR,Zarr"
)
_SETTINGS = {
    "GDAL_SKIP": _FOLLOWERS,
    "OGR_SKIP": _FOLLOWERS,
    "CPL_LOG": os.devnull,  # of pyogrio's: see `_is_news`
    "PROJ_NETWORK": "OFF",  # no grids from the network: they would move coordinates
}


def scrub() -> None:
    """Take out of the environment what steers GDAL or PROJ, and set what we want.

    To be called before the first file is opened; harmless when it is called again.
    """
    for name in sorted(os.environ):
        if not name.startswith(_PREFIXES) or name in _KEPT:
            continue
        if os.environ.pop(name) != _SETTINGS.get(name):
            logger.warning(
                "%s: taken out of the environment, see docs/security.md", name
            )
    os.environ.update(_SETTINGS)
    logging.getLogger("rasterio._env").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line is no complaint about a driver that there never was.

    The libraries have different ones, and read one list.
    """
    return "to unload from" not in record.getMessage()
