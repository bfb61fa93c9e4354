"""Shards are placed as they are or cut anew: the raster is the same, byte for byte."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from cogs import faults
from hypothesis import given, settings
from hypothesis import strategies as st
from making import NORTH_UP, make_plain

from tileseg.geobox import GeoBox
from tileseg.grid import Grid, Run
from tileseg.masks.cog import Image, frame
from tileseg.masks.encode import Look, block_side, raster_tags, shard_bytes
from tileseg.masks.overview import SHRINK, level_shapes
from tileseg.outputs.stitch import stitch
from tileseg.plans.ledger import Files
from tileseg.scenes.gdal import gdal_env
from tileseg.scenes.scene import open_scene
from tileseg.window import Window

WKT = rasterio.CRS.from_epsg(32631).to_wkt(version="WKT2_2019")
MASK = Look(
    bands=("class",),
    overviews="MODE",
    tags={"CLASS_0": "sea & land", "MODEL": "x 1"},
    colors={0: (0, 9, 255), 1: (200, 10, 0)},
)
GREY = Look(bands=("probability",), overviews="AVERAGE", scale=1 / 254)
CHANCES = Look(bands=("sea", "land", "snow"), overviews="AVERAGE", scale=1 / 254)
PLACES = (512, 512), (513, 1537), (1700, 1300), (3333, 2222)


def patches(height, width, seed=0):
    """Labels 0 to 3 in patches, with single pixels among them and nodata."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 4, (height // 40 + 1, width // 40 + 1), np.uint8)
    labels = coarse.repeat(40, axis=0).repeat(40, axis=1)[:height, :width]
    noise = random.random(labels.shape) < 0.02
    labels[noise] = random.integers(0, 4, np.count_nonzero(noise))
    labels[height // 3 : height // 2, width // 4 :] = 255
    return labels


def grid_of(shape, *, shard=1536, part=None):
    """Return a grid of small tiles; the shard is a multiple of 24 or of 32."""
    tile, halo = (32, 4) if shard % 24 == 0 else (32, 0)
    height, width = shape
    return Grid(
        height=height, width=width, tile=tile, halo=halo, shard=shard, part=part
    )


class Shelf:
    """The shard files of some labels, and the scene that they are of."""

    def __init__(self, labels, grid, look=MASK, missing=()):
        self.box = GeoBox(*labels.shape[-2:], NORTH_UP, WKT)
        self.grid, self.look = grid, look
        self.shards = {}
        with gdal_env():
            for shard in set(Run(grid.shape)) - set(missing):
                window = grid.pixels(shard)
                self.shards[shard] = shard_bytes(
                    labels[..., *window.slices],
                    self.box.crop(window),
                    overviews=look.overviews,
                    block=block_side(grid.shard),
                )

    def stitch(self, path):
        """Stitch them into a new file."""
        files = Files(
            frozenset(self.shards),
            lambda order: ((shard, self.shards[shard]) for shard in order),
        )
        plain = make_plain(path.with_suffix(".s.tif"), np.zeros((1, 2, 2), np.uint8))
        scene = replace(open_scene(str(plain)), geobox=self.box)
        path.unlink(missing_ok=True)
        stitch(files, self.grid, scene, self.look, path)
        return path


def levels_of(path):
    """Return the pixels of a raster and of each overview, as GDAL reads them."""
    with rasterio.open(path) as dataset:
        which = 1 if dataset.count == 1 else None
        levels, count = [dataset.read(which)], len(dataset.overviews(1))
    for level in range(count):
        with rasterio.open(path, OVERVIEW_LEVEL=level) as dataset:
            levels.append(dataset.read(which))
    return levels


def expected_levels(pixels, look):
    """Return what they are to be, computed from the whole."""
    levels = [pixels]
    for shape in level_shapes(*pixels.shape[-2:])[1:]:
        levels.append(SHRINK[look.overviews](levels[-1]))
        assert levels[-1].shape[-2:] == shape
    return levels


def check(path, pixels, look):
    found, expected = levels_of(path), expected_levels(pixels, look)
    assert [level.shape for level in expected] == [level.shape for level in found]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("look", [MASK, GREY, CHANCES], ids=["mask", "grey", "bands"])
@pytest.mark.parametrize("shape", PLACES)
def test_the_raster_is_its_shards_and_the_overviews_are_the_whole_s(
    tmp_path, shape, look
):
    bands = [patches(*shape, seed) for seed in range(len(look.bands))]
    labels = np.stack(bands) if len(bands) > 1 else bands[0]

    path = Shelf(labels, grid_of(shape), look).stitch(tmp_path / "a.tif")

    check(path, labels, look)
    assert faults(path) == []


@settings(max_examples=10)
@given(st.integers(1, 900), st.integers(1, 900), st.data())
def test_any_area_with_any_holes_is_its_shards(tmp_path_factory, height, width, data):
    """Blocks line up with shards or do not, at even pixels or at odd ones."""
    row, col = (data.draw(st.integers(0, side - 1)) for side in (height, width))
    area = Window(
        row,
        col,
        data.draw(st.integers(1, height - row)),
        data.draw(st.integers(1, width - col)),
    )
    shard = data.draw(st.sampled_from([96, 192, 256, 512]))
    grid = grid_of((height, width), shard=shard, part=area)
    every = list(Run(grid.shape))
    holes = data.draw(st.sets(st.sampled_from(every), max_size=3))
    labels = patches(height, width, seed=height)
    path = tmp_path_factory.getbasetemp() / "any.tif"

    Shelf(labels, grid, missing=holes).stitch(path)

    for hole in holes:
        labels[grid.pixels(hole).slices] = 255
    check(path, labels[area.slices], MASK)


def test_how_shards_are_cut_changes_no_byte(tmp_path):
    """Placed as they are, or cut anew from others: the file is the same."""
    shape = 2100, 1700
    labels = patches(*shape)

    files = [
        Shelf(labels, grid_of(shape, shard=shard)).stitch(tmp_path / f"{shard}.tif")
        for shard in (1536, 192, 864)
    ]

    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == 1


@pytest.mark.parametrize(
    ("shard", "block"), [(1536, 512), (3584, 512), (3840, 256), (96, 512)]
)
def test_a_shard_is_whole_blocks_if_any_blocks_do(tmp_path, shard, block):
    shape = 700, 600
    labels = patches(*shape)

    path = Shelf(labels, grid_of(shape, shard=shard)).stitch(tmp_path / "a.tif")

    with rasterio.open(path) as dataset:
        assert dataset.block_shapes == [(block, block)]
    check(path, labels, MASK)


def test_encoded_blocks_are_taken_as_they_are(tmp_path, monkeypatch):
    """Only overviews from the second on are encoded."""
    shape = 3072, 3072
    shelf = Shelf(patches(*shape), grid_of(shape))
    sizes = []

    def counted(block):
        sizes.append(block.size)
        return b"x" * 9

    monkeypatch.setattr("tileseg.outputs.stitch.deflate", counted)

    shelf.stitch(tmp_path / "a.tif")

    assert sum(sizes) == (768**2 + (2 * 256) ** 2)  # an eighteenth of the raster


def test_a_file_of_a_shard_opens_as_a_raster(tmp_path):
    labels = patches(700, 901)
    path = tmp_path / "0_0.tif"

    with gdal_env():
        path.write_bytes(
            shard_bytes(labels, GeoBox(700, 901, NORTH_UP, WKT), sketch=b"12345")
        )

    found = levels_of(path)
    np.testing.assert_array_equal(found[0], labels)
    np.testing.assert_array_equal(found[1], SHRINK["MODE"](labels))
    with rasterio.open(path) as dataset:
        assert (dataset.nodata, dataset.crs) == (255, rasterio.CRS.from_wkt(WKT))
        assert dataset.transform == NORTH_UP


@pytest.mark.parametrize("look", [MASK, GREY], ids=["mask", "grey"])
def test_a_reader_sees_what_gdal_s_own_writer_would_have_said(tmp_path, look):
    shape = 1300, 1700
    labels = patches(*shape)
    ours = Shelf(labels, grid_of(shape), look).stitch(tmp_path / "a.tif")
    plain, theirs = tmp_path / "plain.tif", tmp_path / "gdal.tif"
    profile = {"crs": rasterio.CRS.from_wkt(WKT), "nodata": 255}
    make_plain(plain, labels[None], **profile)
    with rasterio.open(plain, "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT="Area", **look.tags)
        dataset.descriptions = look.bands
        if look.colors:
            dataset.write_colormap(1, {**look.colors, 255: (0, 0, 0, 0)})
        if look.scale != 1:
            dataset.scales = (look.scale,)
    rasterio.shutil.copy(
        plain, theirs, driver="COG", compress="deflate", overview_resampling="mode"
    )

    assert said(ours) == said(theirs)


def said(path):
    """Return all that GDAL reads of a raster but its pixels."""
    with rasterio.open(path) as dataset:
        domains = {
            ns: dataset.tags(ns=ns) for ns in (None, "IMAGE_STRUCTURE", "TIFF", "RPC")
        }
        has_colors = dataset.colorinterp[0] == rasterio.enums.ColorInterp.palette
        return (
            domains,
            dataset.tags(1),
            dataset.profile,
            dataset.descriptions,
            (dataset.scales, dataset.offsets),
            dataset.overviews(1),
            dataset.colorinterp,
            dataset.colormap(1) if has_colors else None,
        )


def test_the_largest_files_are_bigtiffs():
    """Of 4 GiB and more; as the header of such a file is read by GDAL."""
    box = GeoBox(1, 1, NORTH_UP, WKT)
    with gdal_env():
        tags = raster_tags(box, MASK)
    for count, version in ((10**5, 42), (1 << 20, 43)):
        sizes = np.full(64 * 64, count, np.uint32)
        images = [
            Image(height=64 * 512, width=64 * 512, block=512, counts=sizes),
            Image(height=300, width=300, block=256, counts=sizes[:4]),
        ]
        head = frame(images, tags)

        with rasterio.MemoryFile(head) as memory, memory.open() as dataset:
            assert dataset.overviews(1) == [109]
            assert dataset.crs == rasterio.CRS.from_wkt(WKT)
            last = dataset.get_tag_item("BLOCK_OFFSET_63_63", "TIFF", bidx=1)
        assert head[2] == version
        assert int(last) == len(head) + 4 * (count + 8) + 4095 * (count + 8) + 4
