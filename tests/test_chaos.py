"""Whatever is killed, and however often: the published map is never wrong.

See `chaos.py`; `python tests/chaos.py --seed S --first N --runs 1` plays one round.
"""

import shutil
from contextlib import ExitStack

import chaos
import pytest
import s3

QUICK, MANY = 2, 4  # python tests/chaos.py plays as many as one likes
PLACES = [("local", "local"), ("s3", "local"), ("s3", "s3")]  # of output and work
SEED = 4


@pytest.fixture(scope="module")
def arenas(tmp_path_factory):
    """Make an arena for a place of the output and one of the work."""
    made = {}
    with ExitStack() as stack:

        def arena(output, work):
            if "s3" in (output, work) and "s3" not in made:
                made["s3"] = s3.serve(tmp_path_factory.mktemp("s3"))
                stack.enter_context(made["s3"])
            if (output, work) not in made:
                folder = tmp_path_factory.mktemp("arena")
                if subject := made.get(("local", "local")):
                    shutil.copytree(subject.folder / "model", folder / "model")
                    for name in ("scene.tif", "job.toml"):
                        shutil.copy(subject.folder / name, folder)
                made[output, work] = chaos.Arena(folder, output, work)
            return made[output, work]

        yield arena


@pytest.fixture(params=chaos.PLACES)
def arena(request, arenas):
    """One whose work is local."""
    return arenas(request.param, "local")


@pytest.mark.parametrize("places", PLACES, ids="-".join)
@pytest.mark.parametrize("number", range(QUICK))
def test_a_job_killed_at_random_ends_as_if_undisturbed(arenas, places, number):
    arenas(*places).run(SEED, number)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("places", PLACES, ids="-".join)
def test_many_jobs_killed_at_random_end_as_if_undisturbed(arenas, places):
    arena = arenas(*places)
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


@pytest.mark.parametrize("number", range(2))
def test_of_jobs_started_at_once_one_publishes(arena, number):
    published, codes = arena.race(number, count=4)

    assert published == 1
    assert set(codes) <= {0, 8}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_jobs_started_at_once_one_publishes_every_time(arena):
    for number in range(2, 6):
        published, codes = arena.race(number)
        assert published == 1, number
        assert set(codes) <= {0, 8}, number
