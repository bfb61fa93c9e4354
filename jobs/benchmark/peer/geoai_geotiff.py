"""geoai: `predict_geotiff`, which reads windows and blends in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from geoai.inference import predict_geotiff
from numpy.typing import NDArray
from torch import nn

from benchmark.peer.contract import Wish


def segment(wish: Wish, network: nn.Module) -> NDArray[np.uint8]:
    """Return the scene's labels."""

    def labels_of(logits: NDArray[Any]) -> NDArray[np.uint8]:
        return np.asarray(logits.argmax(axis=0)[None], np.uint8)

    written = str(Path(wish.mask).with_suffix(".geoai.tif"))
    predict_geotiff(
        network,
        wish.scene,
        written,
        tile_size=wish.tile,
        overlap=wish.tile - wish.stride,
        batch_size=wish.batch,
        num_classes=wish.classes,
        output_dtype="uint8",
        output_nodata=255,
        preprocess_fn=wish.scaled,
        postprocess_fn=labels_of,
        device=wish.device,
        verbose=False,
    )
    with rasterio.open(written) as source:
        mask: NDArray[np.uint8] = source.read(1)
    return mask
