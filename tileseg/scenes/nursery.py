"""A process that loads a module once, and forks another for each thing that is asked.

For what may kill who does it, and takes less time than loading. The first process does
nothing of it itself, and ends with the one that began it. Standard library only.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from struct import Struct
from threading import Lock, Timer
from typing import IO

from tileseg.scenes.jail import adopt_orphans, family

__all__ = ["Ending", "Nursery", "last_line", "serve_forks"]

Talk = Callable[[Callable[[bytes], None], IO[bytes]], bytes]
"""Speaks with a child, by what tells it bytes and what it says; returns its last word.

It may leave a `ConnectionError` alone: the child hears no more.
"""

_CODE = Struct("i")
_STDERR_BYTES = 1 << 18  # a socket holds fewer
_LONGEST_REASON = 300  # letters


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child has ended."""

    code: int
    """Its exit code, or less the number of the signal."""
    said: bytes
    """Its last word."""
    reason: str
    """For a person: what ended it, or its last line on stderr."""


class Nursery:
    """The process that forks others, as this one sees it; begun when first asked.

    Its module calls `serve_forks` where it is run as a program.
    """

    def __init__(
        self, module: str, environment: Callable[[], Mapping[str, str]]
    ) -> None:
        """Say which module, and what is in its environment; begin nothing."""
        self._module, self._environment = module, environment
        self._lock = Lock()
        self._running: _Running | None = None
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)

    def ask(self, talk: Talk, limit: float) -> Ending:
        """Have a child born, and speak with it until it ends.

        Args:
            talk: what is said.
            limit: seconds after which it is killed.

        Raises:
            OSError: there can be no such process.
            Exception: what `talk` raises.
        """
        with self._lock:
            if self._running is None or not self._running.is_well:
                self._end()
                self._running = _Running(self._module, self._environment())
            return self._running.ask(talk, limit)

    def close(self) -> None:
        """End the process, if it was begun; who asks again begins another."""
        with self._lock:
            self._end()

    def _forget(self) -> None:
        """Leave the process to the one that this one was forked from."""
        self._lock, self._running = Lock(), None

    def _end(self) -> None:
        running, self._running = self._running, None
        if running:
            running.close()


class _Running:
    """The process itself."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._is_killed = False
        with ExitStack() as stack:
            self._asks, asked = map(stack.enter_context, socket.socketpair())
            self._stderr, stderr = map(stack.enter_context, socket.socketpair())
            for end in (self._stderr, stderr):
                end.settimeout(0)  # what is too much is lost, and holds nobody up
            # -P: a folder that is worked in may hold anything, modules too.
            self._process = subprocess.Popen(  # noqa: S603  (our own, and no shell)
                [sys.executable, "-P", "-m", module],
                env=environment,
                stdin=asked.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=stderr.fileno(),
                start_new_session=True,  # Ctrl-C is for those who know what to do
            )
            asked.close()  # else the end of that process would not be seen
            stderr.close()
            self._open = stack.pop_all()

    @property
    def is_well(self) -> bool:
        return not self._is_killed and self._process.poll() is None

    def ask(self, talk: Talk, limit: float) -> Ending:
        said, word = self._speak(talk, limit)
        if self._is_killed:
            return Ending(-signal.SIGKILL, said, f"no answer in {limit:.0f} s")
        reason = self._complaint()
        if not word:
            self._kill()  # it may seem to be there for a moment
            raise OSError(0, reason or "it ended")
        (code,) = _CODE.unpack(word)
        if family(self._process.pid)[1:]:
            code, reason = -signal.SIGKILL, "it left a process behind"
        elif code < 0:
            reason = signal.strsignal(-code) or f"signal {-code}"
        if code < 0:
            self._kill()  # what was done to a child may have been done to its parent
        return Ending(code, said, reason)

    def _speak(self, talk: Talk, limit: float) -> tuple[bytes, bytes]:
        """Have a child born; return its last word, and that of the process on it."""
        said = b""
        with ExitStack() as stack:
            # Not pipes: shut down, a socket wakes who waits at it, whoever may still
            # hold its other end.
            pairs = socket.socketpair() + socket.socketpair()
            tells, its_input, hears, its_output = map(stack.enter_context, pairs)
            late = Timer(limit, self._kill, (tells, hears))
            late.start()
            try:
                with its_input, its_output, suppress(ConnectionError):
                    ends = its_input.fileno(), its_output.fileno()
                    socket.send_fds(self._asks, [b"?"], ends)
                with hears.makefile("rb") as says, suppress(ConnectionError):
                    said = talk(tells.sendall, says)
                _hang_up(tells, hears)  # nothing holds the child any more: it ends
                return said, self._word()
            except BaseException:
                self._kill()  # else the next one would be told how this one ended
                raise
            finally:
                late.cancel()
                late.join()  # it may have begun to kill

    def _word(self) -> bytes:
        """Return how the child ended; nothing where the process itself has."""
        with suppress(ConnectionError):
            return self._asks.recv(_CODE.size)
        return b""

    def _complaint(self) -> str:
        """Return the last line on stderr since this was asked before."""
        with suppress(BlockingIOError):  # nothing
            return last_line(self._stderr.recv(_STDERR_BYTES))[:_LONGEST_REASON]
        return ""

    def _kill(self, *talk: socket.socket) -> None:
        """End it and all that have come of it, and what waits for them."""
        self._is_killed = True
        gone = suppress(ProcessLookupError, PermissionError)  # as some systems say it
        for pid in family(self._process.pid):  # one may have left the group
            with gone:
                os.kill(pid, signal.SIGKILL)
        with gone:
            os.killpg(self._process.pid, signal.SIGKILL)
        _hang_up(self._asks, *talk)

    def close(self) -> None:
        self._kill()
        self._process.wait()
        self._open.close()


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):  # the other end has gone
            end.shutdown(socket.SHUT_RDWR)


def last_line(said: bytes) -> str:
    """Return the last line of what was said."""
    return said.decode(errors="replace").strip().rpartition("\n")[2]


def serve_forks(work: Callable[[], int]) -> None:
    """Be the process that forks, until nobody can ask any more.

    Args:
        work: what a child does, by its own standard input and output; returns its exit
            code.
    """
    adopt_orphans()  # so that whoever ends this process finds them
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as asked:
        while pipes := socket.recv_fds(asked, 1, 2)[1]:
            if child := os.fork():
                for pipe in pipes:
                    os.close(pipe)
                _, status = os.waitpid(child, 0)
                asked.sendall(_CODE.pack(os.waitstatus_to_exitcode(status)))
                continue
            asked.close()
            for pipe, stream in zip(pipes, (sys.stdin, sys.stdout), strict=True):
                os.dup2(pipe, stream.fileno())
                os.close(pipe)
            code = work()
            sys.stdout.flush()
            os._exit(code)  # at once: libraries take long to take their leave
