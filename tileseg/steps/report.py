"""`report.html`: what became of a run, as one page that needs nothing else."""

import re
from collections.abc import Mapping
from typing import Any

from tileseg.base.address import shown
from tileseg.outputs.page import crs_name, render
from tileseg.steps.verdict import STAGES

__all__ = ["report"]

_MOST = 50  # failures, and files of a scene, that are named
_VISIBLE = 1.1  # of the seams' ratio, from where somebody may see them

_SECONDS = {
    "open": "looking at the scene",
    "plan": "starting workers, making the plan",
    "work": "making shards",
    "stitch": "stitching",
    "verify": "reading again what was stitched",
    "vectorize": "joining polygons",
}
_NOTES = {
    "mask": "class of each pixel, with colours and names",
    "confidence": "probability of the class",
    "margin": "how far the next class is behind",
    "entropy": "how spread out the probabilities are",
    "probabilities": "how probable each class is, a band for each",
    "polygons": "the mask as polygons",
    "failures": "where shards could not be made",
    "quicklook": "scene and mask at a glance",
    "item": "all of this for catalogs (STAC)",
    "shards": "what the network saw of each shard, for --incremental",
    "run": "all of this for programs, with digests",
}


def report(
    run: Mapping[str, Any],
    chart: Mapping[str, Any],
    versions: Mapping[str, str],
    outputs: Mapping[str, int],
) -> bytes:
    """Return the page.

    Args:
        run: the content of `run.json` as far as it is known; secrets taken out.
        chart: what the map shows, see `overlay.py`.
        versions: of the packages that decide the products' bytes.
        outputs: name to size in bytes of the files beside the page.
    """
    classes = _classes(run, chart["colors"])
    legend = {
        it["value"]: {key: it[key] for key in ("name", "color")} for it in classes
    }
    failures = run["failures"][:_MOST]
    return render(
        "report.html",
        {"chart": chart, "legends": {"mask": legend}, "failures": failures},
        {
            "run": run,
            "chart": chart,
            "title": _name(run["scene"]["href"]),
            "classes": classes,
            "rasters": [name for name in chart["rasters"] if name != "mask"],
            "versions": versions,
            "outputs": outputs,
            "crs": crs_name(run["scene"]["crs"]),
            "stages": STAGES,
            "seconds": _SECONDS,
            "failures": failures,
            "notes": _NOTES,
            "most": _MOST,
            "is_seen": (run["seams"]["ratio"] or 0) > _VISIBLE,
        },
    )


def _classes(run: Mapping[str, Any], colors: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return what the legend says of each class, in the order of their values."""
    pixels, hectares = run["pixels"]["by_class"], run["hectares"]
    total = max(1, sum(pixels.values()))
    return [
        {
            "value": int(value),
            "name": name,
            "color": colors[int(value)],
            "share": pixels[name] / total,
            "pixels": pixels[name],
            "hectares": hectares and hectares[name],
        }
        for value, name in run["model"]["classes"].items()
    ]


def _name(href: str) -> str:
    return re.split(r"[/\\]", shown(href).partition("?")[0])[-1] or href
