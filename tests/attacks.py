"""Small files that ask for much, or for what they should not: made byte by byte."""

import struct
import zlib
from pathlib import Path

SUBFILE, WIDTH, HEIGHT, BITS, CODEC, COLOR = 254, 256, 257, 258, 259, 262
OFFSETS, SAMPLES, ROWS, COUNTS, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325
METADATA = 42112
NONE, LZW, DEFLATE, LZMA, PACKBITS, ZSTD = 1, 5, 8, 34925, 32773, 50000
GREATEST = 2**31 - 1


def tiff(tags: dict, data: bytes = b"", *, next_ifd: int | None = None) -> bytes:
    """Return a little-endian TIFF of one directory; `data` lies at byte 8.

    A tag's value is a number (LONG), a list of them, or bytes (ASCII).
    """
    size = 2 + 12 * len(tags) + 4
    directory = 8 + len(data) + len(data) % 2
    behind = directory + size
    entries, rest = b"", b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, bytes):
            kind, count, packed = 2, len(value), value
        else:
            numbers = value if isinstance(value, list) else [value]
            kind, count = 4, len(numbers)
            packed = struct.pack(f"<{count}I", *numbers)
        if len(packed) > 4:
            rest += b"\0" * (len(rest) % 2)
            packed, rest = struct.pack("<I", behind + len(rest)), rest + packed
        entries += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
    head = struct.pack("<2sHI", b"II", 42, directory) + data + b"\0" * (len(data) % 2)
    following = 0 if next_ifd is None else directory if next_ifd < 0 else next_ifd
    ifd = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return head + ifd + rest


def strips(width, height, *, codec=NONE, rows=1, samples=1, data=b"", **_) -> dict:
    """Return the tags of an image of bytes in strips, the first of which is `data`."""
    return {
        WIDTH: width,
        HEIGHT: height,
        BITS: 8,
        CODEC: codec,
        COLOR: 1,
        OFFSETS: 8,
        SAMPLES: samples,
        ROWS: rows,
        COUNTS: len(data) or 8,
        PLANAR: 1,
    }


def tiles(width, height, side, *, codec=NONE, samples=1, data=b"") -> dict:
    """Return the tags of an image of bytes in tiles, the first of which is `data`."""
    tags = strips(width, height, codec=codec, samples=samples)
    for tag in (OFFSETS, ROWS, COUNTS):
        del tags[tag]
    return tags | {
        TILE_WIDTH: side,
        TILE_HEIGHT: side,
        TILE_OFFSETS: 8,
        TILE_COUNTS: len(data) or 8,
    }


def zeros(size: int) -> bytes:
    """Return `size` zero bytes deflated: the same MiB again and again."""
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * ((size >> 20) - 1) + packer.flush()


def bombs() -> dict[str, bytes]:
    """Return files of some bytes that ask for gigabytes, or minutes, by name."""
    eight, gibibyte, much = b"\0" * 8, zeros(1 << 30), zeros(1 << 34)
    endless = strips(GREATEST, GREATEST, codec=PACKBITS, rows=GREATEST)
    return {
        "a scanline of 2 GB": tiff(strips(GREATEST, 1), eight),
        "a scanline of 8 GB": tiff(strips(GREATEST, 1, samples=4), eight),
        "a tile of 4 GB": tiff(tiles(100_000, 100_000, 65_520), eight),
        "an overview in a tile of 4 GB": _with_second(1),
        "a mask in a tile of 4 GB": _with_second(4),
        "a tile of 1 GiB that is there": tiff(
            tiles(32_768, 32_768, 32_768, codec=DEFLATE, data=gibibyte), gibibyte
        ),
        "a strip of 16 GiB that is there": tiff(
            strips(1 << 17, 1 << 17, rows=1 << 17, codec=DEFLATE, data=much), much
        ),
        "a strip of 4 GB that is not": tiff(endless | {COUNTS: 2**32 - 1}, eight),
        "65535 bands": tiff(strips(64, 64, samples=65_535), eight),
        "16 x 10^12 pixels": tiff(strips(4_000_000, 4_000_000), eight),
    }


def _with_second(kind: int) -> bytes:
    """Return a small image whose overview, 1, or mask, 4, is one block of 4 GB."""
    image = tiles(100_000, 100_000, 256)
    side = 50_000 if kind == 1 else 100_000
    second = tiles(side, side, 65_520) | {SUBFILE: kind, COLOR: kind}
    at = 8 + 8 + 2 + 12 * len(image) + 4
    first = tiff(image, b"\0" * 8, next_ifd=at)
    assert len(first) == at, (len(first), at)
    entries = tiff(second, b"")[8:]
    return first + entries


