"""A scene on a web server or in a bucket gives what its copy on a disk gives.

The servers are real, in processes of their own; faults come from a proxy before them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from shutil import copyfile

import numpy as np
import obstore
import pytest
import rasterio
import s3
import web
from making import NORTH_UP, after, digests, make_scene, random_pixels
from obstore.store import from_url
from proxy import stand_before

import tileseg.stores.server
from tileseg.base.address import allow, keep
from tileseg.base.stopping import StopSignal
from tileseg.errors import (
    ExitCode,
    InputError,
    InterruptedRunError,
    RefusedError,
    StorageError,
    TilesegError,
    UsageError,
)
from tileseg.job import run
from tileseg.network.unet import UNet
from tileseg.outputs import glance
from tileseg.plans.task import prepare
from tileseg.scenes.gdal import gdal_env, open_dataset
from tileseg.scenes.identity import look
from tileseg.scenes.scene import open_scene
from tileseg.settings import Job
from tileseg.stores import gate, remote
from tileseg.stores.remote import RemoteFile, fetcher
from tileseg.stores.source import Traffic
from tileseg.window import Window

BLOCK = 4096
ROOT = Path(__file__).parents[1]
BENCH = ROOT / "jobs" / "bench.py"
SECRET = "canary-0815"  # noqa: S105  (it is to be found nowhere)
FAULTS = [
    {"action": "answer", "status": 500},
    {"action": "answer", "status": 503},
    {"action": "reset"},
    {"action": "short"},
    {"action": "stall"},
]
EVERY_7TH = [
    {**fault, "target": "scene", "every": 35, "after": 7 * number}
    for number, fault in enumerate(FAULTS)
]

FORWARD = UNet.forward


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that is served, with a scene of 120 blocks and more."""
    folder = tmp_path_factory.mktemp("served")
    make_scene(folder / "scene.tif", random_pixels(410, 300))
    return folder


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with web.serve(folder, tmp_path_factory.mktemp("web")) as site:
        yield site


