"""How wrong logits are. Shape letters: N tiles, K classes, H rows, W columns."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tileseg.cards.card import NODATA

__all__ = ["cross_entropy_and_dice"]


def cross_entropy_and_dice(
    logits_NKHW: Tensor,
    labels_NHW: Tensor,
    *,
    smoothing: float,
    dice: float,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """Return the cross-entropy of the labelled pixels and `dice` times the Dice loss.

    Dice: Milletari et al., V-Net, 3DV 2016; of each class over the batch, the mean of
    those that are there. Built of sums and products only: torch's own cross-entropy
    adds up in no fixed order on a GPU.

    Args:
        logits_NKHW: the network's, of fp32.
        labels_NHW: classes; 255, where nothing is known, counts for nothing.
        smoothing: share of a label that goes to all classes, in the cross-entropy.
        dice: weight of the Dice loss.
        total: this part of a batch's sums -> those of all of it.
    """
    classes = logits_NKHW.shape[1]
    known_NHW = labels_NHW != NODATA
    known_N1HW = known_NHW.unsqueeze(1)
    values = labels_NHW.masked_fill(~known_NHW, 0).long()
    truth_NKHW = nn.functional.one_hot(values, classes).movedim(-1, 1) * known_N1HW
    chances_NKHW = nn.functional.log_softmax(logits_NKHW, dim=1)
    soft_NKHW = truth_NKHW * (1 - smoothing) + known_N1HW * (smoothing / classes)
    said_NKHW = chances_NKHW.exp() * known_N1HW
    sums = [
        (soft_NKHW * chances_NKHW).sum()[None],
        known_NHW.sum()[None],
        (said_NKHW * truth_NKHW).sum(dim=(0, 2, 3)),
        said_NKHW.sum(dim=(0, 2, 3)),
        truth_NKHW.sum(dim=(0, 2, 3)),
    ]
    (cross, pixels), per_class = total(torch.cat(sums)).tensor_split([2])
    both_K, said_K, true_K = per_class.view(3, classes)
    f1_K = (2 * both_K + 1) / (said_K + true_K + 1)
    is_there_K = true_K > 0
    lost = ((1 - f1_K) * is_there_K).sum() / is_there_K.sum().clamp(min=1)
    loss: Tensor = dice * lost - cross / pixels.clamp(min=1)
    return loss
