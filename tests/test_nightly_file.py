"""What a night's file may say, what it asks a STAC API, and who is told at the end."""

import json
import logging
from datetime import UTC, date, datetime, timedelta
from datetime import time as dt_time

import pytest
import stac_api

from tileseg.base import address
from tileseg.errors import InputError, RefusedError, StorageError, UsageError
from tileseg.nights.nightly_file import Schedule, Source, read_night, secret
from tileseg.nights.nightly_hook import check, notify
from tileseg.nights.nightly_search import search
from tileseg.nights.nightly_source import find

NOW = datetime(2026, 5, 31, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with stac_api.serve(tmp_path_factory.mktemp("api")) as site:
        yield site


@pytest.fixture
def site(server, monkeypatch):
    """A STAC API that this process may read, with no Items yet."""
    server.be()
    monkeypatch.setattr(address, "_allowed", {server.host})
    return server


def write(folder, text, source='scenes = "scenes"', target='output = "maps"'):
    path = folder / "nightly.toml"
    path.write_text(f"[source]\n{source}\n[target]\n{target}\n{text}\n")
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gate]\na = 1", "gate: is no table of a night's file"),
        ("[night]\nfoo = 1", "[night]: unknown key 'foo'; a schedule has deadline"),
        ('[night]\ndeadline = "5 am"', "[night] deadline: got '5 am'"),
        (
            '[night]\ndeadline = "05:30"\nhours = 3',
            "[night] deadline, hours: wanted one",
        ),
        ("[night]\nhours = 0", "[night] hours: got 0, wanted more than 0"),
        (
            "[night]\nretries = true",
            "[night]: retries: got true, wanted a whole number",
        ),
        ("[night]\nbackoff = []", "[night] backoff: got [], wanted nights"),
        ('[night]\nhours = "six"', "[night]: hours: got 'six', wanted a number"),
        (
            "[night]\ndeadline = 2026-05-31",
            "deadline: got 2026-05-31, wanted a text or a time of day",
        ),
        ('[night]\nfirst = "a"', "[night]: first: got 'a', wanted a list of texts"),
        ('[night]\norder = "best"', "[night] order: got 'best', wanted one of newest"),
        ('[night]\nwebhook = "s3://a/b"', "[night] webhook: wanted an https address"),
        ('[night]\nwebhook_token = "hush"', "webhook_token: wanted env:NAME or file"),
        ('[job]\ninput = "a.tif"', "[job] input: is of one scene"),
        ("[job]\ndry_run = true", "[job] dry_run: is of one scene"),
        ('[job]\nblend = "mix"', "[job] blend: got 'mix', wanted one of crop, cosine"),
        ("[job]\nblended = 1", "[job]: unknown key 'blended'; a job has input"),
    ],
)
def test_what_a_night_cannot_be_is_one_line(text, said, tmp_path):
    path = write(tmp_path, text)

    with pytest.raises(UsageError) as caught:
        read_night(path)

    assert said in str(caught.value)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        'webhook = "https://user:x@hooks.invalid/HUSH?x=HUSH"',
        'webhook = "slack://hooks.invalid/HUSH"',
        'webhook = "hooks.invalid/HUSH"',
        'webhook = "/vsicurl/https://hooks.invalid/HUSH"',
        'webhook = "https://hooks.invalid/a: HUSH"',
        'webhook = ["https://hooks.invalid/HUSH"]',
        'webhook_token = "HUSH"',
        "webhook_token = {HUSH = 1}",
    ],
)
def test_what_may_be_a_secret_is_named_and_not_said(text, tmp_path):
    with pytest.raises(UsageError) as caught:
        read_night(write(tmp_path, f"[night]\n{text}"))

    assert f"[night] {text.split()[0]}: wanted" in str(caught.value).replace("]:", "]")
    assert "HUSH" not in str(caught.value)
    assert "HUSH" not in repr(Schedule(webhook="https://hooks.invalid/HUSH"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "scenes, stac: wanted one of them, got neither"),
        (
            'scenes = "a"\nstac = "https://b.org"',
            "scenes, stac: wanted one of them, got both",
        ),
        ('scenes = "a"\nsince = "1 day"', "since: is for a search (stac)"),
        ('scenes = "a"\ncloud_cover = 0', "cloud_cover: is for a search (stac)"),
        ('stac = "s3://bucket/api"', "wanted the https address of an API"),
        ('stac = "https://b.org?key=hush"', "wanted the https address of an API"),
        (
            'stac = "https://b.org"\nsince = "lately"',
            "since: got 'lately', wanted a date",
        ),
        ('stac = "https://b.org"\nlimit = 0', "limit: got 0, wanted 1 to 10,000"),
        ('stac = "https://b.org"\ncloud_cover = 101', "wanted 0 to 100 percent"),
        (
            'stac = "https://b.org"\nbbox = [1, 2, 3, 2]',
            "bbox: got [1, 2, 3, 2], wanted",
        ),
        (
            'stac = "https://b.org"\nbbox = [1, 2, 3]',
            "bbox: got [1, 2, 3], wanted a list of 4 numbers",
        ),
        ('stac = "https://b.org"\nquery = 3', "query: got 3, wanted a table"),
    ],
)
def test_what_no_source_can_be_is_one_line(source, said, tmp_path):
    with pytest.raises(UsageError) as caught:
        read_night(write(tmp_path, "", source=source))

    assert said in str(caught.value)
    assert "hush" not in str(caught.value)


