"""What a file says of its values: nodata, alpha, scale and offset, names, metadata."""

from math import inf, nan

import numpy as np
from tiff import SHORT, text, tiff
from writing import noise

PIXELS = noise(3, 47, 59)
GREY = PIXELS[:1]


def build(corpus):
    _nodata(corpus)
    _alpha(corpus)
    _scale(corpus)
    _names(corpus)
    _metadata(corpus)


def holed(dtype, value, *, bands=1):
    """Return pixels with `value` in a rectangle of each band, and where none is."""
    pixels = noise(bands, 47, 59, dtype, high=100)
    for band in range(bands):
        pixels[band, 9 + band : 20, 11 : 30 + band] = value
    return pixels, (pixels != value).all(axis=0)


def _nodata(corpus):
    """GDAL's tag 42113, which is a text."""
    said = {
        "0": ("uint16", 0),
        "255": ("uint8", 255),
        "65535": ("uint16", 65_535),
        "-9999": ("int16", -9_999),
        "-32768": ("int16", -32_768),
        "-2147483648": ("int32", -(2**31)),
        "-9999.0": ("float32", -9_999),
        " 7 ": ("uint16", 7),
        "7e0": ("uint16", 7),
        "+7": ("uint16", 7),
        "0.1": ("float32", np.float32(0.1)),
        "-3.4028234663852886e+38": ("float32", np.finfo("float32").min),
        "-3.40282e+38": ("float32", np.float32(-3.40282e38)),
        "-1.7976931348623157e+308": ("float64", np.finfo("float64").min),
    }
    for number, (words, (dtype, value)) in enumerate(said.items()):
        pixels, valid = holed(dtype, value)
        data = tiff(pixels, tags={42113: text(words)})
        name = f"nodata-{number:02}-{dtype}.tif"
        corpus.fine(name, f"nodata {words!r}, {dtype}", data, pixels, valid)
    for words in ("nan", "NaN", "-nan", "inf", "-inf", "-9999"):
        pixels = noise(2, 47, 59, "float32")
        pixels[0, 3:9, 5:50] = nan
        pixels[1, 5:20, 7:30] = inf
        pixels[1, 15:30, 5:9] = -inf
        valid = np.isfinite(pixels).all(axis=0)
        data = tiff(pixels, tags={42113: text(words)})
        odd = f"NaN and Inf in float32, nodata {words!r}"
        corpus.fine(f"nan-nodata-{words}.tif", odd, data, pixels, valid)
    corpus.fine("nan.tif", "NaN and Inf in float32", tiff(pixels), pixels, valid)
    for number, words in enumerate(("-1", "300", "1e9", "0.5", "nan", "inf")):
        pixels, _ = holed("uint8", 44)
        pixels[:, :5] = 0
        pixels[:, 5:9] = 255
        data = tiff(pixels, tags={42113: text(words)})
        odd = f"nodata {words!r}, which no uint8 is"
        corpus.fine(f"nodata-none-{number}.tif", odd, data, pixels)
    pixels, _ = holed("uint8", 0)
    rubbish = {"abc": 0, "-": 0, "0x10": 0, "": None, "7,8": None, "9" * 400: None}
    for number, (words, value) in enumerate(rubbish.items()):
        data = tiff(pixels, tags={42113: text(words)})
        odd = f"nodata {words[:9]!r}: to GDAL, {value}"
        name = f"nodata-rubbish-{number}.tif"
        corpus.fine(name, odd, data, pixels, (pixels != value)[0])
    pixels, valid = holed("uint16", 0, bands=3)
    data = tiff(pixels, tags={42113: text("0")})
    odd = "holes of three shapes in three bands"
    corpus.fine("nodata-each-band.tif", odd, data, pixels, valid)
    data = tiff(pixels, tags={42113: text("0")})
    odd = "a hole in a band that is not used is none"
    corpus.fine("nodata-unused.tif", odd, data, pixels, pixels[1] != 0, bands=(2,))
    corpus.fine(
        "nodata-all.tif",
        "nothing but nodata",
        tiff(np.zeros_like(GREY), tags={42113: text("0")}),
        np.zeros_like(GREY),
        valid=False,
    )
    values = np.array([1, 2, 3])[:, None, None]
    pixels = np.where(holed("uint16", 0, bands=3)[0] == 0, values, PIXELS + 5)
    pixels = pixels.astype("uint16")
    items = "<Item name='NODATA_VALUES'>1 2 3</Item>"
    data = tiff(pixels, tags={42112: text(f"<GDALMetadata>{items}</GDALMetadata>")})
    odd = "NODATA_VALUES: a pixel is nodata where all bands are theirs"
    valid = ~(pixels == values).all(axis=0)
    corpus.fine("nodata-values.tif", odd, data, pixels, valid)


