"""What leads to a scene, what may be shown of it, and where it may lead."""

from time import process_time

import pytest

from tileseg.base import address
from tileseg.base.address import (
    has_secret,
    is_allowed,
    keep,
    netloc,
    shown,
    split,
    whole,
)
from tileseg.errors import RefusedError, UsageError
from tileseg.stores.server import _is_public
from tileseg.stores.web import _seconds, _size


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("scene.tif", "scene.tif"),
        ("a?b#c.tif", "a?b#c.tif"),
        ("https://host/a.tif", "https://host/a.tif"),
        ("HTTPS://host:8443/a%20b.tif?sig=x#y", "https://host:8443/a%20b.tif"),
        ("https://me:word@host/a.tif", "https://host/a.tif"),
        ("https://host?sig=x/y@z", "https://host"),
        ("https://host#sig@x", "https://host"),
        ("ftp://me:word@host/a", "ftp://host/a"),
        ("s3://bucket/a b/c.tif", "s3://bucket/a b/c.tif"),
    ],
)
def test_what_is_shown_has_no_query_fragment_user_or_password(href, expected):
    assert expected == shown(href)
    assert expected == shown(shown(href))


@pytest.mark.parametrize(
    "href",
    [
        "https:///scene.tif",
        "https://host:99999/scene.tif",
        "https://host/a b.tif",
        "https://host/a\n.tif",
        "https://host\\@other/a.tif",
        "https://me@host/a.tif",
        "s3://bucket",
        "s3://bucket/a.tif?versionId=1",
        "file:///a.tif",
        "ftp://host/a.tif",
    ],
)
def test_what_is_no_address_of_ours_is_refused(href):
    with pytest.raises(UsageError, match=r"wanted|refused"):
        split(href)


@pytest.mark.parametrize(
    "href", ["/vsicurl/x", "/VSIMEM/x", "vrt://a", "<VRT", "GTIFF_DIR:1:a", "mem:a"]
)
def test_names_that_gdal_takes_for_something_else_are_refused(href):
    with pytest.raises(RefusedError):
        split(href)


@pytest.mark.parametrize("href", ["a.tif", "/a/20240101T10:20:30.tif", "a:b:c.tif"])
def test_names_with_colons_are_names(href):
    assert split(href) is None


def test_a_query_is_kept_here_and_sent():
    href = "https://host/a b.tif".replace(" ", "%20") + "?sig=a%2Fb&x=1"
    handle = keep(href)

    assert "sig" not in handle
    assert has_secret(handle)
    assert href == whole(handle)
    assert handle == keep(handle) == keep(href)


def test_what_has_no_query_is_its_own_handle():
    assert keep("https://host/a.tif") == "https://host/a.tif"
    assert not has_secret("https://host/a.tif")
    assert keep("a.tif?b") == "a.tif?b"


def test_two_queries_of_one_path_are_two_files():
    first, second = (keep(f"https://host/get?file={name}") for name in "ab")

    assert first != second
    assert shown(first) == shown(second)


def test_ten_times_as_many_addresses_take_ten_times_as_long():
    """A night may have thousands of signed ones."""
    begin = process_time()
    handles = {keep(f"https://many/a.tif?sig={number}") for number in range(3000)}

    assert len(handles) == 3000
    assert process_time() - begin < 2


def test_a_handle_of_another_process_is_no_address():
    with pytest.raises(UsageError, match="not known here"):
        whole("https://host/a.tif#77")


def test_hosts_are_allowed_with_their_port_or_with_any(monkeypatch):
    monkeypatch.setattr(address, "_allowed", set())
    address.allow(["Tiles.Internal:8080", "maps"])

    assert is_allowed("tiles.internal", 8080)
    assert not is_allowed("tiles.internal", 80)
    assert is_allowed("maps", 443)
    assert not is_allowed("other", 443)


def test_a_server_is_named_by_host_and_port():
    assert netloc(split("https://HOST/a.tif")) == ("host", 443)
    assert netloc(split("http://[::1]:81/a.tif")) == ("::1", 81)


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "0.0.0.1", "224.0.0.1", "255.255.255.255"),
        *("::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "ff02::1", "::"),
        *("64:ff9b:1::a9fe:a9fe", "fec0::1", "feff::1"),
    ],
)
def test_addresses_of_this_network_are_not_public(ip):
    assert not _is_public(ip)


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_other_addresses_are(ip):
    assert _is_public(ip)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("bytes 0-9/100", 100),
        ("bytes 0-4/5", 5),
        ("bytes 0-9/*", None),
        ("bytes 0-9/" + 5000 * "9", None),
        ("bytes 1-9/100", None),
        ("bytes 0-8/100", None),
        ("lines 0-9/100", None),
        ("", None),
    ],
)
def test_only_the_range_that_was_asked_for_is_taken(said, size):
    assert size == _size(said, 0, 10)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7),
        ("", 0),
        ("soon", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("-3", 0),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", 0),
    ],
)
def test_a_server_may_say_how_long_to_wait(said, seconds):
    assert seconds == _seconds(said)
