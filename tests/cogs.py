"""Two judges of a COG: rio-cogeo, and GDAL's own script.

The script (`gdal-utils`) asks GDAL's bindings, which no wheel brings; rasterio answers
in their place here, question by question. Of blocks of several bands it says TILE where
the file does: GDAL has known that word since 3.11.
"""

# ruff: noqa: N802  (names are GDAL's)

import importlib
import io
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace

import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

GMF_PER_DATASET = 2


class Band:
    """A band of a raster, or of an overview of it."""

    def __init__(self, dataset, number, level=None):
        self._dataset, self._number, self._level = dataset, number, level
        option = {} if level is None else {"OVERVIEW_LEVEL": level}
        with rasterio.open(dataset.name, **option) as here:
            self.YSize, self.XSize = here.shape
            self._block = here.block_shapes[number - 1]

    def GetBlockSize(self):
        return self._block[::-1]

    def GetOverviewCount(self):
        return len(self._dataset.overviews(self._number))

    def GetOverview(self, level):
        return Band(self._dataset, self._number, level)

    def GetMetadataItem(self, name, domain):
        return self._dataset.get_tag_item(
            name, domain, bidx=self._number, ovr=self._level
        )

    def GetMaskFlags(self):
        flags = self._dataset.mask_flag_enums[self._number - 1]
        return GMF_PER_DATASET if MaskFlags.per_dataset in flags else 0

    def GetDataset(self):
        return Dataset(self._dataset)


class Dataset:
    """A raster."""

    def __init__(self, dataset):
        self._dataset = dataset
        self.RasterYSize, self.RasterXSize = dataset.shape
        self.RasterCount = dataset.count

    def GetDescription(self):
        return self._dataset.name

    def GetFileList(self):
        return self._dataset.files

    def GetRasterBand(self, number):
        return Band(self._dataset, number)

    def GetMetadataItem(self, name, domain):
        head = Path(self._dataset.name).read_bytes()[:300]
        if name == "INTERLEAVE" and b"INTERLEAVE=TILE" in head:
            return "TILE"
        return self._dataset.tags(ns=domain).get(name)


def _judge():
    """Return GDAL's script, with rasterio in the place of the bindings."""
    bindings = ModuleType("osgeo")
    bindings.gdal = SimpleNamespace(
        GMF_PER_DATASET=GMF_PER_DATASET,
        VSIFOpenL=io.open,
        VSIFSeekL=lambda file, at, whence: file.seek(at, whence),
        VSIFReadL=lambda size, count, file: file.read(size * count),
        VSIFCloseL=lambda file: file.close(),
    )
    sys.modules["osgeo"] = bindings
    try:
        name = "osgeo_utils.samples.validate_cloud_optimized_geotiff"
        return importlib.import_module(name)
    finally:
        del sys.modules["osgeo"]


_VALIDATE = _judge().validate


def faults(path):
    """Return what either judge has against a file; nothing is too small to be said."""
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = stack.enter_context(rasterio.open(path))
        warned, errors, _ = _VALIDATE(Dataset(dataset), full_check=True)
        is_valid, *said = cog_validate(path, strict=True, quiet=True)
    found = [*warned, *errors, *(text for texts in said for text in texts)]
    return found or ([] if is_valid else ["rio-cogeo says no"])