def _alpha(corpus):
    for name, extra, dtype in (
        ("alpha", 2, "uint8"),
        ("alpha-premultiplied", 1, "uint8"),
        ("alpha-uint16", 2, "uint16"),
    ):
        pixels = noise(4, 47, 59, dtype, high=255)
        pixels[3, 9:20, 11:30] = 0
        tags = {262: (SHORT, (2,)), 338: (SHORT, (extra,))}
        data = tiff(pixels, tags=tags)
        corpus.fine(f"{name}.tif", name, data, pixels, pixels[3] > 0)
    pixels = noise(2, 47, 59, "uint8", high=255)
    pixels[1, 9:20, 11:30] = 0
    data = tiff(pixels, tags={338: (SHORT, (2,))})
    corpus.fine(
        "alpha-of-grey.tif", "grey and alpha", data, pixels, pixels[1] > 0, bands=(1,)
    )
    pixels = noise(4, 47, 59, "uint8", high=255)
    pixels[3, 9:20, 11:30] = 0
    data = tiff(pixels, tags={262: (SHORT, (1,)), 338: (SHORT, (0, 0, 0))})
    odd = "the fourth of four bytes is not said to be alpha"
    corpus.fine("fourth-unspecified.tif", odd, data, pixels)
    named = "<Item name='DESCRIPTION' sample='3' role='description'>nir</Item>"
    tags = {262: (SHORT, (2,)), 338: (SHORT, (2,)), 42112: text(_xml(named))}
    odd = "the fourth of four bytes is marked as alpha and described as nir"
    corpus.fine("fourth-nir.tif", odd, tiff(pixels, tags=tags), pixels)
    pixels, valid = holed("uint8", 7, bands=4)
    pixels[3] = 9
    pixels[3, 30:] = 0
    tags = {262: (SHORT, (2,)), 338: (SHORT, (2,)), 42113: text("7")}
    valid = (pixels[:3] != 7).all(axis=0) & (pixels[3] > 0)
    odd = "alpha and nodata: both count"
    corpus.fine("alpha-and-nodata.tif", odd, tiff(pixels, tags=tags), pixels, valid)


def _xml(items):
    return f"<GDALMetadata>{items}</GDALMetadata>"


def _item(role, sample, value):
    name = role.upper()
    return f'<Item name="{name}" sample="{sample}" role="{role}">{value}</Item>'


def _scale(corpus):
    """Scale and offset, which the job takes from the file."""
    own = {"scale": None}
    own3 = {"job": own, "bands": (1, 2, 3)}
    tags = [_item("scale", band, 0.0001) for band in range(3)]
    tags += [_item("offset", band, -0.1) for band in range(3)]
    data = tiff(PIXELS, tags={42112: text(_xml("".join(tags)))})
    odd = "scale and offset in its tags"
    corpus.fine("scale.tif", odd, data, PIXELS, job=own)
    corpus.bad(
        "scale-none.tif",
        "neither scale nor offset",
        tiff(PIXELS),
        2,
        "does not say",
        job=own,
    )
    data = tiff(PIXELS, tags={42112: text(_xml(tags[0]))})
    odd = "a scale on the first of three bands"
    corpus.bad("scale-of-one.tif", odd, data, 2, "band 2 does not say", **own3)
    for value in ("0", "nan", "inf"):
        items = "".join(_item("scale", band, value) for band in range(3))
        data = tiff(PIXELS, tags={42112: text(_xml(items))})
        corpus.bad(f"scale-{value}.tif", f"scale {value}", data, 2, "scale", job=own)
    items = "".join(tags[:3]) + _item("offset", 1, "nan")
    data = tiff(PIXELS, tags={42112: text(_xml(items))})
    corpus.bad("offset-nan.tif", "offset NaN", data, 2, "offset", **own3)


def _names(corpus):
    """Bands by name."""

    def named(*names):
        items = "".join(
            _item("description", at, name) for at, name in enumerate(names) if name
        )
        return tiff(PIXELS, tags={42112: text(_xml(items))})

    by_name = {"bands": ("red", "green", "nir")}
    data = named("red", "green", "nir")
    corpus.fine("names.tif", "bands by name", data, PIXELS, **by_name)
    corpus.fine(
        "names-case.tif",
        "names in capitals",
        named("RED", "Green", "NIR"),
        PIXELS,
        **by_name,
    )
    data = named("red", "red", "nir")
    corpus.bad(
        "names-twice.tif", "two bands of one name", data, 2, "more than one", **by_name
    )
    data = named("red", "", "nir")
    corpus.bad(
        "names-empty.tif", "a band without a name", data, 2, "has no band", **by_name
    )
    facts = {"bands": ("grün", "赤外", "é" * 3)}
    corpus.fine(
        "names-unicode.tif",
        "names that are not ASCII",
        named(*facts["bands"]),
        PIXELS,
        **facts,
    )
    facts = {"bands": ("x" * 300, "y", "z" * 100_000)}
    corpus.fine(
        "names-long.tif",
        "names of 300 and 100,000 letters",
        named(*facts["bands"]),
        PIXELS,
        **facts,
    )
    data = named("red\n\x1b[31m", "&lt;b&gt;", "nir")
    corpus.bad(
        "names-control.tif",
        "a name that would colour a terminal",
        data,
        2,
        "has no band",
        **by_name,
    )


def _metadata(corpus):
    entities = "".join(
        f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 10)
    )
    said = {
        "bad-xml": "<GDALMetadata><Item name='a'>never closed",
        "no-xml": "hello",
        "empty": "",
        "laughs": f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]>'
        + _xml("<Item>&a9;</Item>"),
        "file": '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
        + _xml('<Item name="x">&f;</Item>'),
        "deep": "<a>" * 5_000,
        "100000-letters": _xml(f'<Item name="x">{"y" * 100_000}</Item>'),
        "sample-unknown": _xml(_item("scale", 99, 5) + _item("offset", -1, 5)),
    }
    for name, words in said.items():
        data = tiff(GREY, tags={42112: text(words)})
        corpus.fine(f"metadata-{name}.tif", f"GDAL's metadata: {name}", data, GREY)
    for name, number in {"description": 270, "software": 305, "date": 306}.items():
        data = tiff(GREY, tags={number: text(b"\xff\xfe\x80\x1b[31m" * 9)})
        odd = f"{name}: bytes that are no text"
        corpus.fine(f"metadata-{name}-bytes.tif", odd, data, GREY)
    data = tiff(GREY, tags={700: text("<x:xmpmeta>" * 100_000)})
    corpus.fine("metadata-xmp-1-mb.tif", "1 MB of XMP that is none", data, GREY)
