"""What a process may take from itself, and who has come of it: Linux tells and obeys.

Elsewhere, and by a Linux that is too old, nothing is done. Standard library only.
"""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from struct import pack

__all__ = ["adopt_orphans", "confine", "family"]

_SET_CHILD_SUBREAPER, _SET_NO_NEW_PRIVS = 36, 38  # linux/prctl.h
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # asm-generic/unistd.h: on every machine
_ASK_VERSION = 1  # linux/landlock.h has this and the rights
_RIGHTS = (  # since which version of Landlock: on files, TCP, other processes
    (1, 0x1FF3, 0, 0),  # all on files but to read them and folders
    (3, 1 << 14, 0, 0),  # to truncate
    (4, 0, 3, 0),  # to bind, to connect
    (6, 0, 0, 3),  # abstract sockets, signals
)


def adopt_orphans() -> None:
    """Have whom children leave behind be children of this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def confine() -> None:
    """Give up changing files, TCP, and the memory of and signals to other processes.

    By Landlock, as far as this Linux knows it (5.13; TCP 6.7; signals 6.12), for the
    calling thread and what it starts. What is open stays open.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    known = [rights for since, *rights in _RIGHTS if since <= version]
    if not known:
        return
    taken = pack("QQQ", *map(sum, zip(*known, strict=True)))
    rules = libc.syscall(_CREATE_RULESET, taken, ctypes.c_size_t(len(taken)), 0)
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.syscall(_RESTRICT_SELF, rules, 0)
    os.close(rules)


def family(pid: int) -> list[int]:
    """Return a process and all that have come of it, as far as is told."""
    found = [pid]
    for each in found:  # it grows
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with suppress(OSError):  # it has ended
                found += map(int, children.read_text(encoding="ascii").split())
    return found
