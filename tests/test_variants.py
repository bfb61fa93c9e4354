"""Which way a network is run: the fastest that is right, the same for all workers."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import lively, make_card, make_model, stop_after
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tileseg.cards.item import read_card
from tileseg.engines.engine import LocalEngine
from tileseg.errors import DeviceFaultError, ExitCode, ModelError
from tileseg.job import run
from tileseg.network import averaging, variants
from tileseg.network.device import Device, default_batch, tile_bytes
from tileseg.network.model import Network, choose, load
from tileseg.network.unet import UNet
from tileseg.plans.task import prepare
from tileseg.settings import Job

CPU = Device("cpu", "any", "fp32")
GPU = Device("cuda", "any", "bf16")
CARD = make_card()
LONG = 10**12  # tiles


def ours():
    torch.manual_seed(0)
    module = UNet(3, 3, width=4, depth=2)
    lively(module)
    return module


def foreign():
    """Somebody else's network: tiles to logits, and no U-Net of ours."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 1), nn.Hardswish()
    )


def refuse(_network, _trim):
    msg = "no such instruction\nand a second line"
    raise RuntimeError(msg)


def spoil(network, _trim):
    """Return a fused form that is a little too much off."""
    return lambda tiles: network(tiles) * 1.001


@pytest.fixture
def job(scene_path, model_path, tmp_path):
    def make(**options):
        facts = {
            "input": str(scene_path),
            "model": str(model_path),
            "output": str(tmp_path / "out"),
            "shard": 96,
            "run_shards": (1, 1),
            "precision": "fp32",
        }
        return Job(**{**facts, **options})

    return make


def test_our_network_is_fused():
    device = choose(CARD, ours(), CPU, asked="auto", todo=1, trim=0).device

    assert replace(CPU, network="fused") == device


@pytest.mark.parametrize(
    ("fuse", "reason"),
    [(refuse, "no such instruction"), (spoil, "times as far off")],
    ids=["cannot", "is wrong"],
)
def test_what_is_not_right_is_not_used(fuse, reason, monkeypatch, caplog):
    """By itself the plain network runs, and one line says why; an order ends there."""
    monkeypatch.setattr(variants, "fuse", fuse)

    device = choose(CARD, ours(), CPU, asked="auto", todo=1, trim=0).device

    assert device == CPU
    (said,) = caplog.messages
    assert reason in said
    assert "\n" not in said
    with pytest.raises(ModelError, match=reason):
        choose(CARD, ours(), CPU, asked="fused", todo=1, trim=0)


def test_a_device_that_fails_is_not_taken_for_a_form_that_does(monkeypatch):
    def fault(_network, _trim):
        msg = "CUDA error: an illegal memory access was encountered"
        raise torch.AcceleratorError(msg)

    monkeypatch.setattr(variants, "fuse", fault)

    with pytest.raises(DeviceFaultError):
        choose(CARD, ours(), CPU, asked="auto", todo=1, trim=0)


def test_a_network_of_nan_is_as_wrong_in_every_form(caplog):
    """It is the plain one then, whose tiles are refused one by one."""
    module = ours()
    nn.init.constant_(module.final_conv.weight, torch.nan)

    assert choose(CARD, module, CPU, asked="auto", todo=1, trim=0).device == CPU
    assert len(caplog.messages) == 1


def test_compiling_has_to_earn_its_time(monkeypatch):
    """Only for others' networks, for many tiles, where there is a compiler."""
    monkeypatch.setenv("CXX", "true")  # which is everywhere, and does nothing
    feed = 3, CARD.tile

    assert not variants.is_worth_compiling(foreign(), 1, *feed)
    assert variants.is_worth_compiling(foreign(), LONG, *feed)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not variants.is_worth_compiling(foreign(), LONG, *feed)
    assert choose(CARD, foreign(), CPU, asked="auto", todo=LONG, trim=0).device == CPU


@pytest.mark.parametrize(
    ("names", "share"),
    [(["cpu"] * 3, 1), (["cuda:0", "cuda:1"], 2), (["cuda:0"] * 2, 1)],
    ids=["one CPU", "two GPUs", "two on a GPU"],
)
def test_what_compiles_for_itself_has_to_earn_it_by_its_share(
    names, share, job, monkeypatch
):
    """Workers on one device have one network, and do all of it together."""
    asked = []
    monkeypatch.setattr(
        averaging, "settle", lambda *_, todo, **_others: asked.append(todo)
    )
    monkeypatch.setattr(LocalEngine, "workers", lambda *_: names)
    task = prepare(job())

    LocalEngine().settle(task, CPU)

    assert asked == [ceil(task.grid.tiles.size / share)]


def test_anothers_network_is_compiled_where_it_earns_that(monkeypatch):
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr(variants, "_compile", lambda module: module)

    device = choose(CARD, foreign(), CPU, asked="auto", todo=LONG, trim=0).device

    assert device == replace(CPU, network="compiled")