@pytest.fixture(scope="module")
def proxies(server, folder, tmp_path_factory):
    """A proxy before each kind of server; the environment leads to that of S3."""
    place = tmp_path_factory.mktemp
    with (
        pytest.MonkeyPatch.context() as patch,
        stand_before(server.address, place("proxy")) as http,
        s3.serve(place("s3")) as address,
        stand_before(address, place("s3 proxy")) as store,
        s3.environment(store.address),
    ):
        patch.setenv("AWS_TIMEOUT", "1s")
        obstore.put(from_url("s3://maps/a%20b"), "scene.tif", folder / "scene.tif")
        yield {"http": http, "s3": store}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Know nothing of earlier tests; fetch small blocks, and be impatient."""
    remote.fetcher.cache_clear()
    remote._gate.cache_clear()
    tileseg.stores.server._netrc.cache_clear()
    monkeypatch.setattr(remote, "_BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(remote, "_STALL_SECONDS", 0.4)
    monkeypatch.setattr(remote, "_WAIT_SECONDS", 0.02)


@pytest.fixture
def site(server):
    server.be()
    allow([server.host])
    return server


@pytest.fixture(params=["http", "s3"])
def remotely(request, proxies, server):
    """The proxy before a server, and the address of the scene behind it."""
    server.be()
    line = proxies[request.param]
    line.obey()
    if request.param == "s3":
        return line, "s3://maps/a b/scene.tif"
    allow([line.address.partition("://")[2]])
    return line, f"{line.address}/scene.tif"


@pytest.fixture
def job(tmp_path, model_path):
    def make(source, name="remote", **options):
        return Job(
            input=str(source),
            model=str(model_path),
            output=str(tmp_path / name),
            work=str(tmp_path / f"{name}.work"),
            shard=96,
            precision="fp32",
            **options,
        )

    return make


def pixels(path, *, traffic=None, threads=1):
    with (
        gdal_env(),
        open_dataset(path, traffic or Traffic(), num_threads=threads) as dataset,
    ):
        rows = range(0, dataset.height, 64)
        strips = [dataset.read(window=((row, row + 64), (0, 300))) for row in rows]
    return np.concatenate(strips, axis=1)


@pytest.mark.parametrize("threads", [1, 3])
def test_pixels_are_those_of_the_file_on_disk(threads, remotely, folder):
    _, address = remotely

    np.testing.assert_array_equal(
        pixels(folder / "scene.tif"), pixels(address, threads=threads)
    )


@pytest.mark.parametrize("rules", [[], EVERY_7TH], ids=["well", "every 7th fails"])
def test_every_block_is_fetched_once_and_every_failure_made_good(
    rules, remotely, folder
):
    line, address = remotely
    size = fetcher(address).look().size
    line.obey(*rules)
    traffic = Traffic()

    found = pixels(address, traffic=traffic)

    np.testing.assert_array_equal(pixels(folder / "scene.tif"), found)
    log = line.log("GET", "scene")
    faults = sum(bool(entry["action"]) for entry in log)
    assert faults <= traffic.retries  # a busy machine's own faults are made good, too
    assert len(log) == traffic.requests
    assert len(log) - traffic.retries == -(-size // BLOCK)
    assert traffic.bytes == size
    assert not rules or faults >= len(FAULTS)


@pytest.mark.slow
def test_a_job_gives_the_mask_that_it_gives_from_disk(remotely, folder, job, tmp_path):
    line, address = remotely
    assert run(job(folder / "scene.tif", "local")).error is None
    line.obey(*EVERY_7TH)

    record = run(job(address))

    assert record.error is None
    assert digests(tmp_path / "local") == digests(tmp_path / "remote")
    values = record.values
    assert values["counts"]["read_retries"] > 0
    assert values["counts"]["requests"] <= len(line.log("GET", "scene"))
    assert values["decode"]["bytes_fetched"] >= (folder / "scene.tif").stat().st_size
    assert values["scene"]["href"] == address
    assert values["scene"]["sha256"] is None
    assert values["scene"]["etag"]


def test_a_second_run_has_nothing_to_do(remotely, job):
    _, address = remotely
    first = run(job(address))
    remote.fetcher.cache_clear()

    second = run(job(address))

    assert first.error is second.error is None
    assert (first.is_news, second.is_news) == (True, False)


def test_an_interrupted_job_goes_on(remotely, job):
    _, address = remotely

    def stop():
        raise StorageError("stopped by the test")

    stopped = run(job(address), after(job(address), 3, stop))
    record = run(job(address))

    assert stopped.values["exit_code"] == ExitCode.STORAGE
    assert record.error is None
    assert record.values["counts"]["shards_reused"] >= 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, InputError), (410, InputError), (403, RefusedError), (401, RefusedError)],
)
def test_what_cannot_get_better_is_not_tried_again(status, kind, remotely):
    line, address = remotely
    line.obey({"action": "answer", "status": status, "code": "No"})

    with pytest.raises(kind) as caught:
        open_scene(address)

    assert address in str(caught.value)
    assert len(line.log("GET", "scene")) == 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.get("status")))
def test_a_server_that_keeps_failing_is_given_up(fault, proxies, monkeypatch):
    """Within the time-out and the time that failures may last."""
    monkeypatch.setattr(remote, "GIVE_UP_SECONDS", 0.8)
    line = proxies["http"]
    line.obey(fault)
    allow([line.address.partition("://")[2]])
    start = time.monotonic()

    with pytest.raises(StorageError, match="cannot be read") as caught:
        open_scene(f"{line.address}/scene.tif")

    assert caught.value.exit_code == 6
    assert time.monotonic() - start < 3 * 0.4 + 0.8
    assert len(line.log()) > 1


def test_a_scene_is_described_whole_or_not_at_all(site, folder, monkeypatch):
    """GDAL would leave out a mask, a tag or an overview that it cannot read."""
    monkeypatch.setattr(remote, "GIVE_UP_SECONDS", 0)
    path = folder / "masked.tif"
    profile = {"driver": "GTiff", "height": 200, "width": 150, "count": 1}
    profile |= {"dtype": "uint16", "transform": NORTH_UP, "tiled": True}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **profile, blockxsize=64, blockysize=64) as dataset,
    ):
        dataset.write(random_pixels(200, 150, bands=1))
        dataset.write_mask(np.eye(200, 150, dtype=bool))  # its directory comes last
    address, size = f"{site.address}/masked.tif", path.stat().st_size
    whole = open_scene(address)
    failed = 0

    for broken in range(BLOCK, size, BLOCK):
        site.be(broken=broken)
        try:
            assert whole == open_scene(address)
        except StorageError:
            failed += 1

    assert whole.origin.has_mask
    assert failed


def test_a_signal_within_a_read_is_told_as_it_is(site):
    """GDAL calls back into Python, and makes another error of what rises there."""

    def stop(_number, _frame):
        raise StopSignal(InterruptedRunError("stopped by the test"))

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with gdal_env(), open_dataset(f"{site.address}/scene.tif") as dataset:
            site.be(latency=5)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(StopSignal):
                dataset.read()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_look_at_what_a_file_is_takes_one_request(site):
    open_scene(f"{site.address}/scene.tif")

    heads = [entry for entry in site.log() if entry["range"] == "bytes=0-15"]
    rest = [entry["range"] for entry in site.log() if entry not in heads]
    assert len(heads) == 1
    assert all(int(said.rpartition("-")[2]) >= BLOCK - 1 for said in rest)


def test_no_scene_is_fetched_again_only_to_be_shown(site, folder, monkeypatch, caplog):
    """Without overviews; with them, and of a few pixels, there is a picture."""
    caplog.set_level("INFO")
    plain, small = folder / "plain.tif", folder / "small.tif"
    make_scene(plain, random_pixels(400, 300, nodata=0), compress=None)
    copyfile(plain, small)
    with rasterio.open(small, "r+") as dataset:
        dataset.build_overviews([2, 4, 8])
    monkeypatch.setattr(glance, "_MOST_FETCHED", plain.stat().st_size // 8)

    def picture(path, window):
        scene = open_scene(f"{site.address}/{path.name}")
        return glance.glance(scene, scene.bands, window, (40, 30))

    assert np.isnan(picture(plain, Window(0, 0, 400, 300))).all()
    assert "without overviews" in caplog.text
    assert np.isfinite(picture(small, Window(0, 0, 400, 300))).all()
    assert np.isfinite(picture(plain, Window(60, 60, 40, 30))).all()


def test_a_server_that_gives_a_byte_now_and_then_is_given_up(site, monkeypatch):
    monkeypatch.setattr(remote, "GIVE_UP_SECONDS", 1)
    site.be(trickle=0.2)
    start = time.monotonic()

    with pytest.raises(StorageError, match="takes too long"):
        open_scene(f"{site.address}/scene.tif")

    assert time.monotonic() - start < 3 * 0.4 + 1 + 1


def test_an_error_within_a_read_is_told_as_it_is(remotely, monkeypatch):
    """GDAL would say that a block is damaged, or nothing."""
    line, address = remotely
    with gdal_env(), open_dataset(address) as dataset, monkeypatch.context() as patch:
        patch.setattr(remote, "GIVE_UP_SECONDS", 0.3)
        line.obey({"action": "answer", "status": 500})
        with pytest.raises(StorageError, match="500"):
            dataset.read()
        line.obey()
    with gdal_env(), open_dataset(address) as dataset:
        line.obey({"action": "answer", "status": 403})
        with pytest.raises(RefusedError):
            dataset.read()


@pytest.mark.parametrize("tag", ["etag", "weak", "date"])
def test_a_file_that_changes_while_it_is_read_is_an_error(
    tag, site, job, folder, tmp_path, monkeypatch
):
    """And nothing is made of two versions; the next run makes a map of the new one."""

    def forward(self, tiles):
        time.sleep(0.3)  # else all may be read before anybody says how far it is
        return FORWARD(self, tiles)

    site.be(tag=tag)
    path = folder / f"{tag}.tif"
    copyfile(folder / "scene.tif", path)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    other = make_scene(tmp_path / "other.tif", random_pixels(410, 300, seed=1))

    def change():
        other.replace(path)

    todo = job(f"{site.address}/{tag}.tif", network="plain", run_shards=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", forward)
        record = run(todo, after(todo, 2, change))
    again = run(todo)

    assert record.values["exit_code"] == ExitCode.INPUT
    assert "while it was being read" in record.values["error"]
    assert again.error is None
    assert again.values["counts"]["shards_reused"] == 0


def test_another_version_is_another_request(site, folder, job):
    path = folder / "renewed.tif"
    copyfile(folder / "scene.tif", path)
    todo = job(f"{site.address}/renewed.tif")
    first = run(todo)
    make_scene(path, random_pixels(410, 300, seed=2))
    os.utime(path, (1_700_000_000, 1_700_000_000))

    second = run(todo)

    assert first.error is None
    assert second.values["exit_code"] == ExitCode.BUSY  # another plan is published


def test_what_has_no_version_is_hashed(site, folder):
    site.be(tag="none")

    found = look(f"{site.address}/scene.tif", None)
    local = look(str(folder / "scene.tif"), None)

    assert (local.size, local.sha256) == (found.size, found.sha256)
    assert local.facts() == found.facts()


def test_a_server_without_ranges_is_refused_unread(site, folder):
    (folder / "large.bin").write_bytes(bytes(64 << 20))
    site.be(ranges=False)

    with pytest.raises(UsageError, match="byte ranges"):
        open_scene(f"{site.address}/large.bin")


def test_an_empty_file_is_said_to_be(site, folder):
    (folder / "empty.tif").write_bytes(b"")

    with pytest.raises(InputError, match="empty"):
        open_scene(f"{site.address}/empty.tif")


def test_what_is_no_tiff_is_refused(site, folder):
    (folder / "vrt.tif").write_bytes(b"<VRTDataset>")

    with pytest.raises(RefusedError, match="not a GeoTIFF"):
        open_scene(f"{site.address}/vrt.tif")


@pytest.fixture
def canary(folder, tmp_path):
    """A server on loopback that nobody named."""
    with web.serve(folder, tmp_path / "canary") as site:
        yield site


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_a_server_within_is_asked_nothing_unless_it_is_named(host, canary):
    port = canary.address.rpartition(":")[2]

    for scheme in ("http", "https"):
        with pytest.raises(RefusedError, match="hosts ="):
            open_scene(f"{scheme}://{host}:{port}/scene.tif")

    assert canary.log() == []


def test_a_server_within_does_not_even_see_a_connection():
    """So nobody learns which ports are open, nor waits for those that are not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        with pytest.raises(RefusedError, match="hosts ="):
            open_scene(f"https://localhost:{port}/scene.tif")
        with pytest.raises(TimeoutError):
            listener.accept()
    with pytest.raises(RefusedError, match="hosts ="):
        open_scene(f"https://localhost:{port}/other.tif")


