"""STAC Items shaped like those of the large archives; only the hrefs are ours."""

GEOTIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def make_item(assets, *, name="scene", version="1.0.0", extensions=(), **properties):
    """Return an Item as JSON has it."""
    return {
        "type": "Feature",
        "stac_version": version,
        "stac_extensions": list(extensions),
        "id": name,
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[3, 41], [4, 41], [4, 42], [3, 42], [3, 41]]],
        },
        "bbox": [3, 41, 4, 42],
        "properties": {"datetime": "2024-06-01T10:50:31Z", **properties},
        "links": [{"rel": "self", "href": "https://example.org/no/such/item.json"}],
        "assets": assets,
    }


def earth_search(name="S2B_31TDG_20240601_0_L2A", *, applied=False, offset=-0.1):
    """A Sentinel-2 L2A Item as Earth Search v1 has it, baseline 05.10."""

    def band(name, common, resolution, **more):
        return {
            "href": f"./{common}.tif",
            "type": GEOTIFF,
            "title": f"{common} - {resolution}m",
            "eo:bands": [{"name": name, "common_name": common, **more}],
            "gsd": resolution,
            "raster:bands": [
                {
                    "nodata": 0,
                    "data_type": "uint16",
                    "bits_per_sample": 15,
                    "spatial_resolution": resolution,
                    "scale": 0.0001,
                    "offset": offset,
                }
            ],
            "roles": ["data", "reflectance"],
        }

    visual = [{"name": c, "common_name": c} for c in ("red", "green", "blue")]
    assets = {
        "blue": band("blue", "blue", 10, full_width_half_max=0.098),
        "green": band("green", "green", 10),
        "red": band("red", "red", 10),
        "nir": band("nir", "nir", 10),
        "rededge1": band("rededge1", "rededge", 20) | {"href": "./B05.tif"},
        "rededge2": band("rededge2", "rededge", 20) | {"href": "./B06.tif"},
        "swir16": band("swir16", "swir16", 20),
        "scl": {
            "href": "./SCL.tif",
            "type": GEOTIFF,
            "title": "Scene classification map (SCL)",
            "raster:bands": [{"nodata": 0, "data_type": "uint8"}],
            "roles": ["data", "reflectance"],
        },
        "red-jp2": band("red", "red", 10)
        | {"href": "s3://sentinel-s2-l2a/B04.jp2", "type": "image/jp2"},
        "visual": {
            "href": "./TCI.tif",
            "type": GEOTIFF,
            "eo:bands": visual,
            "roles": ["visual"],
        },
        "thumbnail": {
            "href": "./thumbnail.jpg",
            "type": "image/jpeg",
            "roles": ["thumbnail"],
        },
        "granule_metadata": {
            "href": "./metadata.xml",
            "type": "application/xml",
            "roles": ["metadata"],
        },
    }
    extensions = [
        "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
        "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    ]
    applied = {"earthsearch:boa_offset_applied": applied}
    return make_item(assets, name=name, extensions=extensions, **applied)


def planetary_computer():
    """A Sentinel-2 L2A Item as the Planetary Computer has it: nothing of values."""
    names = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}

    def bands(*keys):
        return [
            {"name": key, "common_name": names[key], "description": f"Band {key[-1]}"}
            for key in keys
        ]

    assets = {
        key: {
            "href": f"https://example.blob.core.windows.net/s2/{key}_10m.tif?sig=secret",
            "type": GEOTIFF,
            "roles": ["data"],
            "title": f"Band {key[-1]}",
            "eo:bands": bands(key),
        }
        for key in names
    }
    assets["visual"] = {
        "href": "https://example.blob.core.windows.net/s2/TCI_10m.tif",
        "type": GEOTIFF,
        "roles": ["data"],
        "eo:bands": bands("B04", "B03", "B02"),
    }
    assets["preview"] = {
        "href": "https://example.blob.core.windows.net/s2/PVI.tif",
        "type": GEOTIFF,
        "roles": ["thumbnail"],
    }
    return make_item(assets, name="S2B_MSIL2A_20240601T105031")


def landsat():
    """A Landsat Collection 2 Level-2 Item."""
    names = {"blue": "OLI_B2", "green": "OLI_B3", "red": "OLI_B4", "nir08": "OLI_B5"}
    value = {"scale": 2.75e-05, "offset": -0.2, "nodata": 0, "unit": "reflectance"}
    assets = {
        key: {
            "href": f"./LC08_SR_{name[-2:]}.TIF",
            "type": "image/vnd.stac.geotiff; cloud-optimized=true",
            "roles": ["data"],
            "eo:bands": [{"name": name, "common_name": key}],
            "raster:bands": [value],
        }
        for key, name in names.items()
    }
    assets["qa_pixel"] = {
        "href": "./LC08_QA_PIXEL.TIF",
        "type": "image/vnd.stac.geotiff; cloud-optimized=true",
        "roles": ["cloud", "cloud-shadow", "snow-ice", "water-mask"],
        "raster:bands": [{"nodata": 1, "data_type": "uint16"}],
    }
    return make_item(assets, name="LC08_L2SP_198031_20240601_02_T1")


def of_version_1_1():
    """STAC 1.1: `bands`, with what all of them share said of the asset."""
    bands = [
        {"name": f"B{n}", "eo:common_name": name, "raster:offset": offset}
        for n, (name, offset) in enumerate(
            [("red", -0.1), ("green", -0.2), ("blue", -0.3), ("nir", -0.4)], start=1
        )
    ]
    image = {
        "href": "./image.tif",
        "type": GEOTIFF,
        "roles": ["data"],
        "nodata": "nan",
        "raster:scale": 0.001,
        "bands": bands,
    }
    return make_item({"image": image}, name="naip", version="1.1.0")
