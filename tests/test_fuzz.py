"""Mutated rasters end well or by name: no crash, no hang, no memory beyond a limit."""

import sys
from pathlib import Path

import pytest
from fuzz import SECONDS, Child, fuzz

SEED = 20_240_607


def told(faults, seed):
    """Return the faults with what repeats them."""
    return [f"seed {seed}, case {n}: {item.fault}" for n, item in faults.items()]


@pytest.mark.parametrize(
    "numbers",
    [range(320), pytest.param(range(320, 1_000), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_mutated_raster_ends_well_or_by_name(numbers):
    """Exit 0, 2, 3 or 4, each in seconds and few megabytes."""
    keep = Path("out/fuzz")

    faults = fuzz(SEED, numbers, children=2, keep=keep)

    assert told(faults, SEED) == [], f"the files are in {keep}"


def test_the_fuzzer_sees_a_child_that_dies_or_hangs_or_errs(tmp_path, monkeypatch):
    """Else it would find nothing, whatever there is."""
    program = tmp_path / "fuzz.py"
    program.write_text(CHILD, encoding="utf-8")
    monkeypatch.setattr(sys.modules["fuzz"], "__file__", str(program))
    with Child() as child:
        answers = {
            name: child.look(Path(name), seconds=2)
            for name in ("good", "die", "good again", "hang", "err", "slow", "large")
        }

    assert {name for name, answer in answers.items() if not answer.fault} == {
        "good",
        "good again",
    }
    assert answers["die"].code == -11
    assert "no answer" in answers["hang"].fault
    assert answers["hang"].seconds < SECONDS


# It answers as the names of the files say.
CHILD = """
import json, os, sys, time
for line in sys.stdin:
    name = json.loads(line)[0]
    if name == "die":
        os.kill(os.getpid(), 11)
    if name == "hang":
        time.sleep(60)
    answer = {"code": int(name == "err"), "says": name}
    answer |= {"seconds": 99 * (name == "slow"), "megabytes": 9999 * (name == "large")}
    print(json.dumps(answer), flush=True)
"""
