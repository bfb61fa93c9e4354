"""Who is stuck is told in time, and who is only slow is left alone."""

from hypothesis import given
from hypothesis import strategies as st

from tileseg.base.watch import Watch


def watch_over(watch, times, signs):
    """See one worker at each time; return what was said of it."""
    told = []
    for now, sign in zip(times, signs, strict=True):
        watch.see("one", sign, now)
        told.append("one" in watch.stuck(now))
    return told


def test_a_worker_without_progress_is_stuck_after_the_patience():
    times = range(100)

    told = watch_over(Watch(60), times, [min(now, 20) for now in times])

    assert told.index(True) == 20 + 60 + 1


def test_a_slow_worker_has_twenty_times_what_it_usually_takes():
    """One sign in 10 s, then none."""
    times = range(600)

    told = watch_over(Watch(60), times, [min(now, 100) // 10 for now in times])

    assert told.index(True) == 100 + 20 * 10 + 1


def test_the_first_sign_may_take_longer():
    assert watch_over(Watch(60), range(400), [0] * 400).index(True) == 301


def test_a_pause_of_the_looker_is_nobodys_fault():
    """Its process was frozen, and the workers' processes with it perhaps."""
    watch = Watch(60)
    watch_over(watch, range(30), range(30))

    assert not watch.stuck(10_000)
    assert watch_over(watch, range(10_001, 10_100), [29] * 99).index(True) < 61


def test_who_has_nothing_to_do_is_not_stuck():
    watch = Watch(60)
    watch_over(watch, range(30), range(30))

    watch.forget("one")

    assert not any(watch.stuck(now) for now in range(30, 500))


@given(
    st.lists(st.floats(0.01, 9), min_size=5, max_size=80),
    st.floats(1, 100),
)
def test_steady_progress_is_never_stuck(gaps, patience):
    """Whatever the rhythm, as long as no gap is beyond the patience or the usual."""
    watch, now = Watch(patience), 0.0
    for sign, gap in enumerate(gaps):
        now += min(gap, patience)
        watch.see("one", sign, now)
        assert not watch.stuck(now)