@pytest.mark.parametrize("to", ["{}/scene.tif", "https{}/scene.tif", "file:///etc/x"])
def test_no_redirect_leads_to_another_server(to, site, canary):
    to = to.format(canary.address if to[0] == "{" else canary.address[4:])
    site.be(redirect=f"{to}?sig={SECRET}")

    with pytest.raises(RefusedError, match="another server") as caught:
        open_scene(f"{site.address}/scene.tif")

    assert SECRET not in str(caught.value)
    assert canary.log() == []
    assert len(site.log()) == 1


@pytest.mark.parametrize("body", ["", "<p>it has moved</p>"])
def test_a_redirect_on_the_same_server_is_followed_but_not_for_ever(site, body):
    """On one connection."""
    site.be(redirect="/scene.tif", body=body)

    with pytest.raises(RefusedError, match="from address to address"):
        open_scene(f"{site.address}/old.tif")

    assert len(site.log()) == 5
    assert len({entry["port"] for entry in site.log()}) == 1


def test_a_redirect_to_what_is_no_address_is_refused(site):
    site.be(redirect="http://[x")

    with pytest.raises(RefusedError, match="no address"):
        open_scene(f"{site.address}/scene.tif")


@pytest.mark.parametrize("host", ["a..b", 64 * "a" + ".org", "ä..b"])
def test_a_host_that_cannot_be_is_not_waited_for(host, monkeypatch):
    monkeypatch.setattr(remote, "GIVE_UP_SECONDS", 0.2)

    with pytest.raises(InputError, match="no host can have such a name"):
        open_scene(f"https://{host}/scene.tif")


