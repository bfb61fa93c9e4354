"""`report.html`: what became of a run, as one page that needs nothing else.

Every text in it may come from somebody's file: the template escapes all of them, and
the page's own rules (CSP) let nothing run or be fetched but what is written here.
"""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from math import isfinite, log10
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tileseg.address import shown
from tileseg.verdict import STAGES

__all__ = ["report"]

_ASSETS = "assets/report"
_MOST = 50  # failures, and files of a scene, that are named
_LONGEST = 20_000  # letters of a text that a person gave
_LARGE = 100  # hectares, from where nobody asks for decimals
_MINUTE = 60
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
    text = (
        _environment()
        .get_template("report.html")
        .render(
            run=run,
            chart=chart,
            title=_name(run["scene"]["href"]),
            classes=classes,
            rasters=[name for name in chart["rasters"] if name != "mask"],
            versions=versions,
            outputs=outputs,
            crs=_crs(run["scene"]["crs"]),
            stages=STAGES,
            seconds=_SECONDS,
            failures=failures,
            notes=_NOTES,
            most=_MOST,
            is_seen=(run["seams"]["ratio"] or 0) > _VISIBLE,
            data={"chart": chart, "legends": {"mask": legend}, "failures": failures},
            style=_asset("leaflet/leaflet.css") + _asset("report.css"),
            script=_asset("leaflet/leaflet.js") + _asset("report.js"),
            licence=_asset("leaflet/LICENSE"),
        )
    )
    return text.encode("utf-8", "replace")


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


def _crs(wkt: str | None) -> str:
    """Return what a CRS calls itself, with its code if it has one."""
    if not wkt:
        return "none"
    name = re.match(r'\w+\["([^"]*)"', wkt)
    code = re.search(r'ID\["(\w+)",(\d+)\]\]$', wkt)
    text = name[1] if name else wkt
    return f"{text} ({code[1]}:{code[2]})" if code else text


@cache
def _asset(name: str) -> str:
    """Return a file of ours as it can stand in a page that fetches nothing."""
    text = (files("tileseg") / _ASSETS / name).read_text(encoding="utf-8")
    if name.endswith(".css"):
        return re.sub(r"url\([^)]*\)", "none", text)
    return re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tileseg", _ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Without spaces; and layers keep their order.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {
        "count": "{:,}".format,
        "digest": _digest,
        "hectares": _hectares,
        "percent": _percent,
        "pretty": _pretty,
        "seconds": _time,
        "size": _size,
    }
    return environment


def _digest(text: str) -> str:
    """Return a text's digest as a page's rules name it."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _hectares(value: float | None) -> str:
    if value is None or not isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= _LARGE else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _pretty(value: Any) -> str:  # noqa: ANN401  (anything that JSON can say)
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … (see run.json)"


def _time(value: float | None) -> str:
    """Return seconds as a person says them."""
    if value is None:
        return "–"
    if value < _MINUTE:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), _MINUTE)
    hours, minutes = divmod(minutes, _MINUTE)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _size(value: int) -> str:
    """Return bytes as a person says them."""
    if not value:
        return "0 B"
    power = min(3, int(log10(value)) // 3)
    return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"
