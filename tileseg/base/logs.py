"""Log lines for machines: a JSON object each, with the scene and shard it is about."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from tileseg.base.redact import redact

__all__ = ["JsonLines", "about"]

_scene: str | None = None


@contextmanager
def about(scene: str) -> Iterator[None]:
    """Have every line of this process, whichever thread's, say that it is about it."""
    global _scene  # noqa: PLW0603  (worker threads log too, and inherit no context)
    before, _scene = _scene, scene
    try:
        yield
    finally:
        _scene = before


class JsonLines(logging.Formatter):
    """`time`, `level`, `logger`, `message`; `scene`, `shard`, `error` where known."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; no secret is in it."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "scene": _scene,
            "shard": getattr(record, "shard", None),
            "error": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({k: redact(v) for k, v in values.items() if v is not None})
