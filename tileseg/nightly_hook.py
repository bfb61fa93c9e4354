"""Telling a receiver on the web how a night ended; what goes wrong there ends nothing.

The receiver's address may itself be the secret, so no more than its host is ever said.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tileseg.address import keep, netloc
from tileseg.calls import call
from tileseg.errors import ExitCode, TilesegError, UsageError
from tileseg.nightly_file import RECEIVER, Schedule, is_receiver, secret
from tileseg.nightly_summary import LOUD
from tileseg.redact import redact
from tileseg.server import judge
from tileseg.web import WebFile

__all__ = ["check", "notify", "notify_failure"]

logger = logging.getLogger(__name__)

_SECONDS = 30.0  # of trying again
_NAMED = 20  # scenes that the text names


def notify(night: Schedule, summary: Mapping[str, Any]) -> bool:
    """Send a night's summary to its webhook; return whether it was taken.

    As JSON: `text`, which chats show, and `night`, which is `night.json`.
    """
    if not night.webhook:
        return False
    try:
        address, headers = secret(night.webhook), _headers(night)
    except TilesegError as err:
        logger.warning("the webhook was not told: %s", err)
        return False
    return _post(address, headers, _body(summary))


def check(night: Schedule) -> None:
    """Refuse, before the night, a webhook that can never be told.

    Raises:
        UsageError: there is no such secret, or it is no address that may be asked.
    """
    for key in ("webhook", "webhook_token"):
        try:
            _ = secret(getattr(night, key))
        except TilesegError as err:
            msg = f"[night] {key}: {err}"
            raise UsageError(msg) from err
    if not (address := secret(night.webhook)):
        return
    try:
        _host(address)
        WebFile(keep(address))
        judge(*netloc(urlsplit(address)))
    except TilesegError as err:
        msg = f"[night] webhook: {_nameless(err)}"
        raise UsageError(msg) from None


def _host(address: str) -> str:
    """Return the host of an address on the web."""
    if not is_receiver(address):
        msg = f"address: wanted {RECEIVER}"
        raise UsageError(msg)
    return urlsplit(address).hostname or ""


def _nameless(error: TilesegError) -> str:
    """Return an error without what it begins with, the address."""
    return str(error).partition(": ")[2] or type(error).__name__


def notify_failure(night: Schedule, error: TilesegError) -> bool:
    """Send why a night did not begin."""
    code = int(error.exit_code)
    if code in (ExitCode.PREEMPTED, ExitCode.BUSY):  # another one is at it, or will be
        return False
    summary = {"exit_code": code, "error": str(error), "warnings": [], "scenes": []}
    return notify(night, {"night": None, "counts": {"scenes": 0}, **summary})


def _post(address: str, headers: dict[str, str], body: bytes) -> bool:
    host = "an unknown host"
    try:
        host = _host(address)
        answer = call(address, body, headers, seconds=_SECONDS)
        problem = "" if answer.is_good else f"it answers {answer.status}"
    except TilesegError as err:
        problem = _nameless(err)
    if problem:
        logger.warning("the webhook at %s was not told: %s", host, problem)
    return not problem


def _headers(night: Schedule) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if night.webhook_token:
        headers["Authorization"] = f"Bearer {secret(night.webhook_token)}"
    return headers


def _body(summary: Mapping[str, Any]) -> bytes:
    told = {"text": _text(summary), "night": summary}
    return redact(json.dumps(told)).encode()


def _text(summary: Mapping[str, Any]) -> str:
    """Return the night in a few lines."""
    if summary["night"] is None:
        return f"tileseg: the night did not begin: {summary['error']}"
    counts = summary["counts"]
    told = [f"{n} {state}" for state, n in counts.items() if n and state != "scenes"]
    head = (
        f"tileseg, night of {summary['night']}: {counts['scenes']} scenes"
        f"{': ' if told else ''}{', '.join(told)}; exit code {summary['exit_code']}"
    )
    odd = [f"warning: {text}" for text in summary["warnings"]]
    loud = [row for row in summary["scenes"] if row["state"] in LOUD]
    lines = [f"{row['state']}: {row['name']}: {row['error']}" for row in loud[:_NAMED]]
    more = [f"and {len(loud) - _NAMED} more"] if len(loud) > _NAMED else []
    return "\n".join([head, *odd, *lines, *more])