def pretended(
    folder: Path, url: str, secret: Path, *, write: bool = True
) -> dict[str, Path]:
    """Write files that are called .tif and are something else, by what they are.

    Args:
        folder: where.
        url: what some of them would fetch.
        secret: the file that others would read.
        write: else only say which there are.
    """
    band = '<VRTRasterBand dataType="Byte" band="1"{}>{}</VRTRasterBand>'
    vrt = '<VRTDataset rasterXSize="64" rasterYSize="64">{}</VRTDataset>'
    simple = "<SimpleSource><SourceFilename>{}</SourceFilename></SimpleSource>"
    python = (
        "<PixelFunctionType>f</PixelFunctionType>"
        "<PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        f"<PixelFunctionCode>open({str(folder / 'ran')!r}, 'w')</PixelFunctionCode>"
    )
    wms = f'<Service name="WMS"><ServerUrl>{url}?</ServerUrl></Service>'
    texts = {
        "vrt of a url": vrt.format(band.format("", simple.format(f"/vsicurl/{url}"))),
        "vrt of a file": vrt.format(band.format("", simple.format(secret))),
        "vrt of raw bytes": vrt.format(
            band.format(
                ' subClass="VRTRawRasterBand"',
                f"<SourceFilename>{secret}</SourceFilename><ImageOffset>0</ImageOffset>"
                "<PixelOffset>1</PixelOffset><LineOffset>64</LineOffset>",
            )
        ),
        "vrt with python": vrt.format(
            band.format(' subClass="VRTDerivedRasterBand"', python)
        ),
        "vrt with blanks before": "\n \n" + vrt.format(""),
        "wms": f"<GDAL_WMS>{wms}<DataWindow><SizeX>64</SizeX><SizeY>64</SizeY>"
        "</DataWindow></GDAL_WMS>",
        "wmts": f"<GDAL_WMTS><GetCapabilitiesUrl>{url}</GetCapabilitiesUrl>"
        "</GDAL_WMTS>",
        "wcs": f"<WCS_GDAL><ServiceURL>{url}?</ServiceURL></WCS_GDAL>",
        "xml with an entity": f'<!DOCTYPE a [<!ENTITY b SYSTEM "file://{secret}">]>'
        + vrt.format("&b;"),
        "billion laughs": '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
        + "".join(
            f'<!ENTITY {b} "{f"&{a};" * 10}">'
            for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + "]>"
        + vrt.format("&i;"),
        "stac": f'{{"type": "Feature", "assets": {{"a": {{"href": "{url}"}}}}}}',
        "gdalg": '{"type": "gdal_streamed_alg", '
        f'"command_line": "gdal raster info {url}"}}',
        "ascii grid": "ncols 2\nnrows 1\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n",
        "tile index": f"<GDALTileIndexDataset><IndexDataset>{url}</IndexDataset>"
        "</GDALTileIndexDataset>",
        "mrf": f"<MRF_META><CachedSource><Source>{url}</Source></CachedSource>"
        "</MRF_META>",
        "text": "just some text that goes on for a while",
        "nothing": "",
    }
    names = (*texts, "symlink")
    paths = {name: folder / f"{name.replace(' ', '_')}.tif" for name in names}
    if write:
        for name, text in texts.items():
            paths[name].write_text(text)
        paths["symlink"].symlink_to(secret)
    return paths


def odd_names(url: str, scene: Path, secret: Path) -> list[str]:
    """Return names with which GDAL would open something else than a local file."""
    return [
        f"/vsicurl/{url}",
        f"/vsicurl_streaming/{url}",
        f"/vsicurl?url={url}",
        f"/vsisubfile/0_1000,{scene}",
        f"/vsizip/{scene}",
        f"/vsigzip/{scene}",
        f"/vsis3/bucket/{scene.name}",
        f"/vsicached?file={scene}",
        "/vsistdin/",
        f"/vsisparse/{secret}",
        f"GTIFF_DIR:1:{scene}",
        f"GTIFF_RAW:{scene}",
        f"vrt://{scene}?bands=1",
        f"WMS:{url}",
        f"WCS:{url}",
        f"ZARR:/vsicurl/{url}",
        f"DERIVED_SUBDATASET:LOGAMPLITUDE:{scene}",
        f"STACIT:{url}",
        f"RASTERLITE:{scene}",
        "MEM:::DATAPOINTER=1,PIXELS=1,LINES=1",
        f"<VRTDataset rasterXSize='1' rasterYSize='1'><a>{url}</a></VRTDataset>",
        f"file://{secret}",
        f"ftp://{url.partition('//')[2]}",
        f"gopher://{url.partition('//')[2]}",
    ]
