"""Who has a lock: told to whoever comes second, and whether it is known to be dead."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from platform import node
from typing import Any

__all__ = ["is_gone", "name", "parse", "this_process"]


def this_process() -> dict[str, Any]:
    """Return what another process can know this one by."""
    return {"host": node(), "pid": os.getpid(), "space": _pid_space()}


def parse(data: bytes) -> dict[str, Any]:
    """Return the owner that was written; an empty one if nobody can read it."""
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError):
        return {}


def name(owner: Mapping[str, Any]) -> str:
    """Return how to tell a person of it."""
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'unknown')}"


def is_gone(owner: Mapping[str, Any]) -> bool:
    """Return whether it was a process of this machine and ended.

    Also if nobody has asked yet how it ended.
    """
    if owner.get("space") != _pid_space():
        return False
    pid = owner.get("pid")
    try:
        os.kill(int(str(pid)), 0)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"


def _pid_space() -> str:
    """Return what tells the processes that can see each other from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f"{boot.strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return node()