def test_what_is_taken_later_than_until_is_no_search():
    """Days and moments, and what is counted from now; nobody is asked."""
    for since, until in (
        ("2026-05-02", date(2026, 5, 1)),
        (datetime(2026, 5, 1, 12, tzinfo=UTC), "2026-05-01T11:59:00Z"),
        ("3 days", "1 week"),
    ):
        source = Source(stac="https://b.invalid", since=since, until=until)
        with pytest.raises(
            UsageError, match=r"since, until: got .* earlier time first"
        ):
            search(source, NOW)
    day = Source(stac="https://b.invalid", since="2026-05-01", until="2026-05-01")
    assert day.period(NOW)[0] < day.period(NOW)[1]


def test_work_is_not_where_results_go(tmp_path):
    """However the two are spelt; nor does the one lie in the other."""
    (tmp_path / "link").symlink_to(tmp_path)
    for output, work in (
        ("m11", "m11"),
        ("m", "m/work"),
        ("w/maps", "w"),
        ("s3://a/b/", "s3://a/b"),
        ("s3://a/b", "s3://a/b/work"),
        ("s3://a/b/maps", "s3://a/b"),
        (f"{tmp_path}/m", f"{tmp_path}/link/m"),
        (f"{tmp_path}/m", f"{tmp_path}/link/m/w"),
    ):
        target = f'output = "{output}"\nwork = "{work}"'
        with pytest.raises(UsageError, match=r"toml: \[target\] work: got "):
            read_night(write(tmp_path, "", target=target))
    read_night(write(tmp_path, "", target='output = "m"\nwork = "m.work"'))


def test_what_the_command_line_states_is_not_the_files_fault(tmp_path):
    path = write(tmp_path, "[job]\nworkers = 2")

    for job, target, said in (
        ({"workers": 0}, {}, "workers: got 0, wanted 1 or more"),
        ({}, {"work": "maps"}, "work: got 'maps', wanted a place beside"),
    ):
        with pytest.raises(UsageError) as caught:
            read_night(path, job, target)
        assert str(caught.value).startswith(said)


