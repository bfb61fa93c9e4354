"""Faults that really happen, at any call of any function of tileseg.

A fault reads `module.function:moment:n:action`, or with `@row_col` at its end for calls
about that shard only; several are separated by blanks. The moments are

- before, after: the n-th call (`*`: every call); one that raises has no after, and what
  a generator or a context manager does comes after its call;
- item: the n-th item of all that a generator yields;
- torn: in the n-th call or the first one after it where a file is synced: its last line
  is cut in two first.

The actions are below. Faults in this process are made by `install`; those in another
one, in the workers of a cluster too, by `environment`.
"""

import errno
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent
SLOW_SECONDS = 0.05
_FAULT = re.compile(
    r"(\w+)\.([\w.]+):(before|after|item|torn):(\d+|\*):(\w+)(?:@(\d+_\d+))?"
)


def environment(faults, log=""):
    """Return what makes the faults happen in a process that is started with it."""
    paths = (str(FOLDER / "faulty"), os.environ.get("PYTHONPATH", ""))
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TILESEG_FAULTS": faults,
        "TILESEG_FAULTS_LOG": str(log),
    }


def install(faults):
    """Make the faults happen in this process, whatever of tileseg is imported yet."""
    by_module = defaultdict(list)
    for fault in map(Fault, faults.split()):
        by_module[_whole_name(fault.module)].append(fault)
    for name in [name for name in by_module if name in sys.modules]:
        _wrap(sys.modules[name], by_module.pop(name))
    if by_module:
        sys.meta_path.insert(0, _Finder(by_module))


def _whole_name(module):
    """Return a module's name with its packages: no two have the same last part."""
    package = Path(importlib.util.find_spec("tileseg").origin).parent
    (path,) = package.rglob(f"{module}.py")
    return ".".join(("tileseg", *path.relative_to(package).with_suffix("").parts))


def logged(path):
    """Return how often each function was logged."""
    calls = defaultdict(int)
    for line in Path(path).read_text().splitlines():
        calls[line.partition(" ")[2]] += 1
    return calls


# Actions: each gets the fault and the call's result, and returns a result.


def _signal(number):
    def send(_fault, result):
        os.kill(os.getpid(), number)
        return result

    return send


def _hang(_fault, _result):
    threading.Event().wait()


def _slow(_fault, result):
    time.sleep(SLOW_SECONDS)
    return result


def _out_of_memory(_fault, _result):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _device_error(_fault, _result):
    import torch

    error = getattr(torch, "AcceleratorError", RuntimeError)
    raise error("CUDA error: an illegal memory access was encountered")


def _disk_full(_fault, _result):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _log(fault, result):
    line = f"{os.getpid()} {fault.module}.{fault.function}\n"
    handle = os.open(
        os.environ["TILESEG_FAULTS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT
    )
    os.write(handle, line.encode())  # at once: another process may write too
    os.close(handle)
    return result


ACTIONS = {
    "kill": _signal(signal.SIGKILL),
    "term": _signal(signal.SIGTERM),
    "stop": _signal(signal.SIGSTOP),
    "hang": _hang,
    "slow": _slow,
    "oom": _out_of_memory,
    "cuda": _device_error,
    "full": _disk_full,
    "nan": lambda _fault, result: result * float("nan"),
    "log": _log,
}


# What makes them happen


class Fault:
    """One of them, and how many of its calls there were."""

    def __init__(self, text):
        found = _FAULT.fullmatch(text)
        if found is None or found[5] not in ACTIONS:
            raise ValueError(f"no fault: {text}")
        self.module, self.function, self.moment, number, action, shard = found.groups()
        self._number = 0 if number == "*" else int(number)
        self._act, self._shard = ACTIONS[action], shard
        self._calls = 0
        self._one_at_a_time = threading.Lock()

    def is_due(self, values):
        """Count a call with these arguments; return whether it is the one."""
        if self._shard and self._shard not in map(_shard_name, values):
            return False
        with self._one_at_a_time:
            self._calls += 1
            if self.moment == "torn":  # not every call syncs
                return self._calls >= self._number
            return self._number in (0, self._calls)

    def happen(self, result=None):
        return self._act(self, result)


def _shard_name(value):
    """Return the name of the shard that an argument is, or is about."""
    from tileseg.grid import Shard

    parts = value if isinstance(value, tuple) else ()
    for part in (value, getattr(value, "shard", None), *parts):
        if isinstance(part, Shard):
            return part.name
    return None


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the functions of a module before anybody can import them from it."""

    def __init__(self, by_module):
        self._by_module = by_module

    def find_spec(self, name, path, target=None):
        if name not in self._by_module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _wrap(module, self._by_module[name])

        spec.loader.exec_module = exec_module
        return spec


def _wrap(module, faults):
    by_function = defaultdict(list)
    for fault in faults:
        by_function[fault.function].append(fault)
    for name, some in by_function.items():
        *parents, last = name.split(".")
        owner = functools.reduce(getattr, parents, module)
        function = getattr(owner, last)
        faulty = _faulty(function, some)
        setattr(owner, last, faulty)
        _replace(function, faulty)


def _replace(function, faulty):
    """Give the wrapped function to the modules that have the bare one already."""
    ours = [item for name, item in sys.modules.items() if name.startswith("tileseg.")]
    for module in ours:
        for name, value in list(vars(module).items()):
            if value is function:
                setattr(module, name, faulty)


def _faulty(function, faults):
    at = {
        moment: [fault for fault in faults if fault.moment == moment]
        for moment in ("before", "after", "item", "torn")
    }

    @functools.wraps(function)
    def call(*args, **kwargs):
        values = (*args, *kwargs.values())
        later = [fault for fault in at["after"] if fault.is_due(values)]
        for fault in at["before"]:
            if fault.is_due(values):
                fault.happen()
        with ExitStack() as stack:
            for fault in at["torn"]:
                if fault.is_due(values):
                    stack.enter_context(_torn(fault))
            result = function(*args, **kwargs)
        for fault in later:
            result = fault.happen(result)
        return _items(result, at["item"]) if at["item"] else result

    return call


def _items(items, faults):
    for item in items:
        for fault in faults:
            if fault.is_due((item,)):
                fault.happen()
        yield item


@contextmanager
def _torn(fault):
    """Let the fault happen when this thread syncs a file, whose end is then cut off."""
    fsync, thread = os.fsync, threading.get_ident()

    def cut(handle):
        if threading.get_ident() == thread:
            path = Path(f"/proc/self/fd/{handle}")
            if path.resolve().is_file():
                data = path.read_bytes()
                last_line = data.rstrip(b"\n").rfind(b"\n") + 1
                os.ftruncate(handle, (last_line + len(data)) // 2)
                fsync(handle)
                fault.happen()
        fsync(handle)

    os.fsync = cut
    try:
        yield
    finally:
        os.fsync = fsync