def test_what_was_compiled_is_kept_in_the_users_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "before")
    variants._keep_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "before"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    variants._keep_cache()

    kept = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert kept == str(tmp_path / "tileseg" / "inductor")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_compiled_is_the_same_network(monkeypatch, tmp_path):
    """For every number of tiles; and of threads, for which nothing is built anew."""
    if not variants._has_compiler("cpu"):
        pytest.skip("needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    compiled = Network(CARD, foreign(), replace(CPU, network="compiled"))
    plain = Network(CARD, foreign(), CPU)

    tiles = [torch.randn(n, 3, CARD.tile, CARD.tile) for n in (1, 2, 5)]
    expected = [plain(some) for some in tiles]
    others = torch.get_num_threads() + 1
    answers, built = list(map(compiled, tiles)), set(tmp_path.rglob("*.so"))
    with ThreadPoolExecutor(1, "", torch.set_num_threads, (others,)) as lane:
        answers += lane.map(compiled, tiles)
    assert built
    assert set(tmp_path.rglob("*.so")) == built
    for actual, wanted in zip(answers, expected * 2, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


def test_there_is_no_fused_form_of_anothers_network():
    with pytest.raises(ModelError, match="no fused form of Sequential"):
        choose(CARD, foreign(), CPU, asked="fused", todo=1, trim=0)


def test_a_loaded_network_is_what_the_device_says_or_none(tmp_path, monkeypatch):
    """A worker whose plan says fused may not do something else in silence."""
    folder = make_model(tmp_path / "model")
    monkeypatch.setattr(variants, "fuse", spoil)

    with pytest.raises(ModelError, match="fused network") as caught:
        load(folder, read_card(folder), replace(CPU, network="fused"))

    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("asked", "way"), [("auto", "fused"), ("plain", "plain"), ("fused", "fused")]
)
def test_the_record_says_how_the_network_was_run(job, asked, way):
    values = run(job(network=asked)).values

    assert values["exit_code"] == ExitCode.OK
    assert values["engine"]["network"] == way


def test_a_plan_goes_on_as_it_began_or_not_at_all(job, monkeypatch):
    """Where its fused network cannot be run, no other one makes the other half."""
    stopped = job()
    run(stopped, stop_after(stopped, 3))
    monkeypatch.setattr(variants, "fuse", refuse)

    values = run(stopped).values

    assert values["exit_code"] == ExitCode.MODEL
    assert 'network = "plain"' in values["error"]
    assert run(job(network="plain")).values["exit_code"] == ExitCode.OK


@pytest.mark.parametrize("free", [0, 1, 2**20, 10**9, 12 * 10**9, 80 * 10**9])
def test_a_gpus_batch_fits_half_of_its_memory(free):
    """The largest power of two that does, up to 512 tiles; one if none does."""
    gpu = replace(GPU, memory=free)
    batch = default_batch(gpu, CARD, 100)

    assert batch in [1 << power for power in range(10)]
    assert batch == 1 or batch * tile_bytes(CARD, gpu) <= free / 2
    assert batch == 512 or 2 * batch * tile_bytes(CARD, gpu) > free / 2


def test_the_classic_network_fills_a_large_gpu():
    seed = make_card(outputs=1, tile=128, halo=16, width=64, depth=4)

    assert default_batch(replace(GPU, memory=78 << 30), seed, 10**6) == 512


@given(st.integers(1, 5000))
def test_two_forwards_side_by_side_end_together(todo):
    """On a CPU, and never later than with 16 tiles, which all others get."""
    fused = replace(CPU, network="fused")
    batch = default_batch(fused, CARD, todo)

    def slowest(size):
        return ceil(ceil(todo / size) / 2) * size

    assert default_batch(CPU, CARD, todo) == default_batch(fused, CARD, 20_000) == 16
    assert 1 <= batch <= 16
    assert slowest(batch) <= slowest(16)
    assert todo > 32 or slowest(batch) == ceil(todo / 2)


@pytest.mark.parametrize("network", ["plain", "fused"])
@pytest.mark.parametrize(
    "facts",
    [{"width": 8, "depth": 3}, {"width": 4, "depth": 1, "outputs": 20}],
    ids=["deep", "many classes"],
)
def test_a_batch_takes_no_more_than_it_is_said_to(network, facts):
    """As torch itself counts what is held, on a CPU: not several times less either."""
    card = make_card(tile=64, halo=8, **facts)
    module = UNet(3, card.outputs, **card.architecture.parameters)
    run_it = Network(card, module, replace(CPU, network=network))
    tiles = torch.randn(4, 3, 64, 64)
    run_it(tiles)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run_it(tiles)
    events = sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    held = most = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)

    assert 0.25 < most / (4 * tile_bytes(card, CPU)) < 1
