"""What happens in a night, told as it happens to whoever wants to know. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = ["KINDS", "Event", "Listener"]

KINDS = (
    "night_begun",
    "scene_begun",
    "scene_ended",
    "scene_given_up",
    "scene_waits",
    "night_ended",
)
"""`scene_waits`: there is no time for it tonight."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    kind: str
    """Of `KINDS`."""
    at: datetime
    scene: str | None = None
    """The scene's name, if it is about one."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values: of a scene its row of `night.json`, of a night's end all of it."""


Listener = Callable[[Event], None]
