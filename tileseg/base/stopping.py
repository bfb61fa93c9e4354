"""The wish to end: at once, or when what is in hand is done.

Knows no signals and no engine: the command line turns a signal into `Stop.ask`, and
the job, where it has workers to wait for, is `patient` for a while.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from tileseg.errors import TilesegError

__all__ = ["Stop", "StopSignal"]


class StopSignal(KeyboardInterrupt):
    """The end of a run from outside, wherever it was: past every `except Exception`."""

    def __init__(self, error: TilesegError) -> None:
        """Say with which error the run ends."""
        super().__init__(str(error))
        self.error = error


class Stop:
    """Whether a run was asked to end, and how long ago."""

    def __init__(self) -> None:
        """Nobody asked yet."""
        self.error: TilesegError | None = None
        """The last wish; None if there was none."""
        self._since = 0.0
        self._is_patient = False

    def ask(self, error: TilesegError) -> None:
        """End with `error`: when what is in hand is done, if somebody sees to that.

        Raises:
            StopSignal: nobody does.
        """
        self.error = error
        self._since = monotonic()
        if not self._is_patient:
            raise StopSignal(error)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Let a first wish wait until here is done, then obey it.

        Raises:
            StopSignal: at the end, if somebody asked meanwhile.
        """
        self._is_patient = True
        try:
            yield
        finally:
            self._is_patient = False
        self.obey(0)

    def obey(self, grace: float) -> bool:
        """Return whether somebody asked, and less than `grace` seconds ago.

        Raises:
            StopSignal: it was longer ago.
        """
        if self.error is None:
            return False
        if monotonic() - self._since >= grace:
            raise StopSignal(self.error)
        return True