def test_a_file_that_is_not_there_is_said_plainly(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read as TOML: no such file$"):
        read_night(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("target", ["", 'output = ""', 'output = "s3://me:hush@b/a"'])
def test_a_target_is_a_place(target, tmp_path):
    with pytest.raises(UsageError, match=r"output: wanted|output: got") as caught:
        read_night(write(tmp_path, "", target=target))

    assert "hush" not in str(caught.value)


def test_the_command_line_wins(tmp_path):
    path = write(tmp_path, "[job]\nworkers = 2\nconfidence = true")

    file = read_night(path, {"workers": 4}, {"output": "s3://maps/all"})

    assert file.job == {
        "overwrite": True,
        "again": False,
        "workers": 4,
        "confidence": True,
    }
    assert file.target.output == "s3://maps/all"
    assert file.target.workplace == "out/all.work"


def test_a_night_ends_at_the_next_such_hour():
    """By this machine's clock, or so long after it began."""
    evening = datetime(2026, 5, 31, 22, 15).astimezone()
    night = Schedule(deadline="05:30")

    assert night.end(evening) == datetime(2026, 6, 1, 5, 30).astimezone()
    assert night.end(evening + timedelta(hours=5)) == night.end(evening)
    clock = Schedule(deadline=dt_time(5, 30))  # as TOML has it without quotes
    assert clock.end(evening) == night.end(evening)
    assert Schedule(deadline=dt_time()).end(evening).hour == 0
    assert Schedule(hours=1.5).end(evening) - evening == timedelta(minutes=90)
    assert Schedule().end(evening) is None


def test_a_secret_is_somewhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK", " https://a.org/1 ")
    (tmp_path / "hook").write_text("https://a.org/2\n")

    assert secret("env:HOOK") == "https://a.org/1"
    assert secret(f"file:{tmp_path / 'hook'}") == "https://a.org/2"
    assert secret("https://a.org/3") == "https://a.org/3"
    with pytest.raises(InputError, match="env:NONE: no such environment variable"):
        secret("env:NONE")
    for text in ("a\r\nX-Header: b", "t\N{SNOWMAN}ken"):  # no header can hold it
        monkeypatch.setenv("HOOK", text)
        with pytest.raises(InputError, match="env:HOOK: wanted one line"):
            secret("env:HOOK")


def ids(site, **asked):
    source = Source(stac=f"{site.address}/v1", **asked)
    return [item["id"] for item in search(source, NOW).values()]


def write_area(path, corners, crs="urn:ogc:def:crs:OGC:1.3:CRS84"):
    geometry = {"type": "Polygon", "coordinates": [corners]}
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    named = {"type": "name", "properties": {"name": crs}}
    value = {"type": "FeatureCollection", "crs": named, "features": [feature]}
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("methods", [["GET", "POST"], ["GET"]])
def test_a_search_is_what_the_file_says(site, methods, tmp_path):
    """Whatever the API can do of it, by either method, page by page."""
    site.be(methods=methods, page=2)
    for day in range(1, 8):
        site.put(f"day{day}", day=f"2026-05-0{day}", clouds=10 * day)
    site.put("far", day="2026-05-04", box=(30, 1, 31, 2))
    site.put("old", day="2025-05-04")
    lonlat, metres = tmp_path / "area.geojson", tmp_path / "metres.geojson"
    write_area(lonlat, [[2, 40], [3, 41.5], [5, 40], [2, 40]])
    corners = [[4e5, 44e5], [5e5, 46e5], [6e5, 44e5], [4e5, 44e5]]
    write_area(metres, corners, crs="urn:ogc:def:crs:EPSG::32631")

    assert ids(site)[:2] == ["day7", "day6"]
    assert len(ids(site)) == 9
    assert ids(site, collections=("s1",)) == []
    assert "far" not in ids(site, bbox=(2, 40, 5, 43))
    assert ids(site, aoi=str(lonlat)) == ids(site, aoi=str(metres))
    assert len(ids(site, aoi=str(metres))) == 8
    assert ids(site, since="28 days", until="2026-05-05") == ["day5", "day4", "far"]
    assert ids(site, cloud_cover=15, since="60 days") == ["far", "day1"]
    assert ids(site, query={"eo:cloud_cover": {"eq": 70}}) == ["day7"]
    assert ids(site, limit=3) == ["day7", "day6", "day5"]
    assert {it["method"] for it in site.log() if "search" in it["path"]} == {
        methods[-1]
    }


def test_clouds_are_looked_at_where_the_api_cannot(site):
    site.be(extensions=[])
    site.put("clear", clouds=3)
    site.put("cloudy", clouds=80)

    assert ids(site, cloud_cover=20) == ["clear"]
    with pytest.raises(UsageError, match="has no Query extension"):
        ids(site, query={"a": {"eq": 1}})


def test_an_item_is_known_by_what_it_says(site):
    """Not by its signature; another word in it is another version."""
    site.be(sign=True)
    site.put("a")
    source = Source(stac=f"{site.address}/v1")

    (one,), (two,) = find(source, NOW), find(source, NOW)
    site.put("a", updated="2026-05-30T00:00:00Z")
    (other,) = find(source, NOW)

    assert one == two
    assert one.source == f"{site.address}/v1/collections/s2/items/a"
    assert one.mark != other.mark
    assert one.taken == datetime(2026, 5, 1, 10, tzinfo=UTC)


def test_every_kind_of_scene_has_a_mark(site, tmp_path):
    """Another one when it changed; what cannot be looked at has an empty one."""
    for name in ("a", "b"):
        site.put(name)
    items = [json.loads(path.read_text()) for path in (site.folder / "items").iterdir()]
    catalog = tmp_path / "found.json"
    document = {"type": "FeatureCollection", "features": items}
    catalog.write_text(json.dumps(document))
    (site.folder / "files" / "c.tif").write_bytes(b"c" * 99)
    (tmp_path / "d.tif").write_bytes(b"d")
    lines = ["found.json#a", "found.json#b", f"{site.address}/files/c.tif", "d.tif"]
    lines += [f"{site.address}/v1/collections/s2/items/a", "none.tif", "none.json#a"]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    source = Source(scenes=str(tmp_path / "all.txt"))

    before = find(source, NOW)
    items[1]["properties"]["updated"] = "2026-05-30T00:00:00Z"
    catalog.write_text(json.dumps(document))
    (site.folder / "files" / "c.tif").write_bytes(b"C" * 99)
    (tmp_path / "d.tif").write_bytes(b"dd")
    after = find(source, NOW)

    changed = [one.mark != other.mark for one, other in zip(before, after, strict=True)]
    is_second = items[1]["id"] == "b"
    assert changed == [not is_second, is_second, True, True, False, False, False]
    assert [bool(it.mark) for it in after] == [True] * 5 + [False] * 2
    assert after[0].mark == before[0].mark or not is_second


def test_a_search_leads_nowhere_else(site, monkeypatch):
    """Neither a page of it, nor the API itself: plain http and private networks."""
    site.be(page=1, next="https://127.0.0.1:1/v1/search")
    site.put("a")
    site.put("b")

    with pytest.raises(
        RefusedError, match=r"leads to another server, https://127\.0\.0\.1"
    ):
        ids(site)
    monkeypatch.setattr(address, "_allowed", set())
    with pytest.raises(RefusedError, match="plain http is for hosts that are named"):
        ids(site)


def test_what_is_no_api_is_named(site):
    with pytest.raises(InputError, match="status 404"):
        search(Source(stac=f"{site.address}/nothing"), NOW)


SUMMARY = {
    "night": "2026-05-31",
    "warnings": ["is it mounted?"],
    "exit_code": 3,
    "counts": {"scenes": 2, "done": 1, "failed": 1},
    "spent": {"device_seconds": 90, "kwh": 0.0001, "cost": 1234.5},
    "scenes": [
        {"name": "a", "state": "done", "error": None},
        {"name": "b", "state": "failed", "error": "b.tif?X-Amz-Signature=1 is bad"},
    ],
}


def test_a_webhook_is_told_and_told_again(site, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOKEN", "t0ken-of-the-receiver")
    monkeypatch.setenv("HOOK", f"{site.address}/hook?key=hush")
    site.be(fail=2)
    night = Schedule(webhook="env:HOOK", webhook_token="env:TOKEN")  # noqa: S106

    assert notify(night, SUMMARY)

    *_, last = site.log()
    told = json.loads(last["body"])
    assert len(site.log()) == 3
    assert last["headers"]["Authorization"] == "Bearer t0ken-of-the-receiver"
    assert told["night"]["counts"] == SUMMARY["counts"]
    assert told["text"].splitlines()[0] == (
        "tileseg, night of 2026-05-31: 2 scenes: 1 done, 1 failed; "
        "1.5 device minutes, <0.001 kWh, cost 1,234.50; exit code 3"
    )
    assert told["text"].splitlines()[1] == "warning: is it mounted?"
    for word in ("hush", "t0ken", "/hook"):
        assert word not in caplog.text


def test_a_webhook_that_fails_is_a_warning(site, monkeypatch, caplog):
    """Which says no more of the address than its host."""
    site.be(hook=410)

    assert not notify(Schedule(webhook=f"{site.address}/hook"), SUMMARY)
    assert not notify(Schedule(webhook="env:NO_SUCH_NAME"), SUMMARY)
    plain = "http://127.0.0.2:9/hush?key=hush"
    assert not notify(Schedule(webhook=plain), SUMMARY)
    for hook in ("https://a:hush@127.0.0.2/hush", "https://127.0.0.2/a: hush"):
        monkeypatch.setenv("HOOK", hook)
        assert not notify(Schedule(webhook="env:HOOK"), SUMMARY)

    assert "the webhook at 127.0.0.1 was not told: it answers 410" in caplog.text
    assert "the webhook at 127.0.0.2 was not told: plain http" in caplog.text
    assert "env:NO_SUCH_NAME: no such environment variable" in caplog.text
    assert caplog.text.count("wanted an https address without user") == 2
    assert "hush" not in caplog.text


@pytest.mark.parametrize(
    ("night", "said"),
    [
        (
            {"webhook": "env:NO_SUCH_NAME"},
            "webhook: env:NO_SUCH_NAME: no such environment",
        ),
        (
            {"webhook_token": "file:none"},
            "webhook_token: file:none: cannot be read: No such file",
        ),
        ({"webhook": "http://a.org/hush"}, "webhook: plain http is for hosts that"),
        ({"webhook": "https://10.0.0.7/hush"}, "webhook: is an address of this"),
        ({"webhook": "env:HOOK"}, "webhook: wanted an https address"),
    ],
)
def test_a_webhook_that_can_never_be_told_is_refused(night, said, monkeypatch):
    """Before the night, and without saying more of it than its host."""
    monkeypatch.setattr(address, "_allowed", set())
    monkeypatch.setenv("HOOK", "ftp://a.org/hush")

    with pytest.raises(UsageError) as caught:
        check(Schedule(**night))

    assert str(caught.value).startswith(f"[night] {said}")
    assert "hush" not in str(caught.value)


def test_a_webhook_that_may_be_told_is_asked_nothing_before(site):
    check(Schedule())
    check(Schedule(webhook=f"{site.address}/hook"))

    assert site.log() == []


def test_an_api_that_does_not_answer_is_given_up(site, monkeypatch):
    monkeypatch.setattr("tileseg.stores.calls._WAIT_SECONDS", 61)
    site.be(fail=10**6)
    try:
        with pytest.raises(StorageError, match="does not answer \\(503; tried 1 times"):
            ids(site)
    finally:
        site.be()
