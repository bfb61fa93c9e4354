"""Pages that need nothing else: a frame, our assets, rules that fetch nothing.

Every text in one may come from somebody's file: the templates escape all of them, and
a page's own rules (CSP) let nothing run or be fetched but what is written here.
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

__all__ = ["crs_name", "page_of", "render"]

_ASSETS = "assets/report"
_LONGEST = 20_000  # letters of a text that a person gave
_LARGE = 100  # hectares, from where nobody asks for decimals
_MINUTE = 60


def render(template: str, data: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
    """Return a page.

    Args:
        template: its name.
        data: what its map is drawn from, JSON values.
        facts: what the template tells.
    """
    text = (
        _environment()
        .get_template(template)
        .render(
            data=data,
            style=_asset("leaflet/leaflet.css") + _asset("report.css"),
            script=_asset("leaflet/leaflet.js") + _asset("report.js"),
            licence=_asset("leaflet/LICENSE"),
            **facts,
        )
    )
    return text.encode("utf-8", "replace")


def page_of(template: str, style: str, **facts: Any) -> bytes:  # noqa: ANN401  (what templates show)
    """Return another page in the same style, without a map or script.

    Args:
        template: its name among our assets.
        style: the name of what it has beside the others'.
        facts: what it shows; all of it is escaped.
    """
    text = (
        _environment()
        .get_template(template)
        .render(**facts, style=_asset("report.css") + _asset(style))
    )
    return text.encode("utf-8", "replace")


def crs_name(wkt: str | None) -> str:
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
