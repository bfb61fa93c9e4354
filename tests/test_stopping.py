"""A wish to end is obeyed: at once, or when what is in hand is done."""

import pytest

from tileseg.errors import PreemptedError
from tileseg.stopping import Stop, StopSignal

TERM = PreemptedError("SIGTERM")


def test_without_patience_it_ends_at_once():
    stop = Stop()

    with pytest.raises(StopSignal) as caught:
        stop.ask(TERM)

    assert caught.value.error is TERM


def test_the_patient_end_when_they_are_done():
    stop, done = Stop(), []

    with pytest.raises(StopSignal) as caught, stop.patient():
        stop.ask(TERM)
        assert stop.obey(60)
        done.append("what was in hand")

    assert done
    assert caught.value.error is TERM


def test_the_grace_has_an_end():
    stop = Stop()

    with pytest.raises(StopSignal), stop.patient():
        stop.ask(TERM)
        stop.obey(0)
        pytest.fail("it went on")


def test_without_a_wish_nothing_happens():
    stop = Stop()

    with stop.patient():
        assert not stop.obey(0)

    assert stop.error is None
