"""Who makes progress, and who has not for too long.

Pure: knows names and times it is told, no clock and no workers.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Watch"]

_TIMES = 20  # what a worker usually takes from one sign of progress to the next
_REMEMBERED = 50  # of these times
_FIRST_TIMES = 5  # the patience: libraries and the network are loaded first
_LOOK_SECONDS = 10.0  # a longer time without a look is a pause of the looker's own


@dataclass(slots=True)
class _Seen:
    """The last sign of progress of one worker."""

    sign: object
    at: float
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class Watch:
    """Tells who is stuck: alive perhaps, but without a sign of progress."""

    def __init__(self, patience: float) -> None:
        """Allow `patience` seconds, 20 times what is usual, and more at the start."""
        self._patience = patience
        self._seen: dict[str, _Seen] = {}
        self._looked: float | None = None

    def see(self, name: str, sign: object, now: float) -> None:
        """Take note of a worker's sign: progress, if it is another than the last."""
        seen = self._seen.setdefault(name, _Seen(sign, now))
        if sign != seen.sign:
            seen.gaps.append(max(0.0, now - seen.at))
            seen.sign, seen.at = sign, now

    def forget(self, name: str) -> None:
        """Expect nothing of a worker until it is seen again."""
        self._seen.pop(name, None)

    def stuck(self, now: float) -> dict[str, float]:
        """Return who has been without progress for too long, and for how long."""
        pause = now - (now if self._looked is None else self._looked) - _LOOK_SECONDS
        self._looked = now
        for seen in self._seen.values():
            seen.at += max(0.0, pause)
        return {
            name: now - seen.at
            for name, seen in self._seen.items()
            if now - seen.at > self._allowed(seen)
        }

    def _allowed(self, seen: _Seen) -> float:
        if not seen.gaps:
            return _FIRST_TIMES * self._patience
        return max(self._patience, _TIMES * median(seen.gaps))
