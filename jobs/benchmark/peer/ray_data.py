"""Ray Data: windows as rows, `map_batches` over an actor that has the network."""

import os
from typing import Any

import numpy as np
import rasterio
import ray
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import nn

from benchmark.peer.contract import Wish, place

Rows = dict[str, NDArray[Any]]


class Predict:
    """The network, in an actor."""

    def __init__(self, wish: Wish) -> None:
        """Load it."""
        self._wish, self._network = wish, wish.network()

    def __call__(self, rows: Rows) -> Rows:
        """Return labels for the pixels of a batch of rows."""
        tiles = torch.from_numpy(rows["pixels"]).to(self._wish.device)
        with torch.inference_mode():
            labels = self._network(tiles).argmax(dim=1).to(torch.uint8)
        return {
            "labels": labels.cpu().numpy(),
            "row": rows["row"],
            "col": rows["col"],
        }


def begin() -> None:
    """Start Ray, which no scene has to wait for."""
    ray.init(num_cpus=max(2, os.cpu_count() or 2), include_dashboard=False)


def segment(wish: Wish, network: nn.Module) -> NDArray[np.uint8]:
    """Return the scene's labels."""
    with rasterio.open(wish.scene) as source:
        shape = source.height, source.width
    rows, columns = (
        [*range(0, size - wish.tile, wish.stride), size - wish.tile] for size in shape
    )
    corners = [{"row": row, "col": col} for row in rows for col in columns]

    def read(row: dict[str, Any]) -> dict[str, Any]:
        window = Window(row["col"], row["row"], wish.tile, wish.tile)
        with rasterio.open(wish.scene) as source:
            return {**row, "pixels": wish.scaled(source.read(window=window))}

    answers = (
        ray.data.from_items(corners)
        .map(read)
        .map_batches(
            Predict,
            fn_constructor_args=(wish,),
            batch_size=wish.batch,
            concurrency=1,
            num_gpus=int(wish.device != "cpu"),
        )
    )
    mask = np.zeros(shape, np.uint8)
    for row in answers.iter_rows():
        place(mask, row["labels"], (int(row["row"]), int(row["col"])), wish)
    network.tiles = len(corners)  # type: ignore[assignment]  # the actor's own saw them
    return mask
