"""Fixtures shared by the tests."""

import tempfile
import threading
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from making import make_model, make_scene, random_pixels

from tileseg import job
from tileseg.scenes import identity

# A law holds however slow the machine is; a hang is what pytest-timeout is for.
settings.register_profile("tileseg", deadline=None)
settings.load_profile("tileseg")


@pytest.fixture(scope="session", autouse=True)
def _one_way_into_ray():
    """Ask no cluster of this process for a token: Ray remembers whether the first did.

    The driver of another mode could not be reached, and its actors would never start.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="session", autouse=True)
def _place_of_its_own(worker_id, tmp_path_factory):
    """Share no temporary directory with tests that run at the same time.

    What a job keeps there is named after where its results go, and a store of one test
    has the address of another's.
    """
    if worker_id == "master":
        yield
        return
    # Ray's sockets are in it, whose names must be short.
    sessions = tempfile.TemporaryDirectory(
        prefix="ts", dir="/tmp", ignore_cleanup_errors=True
    )
    with sessions as short, pytest.MonkeyPatch.context() as patch:
        Path(short, "ray").mkdir()
        patch.setenv("RAY_TMPDIR", short)
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)  # look at the environment again
        yield


@pytest.fixture
def scene_path(tmp_path):
    """A scene of 5 x 4 small shards (24 * 4 = 96 pixels): 410 rows, 300 columns."""
    return make_scene(tmp_path / "scene.tif", random_pixels(410, 300))


@pytest.fixture
def hashed(monkeypatch):
    """Each scene that this process hashes, and whether it is its turn."""
    real, told, hand = identity._sha256, [], []
    segment = job._segment

    def take_in_hand(it, *more):
        hand[:] = [Path(name).name for name in it.inputs]
        segment(it, *more)

    def hash_and_tell(path, *more):
        is_thread = threading.current_thread().name == "ahead"
        is_ahead = is_thread and Path(path).name not in hand
        told.append(f"{Path(path).name} {'ahead' if is_ahead else 'in turn'}")
        return real(path, *more)

    monkeypatch.setattr(job, "_segment", take_in_hand)
    monkeypatch.setattr(identity, "_sha256", hash_and_tell)
    return told


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    """A small random U-Net with three classes; stride 24."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def smp():
    """segmentation_models_pytorch."""
    return quiet_import("segmentation_models_pytorch")


def quiet_import(name):
    """Import a library that warns of others; torchvision's operators need not load.

    PyPI's torchvision is built for torch with CUDA. Beside torch for a CPU it lacks its
    operators, which no network here uses, and stops at those that it describes.
    """
    if not (torch.version.cuda or hasattr(torch.ops.torchvision, "nms")):
        for operator in ("nms", "qnms"):
            schema = "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)