def test_gdal_itself_reaches_no_server(site):
    """Even where somebody gives it a name that asks it to."""
    name = f"/vsicurl/{site.address}/scene.tif"

    with gdal_env(), pytest.raises(rasterio.errors.RasterioIOError):
        rasterio.open(name, driver="GTiff")

    assert site.log() == []


@pytest.fixture
def netrc(tmp_path, monkeypatch):
    """A login for the test's servers; what a server must be told."""
    path = tmp_path / "netrc"
    path.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    return "Basic bWU6Y2FuYXJ5LTA4MTU="  # me:canary-0815


@pytest.fixture
def secure(folder, tmp_path, monkeypatch):
    """A server whose certificate is trusted."""
    pem = tmp_path / "server.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pem, "-out", "-"]
    made = subprocess.run(["openssl", *words], check=True, capture_output=True)  # noqa: S607
    pem.write_bytes(pem.read_bytes() + made.stdout)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with web.serve(folder, tmp_path / "secure", pem) as site:
        allow([site.host])
        yield site


def test_a_login_comes_from_netrc(secure, netrc):
    secure.be(login=netrc)

    assert open_scene(f"{secure.address}/scene.tif").size > 0


@pytest.mark.usefixtures("netrc")
def test_no_login_goes_over_plain_http(site):
    open_scene(f"{site.address}/scene.tif")

    assert site.log()
    assert all("authorization" not in entry["headers"] for entry in site.log())


