"""Whatever is killed, and however often: the published map is never wrong.

See `chaos.py`; `python tests/chaos.py --seed S --first N --runs 1` plays one round.
"""

import chaos
import pytest
import s3

QUICK, MANY = 6, 50
SEED = 4


@pytest.fixture(scope="module", params=chaos.PLACES)
def arena(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    if request.param == "local":
        yield chaos.Arena(folder, "local", "local")
        return
    with s3.serve(tmp_path_factory.mktemp("s3")):
        yield chaos.Arena(folder, "s3", "local")


@pytest.mark.parametrize("number", range(QUICK))
def test_a_job_killed_at_random_ends_as_if_undisturbed(arena, number):
    arena.run(SEED, number)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_jobs_killed_at_random_end_as_if_undisturbed(arena):
    before = arena.kills

    for number in range(QUICK, QUICK + MANY):
        arena.run(SEED, number)

    assert arena.kills - before > MANY


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_step_can_be_the_last(arena):
    """Each is one that a job with a previous version to replace really takes."""
    place, _ = arena.place("none")

    for number, (name, moment, _) in enumerate(chaos.points(place.STEPS)):
        before = arena.kills
        arena.run("steps", number, [f"{name}:{moment}:1:kill"])
        assert arena.kills - before == 1, f"{name} was not called"


@pytest.mark.parametrize("number", range(3))
def test_of_jobs_started_at_once_one_publishes(arena, number):
    published, codes = arena.race(number)

    assert published == 1
    assert set(codes) <= {0, 8}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_jobs_started_at_once_one_publishes_every_time(arena):
    for number in range(3, 25):
        published, codes = arena.race(number)
        assert published == 1, number
        assert set(codes) <= {0, 8}, number
