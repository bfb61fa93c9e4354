"""What a process gives up it has not, whatever it tries, as root too."""

import ctypes
import json
import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, signal, socket, subprocess, sys
from tileseg.scenes.jail import confine

folder, port, pid, is_confined = json.loads(sys.argv[1])
file = f"{folder}/file"

def connect():
    with socket.create_connection(("127.0.0.1", port)):
        pass

ways = {
    "append": lambda: open(file, "ab").close(),
    "truncate": lambda: os.truncate(file, 3),
    "make": lambda: open(f"{folder}/made", "xb").close(),
    "make a folder": lambda: os.mkdir(f"{folder}/folder"),
    "link": lambda: os.symlink(file, f"{folder}/link"),
    "remove": lambda: os.remove(f"{folder}/made"),
    "run": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "connect": connect,
    "enter memory": lambda: open(f"/proc/{pid}/mem", "rb").close(),
    "signal": lambda: os.kill(pid, signal.SIGCONT),
    "read": lambda: open(file, "rb").close(),
    "list": lambda: os.listdir(folder),
    "read itself": lambda: open("/proc/self/statm").read(),
}
if is_confined:
    confine()
done = []
for name, way in ways.items():
    try:
        way()
    except OSError:
        continue
    done.append(name)
print(json.dumps([done, list(ways)]))
"""
LANDLOCK = 444  # its first call


def _version():
    """Return which Landlock there is; 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None).syscall(LANDLOCK, None, ctypes.c_size_t(0), 1))


takes_all = pytest.mark.skipif(_version() < 6, reason="an older Landlock takes less")


@takes_all
def test_who_is_confined_reads_and_no_more(tmp_path):
    """No file changes, no server hears, no other process is touched; else all are."""
    found = {}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for is_confined in (True, False):
            folder = tmp_path / str(is_confined)
            folder.mkdir()
            (folder / "file").write_bytes(b"12345")
            facts = [str(folder), port, os.getpid(), is_confined]
            command = [sys.executable, "-c", PROGRAM, json.dumps(facts)]
            found[is_confined], ways = json.loads(subprocess.check_output(command))

    assert found[True] == ["read", "list", "read itself"]
    assert [path.name for path in (tmp_path / "True").iterdir()] == ["file"]
    assert (tmp_path / "True" / "file").read_bytes() == b"12345"
    assert set(ways) - set(found[False]) <= {"enter memory"}  # others forbid it too


@takes_all
def test_who_looks_at_files_is_confined(tmp_path):
    """Opening a file to write it would empty that, however little may be written."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    program = """
import sys
from tileseg.scenes import probe
assert probe._look_at_all() == 0
try:
    open(sys.argv[1], "wb")
except PermissionError:
    print("not let")
"""
    command = [sys.executable, "-c", program, str(path)]

    assert subprocess.check_output(command, input=b"[]") == b"not let\n"
    assert path.read_bytes() == b"12345"
