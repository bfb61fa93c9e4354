"""What this process has of a machine: memory, and giving it back; cores, and waiting.

A MB is 10^6 bytes, as in what is predicted.
"""

import ctypes
import resource
from pathlib import Path

__all__ = ["keep_heap", "peak_rss_mb", "rss_mb", "trim_heap", "waited_seconds"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_KEEP = 256 << 20  # bytes at an arena's end
_KEEP_BLOCK = 32 << 20  # bytes; glibc takes no more
_KEEP_PIECE = 64 << 20  # bytes: what threads other than the first have heaps made of


def peak_rss_mb() -> float:
    """Return the most this process held; `ru_maxrss` may be its parent's."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        kib = int(status.split("VmHWM:")[1].split()[0])
    except (OSError, LookupError, ValueError):
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * 1024 / 1e6


def rss_mb() -> float:
    """Return what this process holds now; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * resource.getpagesize() / 1e6
    except (OSError, LookupError, ValueError):
        return 0.0


def keep_heap() -> None:
    """Keep freed memory for what comes next, where the C library can (glibc).

    A forward frees as much as the next one needs. From the system every page of it
    comes anew, filled with zeros, which takes a seventh of a small network's time.
    """
    setting = getattr(ctypes.CDLL(None), "mallopt", None)
    if setting is not None:
        setting(_MMAP_THRESHOLD, _KEEP_BLOCK)
        setting(_TRIM_THRESHOLD, _KEEP)
        # A thread's heap loses its last piece whenever that is empty, whatever the
        # threshold says, unless so much is to stay free.
        setting(_TOP_PAD, _KEEP_PIECE)


def trim_heap() -> None:
    """Give free memory back to the system, where the C library can (glibc).

    Strips and rows of labels come in many sizes and leave holes in the heap that the
    next do not fit in: without this the peak grows with the number of strips.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def waited_seconds() -> float:
    """Return how long this thread wanted a core that others had; 0 if nobody says."""
    try:
        status = Path("/proc/thread-self/schedstat").read_text(encoding="ascii")
        return int(status.split()[1]) / 1e9
    except (OSError, LookupError, ValueError):
        return 0.0
