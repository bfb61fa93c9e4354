"""Secrets taken out of a text before anybody sees it: the one place where that is done.

Used where text leaves the process: the log, the terminal, the records of a run.
"""

import json
import logging
import os
import re
from typing import Any

__all__ = ["Redacted", "json_bytes", "redact"]

HIDDEN = "[hidden]"

_URL = re.compile(
    r"(\b[a-z][a-z0-9+.-]{0,30}://)([^\s/?#\"'<>\\]*@)?([^\s?\"'<>\\]*)"
    r"(\?[^\s\"'<>\\]*)?",
    re.IGNORECASE,
)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_SECRETIVE = re.compile(
    r"(?=AWS|AZURE|GOOGLE|GCP|GCS|RAY_AUTH)"
    r".*(KEY|TOKEN|SECRET|PASSWORD|SAS|CONNECTION_STRING)(?!.*(FILE|PATH)$)",
    re.IGNORECASE,
)
_STEERING = {
    code: "?" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}
_SHORTEST = 8  # of a secret: shorter values occur by themselves


def redact(text: str) -> str:
    """Return a text without users and queries of URLs, keys, and secret variables.

    Nor what steers a terminal: names of files and bands may hold that.
    """
    text = _URL.sub(_bare, text.translate(_STEERING))
    text = _KEY_ID.sub(HIDDEN, text)
    for value in _secrets():
        text = text.replace(value, HIDDEN)
    return text


def json_bytes(value: Any) -> bytes:  # noqa: ANN401  (anything that JSON can say)
    """Return a file of JSON; no secret is in it."""
    return (redact(json.dumps(value, indent=1)) + "\n").encode()


class Redacted(logging.Formatter):
    """A log's format whose lines, tracebacks too, tell no secret."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redact(super().format(record))


def _bare(found: re.Match[str]) -> str:
    scheme, user, rest, query = found.groups()
    before, behind = f"{HIDDEN}@" if user else "", f"?{HIDDEN}" if query else ""
    return f"{scheme}{before}{rest}{behind}"


def _secrets() -> list[str]:
    """Return the values of the environment that nobody may see, longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _SECRETIVE.match(name)
    }
    return sorted(values, key=len, reverse=True)
