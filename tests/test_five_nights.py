"""Five nights of a STAC API into a real S3 server: what is there is right each time."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import stac_api
from making import make_model, make_plain, random_pixels
from s3 import contents, plain, serve
from test_nightly_service import DAY, Nights, start, states, wait_for

from tileseg.base import address
from tileseg.nights import nightly_run

GRID = {"crs": "EPSG:32631", "nodata": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3")) as where:
        yield where


@pytest.fixture
def api(tmp_path, monkeypatch):
    (tmp_path / "api").mkdir()
    with stac_api.serve(tmp_path / "api") as site:
        monkeypatch.setattr(address, "_allowed", set())
        yield site


@pytest.fixture
def nights(tmp_path, api, monkeypatch):
    """Nights of which the fourth is the one that this machine's clock has."""
    made = Nights(tmp_path, make_model(tmp_path / "model"))
    made.now = datetime.now().astimezone() - 3 * DAY
    monkeypatch.setattr(nightly_run, "_now", lambda: made.now)
    made.output = "s3://maps/one/land"
    made.source = f'stac = "{api.address}/v1"\nsince = "3650 days"'
    made._job += f'\nhosts = ["{api.host}"]\nscale = 0.0001'
    return made


def put(api, name, seed, size=(70, 60), **facts):
    make_plain(
        api.folder / "files" / f"{name}.tif", random_pixels(*size, seed=seed), **GRID
    )
    api.put(name, **facts)


def night(nights, store, is_next=True):
    """Run a night, then again, which changes no object; return what was done.

    What is published is, by its bytes, what one night makes of all that is there.
    """
    nights.now += DAY * is_next
    _, lines, summary = nights.run()
    before = contents(nights.output, store)
    again = nights.run()
    assert (again[1], again[2]) == ([], summary)
    assert before == contents(nights.output, store)
    names = [Path(it["scene"]["href"]).name for it in lines]
    links = json.loads(before["collection.json"])["links"]
    assert {it["href"].split("/")[1] for it in links} == {
        name
        for name, state in states(summary).items()
        if state in ("done", "unchanged")
    }
    usual, nights.output = nights.output, f"s3://maps/{nights.now:%d}/land"
    nights.run()
    assert published(usual, store) == published(nights.output, store)
    nights.output = usual
    return {name.removesuffix(".tif") for name in names}, states(summary)


def published(output, store):
    """Return masks, Items and Collection as they are whenever they are made."""
    found = contents(output, store).items()
    rasters = {plain(path): data for path, data in found if path.endswith("mask.tif")}
    texts = {
        plain(path): plain(data.decode())
        for path, data in found
        if path.endswith(("item.json", "collection.json"))
    }
    assert len(rasters) == len(texts) - 1
    return rasters, texts


@pytest.mark.slow
def test_five_nights(nights, api, store, tmp_path):
    """New scenes, a late one, a corrupt one, a changed one, a killed night, a model."""
    put(api, "one", 1)
    put(api, "two", 2)
    api.put("bad", day="2026-05-03")
    (api.folder / "files" / "bad.tif").write_text("half a file")

    done, told = night(nights, store, is_next=False)
    assert (done, told["bad"]) == ({"one", "two", "bad"}, "failed")

    put(api, "late", 3, day="2025-01-01")
    done, told = night(nights, store)
    assert done == {"late", "bad"}
    assert told == {
        "one": "unchanged",
        "two": "unchanged",
        "late": "done",
        "bad": "failed",
    }

    put(api, "two", 9, updated="2026-06-01T00:00:00Z")
    done, told = night(nights, store)
    assert (done, told["bad"]) == ({"two"}, "later")

    put(api, "bad", 4, size=(290, 270), updated="2026-06-02T00:00:00Z")
    nights.now += DAY
    with start(nights) as process:
        wait_for(lambda: any((tmp_path / "work/bad").glob("*/receipts.jsonl")))
        process.kill()
    done, told = night(nights, store, is_next=False)
    assert done == {"bad"}
    assert set(told.values()) == {"done", "unchanged"}

    make_model(tmp_path / "model", seed=5)
    done, told = night(nights, store)
    assert done == {"one", "two", "late", "bad"}
