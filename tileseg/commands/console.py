"""The process and its terminal: signals, streams, progress, the way out."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import click

from tileseg.base.environment import scrub
from tileseg.base.logs import JsonLines
from tileseg.base.redact import Redacted, redact
from tileseg.base.stopping import Stop, StopSignal
from tileseg.errors import (
    DeadlineError,
    InterruptedRunError,
    PreemptedError,
    TilesegError,
)

__all__ = [
    "begin",
    "configure_logging",
    "deadline",
    "leave",
    "one_line_errors",
    "progress",
    "results",
    "signals",
    "tell",
]

_LOG_SECONDS = 10
_STDERR = 2
logger = logging.getLogger(__name__)
_results: TextIO | None = None
_json_lines: JsonLines | None = None


def begin(options: dict[str, Any]) -> None:
    """See to what the process needs before anything; takes its options away."""
    configure_logging(
        options.pop("verbose"),
        is_quiet=options.pop("quiet"),
        log_format=options.pop("log_format"),
    )
    scrub()


def configure_logging(
    verbosity: int, *, is_quiet: bool, log_format: str | None = None
) -> None:
    """Log to stderr: what tileseg does, and of others only warnings.

    Args:
        verbosity: more than 0 for what only a developer asks for.
        is_quiet: only errors.
        log_format: `json` for an object a line; None or `text` for lines to be read.
    """
    global _json_lines  # noqa: PLW0603  (of the process, as sys.stderr is)
    _open_streams()
    _json_lines = JsonLines() if log_format == "json" else None
    level = logging.ERROR if is_quiet else logging.DEBUG if verbosity else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_lines or Redacted("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("tileseg").setLevel(level)


@contextmanager
def signals() -> Iterator[Stop]:
    """Let SIGTERM and SIGINT end the job resumably.

    It leaves workers some seconds for what they have in hand; a second one ends the
    process there and then, resumably too.
    """
    errors = {signal.SIGTERM: PreemptedError, signal.SIGINT: InterruptedRunError}
    stop = Stop()

    def ask(number: int, _frame: FrameType | None) -> None:
        for each in errors:  # a second one, whichever, ends the process
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        text = f"{name}: stopped; the same command resumes"
        stop.ask(errors[signal.Signals(number)](text))

    before = {number: signal.signal(number, ask) for number in errors}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deadline(stop: Stop, seconds: float | None) -> Iterator[None]:
    """Have what runs here asked to stop after so many seconds, as a signal would.

    Args:
        stop: who is asked.
        seconds: until then; None for never.
    """
    if seconds is None or seconds <= 0:  # nothing is begun, so nothing is stopped
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        stop.ask(DeadlineError("the night is over: stopped; the next one resumes"))

    before = signal.signal(signal.SIGALRM, ring)
    was = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *was)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def progress(title: str) -> Iterator[Any]:
    """Give a function of (done, total): a bar on a terminal, else a line per 10 s."""
    if not logger.isEnabledFor(logging.INFO):
        yield lambda _done, _total: None
    elif sys.stderr.isatty() and not _json_lines:
        from tqdm.contrib.logging import logging_redirect_tqdm

        with ExitStack() as stack, logging_redirect_tqdm():
            yield _drawn(Path(title).name, stack)
    else:
        last = time.monotonic()

        def log(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _LOG_SECONDS:
                last = time.monotonic()
                logger.info("%s: %d of %d tiles", title, done, total)

        yield log


def _drawn(title: str, stack: ExitStack) -> Callable[[int, int], None]:
    """Return what draws a bar, whose rate is of what is done from its first call on."""
    from tqdm import tqdm

    bar: tqdm[NoReturn] | None = None

    def draw(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=title, total=total, initial=done, unit="tile")
            stack.enter_context(bar)
        bar.n = done
        bar.refresh()

    return draw


@contextmanager
def results() -> Iterator[None]:
    """Keep stdout for what `tell` says; what libraries print there goes to stderr.

    Ray, for one, prints there that a node is gone.
    """
    global _results  # noqa: PLW0603  (of the process, as sys.stdout is)
    _results = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = None


def tell(line: str, *, level: int | None = None) -> None:
    """Print a line, no secret; a reader that is gone, or a full disk, stops no job.

    Args:
        line: to be printed.
        level: of a line on stderr, where an error says whose it is; None: on stdout.
    """
    stream = _results or sys.stdout if level is None else sys.stderr
    if level is not None and _json_lines:
        told = logging.LogRecord("tileseg", level, "", 0, line, None, None)
        line = _json_lines.format(told)
    elif level == logging.ERROR:
        line = f"tileseg: {line}"
    try:
        click.echo(redact(line), file=stream)
    except OSError:
        # What is buffered would be written again, and fail again, at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """Lead closed standard streams to nowhere: a map would get their number."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(handle)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn our errors into one line on stderr and their exit code."""
    try:
        yield
    except (TilesegError, StopSignal) as err:
        error = err.error if isinstance(err, StopSignal) else err
        tell(str(error), level=logging.ERROR)
        sys.exit(int(error.exit_code))


def leave(code: int, *, is_broken: bool) -> NoReturn:
    """End the process, even if a thread of it never will."""
    if is_broken:
        logging.shutdown()
        os._exit(code)  # what was printed is written: each line is flushed
    sys.exit(code)
