"""One library's whole job, timed: `python -m benchmark.peer <program> <wish>`."""

import json
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmark.peer.contract import Wish

_ALONE_SECONDS = 3


class Counted(nn.Module):
    """A network that counts the tiles it sees."""

    def __init__(self, module: nn.Module) -> None:
        """Stand before a network."""
        super().__init__()
        self.module = module
        self.tiles = 0

    def forward(self, tiles: Tensor) -> Tensor:
        """Pass tiles on."""
        self.tiles += len(tiles)
        logits: Tensor = self.module(tiles)
        return logits


def main(program: str, wish: Wish) -> None:
    """Do a whole job with a library; print seconds and tiles as JSON."""
    _spare_torchvision()
    module = import_module(f"benchmark.peer.{program}")
    if hasattr(module, "begin"):
        module.begin()
    alone = _alone(wish)
    start = time.perf_counter()
    network = Counted(wish.network())
    with torch.inference_mode():
        labels = module.segment(wish, network)
    _write(wish, labels)
    seconds = time.perf_counter() - start
    np.save(Path(wish.mask).with_suffix(".npy"), labels)
    print(json.dumps({"seconds": seconds, "tiles": network.tiles, "alone": alone}))


def _alone(wish: Wish) -> float:
    """Return tiles a second of the network alone, in this process."""
    network = wish.network()
    tiles = torch.randn(
        wish.batch, wish.bands, wish.tile, wish.tile, device=wish.device
    )
    with torch.inference_mode():
        network(tiles).sum().item()
        done, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < _ALONE_SECONDS:
            network(tiles).sum().item()  # waits for a GPU
            done += wish.batch
    return done / elapsed


def _write(wish: Wish, labels: NDArray[np.uint8]) -> None:
    with rasterio.open(wish.scene) as source:
        profile = source.profile
    profile |= {"count": 1, "dtype": "uint8", "nodata": 255, "compress": "deflate"}
    profile.pop("predictor", None)
    with rasterio.open(wish.mask, "w", **profile) as dataset:
        dataset.write(labels, 1)


def _spare_torchvision() -> None:
    """Let torchvision be imported where its operators do not load.

    PyPI's is built for torch with CUDA. Beside torch for a CPU it lacks its operators,
    which nobody here uses, and stops at those that it describes.
    """
    if not torch.version.cuda:
        for name in ("nms", "qnms"):
            schema = "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)


if __name__ == "__main__":
    main(sys.argv[1], Wish(**json.loads(sys.argv[2])))