def test_files_read_like_files(site, folder):
    """Whatever is read in whatever order: the bytes of the file, and memory bounded."""
    data = (folder / "scene.tif").read_bytes()
    random = np.random.default_rng(0)
    with RemoteFile(fetcher(f"{site.address}/scene.tif")) as file:
        for _ in range(300):
            start = int(random.integers(len(data) + 10))
            size = int(random.integers(6 * BLOCK))
            file.seek(start)

            assert data[start : start + size] == file.read(size)
            assert len(file._blocks) <= remote._BLOCKS
    assert file.error is None


@pytest.mark.parametrize("streams", [1, 3, 12])
def test_streams_side_by_side_fetch_nothing_twice(streams, site, folder):
    """As the bands of a planar file are read: in turn, each in its own place."""
    path = folder / "long.bin"
    path.write_bytes(os.urandom(36 * streams * BLOCK))
    traffic = Traffic()
    with RemoteFile(fetcher(f"{site.address}/long.bin"), traffic) as file:
        for step in range(2 * 36):
            for stream in range(streams):
                file.seek(stream * 36 * BLOCK + step * BLOCK // 2)
                file.read(BLOCK // 2)

    ahead = streams * remote._AHEAD  # each goes on a little into the next one's
    assert traffic.requests <= 36 * streams + ahead


def pump(source, seconds):
    """Read over and over from eight threads; return the requests' times."""
    end = time.monotonic() + seconds

    def read(_):
        while time.monotonic() < end:
            with suppress(TilesegError):
                source.read(0, 16)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def rate(log, start):
    return sum(entry["time"] > start for entry in log) / (log[-1]["time"] - start)


@pytest.mark.slow
@pytest.mark.alone
def test_throttling_lowers_the_request_rate_and_it_recovers(remotely):
    line, address = remotely
    source = fetcher(address)
    pump(source, 1)
    free = rate(line.log("GET", "scene"), line.log("GET", "scene")[0]["time"])
    line.obey({"action": "throttle", "rate": 10, "target": "scene"})
    begin = time.time()
    pump(source, 5)
    throttled = line.log("GET", "scene")
    line.obey()
    pump(source, 6)
    later = line.log("GET", "scene")

    slow = rate(throttled, begin + 2)
    assert slow < min(20, free / 2)
    served = [entry for entry in throttled if not entry["action"]]
    assert len(served) > 25  # and goes on
    assert rate(later, later[-1]["time"] - 1) > 2 * slow


def test_a_server_says_how_long_to_wait(site, monkeypatch):
    monkeypatch.setattr(gate, "_LONGEST_PAUSE", 0.7)
    site.be(status=429, retry="3600", times=1)
    start = time.time()

    assert fetcher(f"{site.address}/scene.tif").read(0, 4) == b"II*\0"

    first, second = site.log()
    assert (first["status"], second["status"]) == (429, 206)
    assert 0.6 < second["time"] - first["time"] < 2
    assert first["time"] >= start


def test_blocks_that_follow_are_on_their_way_before_they_are_asked_for(site, folder):
    """30 ms before each answer cost less than half of what they come to."""
    site.be(latency=0.03)
    path = folder / "ahead.bin"
    path.write_bytes(bytes(100 * BLOCK))
    source = fetcher(f"{site.address}/ahead.bin")
    source.look()
    start = time.monotonic()
    with RemoteFile(source) as file:
        while file.read(BLOCK):
            pass

    assert time.monotonic() - start < 100 * 0.03 / 2


@pytest.mark.slow
def test_a_secret_is_told_to_the_server_and_to_nobody_else(site, tmp_path, model_path):
    address = f"{site.address}/scene.tif?sig={SECRET}"
    words = [
        *("--input", address, "--host", site.host, "--model", model_path),
        *("--output", tmp_path / "out", "--work", tmp_path / "work", "-v", "-v"),
        *("--config", tmp_path / "job.toml", "--precision", "fp32"),
    ]
    (tmp_path / "job.toml").write_text("keep_work = true\nshard = 96\n")

    done = subprocess.run(
        [sys.executable, "-m", "tileseg.cli", "segment", *map(str, words)],
        check=False,
        capture_output=True,
        env={**os.environ, "CPL_DEBUG": "ON", "AWS_SECRET_ACCESS_KEY": SECRET},
    )

    assert done.returncode == 0, done.stderr.decode()
    assert all(SECRET in entry["target"] for entry in site.log())
    assert SECRET.encode() not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "run.json" for path in written)
    assert [p for p in written if SECRET.encode() in p.read_bytes()] == []
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["job"]["input"] == address.partition("?")[0]


@pytest.mark.parametrize(
    ("address", "settings"),
    [
        ("{}/gone.tif?sig=" + SECRET, {}),
        ("{}/scene.tif?sig=" + SECRET, {"ranges": False}),
        ("http://me:" + SECRET + "@{host}/scene.tif", {}),
        ("https://127.0.0.1:9/scene.tif?sig=" + SECRET, {}),
        ("https://no.such.host.invalid/scene.tif?sig=" + SECRET, {}),
        ("ftp://me:" + SECRET + "@host/scene.tif", {}),
    ],
)
def test_no_error_tells_a_secret(address, settings, site, job, monkeypatch, caplog):
    monkeypatch.setattr(remote, "GIVE_UP_SECONDS", 0.2)
    site.be(**settings)
    caplog.set_level("DEBUG", logger="")

    with pytest.raises(TilesegError) as caught:
        prepare(job(address.format(site.address, host=site.host)))

    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caplog.text
    assert "\n" not in str(caught.value)


def test_two_signed_addresses_of_one_path_are_two_files():
    first, second = (keep(f"https://host/get?file={name}") for name in "ab")

    assert first != second
    assert first == keep("https://host/get?file=a") == keep(first)


def test_a_signed_address_is_refused_with_ray(site, job):
    todo = job(f"{site.address}/scene.tif?sig={SECRET}", engine="ray")

    record = run(todo)

    assert record.values["exit_code"] == ExitCode.USAGE
    assert "signed" in record.values["error"]
    assert SECRET not in record.values["error"]


def test_the_limits_on_memory_count_what_is_held(site, job, folder):
    here = run(job(folder / "scene.tif", dry_run=True)).values["estimate"]
    there = run(job(f"{site.address}/scene.tif", dry_run=True)).values["estimate"]

    held = there["memory_mb"] - here["memory_mb"]
    assert held == pytest.approx(remote.memory_bytes(1) / 1e6)


def test_retries_wait_longer_each_time(proxies):
    line = proxies["http"]
    line.obey({"action": "answer", "status": 500, "times": 5})
    allow([line.address.partition("://")[2]])

    fetcher(f"{line.address}/scene.tif").read(0, 4)

    times = [entry["time"] for entry in line.log()]
    gaps = [second - first for first, second in pairwise(times)]
    assert len(times) == 6
    assert gaps[-1] > 2 * gaps[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["http", "s3"])
def test_300_mb_with_every_7th_request_failing(name, proxies, folder, monkeypatch):
    """Blocks and time-outs of the size that is in use, but for the patience."""
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(remote, "_STALL_SECONDS", 2)
    path, line = folder / "scene-300.tif", proxies[name]
    noise = np.random.default_rng(0).integers(1, 10_000, (3, 7300, 7100), np.uint16)
    make_scene(path, noise, compress=None, blockxsize=512, blockysize=512)
    assert path.stat().st_size > 300e6
    line.obey()
    address = "s3://maps/a b/scene-300.tif"
    if name == "http":
        allow([line.address.partition("://")[2]])
        address = f"{line.address}/scene-300.tif"
    else:
        monkeypatch.setenv("AWS_TIMEOUT", "60s")
        obstore.put(from_url("s3://maps/a b"), path.name, path)
        monkeypatch.setenv("AWS_TIMEOUT", "2s")
    line.obey(*EVERY_7TH)
    traffic, digest = Traffic(), sha256()
    with gdal_env(), open_dataset(address, traffic, num_threads=2) as dataset:
        for row in range(0, 7300, 512):
            digest.update(dataset.read(window=((row, row + 512), (0, 7100))))
    path.unlink()

    rows = (noise[:, row : row + 512] for row in range(0, 7300, 512))
    expected = sha256(b"".join(part.tobytes() for part in rows))
    assert digest.digest() == expected.digest()
    assert traffic.retries > 40


@pytest.mark.slow
@pytest.mark.alone
def test_a_server_that_answers_late_costs_little(tmp_path):
    """The whole job, 30 ms before every answer; the aim is 0.8, measured alone."""
    words = ["--latency", "0.03", "--size", "1600", "2100", "--rounds", "1", "--json"]
    words += ["--output", tmp_path, "--cache", tmp_path]

    out = subprocess.run(
        [sys.executable, BENCH, *words], check=True, capture_output=True, cwd=ROOT
    ).stdout

    share = json.loads(out)["rows"][-1]["figures"]["of_local"]
    print(f"of the rate from disk: {share:.2f}")  # noqa: T201  (a measurement)
    assert share > 0.5


@pytest.mark.slow
def test_nodes_of_a_cluster_read_for_themselves(site, folder, job, tmp_path):
    """And see the same version as the driver, and give the same bytes."""
    here = run(job(folder / "scene.tif", "local"))
    allow([site.host])

    there = run(
        job(f"{site.address}/scene.tif", engine="ray", workers=1, hosts=(site.host,))
    )

    assert here.error is there.error is None
    assert digests(tmp_path / "local") == digests(tmp_path / "remote")
    assert there.values["counts"]["requests"] > 0
