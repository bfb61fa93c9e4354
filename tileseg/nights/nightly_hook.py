"""Telling a receiver on the web how a night ended; what goes wrong there ends nothing.

The receiver's address may itself be the secret, so no more than its host is ever said.
"""

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from tileseg.base.address import keep, netloc
from tileseg.base.redact import redact
from tileseg.errors import ExitCode, TilesegError, UsageError
from tileseg.nights.nightly_file import RECEIVER, Schedule, is_receiver, secret
from tileseg.nights.nightly_state import night_of
from tileseg.nights.nightly_summary import LOUD, in_line, summary
from tileseg.stores.calls import call
from tileseg.stores.server import judge
from tileseg.stores.web import WebFile

__all__ = ["check", "notify", "notify_failure"]

logger = logging.getLogger(__name__)

_SECONDS = 30.0  # of trying again
_NAMED = 20  # scenes that the text names


def notify(night: Schedule, told: Mapping[str, Any], text: str = "") -> bool:
    """Send a night's summary to its webhook; return whether it was taken.

    As JSON: `text`, which chats show, and `night`, which is `night.json`.

    Args:
        night: how it is sent.
        told: the summary.
        text: what to say in place of the summary in a few lines.
    """
    if not night.webhook:
        return False
    try:
        address, headers = secret(night.webhook), _headers(night)
    except TilesegError as err:
        logger.warning("the webhook was not told: %s", err)
        return False
    body = redact(json.dumps({"text": text or _text(told), "night": told}))
    return _post(address, headers, body.encode())


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
    """Send why a night did not begin; its summary has no scene."""
    code = error.exit_code
    if code in (ExitCode.PREEMPTED, ExitCode.BUSY):  # another one is at it, or will be
        return False
    now = datetime.now().astimezone()
    told = summary(
        [],
        [],
        night=night_of(now),
        started=now.isoformat(timespec="seconds"),
        seconds=0.0,
        stopped=code,
    )
    return notify(night, told, f"tileseg: the night did not begin: {error}")


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


def _text(told: Mapping[str, Any]) -> str:
    """Return a summary in a few lines."""
    head = (
        f"tileseg, night of {told['night']}: {in_line(told)}; "
        f"exit code {told['exit_code']}"
    )
    odd = [f"warning: {text}" for text in told["warnings"]]
    loud = [row for row in told["scenes"] if row["state"] in LOUD]
    lines = [f"{row['state']}: {row['name']}: {row['error']}" for row in loud[:_NAMED]]
    more = [f"and {len(loud) - _NAMED} more"] if len(loud) > _NAMED else []
    return "\n".join([head, *odd, *lines, *more])
