"""terratorch: `tiled_inference` over the whole scene in memory, with its blending."""

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from terratorch.tasks.tiled_inference import tiled_inference
from torch import nn

from benchmark.peer.contract import Wish


def segment(wish: Wish, network: nn.Module) -> NDArray[np.uint8]:
    """Return the scene's labels."""
    with rasterio.open(wish.scene) as source:
        pixels = torch.from_numpy(wish.scaled(source.read()))
    logits = tiled_inference(
        network,
        pixels[None].to(wish.device),
        crop=wish.tile,
        stride=wish.stride,
        batch_size=wish.batch,
    )
    labels: NDArray[np.uint8] = logits.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
    return labels
