"""A wish to end is obeyed: at once, or when what is in hand is done."""

import pytest

from tileseg.base.stopping import Stop, StopSignal
from tileseg.errors import PreemptedError

TERM = PreemptedError("SIGTERM")


def test_without_patience_it_ends_at_once():
    stop = Stop()

    with pytest.raises(StopSignal) as caught:
        stop.ask(TERM)

    assert caught.value.error is TERM


def run(stop, grace):
    """Finish what is in hand, once asked; return what was done."""
    done = []
    try:
        with stop.patient():
            stop.ask(TERM)
            done.append("asked")
            stop.obey(grace)
            done.append("in hand")
    except StopSignal as err:
        done.append(err.error)
    return done


def test_the_patient_end_when_they_are_done():
    assert run(Stop(), grace=60) == ["asked", "in hand", TERM]


def test_the_grace_has_an_end():
    assert run(Stop(), grace=0) == ["asked", TERM]


def test_without_a_wish_nothing_happens():
    stop = Stop()

    with stop.patient():
        assert not stop.obey(0)

    assert stop.error is None
