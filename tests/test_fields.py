"""What a file may say is said in the file's words."""

from dataclasses import fields
from datetime import UTC, date, datetime, time
from importlib import import_module

import pytest
from walk import ROOT

from tileseg.base.bounds import Gates
from tileseg.base.fields import said, written
from tileseg.nights.nightly_file import Schedule, Source, Target
from tileseg.settings import Job
from tileseg.training.train_settings import Training


def test_every_file_has_a_page_of_its_fields(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    pages = import_module("fields")

    assert set(pages.TOLD.values()) == set(pages.pages())


@pytest.mark.parametrize("kind", [Job, Gates, Training, Source, Target, Schedule])
def test_no_type_is_said_in_python(kind):
    words = " ".join(said(item.type) for item in fields(kind))

    assert not set("[]|_.<>") & set(words)
    assert not {"str", "int", "float", "bool", "tuple", "dict"} & set(words.split())


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (float | None, "a number"),
        (tuple[str, ...], "a list of texts"),
        (tuple[str | int, ...], "a list of texts or whole numbers"),
        (tuple[float, float, float, float] | None, "a list of 4 numbers"),
        (str | tuple[str, ...], "a text or a list of texts"),
        (dict[str, int], "a table"),
        (Gates, "a table"),
        (bool, "true or false"),
        (str | time, "a text or a time of day"),
    ],
)
def test_a_type_is_said_in_words(hint, words):
    assert said(hint) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("six", "'six'"),
        (1.5, "1.5"),
        ((1, "a"), '[1, "a"]'),
        (time(5, 30), "05:30:00"),
        (date(2026, 5, 1), "2026-05-01"),
        (datetime(2026, 5, 1, tzinfo=UTC), "2026-05-01 00:00:00+00:00"),
        ([date(2026, 5, 1)], '["2026-05-01"]'),
    ],
)
def test_a_value_is_shown_as_a_file_has_it(value, text):
    assert written(value) == text
