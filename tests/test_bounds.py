"""What a result must pass before it goes live: each bound lets through what it says."""

import pytest

from tileseg.base.bounds import Gates, failed, judge, shares_of
from tileseg.base.fields import checked
from tileseg.errors import UsageError
from tileseg.settings import Job

JOB = {"input": "a.tif"}
SCENE = {"width": 170, "height": 230, "crs": "EPSG:32631", "transform": [10, 0, 5]}


def record(water=30, land=70, nodata=100, **changes):
    """Return what a run's record says, of so many pixels."""
    return {
        "job": JOB,
        "scene": SCENE,
        "pixels": {
            "total": water + land + nodata,
            "nodata": nodata,
            "by_class": {"water": water, "land": land},
        },
        "seams": {"ratio": 1.25},
        "engine": {"precision": "bf16"},
        "precision_check": {"agreement": 0.998},
        "drift": 0.7,
        **changes,
    }


def verdicts(gates, values, **known):
    return {
        gate.name: gate.passed
        for gate in judge(gates, values, **{"live": None, **known})
    }


def test_without_bounds_only_the_raster_and_its_grid_are_judged():
    assert verdicts(Gates(), record()) == {"valid": True, "grid": None}
    assert verdicts(Gates(grid=False), record()) == {"valid": True}


@pytest.mark.parametrize(
    ("name", "within", "beyond"),
    [
        ("seams", 1.25, 1.24),
        ("drift", 0.7, 0.69),
        ("nodata", 0.5, 0.49),
        ("precision", 0.998, 0.9981),
    ],
)
def test_a_bound_itself_is_within(name, within, beyond):
    assert verdicts(Gates(**{name: within}), record())[name] is True
    assert verdicts(Gates(**{name: beyond}), record())[name] is False


def test_what_cannot_be_measured_keeps_nothing_from_going_live():
    """A mask of one class has no seams, fp32 nothing to agree with."""
    gates = Gates(seams=1, precision=1, drift=0, class_jump=0)
    values = record(0, 0, drift=None, seams={"ratio": None})
    values["engine"] = {"precision": "fp32"}  # after bf16 was not good enough

    found = verdicts(gates, values)

    assert {found[name] for name in ("seams", "precision", "drift", "class_jump")} == {
        None
    }


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, True),
        ({"width": 171}, False),
        ({"crs": "EPSG:32632"}, False),
        ({"transform": [10, 0, 6]}, False),
    ],
)
def test_a_scene_that_comes_again_has_the_grid_it_had(change, passed):
    live = record(scene={**SCENE, **change})
    elsewhere = {**live, "job": {"input": "b.tif"}}

    assert verdicts(Gates(), record(), live=live)["grid"] is passed
    assert verdicts(Gates(), record(), live=elsewhere)["grid"] is None
    assert "grid" not in verdicts(Gates(grid=False), record(), live=live)


SERIES = [{"water": share, "land": 1 - share} for share in (0.2, 0.3, 0.25, 0.35, 0.4)]


@pytest.mark.parametrize(
    ("gates", "water", "passed"),
    [
        ({"class_std": 2}, 30, True),
        ({"class_std": 2}, 44, True),  # mean 0.3, std 0.0707
        ({"class_std": 2}, 45, False),
        ({"class_jump": 0.2}, 49, True),
        ({"class_jump": 0.2}, 51, False),
        ({"class_jump": 0.2}, 9, False),
    ],
)
def test_shares_stay_near_their_mean_in_the_series(gates, water, passed):
    found = verdicts(Gates(**gates), record(water, 100 - water), history=SERIES)

    assert found[next(iter(gates))] is passed


def test_a_share_that_never_varied_lets_a_thousandth_through():
    history = [{"water": 0.0, "land": 1.0}] * 5

    found = [
        verdicts(Gates(class_std=3), record(water, 10_000 - water), history=history)
        for water in (29, 31)
    ]

    assert [it["class_std"] for it in found] == [True, False]


def test_few_results_are_no_history():
    gates = Gates(class_std=0.1, class_jump=0.01, history_least=6)

    found = verdicts(gates, record(90, 10), history=SERIES)

    assert (found["class_std"], found["class_jump"]) == (None, None)


def test_the_worst_class_is_named():
    (gate,) = failed(
        judge(Gates(class_jump=0.2), record(90, 10), live=None, history=SERIES)
    )

    assert gate.got["class"] in ("water", "land")
    assert gate.got["off"] == pytest.approx(0.6)
    assert "(mean 30.0%, 0.6 off)" in str(gate) or "(mean 70.0%, 0.6 off)" in str(gate)


@pytest.mark.parametrize(
    ("share", "passed"), [(1.0, True), (0.9999, False), (None, False)]
)
def test_golden_tiles_must_be_given_again(share, passed):
    """Who never was asked gave none."""
    found = verdicts(Gates(canary="golden.npz"), record(), canary=share)

    assert found["canary"] is passed


def test_shares_are_of_the_pixels_that_have_a_class():
    assert shares_of(record(30, 70, 900)) == {"water": 0.3, "land": 0.7}
    assert shares_of(record(0, 0, 900)) is None
    assert shares_of({"pixels": None}) is None


@pytest.mark.parametrize(
    "bounds",
    [
        {"seams": -1},
        {"nodata": 1.1},
        {"precision": float("nan")},
        {"history": 0},
        {"canary_share": 2},
        {"drift": "far"},
        {"border": 1},
    ],
)
def test_bounds_that_mean_nothing_are_refused(bounds):
    with pytest.raises(UsageError, match=next(iter(bounds))):
        Job(input="a.tif", gates=bounds)


def test_a_table_of_a_job_file_becomes_bounds():
    values = checked("job.toml", {"gates": {"seams": 2, "class_std": 3.5}}, Job)

    job = Job(input="a.tif", **values)

    assert job.gates == Gates(seams=2, class_std=3.5)
    assert job.given() == {"input": "a.tif", "gates": {"seams": 2, "class_std": 3.5}}
