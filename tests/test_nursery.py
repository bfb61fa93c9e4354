"""Whatever a child does, who asked goes on, and nothing is left of it."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tileseg.scenes.nursery import Nursery

ROOT = Path(__file__).parents[1]
MODULE_NAME = f"told_{os.getpid()}"  # of these tests alone, whatever runs beside
MODULE = '''
"""Does what it is told."""

import os, resource, signal, sys, time
from tileseg.scenes.nursery import serve_forks

def stray():
    """Go away: of no group that others know, and of no parent that lives."""
    if os.fork():
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    return True

def work():
    return eval(sys.stdin.buffer.readline()) or 0

serve_forks(work)
'''


@pytest.fixture
def nursery(tmp_path):
    """A process whose children do what they are told."""
    (tmp_path / f"{MODULE_NAME}.py").write_text(MODULE)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    nursery = Nursery(MODULE_NAME, lambda: {"PYTHONPATH": path})
    yield nursery
    nursery.close()


def told(what):
    """Return a talk that tells a child what to do, and hears all that it says."""

    def talk(tell, says):
        tell(what.encode() + b"\n")
        return says.read()

    return talk


def see_that_all_are_gone():
    deadline = time.monotonic() + 5
    while any(
        MODULE_NAME in (process.info["cmdline"] or [])
        for process in psutil.process_iter(["cmdline"])
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_does_what_it_is_told(nursery):
    ending = nursery.ask(told("print('done') or 7"), 20)

    assert (ending.code, ending.said, ending.reason) == (7, b"done\n", "")


HOLDS = {
    "a child that sleeps": "time.sleep(60)",
    "a child that left the group": "os.setsid() and None or time.sleep(60)",
    "one that holds on to what is said": "stray() and time.sleep(60)",
    "a parent that stands still": "os.kill(os.getppid(), 19) or time.sleep(60)",
}


@pytest.mark.parametrize("what", HOLDS.values(), ids=HOLDS)
def test_no_child_outstays_its_limit(nursery, what):
    nursery.ask(told("0"), 20)
    start = time.monotonic()

    ending = nursery.ask(told(what), 1)

    assert time.monotonic() - start < 5
    assert ending.code == -signal.SIGKILL
    assert ending.reason == "no answer in 1 s"
    nursery.close()
    see_that_all_are_gone()


def test_a_child_that_does_not_listen_holds_nobody_up(nursery):
    start = time.monotonic()

    ending = nursery.ask(told(f"time.sleep(60)\n{'x' * (1 << 24)}"), 2)

    assert time.monotonic() - start < 5
    assert ending.reason == "no answer in 2 s"


def test_who_leaves_a_process_behind_has_ended_badly(nursery):
    """Even if nothing waits for that: it is ended, and the child is not believed."""
    closes = "[os.close(number) for number in range(3)]"

    ending = nursery.ask(told(f"stray() and ({closes}, time.sleep(60))"), 20)

    assert ending.code == -signal.SIGKILL
    assert ending.reason == "it left a process behind"
    nursery.close()
    see_that_all_are_gone()
    assert nursery.ask(told("7"), 20).code == 7


def test_a_reason_is_of_the_child_that_gave_it(nursery):
    """And is heard though that may write no file."""
    no_file = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"

    said = nursery.ask(told(f"{no_file} or sys.stderr.write('a\\nwhy\\n')"), 20)
    silent = nursery.ask(told("5"), 20)
    failed = nursery.ask(told(f"{no_file} or 1 / 0"), 20)

    assert said.reason == "why"
    assert (silent.code, silent.reason) == (5, "")
    assert (failed.code, failed.reason) == (1, "ZeroDivisionError: division by zero")


def test_complaints_hold_nobody_up(nursery):
    """Those that nobody can hold are lost; the rest is told in short."""
    ending = nursery.ask(told("[sys.stderr.write('x' * 999) for _ in range(999)]"), 20)

    assert ending.code > 0  # not ended by a signal
    assert 0 < len(ending.reason) < 1000


def test_a_signal_is_told_in_words(nursery):
    ending = nursery.ask(told("os.kill(os.getpid(), 11)"), 20)

    assert (ending.code, ending.reason) == (-11, "Segmentation fault")
