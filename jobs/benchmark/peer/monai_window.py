"""MONAI: `sliding_window_inference` over the whole scene in memory."""

import numpy as np
import rasterio
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import nn

from benchmark.peer.contract import Wish


def segment(wish: Wish, network: nn.Module) -> NDArray[np.uint8]:
    """Return the scene's labels."""
    with rasterio.open(wish.scene) as source:
        pixels = torch.from_numpy(wish.scaled(source.read()))
    logits = sliding_window_inference(
        pixels[None].to(wish.device),
        roi_size=(wish.tile, wish.tile),
        sw_batch_size=wish.batch,
        predictor=network,
        overlap=1 - wish.stride / wish.tile,
    )
    labels: NDArray[np.uint8] = logits.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
    return labels
