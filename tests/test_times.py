"""When a scene was taken: what files and catalogs say of it, in UTC."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import rasterio

from tileseg.base.times import Period, of_properties, of_tags, spelled, together

EXAMPLE = Path(__file__).parents[1] / "examples" / "itaipu.tif"
MORNING = datetime(2024, 6, 1, 10, 50, 31, tzinfo=UTC)
DAY = Period(
    datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 6, 1, 23, 59, 59, tzinfo=UTC)
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("2024:06:01 10:50:31", Period(MORNING, MORNING)),
        ("2024-06-01T10:50:31Z", Period(MORNING, MORNING)),
        ("2024-06-01 12:50:31+02:00", Period(MORNING, MORNING)),
        ("2024:06:01", DAY),
        ("2024-06-01", DAY),
        ("20240601", DAY),
        ("2024-W22", None),
        ("0000:00:00 00:00:00", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("summer", None),
        ("", None),
    ],
)
def test_a_tag_says_a_moment_a_day_or_nothing(said, expected):
    assert of_tags({"TIFFTAG_DATETIME": said}) == expected


def test_an_acquisition_goes_before_when_the_image_was_made():
    tags = {"TIFFTAG_DATETIME": "2025:01:01 00:00:00"}
    tags["ACQUISITIONDATETIME"] = "2024-06-01 10:50:31"

    assert of_tags(tags) == (MORNING, MORNING)
    assert of_tags({"OTHER": "2024-06-01"}) is None


def test_the_example_says_on_which_day_it_was_taken():
    with rasterio.open(EXAMPLE) as dataset:
        found = of_tags(dataset.tags())

    assert [spelled(at) for at in found] == [
        "2020-05-18T00:00:00Z",
        "2020-05-18T23:59:59Z",
    ]


def test_an_item_says_a_moment_or_a_period():
    start, end = "2024-06-01T10:50:31Z", "2024-06-03T00:00:00Z"
    period = {"datetime": None, "start_datetime": start, "end_datetime": end}

    assert of_properties({"datetime": start}) == (MORNING, MORNING)
    assert of_properties(period) == (MORNING, datetime(2024, 6, 3, tzinfo=UTC))
    assert of_properties({**period, "end_datetime": "2023-01-01T00:00:00Z"}) is None
    assert of_properties({"datetime": 7}) is None


def test_together_they_hold_all_that_are_known():
    later = datetime(2024, 6, 2, tzinfo=UTC)

    assert together([None, Period(later, later), DAY]) == (DAY.start, later)
    assert together([None]) is None
    assert spelled(MORNING) == "2024-06-01T10:50:31Z"
