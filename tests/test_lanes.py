"""How cores are shared out, and that side by side is as good as one by one."""

import threading
from concurrent.futures import wait

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import lively, make_card, make_plain, random_pixels

from tileseg.errors import TileError
from tileseg.grid import Grid, Run
from tileseg.network.blend import Blend
from tileseg.network.bus import Ring
from tileseg.network.device import resolve_device
from tileseg.network.lanes import Lanes, Threads, share
from tileseg.network.model import Network
from tileseg.network.predict import Predictor, Scaling
from tileseg.network.unet import UNet
from tileseg.scenes.reader import Reader
from tileseg.scenes.scene import open_scene

GRID = Grid(height=141, width=197, tile=32, halo=8, shard=64)


@pytest.fixture(autouse=True)
def threads():
    """Lanes change what torch takes threads for."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@given(st.integers(1, 512), st.integers(1, 64))
def test_no_more_threads_compute_than_there_are_cores(cores, workers):
    """Unless there are more workers than cores, and always one at least."""
    mine = share("cpu", cores, workers)

    assert 1 <= mine.lanes * mine.lane <= max(1, cores // workers)
    assert mine.lanes <= 2
    assert mine.read == 1


@given(st.integers(1, 512), st.integers(1, 64))
def test_beside_a_gpu_all_cores_read(cores, workers):
    mine = share("cuda:1", cores, workers)

    assert mine.read == max(1, cores // workers)
    assert mine.lanes == 0


def test_calls_run_side_by_side():
    """Each waits for the other one here."""
    both = threading.Barrier(2)
    lanes = Lanes(Threads(lanes=2))

    done = wait([lanes.submit(both.wait, 30) for _ in range(2)], 60).done

    assert {0, 1} == {future.result() for future in done}


def test_without_lanes_a_call_is_over_when_it_was_asked_for():
    assert Lanes(Threads()).submit(threading.get_ident).result() == (
        threading.get_ident()
    )
    with pytest.raises(ZeroDivisionError):
        Lanes(Threads()).submit(divmod, 1, 0)


def make_network(outputs=3, kind=Network):
    torch.manual_seed(1)
    card = make_card(outputs=outputs, bands=("a", "b"), tile=32, halo=8)
    module = UNet(2, outputs, width=4, depth=2)
    lively(module)
    return kind(card, module, resolve_device("cpu", "fp32"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    pixels = random_pixels(GRID.height, GRID.width, bands=2)
    folder = tmp_path_factory.mktemp("lanes")
    blocks = {"tiled": True, "blockxsize": 32, "blockysize": 32}
    return open_scene(str(make_plain(folder / "a.tif", pixels, nodata=0, **blocks)))


def rows_of(scene, network, blend="crop", lanes=0, **options):
    """Return every layer of the scene, and what of a ring of buffers was used."""
    threads = Threads(lanes=lanes)
    blend = Blend(GRID.stride, GRID.halo, blend)
    scaling = Scaling((1e-4, 2e-4), (-0.5, 0.25))
    predictor = Predictor(
        network, GRID, blend, scaling, batch=3, threads=threads, **options
    )
    ring = Ring(predictor.bus.buffer, 2)
    reader = Reader(scene, scene.bands, GRID, empty=ring)
    (run,) = GRID.runs(list(Run(GRID.shape)), band=9, rows=9)
    strips = reader.strips(run, ring=blend.ring)
    found = list(predictor.rows(run, strips, layers=("confidence",)))
    return (
        np.concatenate([rows.labels for rows in found]),
        np.concatenate([rows.confidence for rows in found]),
    )


@pytest.mark.parametrize("blend", ["crop", "cosine"])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_lanes_and_buffers_used_again_change_no_pixel(lanes, blend, scene, monkeypatch):
    """Of strips one block high, in buffers that hold the next but one already."""
    monkeypatch.setattr("tileseg.scenes.raster._STRIP_ROWS", 32)
    torch.set_num_threads(1)
    network = make_network()
    expected = rows_of(scene, network, blend)
    actual = rows_of(scene, network, blend, lanes=lanes)

    assert len(np.unique(expected[0])) > 2
    np.testing.assert_array_equal(expected, actual)


@pytest.mark.parametrize("blend", ["crop", "cosine"])
def test_a_host_that_is_ahead_of_the_device_changes_no_pixel(blend, scene, monkeypatch):
    """As it is with a GPU, whose answers are waited for some batches later."""
    network = make_network()
    expected = rows_of(scene, network, blend)
    monkeypatch.setattr("tileseg.network.bus.Bus.ahead", 4)

    np.testing.assert_array_equal(expected, rows_of(scene, network, blend))


class Spoiled(Network):
    """Gives NaN, or Inf, for one tile of the fourth batch."""

    bad = float("nan")
    seen = 0

    def __call__(self, tiles_NBTT):
        logits = super().__call__(tiles_NBTT)
        self.seen += 1
        if self.seen == 4:
            logits = logits.clone()
            logits[1, 2, 5, 6] = self.bad
        return logits


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("lanes", "ahead"), [(0, 0), (0, 4), (1, 0)])
def test_the_tile_at_fault_is_named(lanes, ahead, bad, scene, monkeypatch):
    """The second of the fourth batch of three, however late that is looked at."""
    monkeypatch.setattr("tileseg.network.bus.Bus.ahead", ahead)
    network = make_network(kind=Spoiled)
    network.bad = bad

    with pytest.raises(TileError, match=r"tile \(row 0, column 10\)|tile \(row 1"):
        rows_of(scene, network, lanes=lanes)


def test_a_ring_gives_each_buffer_in_its_turn():
    """And a larger one where it is asked for more."""
    made = []

    def make(size):
        made.append(size)
        return np.zeros(size, np.uint8)

    ring = Ring(make, 2)
    first, second = ring(10), ring(20)
    first[:], second[:] = 1, 2
    third, fourth = ring(8), ring(30)

    assert (third.size, fourth.size) == (8, 30)
    assert np.shares_memory(first, third)
    assert not np.shares_memory(second, fourth)
    assert made == [10, 20, 30]
