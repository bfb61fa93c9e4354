"""What a network says of blocks that it never saw. Shape letters: as in `losses.py`."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tileseg.calibrate import calibration
from tileseg.card import NODATA
from tileseg.scores import Confusion
from tileseg.train_tiles import Batch

__all__ = ["Judged", "judge", "plain"]

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
def judge(
    forward: Forward,
    batches: Iterable[Batch],
    names: tuple[str, ...],
    *,
    most: int,
    seed: int,
) -> Judged:
    """Compare a network's answers with labels.

    Args:
        forward: the network's.
        batches: tiles and labels.
        names: of the classes.
        most: pixels of a tile whose logits are kept, at most, on average.
        seed: of their choice.
    """
    counts = np.zeros((len(names), len(names) + 1), np.int64)
    logits_kept = [np.empty((0, len(names)), np.float32)]
    labels_kept = [np.empty(0, np.uint8)]
    random, loss = np.random.default_rng(seed), 0.0
    for batch in batches:
        logits_NKHW, labels_NHW = forward(batch)
        is_known = labels_NHW != NODATA
        logits, labels = logits_NKHW.movedim(1, -1)[is_known], labels_NHW[is_known]
        loss += float(
            nn.functional.cross_entropy(logits, labels.long(), reduction="sum")
        )
        truth, said = labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
        np.add.at(counts, (truth, said), 1)
        few = min(len(truth), most * len(labels_NHW))
        some = random.choice(len(truth), few, replace=False)
        logits_kept.append(logits.cpu().numpy()[some])
        labels_kept.append(truth[some])
    total = int(counts.sum())
    return Judged(
        Confusion(names, counts),
        loss / total if total else math.nan,
        np.concatenate(logits_kept),
        np.concatenate(labels_kept),
    )


def plain(value: Any) -> Any:  # noqa: ANN401  (JSON)
    """Return the same with null in the place of what is not finite."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
