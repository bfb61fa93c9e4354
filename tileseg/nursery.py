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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from struct import Struct
from tempfile import TemporaryFile
from threading import Lock, Timer
from typing import IO

__all__ = ["Ending", "Nursery", "last_line", "serve_forks"]

Talk = Callable[[IO[bytes], IO[bytes]], bytes]
"""Speaks with a child, by what it hears and what it says; returns its last word."""

_CODE = Struct("i")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child has ended."""

    code: int
    """Its exit code, or less the number of the signal."""
    said: bytes
    """Its last word."""
    reason: str
    """For a person: the signal, that it was late, or its last line on stderr."""


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
            self._errors = stack.enter_context(TemporaryFile())
            self._socket, theirs = map(stack.enter_context, socket.socketpair())
            # -P: a folder that is worked in may hold anything, modules too.
            self._process = subprocess.Popen(  # noqa: S603  (our own, and no shell)
                [sys.executable, "-P", "-m", module],
                env=environment,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for those who know what to do
            )
            theirs.close()  # else the end of that process would not be seen
            self._open = stack.pop_all()

    @property
    def is_well(self) -> bool:
        return not self._is_killed and self._process.poll() is None

    def ask(self, talk: Talk, limit: float) -> Ending:
        late = Timer(limit, self._kill)
        late.start()
        try:
            with self._child() as pipes:
                said = talk(*pipes)
            word = self._word()  # nothing holds the child any more: it ends
        except BaseException:
            self._kill()  # else the next one would be told how this one ended
            raise
        finally:
            late.cancel()
            late.join()  # it may have begun to kill
        if self._is_killed:
            return Ending(-signal.SIGKILL, said, f"no answer in {limit:.0f} s")
        self._errors.seek(0)
        error = last_line(self._errors.read())
        if not word:
            self._kill()  # it may seem to be there for a moment
            raise OSError(0, error or "it ended")
        (code,) = _CODE.unpack(word)
        if code >= 0:
            return Ending(code, said, error)
        self._kill()  # what a file could do to a child it may have done to its parent
        return Ending(code, said, f"signal {-code}")

    @contextmanager
    def _child(self) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """Have a child born; yield what it hears and what it says."""
        (its_input, ours), (answers, its_output) = os.pipe(), os.pipe()
        hears, says = os.fdopen(ours, "wb"), os.fdopen(answers, "rb")
        try:
            try:
                with suppress(BrokenPipeError):  # then no code comes, either
                    socket.send_fds(self._socket, [b"?"], [its_input, its_output])
            finally:
                os.close(its_input)
                os.close(its_output)
            yield hears, says
        finally:
            says.close()
            with suppress(BrokenPipeError):  # what was written to one that died
                hears.close()

    def _word(self) -> bytes:
        """Return how the child ended; nothing where the process itself has."""
        try:
            return self._socket.recv(_CODE.size)
        except ConnectionResetError:
            return b""

    def _kill(self) -> None:
        """End it, and with it the child."""
        self._is_killed = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self._kill()
        self._process.wait()
        self._open.close()


def last_line(said: bytes) -> str:
    """Return the last line of what was said."""
    return said.decode(errors="replace").strip().rpartition("\n")[2]


def serve_forks(work: Callable[[], int]) -> None:
    """Be the process that forks, until nobody can ask any more.

    Args:
        work: what a child does, by its own standard input and output; returns its exit
            code.
    """
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
