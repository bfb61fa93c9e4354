"""What a person sees while it lasts."""

import io
import logging
import re
import sys
import time

from tileseg.commands.console import progress


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self):
        return True


def test_what_was_done_before_is_no_part_of_the_rate(monkeypatch, caplog):
    """Of a job or training that goes on: ten tiles in 0.2 s are at most 50 a second."""
    caplog.set_level(logging.INFO, "tileseg.commands.console")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())

    with progress("maps/scene.tif") as told:
        told(900, 1000)
        time.sleep(0.2)
        told(910, 1000)

    last = terminal.getvalue().rpartition("\r")[2]
    assert "scene.tif:  91%" in last
    assert "910/1000" in last
    assert 0 < float(re.search(r"([\d.]+)tile/s", last)[1]) <= 50
