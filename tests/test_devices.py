"""A device that fails costs no shard; one with too little memory gets less at once."""

import logging
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from making import digests, job_maker, make_scene, random_pixels, stop_after

from tileseg.errors import DeviceFaultError, DeviceMemoryError, ExitCode
from tileseg.job import run
from tileseg.network.device import device_error
from tileseg.network.unet import UNet

ROOT = Path(__file__).parents[1]
FORWARD = UNet.forward
SHARDS = 6  # of 96 pixels, in 230 x 170
ENOUGH = 3  # tiles: more than fit a device that is too small, in the tests

MEMORY = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "driver": torch.AcceleratorError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."),
}
FAULTS = {
    "illegal access": torch.AcceleratorError(
        "CUDA error: an illegal memory access was encountered\nCompile with ..."
    ),
    "assertion": RuntimeError("CUDA error: device-side assert triggered"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "cuBLAS": RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"),
    "ECC": torch.AcceleratorError("uncorrectable ECC error encountered"),
}


@pytest.fixture
def job(tmp_path, model_path):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(230, 170, seed=1))

    return job_maker(
        tmp_path,
        scene,
        model_path,
        shard=96,
        run_shards=(1, 1),
        precision="fp32",
        network="plain",  # whose forward is replaced
    )


def plans(task):
    return list(task.work_path.glob("*/plan.json"))


@pytest.fixture
def small(monkeypatch):
    """A device that is too small for four tiles; the batches that it was given."""
    seen = []

    def forward(self, tiles):
        seen.append(len(tiles))
        if len(tiles) > ENOUGH:
            raise MEMORY["CUDA"]
        return FORWARD(self, tiles)

    monkeypatch.setattr(UNet, "forward", forward)
    return seen


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY)
def test_too_little_memory_is_told_from_a_fault(error):
    assert type(device_error("cuda:0", error)) is DeviceMemoryError


@pytest.mark.parametrize("error", FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_device_is_told_in_one_line(error):
    told = device_error("cuda:0", error)

    assert type(told) is DeviceFaultError
    assert str(error).splitlines()[0] in str(told)
    assert "\n" not in str(told)


def test_other_errors_say_nothing_about_the_device():
    assert device_error("cpu", RuntimeError("shapes cannot be multiplied")) is None


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("asked", [None, 7])
def test_too_little_memory_halves_the_batch_of_the_whole_plan(
    job, small, caplog, workers, asked
):
    """The result is that of a job which asks for the smaller batch."""
    caplog.set_level(logging.WARNING)
    lowered = job(workers=workers, batch_size=asked, keep_work=True)
    steps = {None: [8, 4, 2], 7: [3]}[asked]

    values = run(lowered).values
    same = job("expected", batch_size=steps[-1])

    assert run(same).error is None
    assert values["exit_code"] == ExitCode.OK
    assert values["engine"]["batch_size"] == steps[-1]
    assert values["counts"]["shards_reused"] == 0
    assert values["plan_id"] == plans(lowered)[0].parent.name
    assert len(plans(lowered)) == 1
    assert digests(same.output_path) == digests(lowered.output_path)
    warned = [line for line in caplog.messages if "out of memory" in line]
    assert len(warned) == len(steps)
    assert small


@pytest.mark.parametrize("workers", [1, 2])
def test_what_did_not_fit_is_freed_before_the_next_try(job, monkeypatch, workers):
    """Else a large network would stand in the memory once for every try."""
    networks = weakref.WeakSet()
    most = 0

    def forward(self, tiles):
        nonlocal most
        networks.add(self)
        most = max(most, len(networks))
        if len(tiles) > ENOUGH:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return FORWARD(self, tiles)

    monkeypatch.setattr(UNet, "forward", forward)

    assert run(job(workers=workers)).error is None
    assert most == 1  # of one device, which both workers are on


def test_the_allocator_of_the_cpu_is_understood(job, monkeypatch):
    """What torch itself raises where no machine has as much."""

    def forward(self, tiles):
        if len(tiles) > ENOUGH:
            torch.empty(1 << 56)
        return FORWARD(self, tiles)

    monkeypatch.setattr(UNet, "forward", forward)

    values = run(job()).values

    assert values["exit_code"] == ExitCode.OK
    assert values["engine"]["batch_size"] == 2


def test_one_tile_that_is_too_much_ends_the_job(job, tmp_path, monkeypatch):
    def forward(_self, _tiles):
        raise MEMORY["CUDA"]

    monkeypatch.setattr(UNet, "forward", forward)

    values = run(job(allow_partial=True)).values

    assert values["exit_code"] == ExitCode.MODEL
    assert "even for one tile at a time; free" in values["error"]
    assert not (tmp_path / "out").exists()


def test_the_next_run_goes_on_with_the_smaller_batch(job, small, tmp_path):
    """And does not begin with what failed."""
    stopped = job()
    assert run(stopped, stop_after(stopped, 3)).error
    small.clear()

    values = run(stopped).values

    assert set(small) == {2}
    assert values["exit_code"] == ExitCode.OK
    assert values["counts"]["shards_reused"] >= 3
    assert run(job("expected", batch_size=2)).error is None
    assert digests(tmp_path / "expected") == digests(tmp_path / "out")


DIE = """
import os, signal, sys
sys.path.insert(0, "tests")
import test_devices as tests
from tileseg.base.bounds import Gates
from tileseg.plans.ledger import Ledger
from tileseg.settings import Job

def forward(self, tiles):
    if len(tiles) > tests.ENOUGH:
        raise tests.MEMORY["CUDA"]
    return tests.FORWARD(self, tiles)

def die(ledger):
    if ledger.plan.resolved["batch_size"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)

tests.UNet.forward = forward
Ledger._remove_given_up = die
tests.run(eval(sys.argv[1], {"Job": Job, "Gates": Gates}))
"""


def test_a_kill_between_two_batches_begins_with_the_smaller(job, small):
    """Both plans are there then; the one that was given up goes."""
    killed = job(batch_size=8, keep_work=True)
    ended = subprocess.run(
        [sys.executable, "-c", DIE, repr(killed)], cwd=ROOT, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert len(plans(killed)) == 2

    values = run(killed).values

    assert values["exit_code"] == ExitCode.OK
    assert small[0] == 4
    assert len(plans(killed)) == 1


@pytest.mark.parametrize(
    ("workers", "error"), [(1, FAULTS["illegal access"]), (2, FAULTS["cuDNN"])]
)
def test_a_device_fault_ends_the_job_and_the_next_run_resumes(
    job, tmp_path, monkeypatch, workers, error
):
    """It is no hole in the map either: other shards would meet the same device."""
    forwards = iter(range(1000))

    def forward(self, tiles):
        if next(forwards) > 5 * workers:
            raise error
        return FORWARD(self, tiles)

    faulty = job(workers=workers, allow_partial=True, batch_size=4)
    monkeypatch.setattr(UNet, "forward", forward)
    first = run(faulty)
    monkeypatch.undo()
    second = run(faulty).values

    assert isinstance(first.error, DeviceFaultError)
    assert first.values["exit_code"] == ExitCode.MODEL
    assert first.values["failures"] == []
    assert second["exit_code"] == ExitCode.OK
    done = first.values["counts"]["shards_done"]
    assert second["counts"]["shards_reused"] == done >= 1
    assert run(job("expected", batch_size=4)).error is None
    assert digests(tmp_path / "expected") == digests(tmp_path / "out")
