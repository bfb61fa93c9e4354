"""Files that are damaged, cut short, or something else altogether."""

import json
import os
import struct
import zipfile
import zlib
from io import BytesIO

import numpy as np
import rasterio
from tiff import ASCII, LONG, SHORT, Page, assemble, located, page, tiff
from writing import noise, raster

PIXELS = noise(2, 83, 131)
OPENED = "cannot be read as a GeoTIFF"
READ = "cannot read rows"


def build(corpus):
    _cut(corpus)
    _directories(corpus)
    _places(corpus)
    _blocks(corpus)
    _beside(corpus)
    _others(corpus)
    _no_files(corpus)


def _cut(corpus):
    """Files that end too early."""
    whole = tiff(PIXELS, tile=(32, 32), compress="deflate")
    first = _directory_first(whole)
    for size in (4, 7, 8, 12):
        data = whole[:size]
        corpus.bad(f"cut-at-{size}.tif", f"the first {size} bytes", data, 4, OPENED)
    half = whole[: len(whole) // 2]
    odd = "the first half; the directory was in the second"
    corpus.bad("cut-in-half.tif", odd, half, 4, OPENED)
    half = first[: len(first) // 2]
    odd = "the directory and half of the blocks"
    corpus.bad("cut-in-half-cog.tif", odd, half, 4, READ)
    corpus.bad("cut-by-six.tif", "lacks its last bytes", first[:-6], 4, READ)
    plain = _directory_first(tiff(PIXELS, rows=10))
    odd = "lacks its last bytes, not compressed"
    corpus.bad("cut-by-six-raw.tif", odd, plain[:-6], 4, READ)
    odd = "ends within its directory"
    corpus.bad("cut-in-directory.tif", odd, whole[:-40], 4, OPENED)

    def killed(path):
        """Leave what a writer leaves that was killed: directory first, blocks not."""
        profile = {"tiled": True, "blockxsize": 32, "blockysize": 32, "nodata": 0}
        raster(path, np.zeros_like(PIXELS), SPARSE_OK=True, **profile)

    odd = "a writer was killed before the first block: all is nodata"
    corpus.fine("killed.tif", odd, killed, np.zeros_like(PIXELS), valid=False)


def _directory_first(data):
    """Return a TIFF of one image with its directory before its blocks, as in COGs."""
    with rasterio.MemoryFile(data) as source, source.open() as dataset:
        profile = {**dataset.profile, "driver": "COG", "blocksize": 128}
        pixels = dataset.read()
    del profile["tiled"], profile["blockxsize"], profile["blockysize"]
    profile.pop("interleave", None)
    with rasterio.MemoryFile() as target:
        with target.open(**profile, overviews="NONE") as dataset:
            dataset.write(pixels)
        return bytes(target.getbuffer())


def _directories(corpus):
    """Directories that are not there, or make no sense."""
    for name, offset in {"0": 0, "7": 7, "beyond": 10**6, "max": 2**32 - 1}.items():
        data = b"II*\0" + struct.pack("<I", offset) + bytes(200)
        odd = f"its directory is at {offset}"
        corpus.bad(f"directory-at-{name}.tif", odd, data, 4, OPENED)
    data = b"II*\0" + struct.pack("<IH", 8, 0) + bytes(4)
    corpus.bad("directory-empty.tif", "a directory without tags", data, 4, OPENED)
    data = b"II*\0" + struct.pack("<IH", 8, 65_535) + b"\xff" * 300
    corpus.bad("directory-65535.tif", "65,535 tags that are none", data, 4, OPENED)
    data = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 2**63) + bytes(99)
    corpus.bad("directory-2-63.tif", "2^63 tags", data, 4, OPENED)
    data = b"II+\0" + struct.pack("<HHQ", 4, 0, 16) + bytes(99)
    corpus.bad("bigtiff-word-4.tif", "a BigTIFF of 4-byte words", data, 4, OPENED)
    for name, change in {
        "no-width": {256: None},
        "no-height": {257: None},
        "width-0": {256: (LONG, (0,))},
        "height-0": {257: (LONG, (0,))},
        "bands-0": {277: (SHORT, (0,))},
        "width-text": {256: (ASCII, (65, 0))},
    }.items():
        data = tiff(PIXELS, tags=change)
        corpus.bad(f"{name}.tif", f"header: {name}", data, 4, OPENED)
    data = tiff(PIXELS, tags={262: None})
    corpus.fine("no-photometric.tif", "no photometric", data, PIXELS)
    data = tiff(PIXELS, tags={277: (SHORT, (1,)), 258: (SHORT, (16,)), 338: None})
    seen = np.ascontiguousarray(PIXELS.transpose(1, 2, 0)).reshape(-1)
    seen = seen[: 83 * 131].reshape(1, 83, 131)
    corpus.fine("bands-too-few.tif", "says 1 band of 2", data, seen)


def _places(corpus):
    """Blocks that are not where the directory says."""
    plain = page(PIXELS, rows=20, tags=located())
    count = len(plain.blocks)
    sizes = tuple(len(block) for block in plain.blocks)
    for name, change in {
        "beyond": {273: (LONG, (10**8,) * count)},
        "at-the-end": {273: (LONG, (2**32 - 1,) * count)},
    }.items():
        data = assemble(Page(plain.tags | change, plain.blocks))
        corpus.bad(f"strips-{name}.tif", f"strips: {name}", data, 4, READ)
    for size in (1, 2**32 - 1):
        data = assemble(Page(plain.tags | {279: (LONG, (size,) * count)}, plain.blocks))
        odd = f"strips said to have {size} bytes, which follows from their rows"
        corpus.fine(f"strips-sizes-{size}.tif", odd, data, PIXELS)
    gone = np.zeros_like(PIXELS)
    data = assemble(Page(plain.tags | {279: (LONG, (0,) * count)}, plain.blocks))
    odd = "strips said to have no bytes: not there"
    corpus.fine("strips-sizes-0.tif", odd, data, gone, valid=False)
    gone[:, :20] = PIXELS[:, :20]
    change = {273: (LONG, (8,)), 279: (LONG, (sizes[0],))}
    data = assemble(Page(plain.tags | change, plain.blocks))
    odd = "the place of the first strip only: the others are not there"
    corpus.fine("strips-one-said.tif", odd, data, gone, gone.all(axis=0))
    tags = plain.tags | {273: None, 279: None}
    data = assemble(Page(tags))
    corpus.bad("strips-none.tif", "says not where its strips are", data, 4, "cannot")


def _blocks(corpus):
    """Blocks whose bytes are damaged."""
    for codec in ("deflate", "lzw", "zstd", "lzma", "packbits"):
        good = page(PIXELS, rows=20, compress=codec, tags=located())
        for name, harm in {
            "rubbish": lambda block: b"\xa5" * len(block),
            "halved": lambda block: block[: len(block) // 2],
        }.items():
            blocks = [*good.blocks[:2], harm(good.blocks[2]), *good.blocks[3:]]
            data = assemble(Page(good.tags, blocks))
            if codec == "packbits" and name == "rubbish":
                continue  # is as good as any other
            corpus.bad(f"{codec}-{name}.tif", f"{codec}: a block {name}", data, 4, READ)
    good = page(PIXELS, rows=20, compress="deflate", tags=located())
    block = bytearray(good.blocks[1])
    block[-4:] = bytes(4)
    data = assemble(Page(good.tags, [good.blocks[0], bytes(block), *good.blocks[2:]]))
    corpus.bad("deflate-sum.tif", "a block whose check sum is wrong", data, 4, READ)
    longer = [zlib.compress(zlib.decompress(b) + bytes(5_000)) for b in good.blocks]
    data = assemble(Page(good.tags, longer))
    corpus.fine("deflate-longer.tif", "blocks that hold too much", data, PIXELS)
    for predictor in (3, 9):
        tags = located() | {317: (SHORT, (predictor,))}
        data = assemble(page(PIXELS, rows=20, compress="deflate", tags=tags))
        odd = f"predictor {predictor} on integers"
        corpus.bad(f"predictor-{predictor}-integers.tif", odd, data, 4, READ)


def _beside(corpus):
    """Files beside it that would change it, were they read."""
    data = tiff(PIXELS)
    aux = (
        "<PAMDataset><SRS>EPSG:3857</SRS><GeoTransform>0,1,0,0,0,-1</GeoTransform>"
        "<PAMRasterBand band='1'><NoDataValue>5</NoDataValue></PAMRasterBand>"
        "</PAMDataset>"
    )
    vrt = "<VRTDataset rasterXSize='65' rasterYSize='41'></VRTDataset>"
    sidecars = {".aux.xml": aux.encode(), ".ovr": vrt.encode()}
    sidecars[".msk"] = tiff(np.zeros((1, 83, 131), "uint8"))
    for ending, beside in sidecars.items():

        def write(path, ending=ending, beside=beside):
            path.write_bytes(data)
            path.with_name(path.name + ending).write_bytes(beside)

        odd = f"a file {ending} beside it, which is not read"
        corpus.fine(f"beside{ending.replace('.', '-')}.tif", odd, write, PIXELS)


def _others(corpus):
    """Other things that are named .tif."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("a.tif"), tiff(PIXELS))
    vrt = (
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" '
        'band="1" subClass="VRTRawRasterBand"><SourceFilename>/etc/passwd'
        "</SourceFilename></VRTRasterBand></VRTDataset>"
    )
    wms = '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/</ServerUrl>'
    things = {
        "empty": b"",
        "text": b"hello\n",
        "one-byte": b"I",
        "zeros": bytes(4_096),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "jpeg": b"\xff\xd8\xff\xe0" + bytes(99),
        "netcdf": b"CDF\x01" + bytes(99),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(99),
        "zip": archive.getvalue(),
        "vrt": vrt.encode(),
        "vrt-after-space": b"\n " + vrt.encode(),
        "wms": wms.encode(),
        "json": json.dumps({"type": "Feature"}).encode(),
        "mixed-ends": b"IM*\0" + bytes(99),
        "ends-swapped": b"II\0*" + bytes(99),
        "version-44": b"II,\0" + bytes(99),
        "html": b"<!doctype html><title>404</title>",
        "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    }
    for name, data in things.items():
        corpus.bad(f"other-{name}.tif", f"is {name}", data, 3, "not a GeoTIFF")
    data = b"II*\0" + vrt.encode()
    corpus.bad("other-vrt-disguised.tif", "a VRT behind TIFF's magic", data, 4, OPENED)


def _no_files(corpus):
    """What is no file at all."""
    corpus.bad("directory.tif", "a directory", lambda path: path.mkdir(), 4, "cannot")
    odd = "a link to nothing"
    corpus.bad(
        "dangling.tif", odd, lambda path: path.symlink_to("gone"), 4, "cannot be read"
    )
    odd = "a link to itself"
    corpus.bad("loop.tif", odd, lambda path: path.symlink_to(path), 4, "cannot be read")
    corpus.bad("gone.tif", "is not there", lambda _path: None, 4, "cannot be read")
    corpus.bad("fifo.tif", "a pipe", os.mkfifo, 4, "not a file")
    for device in ("zero", "null", "urandom"):

        def link(path, device=device):
            path.symlink_to(f"/dev/{device}")

        corpus.bad(f"dev-{device}.tif", f"/dev/{device}", link, 4, "not a file")
    data = tiff(PIXELS)

    def write_locked(path):
        path.write_bytes(data)
        path.chmod(0)

    odd = "may not be read"
    corpus.bad("locked.tif", odd, write_locked, 4, "cannot be read")
    for name in (
        "name with  spaces .tif",
        "name-100%25.tif",
        "名前.tif",
        "name'\"$(id)`.tif",
        "-name.tif",
        "name?query#part.tif",
        "GTIFF_DIR:1:name.tif",
        f"{'x' * 240}.tif",
    ):
        odd = "its name"
        corpus.fine(name, odd, data, PIXELS)
