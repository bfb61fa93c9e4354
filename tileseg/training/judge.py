"""What a network says of blocks that it never saw. Shape letters: as in `losses.py`."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tileseg.cards.card import NODATA
from tileseg.evaluation.scores import Confusion, count_pairs
from tileseg.training.calibrate import calibration
from tileseg.training.train_tiles import Batch

__all__ = ["Judged", "judged", "look"]

Found = tuple[NDArray[np.int64], float, NDArray[np.float32], NDArray[np.uint8]]
"""Of a batch: counts, sum of losses, some logits and their labels."""
Forward = Callable[[Batch], tuple[Tensor, Tensor]]
"""A batch -> fp32 logits, (N, K, H, W), and labels, (N, H, W), on the device."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """How labels and answers compare."""

    confusion: Confusion
    """Of all labelled pixels."""
    loss: float
    """Their mean negative log-likelihood; NaN of none."""
    logits: NDArray[np.float32]
    """(n, classes), of some of them."""
    labels: NDArray[np.uint8]
    """(n,)."""

    def scores(self) -> dict[str, Any]:
        """Return what it comes to, as plain values."""
        table = self.confusion
        return {
            "places": table.total,
            "accuracy": table.accuracy,
            "macro_f1": table.macro_f1,
            "macro_iou": table.macro_iou,
            "f1": dict(zip(table.names, table.f1.tolist(), strict=True)),
            "confusion": table.counts.tolist(),
            "calibration_error": calibration(self.logits, self.labels).error,
        }


@torch.inference_mode()
def look(
    forward: Forward,
    batches: Iterable[tuple[int, Batch]],
    classes: int,
    *,
    most: int,
    seed: int,
) -> list[Found]:
    """Compare a network's answers with labels, batch by batch.

    Args:
        forward: the network's.
        batches: tiles and labels, each with its number among all that are judged.
        classes: how many there are.
        most: pixels of a tile whose logits are kept, at most, on average.
        seed: of their choice, with the batch's number.
    """
    return [
        _look(forward, batch, classes, most, np.random.default_rng((seed, number)))
        for number, batch in batches
    ]


def judged(names: tuple[str, ...], found: Iterable[Found]) -> Judged:
    """Return what all batches come to, in their order.

    Args:
        names: of the classes.
        found: of each batch.
    """
    counts, losses, logits, labels = zip(_nothing(len(names)), *found, strict=True)
    confusion = Confusion(names, np.sum(counts, axis=0))
    return Judged(
        confusion,
        sum(losses) / confusion.total if confusion.total else math.nan,
        np.concatenate(logits),
        np.concatenate(labels),
    )


def _look(
    forward: Forward,
    batch: Batch,
    classes: int,
    most: int,
    random: np.random.Generator,
) -> Found:
    """Compare the answers to one batch."""
    logits_NKHW, labels_NHW = forward(batch)
    is_known = labels_NHW != NODATA
    logits, labels = logits_NKHW.movedim(1, -1)[is_known], labels_NHW[is_known]
    loss = nn.functional.cross_entropy(logits, labels.long(), reduction="sum")
    truth, said = labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
    counts = count_pairs(truth, said, classes)
    few = min(len(truth), most * len(labels_NHW))
    some = random.choice(len(truth), few, replace=False)
    return counts, float(loss), logits.cpu().numpy()[some], truth[some]


def _nothing(classes: int) -> Found:
    counts = np.zeros((classes, classes + 1), np.int64)
    return counts, 0.0, np.empty((0, classes), np.float32), np.empty(0, np.uint8)
