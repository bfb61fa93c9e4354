"""Stages that overlap: order, bounds and ends."""

import threading
import time

import pytest

from tileseg.base.overlap import Ahead, behind


def count(stop, made=None, error=None):
    """Yield 0 .. stop - 1, noting each when it is begun; then raise."""
    for item in range(stop):
        if made is not None:
            made.append(item)
        yield item
    if error is not None:
        raise error


def test_items_come_in_order_and_the_end_stays_the_end():
    ahead = Ahead(count(5), 2)

    assert list(range(5)) == list(ahead)
    assert next(ahead, "still") == "still"
    ahead.close()


@pytest.mark.parametrize("room", [1, 2])
def test_no_more_is_made_ahead_than_there_is_room_for(room):
    """Items made, or being made, that nobody took yet: at most `room`."""
    made = []
    ahead = Ahead(count(100, made), room)
    for taken in range(1, 6):
        next(ahead)
        time.sleep(0.05)

        assert len(made) <= taken + room
    ahead.close()


def test_an_error_comes_after_the_items_before_it():
    ahead = Ahead(count(2, error=OSError("disk")), 1)

    assert (next(ahead), next(ahead)) == (0, 1)
    with pytest.raises(OSError, match="disk"):
        next(ahead)
    ahead.close()


def test_closing_ends_the_thread_and_the_maker():
    ended = threading.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            ended.set()

    before = threading.active_count()
    ahead = Ahead(endless(), 1)
    next(ahead)
    ahead.close()

    assert ended.is_set()
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_work_done_behind_comes_in_order(threads):
    def slow_for_even(item):
        time.sleep(0.01 * (item % 2 == 0))
        return item * item

    found = list(behind(slow_for_even, count(8), ahead=2, threads=threads))

    assert [item * item for item in range(8)] == found


def test_what_was_begun_is_finished_before_the_makers_error():
    found = []
    with pytest.raises(OSError, match="disk"):
        found.extend(behind(str, count(3, error=OSError("disk")), ahead=1))
    results = behind(str, count(3, error=OSError("disk")), ahead=1)

    assert [next(results) for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(OSError, match="disk"):
        next(results)


def test_an_error_behind_is_raised():
    def fail(item):
        msg = f"no {item}"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="no 0"):
        list(behind(fail, count(3), ahead=1))


def test_what_is_done_is_not_kept_until_the_next_item_is_made():
    """An item takes long to make: None now and then lets what is done through."""
    given = []

    def slowly():
        yield "first"
        while not given:
            time.sleep(0.01)
            yield None
        yield "second"

    for result in behind(str.upper, slowly(), ahead=4):
        given.append(result)  # noqa: PERF402  (looked at meanwhile)

    assert given == ["FIRST", "SECOND"]
