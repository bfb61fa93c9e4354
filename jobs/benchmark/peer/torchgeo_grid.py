"""torchgeo: a RasterDataset, a GridGeoSampler and a DataLoader."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GridGeoSampler

from benchmark.peer.contract import Wish, place


def segment(wish: Wish, network: nn.Module) -> NDArray[np.uint8]:
    """Return the scene's labels."""
    gain = torch.tensor(wish.gain).view(-1, 1, 1)
    bias = torch.tensor(wish.bias).view(-1, 1, 1)

    def scale(sample: dict[str, Tensor]) -> dict[str, Tensor]:
        sample["image"] = sample["image"] * gain + bias
        return sample

    dataset = RasterDataset(paths=[wish.scene], transforms=scale)
    x, y, _ = dataset.bounds
    xres, yres = dataset.res
    mask = np.zeros(
        (round((y.stop - y.start) / yres), round((x.stop - x.start) / xres)), np.uint8
    )
    sampler = GridGeoSampler(dataset, size=wish.tile, stride=wish.stride)
    loader = DataLoader(
        dataset,
        batch_size=wish.batch,
        sampler=sampler,
        num_workers=wish.workers,
        collate_fn=stack_samples,
    )
    for sample in loader:
        tiles = sample["image"].to(wish.device)
        labels = network(tiles).argmax(dim=1).to(torch.uint8).cpu().numpy()
        for part, (columns, rows, *_) in zip(labels, sample["bounds"], strict=True):
            corner = (
                round((y.stop - rows.stop) / yres),
                round((columns.start - x.start) / xres),
            )
            place(mask, part, corner, wish)
    return mask
