"""What may be chosen: the values of options, of fields and of records, each list once.

Pure.
"""

__all__ = [
    "ANSWERS",
    "BLENDS",
    "DEVICES",
    "ENGINES",
    "FORMATS",
    "JOINS",
    "NETWORKS",
    "PRECISIONS",
    "RESAMPLINGS",
    "SYMMETRIES",
    "UNITS",
]

ANSWERS = ("logits", "probabilities")
"""What a network gives."""

BLENDS = ("crop", "cosine")
"""How tiles meet."""

DEVICES = ("cpu", "cuda")
"""Where a network computes."""

ENGINES = ("local", "ray")
"""Who runs workers."""

FORMATS = ("gpkg", "parquet", "fgb", "geojson", "geojsonl")
"""Of polygons."""

JOINS = ("bands", "mosaic")
"""How several files are one scene."""

NETWORKS = ("plain", "fused", "compiled")
"""Ways to run a network."""

PRECISIONS = ("fp32", "bf16", "fp16")
"""Of a network's numbers."""

RESAMPLINGS = ("nearest", "bilinear", "cubic")
"""How a scene is brought to another grid."""

SYMMETRIES = {"none": 1, "d4": 8}
"""Ways to look at a tile -> how often the network sees it."""

UNITS = ("reflectance", "dn")
"""What a model's values are in: physical, or as they are stored."""
